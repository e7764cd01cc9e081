"""The full-language engine, where bubblewrap is."""

from __future__ import annotations

from typing import Any

import pytest

from bxmesh.agent.v1 import function_pb2 as pb
from bxmesh.client.errors import from_status
from bxmesh.server.functions.container import find_container
from tests.functions.mesh import COMPLETED, FAILED, LIMITED, Caller, refused

pytestmark = pytest.mark.skipif(
    find_container() is None, reason="bubblewrap (bwrap) is not here, or the kernel does not let it"
)

CONTAINER = pb.FUNCTION_ENGINE_CONTAINER
IMPORTS = ["os", "sys", "socket", "subprocess", "threading", "ctypes", "asyncio", "importlib"]


async def run(caller: Caller, code: str, **fields: Any) -> Any:
    limits = pb.FunctionLimits(max_output_bytes=100_000)
    limits.timeout.FromSeconds(5)
    await caller.create(
        "test.full",
        code,
        engine=CONTAINER,
        is_async="async def main" in code,
        allowed_imports=IMPORTS,
        limits=limits,
        **fields,
    )
    return await caller.execute("test.full")


async def test_the_whole_language_is_there(admin: Caller) -> None:
    execution = await run(
        admin,
        "class Base:\n    n = 1\nclass Derived(Base):\n    pass\ndef count():\n    yield Derived.n\n"
        "    yield 2\ndef main():\n    print('hello')\n    return {'all': list(count())}\n",
    )
    assert execution.state == COMPLETED, execution.error
    assert [v for v in execution.output.struct_value["all"]] == [1, 2]
    assert execution.printed == "hello\n"
    assert execution.cpu_time.ToMicroseconds() > 0
    assert execution.peak_memory_bytes > 1 << 20


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("return open('/etc/passwd').read()", "No such file"),
        ("return open('/tmp/x', 'w').write('x')", "Read-only file system"),
        ("return open('/usr/x', 'w').write('x')", "Read-only file system"),
        ("import socket; socket.create_connection(('127.0.0.1', 50051), 1)", "Connection refused"),
        ("import socket; socket.create_connection(('192.0.2.1', 80), 1)", "unreachable"),
        ("import os; os.fork()", "not permitted"),
        ("import subprocess; subprocess.run(['/bin/true'])", "not permitted"),
        ("import os; os.execv('/bin/true', ['true'])", "not permitted"),
        ("import ctypes; return ctypes.string_at(0)", ""),
        ("import os; os.kill(os.getppid(), 9); return 1", ""),
        ("import os; os._exit(0)", "ended before"),
        ("import os; os.write(3, b'x' * 10**6)", ""),
        ("import os; os.write(3, b'[]\\n')", ""),
        ("raise SystemExit(3)", "SystemExit"),
        ("return {1, 2}", "not JSON serializable"),
    ],
)
async def test_nothing_is_reached(admin: Caller, body: str, says: str) -> None:
    execution = await run(admin, f"def main():\n    {body}\n")
    assert execution.state in (FAILED, LIMITED, COMPLETED)
    if says:
        assert execution.state != COMPLETED
        assert says in execution.error.message
    assert (await run(admin, "def main():\n    return 1\n")).state == COMPLETED


async def test_nothing_of_the_server_is_seen(
    admin: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_CANARY", "canary")
    execution = await run(
        admin,
        "import os\ndef main():\n    return {'environment': dict(os.environ), 'root': os.listdir('/'),"
        " 'processes': [n for n in os.listdir('/proc') if n.isdigit()], 'user': os.getuid()}\n",
    )
    seen = execution.output.struct_value
    assert set(seen["environment"]) <= {"HOME", "LANG", "PWD"}
    assert not {"home", "work", "var", "srv"} & {v for v in seen["root"]}
    assert len(list(seen["processes"])) <= 2
    assert seen["user"] == 65534


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("while True: pass", "TIME_LIMIT"),
        ("return 'x' * 10**10", "MEMORY_LIMIT"),
        ("return [bytearray(10**6) for _ in range(10**6)]", "MEMORY_LIMIT"),
        ("return main()", "RECURSION_LIMIT"),
        ("while True: print('x' * 1000)", "OUTPUT_LIMIT"),
        ("return 'y' * 10**6", "OUTPUT_LIMIT"),
    ],
)
async def test_limits_hold(admin: Caller, body: str, reason: str) -> None:
    execution = await run(admin, f"def main():\n    {body}\n")
    assert (execution.state, from_status(execution.error).reason) == (LIMITED, reason)


async def test_it_calls_what_it_is_granted(admin: Caller) -> None:
    execution = await run(
        admin,
        "import mesh\nasync def main():\n    found = await mesh.discover('no.body')\n"
        "    try:\n        await mesh.assign('no.body')\n    except RuntimeError as error:\n"
        "        return {'found': found, 'refused': str(error)}\n",
        host_functions=["mesh.discover", "mesh.assign"],
    )
    assert execution.state == COMPLETED, execution.error
    assert "CAPABILITY_MISSING" in execution.output.struct_value["refused"]


async def test_it_is_tried_before_it_is_stored(admin: Caller) -> None:
    error = await refused(
        admin.create(
            "test.bad",
            "def main(n):\n    return 1 // n\n",
            engine=CONTAINER,
            example_input={"n": 0},
        )
    )
    assert error.reason == "TRIAL_FAILED"
    assert "ZeroDivisionError" in error.message
