"""What the doctor says of healthy and of broken places."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from pydantic import ValidationError
from redis.asyncio import Redis

from bxmesh.server.app import serve
from bxmesh.server.cli.doctor import doctor
from bxmesh.server.doctor import Finding, engine, network, python, storage
from bxmesh.server.doctor import redis as redis_checks
from bxmesh.server.settings import Settings


def by_check(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.check: finding for finding in findings}


def run(*arguments: str, **environment: str) -> tuple[int, Any]:
    result = CliRunner().invoke(doctor, [*arguments, "--json"], env=environment)
    return result.exit_code, json.loads(result.output)


def test_fresh_machine_is_healthy_and_stays_untouched(short_dir: Path) -> None:
    state_dir = short_dir / "state"
    code, report = run("--state-dir", str(state_dir), "--listen", "127.0.0.1:0")
    checks = {check["check"]: check for check in report["checks"]}
    assert (code, report["ok"]) == (0, True), report
    assert not [c for c in checks.values() if c["level"] == "FAIL"]
    assert {
        "python",
        "packages",
        "cctbx",
        "restraint library",
        "redis",
        "clock",
        "server",
        "address",
        "state directory",
        "disk",
        "socket paths",
        "tls",
    } <= set(checks)
    assert all(bool(check["remedy"]) == (check["level"] != "OK") for check in checks.values())
    assert checks["redis"]["message"].startswith("Valkey ")
    assert "residues" in checks["restraint library"]["message"]
    assert not state_dir.exists()


def test_table_for_people(short_dir: Path) -> None:
    (short_dir / "admin.key").write_text("secret")
    (short_dir / "admin.key").chmod(0o644)
    result = CliRunner().invoke(
        doctor, ["--state-dir", str(short_dir), "--listen", "10.0.0.1:1"], env={"COLUMNS": "80"}
    )
    assert result.exit_code == 1
    assert f"→ Run: chmod 600 {short_dir}/admin.key" in result.output
    assert "can be reached by others" in result.output
    assert "secret" not in result.output


def test_settings_that_are_wrong(short_dir: Path) -> None:
    code, report = run("--state-dir", str(short_dir), BXMESH_WORKERS="many")
    assert (code, report["ok"]) == (1, False)
    (check,) = report["checks"]
    assert check["check"] == "settings"
    assert check["message"].startswith("workers: ")
    _, report = run("--state-dir", str(short_dir), BXMESH_LISTEN="here")
    assert report["checks"][0]["message"].startswith("listen: 'here' is neither")


async def test_running_server_is_asked(short_dir: Path) -> None:
    settings = Settings(state_dir=short_dir, listen="127.0.0.1:0", services=("registry",))
    async with serve(settings) as server:
        for _ in range(100):
            (finding,) = await asyncio.to_thread(network.check_server, settings)
            if finding.level == "OK":
                break
            await asyncio.sleep(0.05)
        assert finding.message == f"process {os.getpid()} on {server.address}, serving"
        findings = by_check(await asyncio.to_thread(redis_checks.check_redis, settings))
        assert "embedded, running" in findings["redis"].message
        assert {finding.level for finding in findings.values()} == {"OK"}
        findings = by_check(await asyncio.to_thread(storage.check_directories, settings))
        assert findings["admin key"].level == "OK"
    assert [f.check for f in network.check_server(settings)] == ["server", "address"]


async def test_server_without_workers_is_not_well(short_dir: Path) -> None:
    settings = Settings(state_dir=short_dir, listen="127.0.0.1:0", services=("geometry",))
    async with serve(settings):
        (finding,) = await asyncio.to_thread(network.check_server, settings)
        assert finding.level == "FAIL"
        assert "dependency:workers" in finding.message


def test_server_that_does_not_answer(short_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    file = {"pid": os.getpid(), "address": f"127.0.0.1:{port}", "tls": False}
    (short_dir / "server.json").write_text(json.dumps(file))
    (finding,) = network.check_server(Settings(state_dir=short_dir))
    assert finding.level == "FAIL"
    assert finding.message.endswith("does not answer: UNAVAILABLE")


def test_taken_addresses(short_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        finding = network.check_server(Settings(state_dir=short_dir, listen=address))[1]
        assert finding.level == "FAIL"
        assert f"(process {os.getpid()})" in finding.message
    assert network.check_server(Settings(state_dir=short_dir, listen=address))[1].level == "OK"
    path = short_dir / "a.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        finding = network.check_server(Settings(state_dir=short_dir, listen=f"unix:{path}"))[1]
        assert finding.level == "WARN"
    for listen in (f"unix:{path}", f"unix:{short_dir}/b.sock"):
        assert network.check_server(Settings(state_dir=short_dir, listen=listen))[1].level == "OK"


@pytest.mark.parametrize("listen", ["127.0.0.1:http", "127.0.0.1:70000", "nonsense"])
def test_addresses_that_are_none(listen: str) -> None:
    with pytest.raises(ValidationError, match="HOST:PORT"):
        Settings(listen=listen)


def test_address_that_cannot_be(short_dir: Path) -> None:
    settings = Settings(state_dir=short_dir, listen="unix:/none/a")
    finding = network.check_server(settings)[1]
    assert (finding.check, finding.level) == ("address", "FAIL")


def test_socket_paths(short_dir: Path) -> None:
    assert network.check_socket_paths(Settings(state_dir=short_dir))[0].level == "OK"
    settings = Settings(state_dir=short_dir, listen=f"unix:/{'a' * 120}")
    assert network.check_socket_paths(settings)[0].level == "FAIL"


async def test_redis_that_keeps_nothing(redis: Redis, shared_valkey: str) -> None:
    settings = Settings(redis_url=shared_valkey)
    good = await asyncio.to_thread(redis_checks.check_redis, settings)
    assert {finding.level for finding in good} == {"OK"}
    await redis.config_set("maxmemory", "1gb")
    await redis.config_set("maxmemory-policy", "allkeys-lru")
    await redis.config_set("appendonly", "no")
    try:
        bad = by_check(await asyncio.to_thread(redis_checks.check_redis, settings))
        assert bad["redis"].level == "OK"
        assert bad["redis memory"].level == bad["redis durability"].level == "WARN"
    finally:
        await redis.config_set("maxmemory-policy", "noeviction")
        await redis.config_set("maxmemory", "0")
        await redis.config_set("appendonly", "yes")


@pytest.mark.parametrize(
    "url", ["unix:///none/valkey.sock", "redis://:pass@127.0.0.1:1/0", "http://x"]
)
def test_redis_that_is_not_there(url: str) -> None:
    findings = by_check(redis_checks.check_redis(Settings(redis_url=url)))
    assert findings["redis"].level == "FAIL"
    assert "pass" not in findings["redis"].message


def test_places_that_cannot_be_used(short_dir: Path) -> None:
    (short_dir / "file").touch()
    for state_dir in (short_dir / "file", Path("/proc/bxmesh")):
        finding = storage.check_directories(Settings(state_dir=state_dir))[0]
        assert (finding.level, bool(finding.remedy)) == ("FAIL", True)
    open_dir = short_dir / "open"
    open_dir.mkdir()
    open_dir.chmod(0o755)
    (open_dir / "run").mkdir()
    (open_dir / "run").chmod(0o777)
    findings = by_check(storage.check_directories(Settings(state_dir=open_dir)))
    assert findings["state directory"].level == "WARN"
    assert findings["socket directory"].level == "FAIL"


def test_disk_that_is_full(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(state_dir=short_dir)
    monkeypatch.setattr(storage, "_GOOD_BYTES", 1 << 60)
    assert storage.check_disk(settings)[0].level == "WARN"
    monkeypatch.setattr(storage, "_LEAST_BYTES", 1 << 60)
    assert storage.check_disk(settings)[0].level == "FAIL"


@pytest.mark.parametrize(
    ("probe", "check", "words"),
    [
        ("import os; os.abort()", "cctbx", "SIGABRT"),
        ("raise ImportError('no module')", "cctbx", "ImportError: no module"),
        (
            """print('{"cctbx": "cctbx-base 2025.11"}', flush=True); import os; os.abort()""",
            "restraint library",
            "SIGABRT",
        ),
        ("""print('{"cctbx": "cctbx-base 2019.1"}')""", "cctbx", "older"),
    ],
)
def test_engine_that_crashes(
    monkeypatch: pytest.MonkeyPatch, probe: str, check: str, words: str
) -> None:
    monkeypatch.setattr(engine, "_PROBE", probe)
    findings = by_check(engine.check_engine(Settings()))
    assert findings[check].level != "OK"
    assert words in findings[check].message


def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(python, "_PACKAGES", ("no-such-package",))
    (finding,) = python.check_packages(Settings())
    assert (finding.level, finding.message) == ("FAIL", "no-such-package is not installed")
