"""`bxmesh security` as people use it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from bxmesh.client.cli import main
from bxmesh.server.embedded import EmbeddedMesh
from tests.processes import until

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def mesh() -> Iterator[EmbeddedMesh]:
    with EmbeddedMesh(workers=0) as mesh:
        yield mesh


@pytest.fixture
def run(mesh: EmbeddedMesh, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("BXMESH_STATE_DIR", str(mesh.state_dir))
    monkeypatch.setenv("BXMESH_ADDRESS", mesh.address)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("BXMESH_API_KEY", raising=False)

    def call(*arguments: str, key: str = "", code: int = 0, given: str = "") -> Result:
        environment = {"BXMESH_API_KEY": key} if key else {}
        result = CliRunner().invoke(main, ["security", *arguments], env=environment, input=given)
        assert result.exit_code == code, result.output
        return result

    return call


def test_an_identity_from_its_making_to_its_end(run: Run, tmp_path: Path) -> None:
    run("identities", "create", "alice", "--role", "reader", "--team", "blue")
    secret = run("keys", "create", "alice", "--lifetime", "12h").stdout.strip()
    assert re.fullmatch(r"bx_[a-z2-7]{12}_[\w-]{43}", secret)
    me = run("whoami", "--json", key=secret).stdout
    assert json.loads(me)["identity_id"] == "alice"
    assert "security_admin" in run("identities", "list", key=secret, code=1).output
    assert "task_assign" in run("grant", "alice", "task_assign").output
    run("revoke", "alice", "task_assign", "--role", "reader")
    assert "nothing" in run("whoami", key=secret).stdout
    assert "alice" in run("identities", "list").stdout

    file = tmp_path / "key"
    run("keys", "rotate", secret[:15], "--overlap", "0s", "--output", str(file))
    assert file.stat().st_mode & 0o777 == 0o600
    new = file.read_text().strip()
    run("whoami", key=secret, code=1)
    run("whoami", key=new)
    run("keys", "create", "alice", "--output", str(file), code=1)
    listed = json.loads(run("keys", "list", "alice", "--all", "--json").stdout)
    assert {key["key_id"] for key in listed} == {secret[:15], new[:15]}
    run("keys", "revoke", new[:15], "--reason", "lost")
    assert "revoked" in run("keys", "list", "alice", "--all").stdout
    run("identities", "disable", "alice")
    run("identities", "enable", "alice")
    run("identities", "delete", "alice", given="n\n", code=1)
    run("identities", "delete", "alice", "--yes")
    run("identities", "show", "alice", code=1)


def test_a_bundle_is_shared(run: Run, tmp_path: Path) -> None:
    run("identities", "create", "holder", "--role", "worker", "--team", "red")
    run("identities", "create", "mate", "--role", "reader", "--team", "red")
    keys = [run("keys", "create", name).stdout.strip() for name in ("holder", "mate")]
    file = tmp_path / "some.map"
    file.write_bytes(b"a map")

    def bundles(key: str, *arguments: str) -> Result:
        return CliRunner().invoke(main, ["bundles", *arguments], env={"BXMESH_API_KEY": key})

    stored = bundles(keys[0], "upload", str(file), "--kind", "map", "--json")
    bundle_id = json.loads(stored.stdout)["bundle_id"]
    assert bundles(keys[1], "show", bundle_id).exit_code == 1
    assert bundles(keys[1], "share", bundle_id, "--with", "all").exit_code == 1
    assert bundles(keys[0], "share", bundle_id, "--with", "team").exit_code == 0
    assert bundle_id in bundles(keys[1], "list").stdout
    assert bundles(keys[1], "delete", bundle_id).exit_code == 1
    assert bundles(keys[0], "share", bundle_id, "--with", "owner").exit_code == 0
    assert bundle_id not in bundles(keys[1], "list").stdout


def test_tokens(run: Run) -> None:
    token = run("tokens", "issue", "--lifetime", "5m", "--permission", "registry_read").stdout
    token_id = re.search(r"revoke (\S+)", run("tokens", "issue").stderr)
    assert json.loads(run("whoami", "--json", key=token.strip()).stdout)[
        "effective_permissions"
    ] == ["registry_read"]
    assert token_id is not None
    run("tokens", "revoke", token_id[1])
    assert "Ed25519" in run("tokens", "keys").stdout
    assert "is no duration" in run("tokens", "issue", "--lifetime", "soon", code=2).output


def test_roles(run: Run) -> None:
    run("roles", "create", "looker", "registry_read", "--description", "looks")
    run("roles", "update", "looker", "registry_read", "bundle_read")
    assert "registry_read, bundle_read" in run("roles", "list").stdout
    run("roles", "update", "looker", code=2)
    run("roles", "create", "odd", "no_such_thing", code=1)
    run("roles", "delete", "looker", "--yes")
    permissions = json.loads(run("roles", "permissions", "--json").stdout)
    assert "security_admin" in [permission["name"] for permission in permissions]


def test_the_example_of_a_policy_can_be_applied(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(run("policy", "example").stdout)
    assert "+ rate_limits[everybody].burst: 400" in run("apply", str(file), "--dry-run").output
    run("apply", str(file), given="n\n", code=1)
    assert "policy show" not in run("apply", str(file), "--yes", "--comment", "first").output
    assert "Nothing changes" in run("apply", str(file)).output
    shown = tmp_path / "shown.yaml"
    shown.write_text(run("policy", "show").stdout)
    assert "Nothing changes" in run("apply", str(shown)).output
    assert "first" in run("policy", "list").stdout
    file.write_text("{}")
    assert "- rate_limits[everybody].burst: 400" in run("apply", str(file), "--yes").output
    run("blocks", "list")
    run("blocks", "delete", "192.0.2.1", code=1)


@pytest.mark.parametrize(
    "text",
    [
        "rate_limits: [{nam: x}]",
        "a: &a [1]\nb: [*a, *a]",
        "[1, 2]",
        "rate_limits: 7",
        "!!python/object/apply:os.system ['true']",
        "\t: x",
        "[" * 5000,
        "rate_limits: [{name: x, rate: -1, burst: 1}]",
        "ip_rules: [{network: nonsense}]",
    ],
)
def test_what_is_no_policy_is_refused_with_a_remedy(run: Run, tmp_path: Path, text: str) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(text)
    result = run("apply", str(file), "--yes", code=1)
    assert "Error" in result.output
    assert "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)


async def test_what_was_refused_is_seen(run: Run, tmp_path: Path) -> None:
    run("whoami", key="garbage", code=1)

    def seen() -> bool:
        return "authentication" in run("violations", "list").stdout

    await until(seen)
    assert json.loads(run("violations", "list", "--kind", "authentication", "--json").stdout)
    assert json.loads(run("violations", "list", "--kind", "forgery", "--json").stdout) == []
    run("violations", "list", "--kind", "nonsense", code=1)
    report = run("report", "--period", "1h").stdout
    assert "authentication" in report
    assert "█" in report
    assert "login.failed" in run("audit", "list", "--type", "login.*").stdout
    assert "entries fit" in run("audit", "verify").stdout
    file = tmp_path / "audit.jsonl"
    run("audit", "export", str(file))
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["sequence"] for line in lines] == list(range(1, len(lines) + 1))
    assert all(len(line["hash"]) == 64 for line in lines)
