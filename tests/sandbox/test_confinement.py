"""A worker that somebody has taken over: what it tries, the kernel refuses."""

from __future__ import annotations

import platform
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from bxmesh.server.sandbox.confinement import Confinement, confine, possible
from bxmesh.server.settings import Settings

# Written as if Python's own fence were not there.
PROBE = """
import ctypes, errno, os, socket, sys, tempfile, threading
from pathlib import Path
from bxmesh.server.sandbox import confine
from bxmesh.server.settings import Settings

settings = Settings(state_dir=Path({state!r}), redis_url="redis://127.0.0.1:{redis}/0",
                    cache_dir=Path({state!r}) / "cache")
settings.prepare_directories()
run_dir = settings.run_dir
(settings.state_dir / "admin.key").write_text("secret")
print(confine(settings))
libc = ctypes.CDLL(None, use_errno=True)

def refused(what, attempt):
    try:
        attempt()
    except OSError as error:
        print(what, errno.errorcode.get(error.errno, error.errno))
    else:
        print(what, "DONE")

def call(number, *arguments):
    if libc.syscall(number, *arguments) < 0:
        raise OSError(ctypes.get_errno(), "")

def everything():
    refused("admin key", (settings.state_dir / "admin.key").read_text)
    refused("home", lambda: os.listdir({home!r}))
    refused("elsewhere", lambda: Path({outside!r}).write_text("x"))
    refused("program", lambda: os.execv("/bin/true", ["true"]))
    refused("fork", os.fork)
    refused("ptrace", lambda: call({ptrace}, 0, 0, 0, 0))
    refused("io_uring", lambda: call(425, 8, 0))
    refused("namespace", lambda: call({unshare}, 0x10000000))
    other = socket.socket()
    other.settimeout(5)
    refused("other port", lambda: other.connect(("127.0.0.1", {port})))
    redis = socket.socket()
    redis.settimeout(5)
    refused("redis", lambda: redis.connect(("127.0.0.1", {redis})))
    refused("bundles", lambda: (settings.bundle_dir / "x").write_text("x"))
    refused("temporary", lambda: tempfile.NamedTemporaryFile().close())
    refused("socket", lambda: socket.socket(socket.AF_UNIX).bind(str(settings.run_dir / "s")))
    assert settings.run_dir == run_dir
    refused("library", lambda: Path(os.__file__).read_text())

thread = threading.Thread(target=everything)
thread.start()
thread.join()
"""


@pytest.mark.skipif(not possible().complete, reason="this kernel cannot confine a process whole")
def test_what_a_confined_process_cannot_do(tmp_path: Path) -> None:
    numbers = {"x86_64": (101, 272), "aarch64": (117, 97)}[platform.machine()]
    outside = tmp_path / "outside"
    outside.mkdir()
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        socket.create_server(("127.0.0.1", 0)) as redis,
    ):
        code = PROBE.format(
            state=str(tmp_path / "state"),
            home=str(outside),
            outside=str(outside / "file"),
            port=other.getsockname()[1],
            redis=redis.getsockname()[1],
            ptrace=numbers[0],
            unshare=numbers[1],
        )
        result = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    lines = result.stdout.splitlines()
    assert lines[0] == str(Confinement(True, True, True)), result.stderr
    assert dict(line.rsplit(" ", 1) for line in lines[1:]) == {
        "admin key": "EACCES",
        "home": "EACCES",
        "elsewhere": "EACCES",
        "program": "EPERM",
        "fork": "EPERM",
        "ptrace": "EPERM",
        "io_uring": "EPERM",
        "namespace": "EPERM",
        "other port": "EACCES",
        "redis": "DONE",
        "bundles": "DONE",
        "temporary": "DONE",
        "socket": "DONE",
        "library": "DONE",
    }, result.stderr


def test_a_sandbox_that_is_required_is_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "bxmesh.server.sandbox.confinement.possible", lambda: Confinement(True, False, True)
    )
    with pytest.raises(OSError, match="bxmesh doctor"):
        confine(Settings(state_dir=tmp_path, sandbox="require"))


FENCE = """
import sys
from bxmesh.server.sandbox import ModuleFence

told = []
fence = ModuleFence(told.append)
fence.extra = frozenset({"wave", "xmlrpc.client"})
fence.close()

def tried(what, attempt):
    try:
        attempt()
    except (ImportError, PermissionError) as error:
        print(what, type(error).__name__)
    else:
        print(what, "DONE")

import os, subprocess
tried("socketserver", lambda: __import__("socketserver"))
tried("turtle", lambda: __import__("turtle"))
tried("wave", lambda: __import__("wave"))
tried("xmlrpc.server", lambda: __import__("xmlrpc.server"))
tried("system", lambda: os.system("true"))
tried("popen", lambda: subprocess.Popen(["true"]))
tried("fork", os.fork)
sys.meta_path.clear()
print(sorted(set(told)))
"""


def test_what_a_worker_does_not_import() -> None:
    result = subprocess.run(
        [sys.executable, "-c", FENCE], capture_output=True, text=True, timeout=60, check=True
    )
    lines = result.stdout.splitlines()
    assert dict(line.split(" ") for line in lines[:-1]) == {
        "socketserver": "ImportError",
        "turtle": "ImportError",
        "wave": "DONE",
        "xmlrpc.server": "ImportError",
        "system": "PermissionError",
        "popen": "PermissionError",
        "fork": "PermissionError",
    }
    assert "import socketserver" in lines[-1]
    assert "os.system" in lines[-1]
