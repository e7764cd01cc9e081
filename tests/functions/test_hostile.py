"""Hostile functions: nothing is reached, limits hold, and the next call works."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc
import pytest
import pytest_asyncio

from bxmesh.agent.v1 import function_pb2 as pb
from bxmesh.client.errors import BxmeshError, from_rpc_error, from_status
from bxmesh.server.streams import connect
from bxmesh.server.streams.ending import end_tasks
from tests.functions.hostile_code import CASES, MODULES, Hostile
from tests.functions.mesh import (
    COMPLETED,
    FAILED,
    LIMITED,
    Caller,
    World,
    refused,
    schema,
    seconds,
    struct,
)
from tests.functions.mesh import world as run_world
from tests.processes import command, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

WORKERS = 2
# Calls of the host have processes of their own.
MOST_PROCESSES = 2 * WORKERS
CANARY = "canary-4f1c9a"
SECRETS = (CANARY, "root:", "GRPC_", "bxmesh.server", "site-packages", "monty-")
MEMORY = 32 << 20
# What a worker holds besides the values of a function: itself, and what it has for checking types.
OVERHEAD = 256 << 20
# A net for what hangs; nothing here is about speed.
HANGS_SECONDS = 60
REFUSALS = frozenset(
    {
        "CODE_INVALID",
        "ENTRY_POINT_MISSING",
        "HOST_FUNCTION_UNKNOWN",
        "IMPORT_NOT_ALLOWED",
        "SCHEMA_INVALID",
        "SCHEMA_MISMATCH",
        "SIGNATURE_MISMATCH",
        "TRIAL_FAILED",
        "TYPES_INVALID",
    }
)
ENDS = {
    FAILED: frozenset({"FUNCTION_FAILED", "OUTPUT_INVALID", "OUTPUT_MISMATCH", "CODE_INVALID"}),
    LIMITED: frozenset(
        {"TIME_LIMIT", "MEMORY_LIMIT", "RECURSION_LIMIT", "OUTPUT_LIMIT", "HOST_CALL_LIMIT"}
    ),
}
# A machine that is busy may take all the time for anything; what the sandbox does not know is said
# when the code is stored.
ALWAYS = frozenset({"TIME_LIMIT", "TRIAL_FAILED", "CODE_INVALID"})
ORDINARY = """
import json
import math
import re

def main(n):
    return [n, f'{math.pi:.2f} {json.loads("[2]")} {re.sub("a", "b", "a")} {len(str(n))}']
"""


@dataclass
class Target:
    """A running server, with something to steal."""

    world: World
    folder: Path

    @property
    def file(self) -> Path:
        return self.folder / "canary.txt"

    @property
    def admin(self) -> Caller:
        return self.world.admin

    async def intact(self) -> None:
        """Fails unless ordinary calls work on all workers, and there are not more of these."""
        executions = await asyncio.gather(
            *(self.admin.execute("ordinary", {"n": n}) for n in range(WORKERS))
        )
        for execution in executions:
            assert execution.state == COMPLETED, execution.error
            assert execution.output.list_value.values[1].string_value == "3.14 [2] b 1"
        await until(lambda: len(workers()) <= MOST_PROCESSES)
        assert self.file.read_text() == CANARY
        assert not Path("/tmp/bxmesh-hostile").exists()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def target(shared_valkey: str) -> AsyncIterator[Target]:
    """One server for all that is done to it."""
    redis = connect(shared_valkey)
    await redis.flushall()
    await redis.aclose()
    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory(prefix="bx-") as name:
        patch.setenv("BXMESH_TEST_CANARY", CANARY)
        (Path(name) / "canary.txt").write_text(CANARY)
        async with run_world(shared_valkey, Path(name), function_workers=WORKERS) as world:
            await world.admin.create("ordinary", ORDINARY)
            yield Target(world, Path(name))


def workers() -> list[int]:
    """The sandbox's processes."""
    listed = [file.read_text().split() for file in Path("/proc/self/task").glob("*/children")]
    return [pid for pids in listed for pid in map(int, pids) if "monty" in command(pid)]


def silenced(code: str, complaints: str) -> str:
    """Code whose types nobody complains of, as whoever means harm would write it."""
    lines = code.split("\n")
    for place in re.findall(r"function\.py:(\d+):\d+: ", complaints):
        line = lines[int(place) - 1]
        if "# type: ignore" not in line:
            lines[int(place) - 1] = f"{line}  # type: ignore"
    return "\n".join(lines)


async def stored(caller: Caller, name: str, case: Hostile, code: str) -> BxmeshError | None:
    """Stores a function; returns why not."""
    fields = {"allowed_imports": MODULES, **case.fields}
    depth = fields.pop("recursion", 0)
    limits = seconds(1, max_memory_bytes=MEMORY, max_recursion_depth=depth)
    while True:
        try:
            await caller.create(
                name, code, is_async="async def main" in code, limits=limits, **fields
            )
        except grpc.aio.AioRpcError as problem:
            error = from_rpc_error(problem)
        else:
            return None
        if error.reason != "TYPES_INVALID" or (quiet := silenced(code, error.message)) == code:
            return error
        code = quiet


def reason_of(execution: pb.Execution) -> str:
    """Why an execution ended, "COMPLETED" for no reason; fails for what has no known reason."""
    if execution.state == COMPLETED:
        assert not execution.HasField("error")
        return "COMPLETED"
    reason = from_status(execution.error).reason
    assert reason in ENDS[execution.state], execution
    return reason


def require_nothing_told(*texts: str) -> None:
    """Fails when a text says what nobody may hear."""
    for text in texts:
        for secret in SECRETS:
            assert secret not in text


async def require_nothing_reached(target: Target, name: str) -> None:
    """Fails when a case reaches what it may not, or leaves the server less than intact."""
    case = CASES[name]
    code = case.code.replace("@FILE@", str(target.file)).replace("@FOLDER@", str(target.folder))
    stored_as = f"hostile.{name.replace('-', '.')}"
    async with asyncio.timeout(HANGS_SECONDS):
        error = await stored(target.admin, stored_as, case, code)
        if error is not None:
            reason = error.reason
            assert error.code is grpc.StatusCode.INVALID_ARGUMENT, error
            assert reason in REFUSALS, error
            require_nothing_told(error.message)
        else:
            execution = await target.admin.execute(
                stored_as, dict(case.arguments), limits=seconds(0.15)
            )
            reason = reason_of(execution)
            require_nothing_told(str(execution))
            # The error names what the code has named.
            assert "passwd" not in str(execution.output)
            assert execution.peak_memory_bytes < MEMORY + OVERHEAD
        assert not case.reasons or reason in case.reasons | ALWAYS
        await target.intact()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def attempts(
    target: Target, request: pytest.FixtureRequest
) -> AsyncIterator[dict[str, asyncio.Task[None]]]:
    """All cases that are asked for, as many at a time as there are workers."""
    room = asyncio.Semaphore(WORKERS)

    async def attempt(name: str) -> None:
        async with room:
            await require_nothing_reached(target, name)

    asked = {item.name for item in request.session.items}
    tasks = {
        name: asyncio.create_task(attempt(name))
        for name in CASES
        if f"test_nothing_is_reached[{name}]" in asked
    }
    yield tasks
    await end_tasks(*tasks.values())


@pytest.mark.parametrize("name", CASES)
async def test_nothing_is_reached(attempts: dict[str, asyncio.Task[None]], name: str) -> None:
    await attempts[name]


# What is left behind

LEFT = {
    "module_attribute": ("import math\nmath.pi = 0", "import math\nreturn math.pi > 3"),
    "module_function": (
        "import json\njson.loads = lambda text: 'replaced'",
        "import json\nreturn json.loads('[1]') == [1]",
    ),
    "setattr": ("import math\nsetattr(math, 'pi', 0)", "import math\nreturn math.pi > 3"),
    "builtin": (
        "global len\nlen = lambda x: 42",
        "return len('a') == 1",
    ),
    "builtin_by_exec": ("exec('len = lambda x: 42')", "return len('a') == 1"),
    "global": ("global LEFT\nLEFT = 'secret'", "return 'LEFT' in LEFT"),
    "function": ("exec('def helper(): return 1')", "return helper() == 2"),
    "input": ("exec('bxmesh_input = {\"n\": 666}')", "return eval('bxmesh_input') == {}"),
    "input_of_others": ("return 1", "return 'secret' not in str(eval('bxmesh_input'))"),
    "class_attribute": ("import re\nre.Pattern.x = 1", "import re\nreturn re.Pattern.x == 2"),
    "decimal_context": (
        "import decimal\ndecimal.getcontext().prec = 1",
        "import decimal\nreturn decimal.getcontext().prec == 28",
    ),
    "constant_list": ("import string\nstring.printable += 'x'", "return True"),
    "cache": (
        "import functools\n@functools.cache\ndef f(x):\n    return 'secret'\nf(1)",
        "return f(1) == 2",
    ),
}


@pytest.mark.parametrize("name", LEFT)
async def test_nothing_is_left_behind(target: Target, name: str) -> None:
    def main(body: str) -> str:
        lines = body.split("\n")
        return "\n".join(["def main():", *(f"    {line}" for line in lines), "    return 1", ""])

    leave, look = LEFT[name]
    error = await stored(target.admin, f"left.leave.{name}", Hostile(""), main(leave))
    assert error is None or error.reason in REFUSALS
    error = await stored(target.admin, f"left.look.{name}", Hostile(""), main(look))
    assert error is None or error.reason in REFUSALS
    if error is None:
        leaver = await target.admin.stub.GetFunction(
            pb.GetFunctionRequest(name=f"left.look.{name}"), metadata=target.admin.metadata
        )
        assert leaver.function.name
        for _ in range(WORKERS):
            await asyncio.gather(
                *(attempted(target.admin, f"left.leave.{name}") for _ in range(WORKERS))
            )
            for execution in await asyncio.gather(
                *(target.admin.execute(f"left.look.{name}") for _ in range(WORKERS))
            ):
                # What is not there is an error; what is there is clean.
                assert execution.state == FAILED or execution.output.bool_value, execution
                assert "secret" not in str(execution)
    await target.intact()


async def attempted(caller: Caller, name: str) -> None:
    """Executes what may not even have been stored."""
    try:
        await caller.execute(name)
    except grpc.aio.AioRpcError as error:
        assert from_rpc_error(error).reason == "FUNCTION_NOT_FOUND"


async def test_random_numbers_are_not_those_of_others(target: Target) -> None:
    await target.admin.create(
        "left.seeds",
        "import random\ndef main():\n    random.seed(1)\n    return random.random()\n",
        allowed_imports=["random"],
    )
    await target.admin.create(
        "left.draws",
        "import random\ndef main():\n    return random.random()\n",
        allowed_imports=["random"],
    )
    drawn = set()
    for _ in range(3):
        for name in ("left.seeds", "left.draws"):
            for execution in await asyncio.gather(
                *(target.admin.execute(name) for _ in range(WORKERS))
            ):
                if name == "left.draws":
                    drawn.add(execution.output.number_value)
    assert len(drawn) == 3 * WORKERS


async def test_inputs_of_others_are_not_seen(target: Target) -> None:
    alice = await target.world.caller("inputs-alice")
    bob = await target.world.caller("inputs-bob")
    await alice.create("inputs.alice", "def main(x):\n    return len(x)\n")
    spies = ("bxmesh_input", "x", "main.__defaults__", "[bxmesh_input, main]", "_", "__")
    for index, spy in enumerate(spies):
        await bob.create(f"inputs.bob{index}", f"def main():\n    return str(eval({spy!r}))\n")
    for index in range(len(spies)):
        await asyncio.gather(
            *(alice.execute("inputs.alice", {"x": "for-alice-only"}) for _ in range(WORKERS))
        )
        for execution in await asyncio.gather(
            *(bob.execute(f"inputs.bob{index}") for _ in range(WORKERS))
        ):
            assert "for-alice-only" not in str(execution)
    await target.intact()


async def test_what_is_others_stays_theirs(target: Target) -> None:
    alice = await target.world.caller("own-alice", team="blue")
    mallory = await target.world.caller("own-mallory", team="red")
    await alice.create("own.alice", "def main():\n    return 'mine'\n", visibility=1)
    done = await alice.execute("own.alice")
    guesses = [done.execution_id, done.execution_id.upper(), "*", "%", "_" * 32, "' OR 1=1 --", "0"]
    for guess in guesses:
        for method, request in (
            ("GetExecution", pb.GetExecutionRequest(execution_id=guess)),
            ("CancelExecution", pb.CancelExecutionRequest(execution_id=guess)),
        ):
            error = await refused(getattr(mallory.stub, method)(request, metadata=mallory.metadata))
            assert (error.code, error.reason) == (
                grpc.StatusCode.NOT_FOUND,
                "EXECUTION_NOT_FOUND",
            )
    digest = (await owned(alice, "own.alice")).digest
    for version in ("", "1.0.0", "latest", digest):
        error = await refused(mallory.execute("own.alice", version=version))
        assert error.reason == "FUNCTION_NOT_FOUND"
        error = await refused(owned(mallory, "own.alice", version))
        assert error.reason == "FUNCTION_NOT_FOUND"
    for call in (
        mallory.stub.DeleteFunction(
            pb.DeleteFunctionRequest(name="own.alice"), metadata=mallory.metadata
        ),
        mallory.stub.UpdateFunctionAlias(
            pb.UpdateFunctionAliasRequest(name="own.alice", alias="stable", version="1.0.0"),
            metadata=mallory.metadata,
        ),
        mallory.stub.GetFunctionStats(
            pb.GetFunctionStatsRequest(name="own.alice"), metadata=mallory.metadata
        ),
    ):
        assert (await refused(call)).reason == "FUNCTION_NOT_FOUND"
    # The same code, and with it the same digest, is no way to another's function.
    await mallory.create("own.mallory", "def main():\n    return 'mine'\n")
    error = await refused(mallory.execute("own.mallory", version=f"{digest[:-1]}x"))
    assert error.reason == "FUNCTION_NOT_FOUND"
    page = await mallory.stub.ListExecutions(
        pb.ListExecutionsRequest(function_name="own.alice"), metadata=mallory.metadata
    )
    assert not page.executions
    assert (await alice.execute("own.alice")).output.string_value == "mine"


async def owned(caller: Caller, name: str, version: str = "") -> pb.Function:
    """A function as a caller gets it."""
    answer = await caller.stub.GetFunction(
        pb.GetFunctionRequest(name=name, version=version), metadata=caller.metadata
    )
    function: pb.Function = answer.function
    return function


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("mesh.discover", "mesh.discover('x')"),
        ("mesh.request", "mesh.request('agent', 'question', {})"),
        ("mesh.assign", "mesh.assign('math.add', {})"),
        ("geometry.gradients", "geometry.gradients('model')"),
    ],
)
async def test_host_functions_give_no_rights(target: Target, name: str, call: str) -> None:
    caller = await target.world.caller(f"rights-{name.replace('.', '-')}")
    await caller.create(
        f"rights.{name.replace('.', '_')}",
        f"import {name.partition('.')[0]}\nasync def main():\n    return await {call}\n",
        is_async=True,
        host_functions=[name],
    )
    execution = await caller.execute(f"rights.{name.replace('.', '_')}")
    assert execution.state == FAILED
    assert from_status(execution.error).reason == "FUNCTION_FAILED"
    require_nothing_told(str(execution))
    assert "PERMISSION_MISSING" in execution.error.message
    await target.intact()


# Hostile schemas

REFERENCES: dict[str, Any] = {
    f"d{index}": {"allOf": [{"$ref": f"#/$defs/d{index + 1}"}] * 10} for index in range(20)
}
REFERENCES["d20"] = {"type": "integer"}
DEEP_SCHEMA: dict[str, Any] = {}
for _ in range(12):
    DEEP_SCHEMA = {"anyOf": [DEEP_SCHEMA, {"not": {}}]}
SCHEMAS: dict[str, dict[str, Any]] = {
    "pattern_nested": {"type": "string", "pattern": "^(a+)+$"},
    "pattern_alternatives": {"type": "string", "pattern": "^(a|a|aa)*$"},
    "pattern_backreference": {"type": "string", "pattern": "^(a*)*\\1$"},
    "pattern_lookahead": {"type": "string", "pattern": "^(?=(a+)+$)"},
    "pattern_repeats": {"type": "string", "pattern": "((a{100}){100}){100}"},
    "pattern_huge": {"type": "string", "pattern": "|".join(f"a{i}" for i in range(20_000))},
    "pattern_broken": {"type": "string", "pattern": "(" * 1000},
    "pattern_names": {"type": "object", "patternProperties": {"^(x+)+$": {}}},
    "reference_remote": {"$ref": "http://127.0.0.1:1/schema.json"},
    "reference_file": {"$ref": "file:///etc/passwd"},
    "reference_relative": {"$ref": "../../etc/passwd"},
    "reference_missing": {"$ref": "#/nowhere"},
    "reference_itself": {"$ref": "#"},
    "reference_cycle": {
        "$ref": "#/$defs/a",
        "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
    },
    "reference_exponential": {"$ref": "#/$defs/d0", "$defs": REFERENCES},
    "reference_dynamic": {"$dynamicRef": "http://127.0.0.1:1/x"},
    "identifier": {"$id": "http://127.0.0.1:1/x", "$ref": "y"},
    "dialect": {"$schema": "http://127.0.0.1:1/dialect"},
    "huge_enum": {"enum": [f"value-{i}" for i in range(10_000)]},
    "huge_any": {"anyOf": [{"const": i} for i in range(500)]},
    "huge_one": {"oneOf": [{"minLength": i} for i in range(500)]},
    "unique": {"type": "array", "uniqueItems": True},
    "contains": {"type": "array", "contains": {"contains": {"contains": {}}}},
    "deep": DEEP_SCHEMA,
    "multiple": {"type": "number", "multipleOf": 1e-308},
    "huge_numbers": {"minLength": 1e308, "maxItems": 1e308},
    "format": {"type": "string", "format": "regex"},
    "unevaluated": {"unevaluatedProperties": False, "unevaluatedItems": False},
    "not_a_schema": {"type": "no-such-type"},
    "odd_values": {"properties": "x", "required": 5, "items": None},
}
VALUES: tuple[Any, ...] = (
    "a" * 50_000 + "b",
    [[i] for i in range(2_000)],
    {"x" * 5_000: 1, "y": {"x": [1]}},
    7,
    None,
)


@pytest.mark.parametrize("side", ["input", "output"])
@pytest.mark.parametrize("name", SCHEMAS)
async def test_schemas_take_nothing(target: Target, name: str, side: str) -> None:
    inner = {key: value for key, value in SCHEMAS[name].items() if key not in ("$defs", "$id")}
    outer = {key: value for key, value in SCHEMAS[name].items() if key in ("$defs", "$id")}
    fields: dict[str, Any] = {
        "input_schema": schema(type="object", properties={"x": inner}, **outer)
    }
    if side == "output":
        fields = {"output_schema": schema(**inner, **outer)}
    function = f"schemas.{side}.{name}"
    async with asyncio.timeout(HANGS_SECONDS):
        try:
            await target.admin.create(function, "def main(x=None):\n    return x\n", **fields)
        except grpc.aio.AioRpcError as problem:
            error = from_rpc_error(problem)
            assert error.code is grpc.StatusCode.INVALID_ARGUMENT
            assert error.reason in ("SCHEMA_INVALID", "SIGNATURE_MISMATCH"), error
            require_nothing_told(error.message)
        else:
            for value in VALUES:
                try:
                    execution = await target.admin.execute(function, {"x": value})
                except grpc.aio.AioRpcError as problem:
                    error = from_rpc_error(problem)
                    assert error.reason == "SCHEMA_MISMATCH", error
                    require_nothing_told(error.message)
                else:
                    assert reason_of(execution) in ("COMPLETED", "OUTPUT_MISMATCH"), execution
                    require_nothing_told(str(execution.error))
        await target.intact()


# Hostile calls


async def test_code_that_is_too_long_is_refused(target: Target) -> None:
    error = await refused(target.admin.create("text.long", "#" * 262_145))
    assert (error.code, error.field_violations[0][0]) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "function.code",
    )


@pytest.mark.parametrize("size", [3_900_000, 4_300_000])
async def test_large_inputs(target: Target, size: int) -> None:
    await target.admin.create(f"inputs.size{size}", "def main(x):\n    return len(x)\n")
    request = target.admin.execute(f"inputs.size{size}", {"x": "x" * size})
    if size > 4 << 20:
        error = await refused(request)
        assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    else:
        assert (await request).output.number_value == size
    await target.intact()


async def test_inputs_of_many_small_values(target: Target) -> None:
    await target.admin.create("inputs.small", "def main(x):\n    return len(x)\n")
    execution = await target.admin.execute("inputs.small", {"x": [{"a": None}] * 50_000})
    assert reason_of(execution) in ("COMPLETED", "MEMORY_LIMIT")
    await target.intact()


async def test_inputs_that_are_too_deep_for_parsers(target: Target) -> None:
    await target.admin.create("inputs.deeper", "def main(x):\n    return 1\n")
    # A value of some hundred levels, which protobuf's own classes would not write.
    value = b"\x11" + b"\0" * 8
    for _ in range(300):
        item = b"\x0a" + varint(len(value)) + value
        value = b"\x32" + varint(len(item)) + item
    entry = b"\x0a\x01x\x12" + varint(len(value)) + value
    fields = b"\x0a" + varint(len(entry)) + entry
    name = b"inputs.deeper"
    request = b"\x12" + varint(len(name)) + name + b"\x22" + varint(len(fields)) + fields
    call = target.admin.channel.unary_unary("/bxmesh.agent.v1.FunctionService/ExecuteFunction")
    error = await refused(call(request, metadata=target.admin.metadata))
    assert error.code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.INTERNAL)
    require_nothing_told(error.message)
    await target.intact()


def varint(number: int) -> bytes:
    """A number as protobuf writes it."""
    found = b""
    while number > 127:
        found += bytes([number & 127 | 128])
        number >>= 7
    return found + bytes([number])


async def test_numbers_that_json_does_not_have(target: Target) -> None:
    await target.admin.create("inputs.numbers", "def main(x):\n    return str(x)\n")
    for number in (float("nan"), float("inf"), -0.0, 5e-324):
        request = pb.ExecuteFunctionRequest(name="inputs.numbers")
        request.input.fields["x"].number_value = number
        try:
            answer = await target.admin.stub.ExecuteFunction(
                request, metadata=target.admin.metadata
            )
        except grpc.aio.AioRpcError as problem:
            assert from_rpc_error(problem).code is grpc.StatusCode.INVALID_ARGUMENT
        else:
            reason_of(answer.execution)
    request = pb.ExecuteFunctionRequest(name="inputs.numbers")
    request.input.fields["x"].SetInParent()
    answer = await target.admin.stub.ExecuteFunction(request, metadata=target.admin.metadata)
    assert answer.execution.output.string_value == "None"
    await target.intact()


@pytest.mark.parametrize(
    "fields",
    [
        {"entry_point": "__import__"},
        {"entry_point": "print"},
        {"entry_point": "bxmesh_nothing"},
        {"entry_point": "main(); import os"},
        {"entry_point": "x" * 200},
        {"allowed_imports": ["*"]},
        {"allowed_imports": ["os as json"]},
        {"allowed_imports": [""]},
        {"host_functions": ["os.system"]},
        {"host_functions": ["mesh"]},
        {"host_functions": ["mesh.__class__"]},
        {"host_functions": ["mesh.granted"]},
        {"host_functions": ["mesh.progress.x"]},
        {"limits": pb.FunctionLimits(max_memory_bytes=1 << 34)},
        {"limits": pb.FunctionLimits(max_memory_bytes=-1)},
        {"limits": pb.FunctionLimits(max_recursion_depth=9_999)},
        {"limits": pb.FunctionLimits(max_output_bytes=1 << 24)},
        {"limits": seconds(-1)},
        {"limits": seconds(3601)},
        {"engine": 7},
        {"version": "9" * 20 + ".0.0"},
        {"version": "1.0.0'; DROP TABLE functions; --"},
        {"labels": {"": "x"}},
        {"example_input": struct(y=1)},
    ],
    ids=lambda fields: "-".join(f"{key}={str(value)[:20]!r}" for key, value in fields.items()),
)
async def test_odd_fields(target: Target, fields: dict[str, Any]) -> None:
    code = (
        "import os\ndef main():\n    return 1\n"
        if "allowed_imports" in fields
        else ("def main():\n    return 1\n")
    )
    error = await refused(target.admin.create("odd.fields", code, **fields))
    assert error.code in (
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.FAILED_PRECONDITION,
    ), error
    assert error.field_violations or error.reason == "ENGINE_UNAVAILABLE", error
    require_nothing_told(error.message)
    await target.intact()


# Limits of what is said


@pytest.mark.parametrize(
    "code",
    [
        "def main():\n    return list(range(500_000))\n",
        "def main():\n    return [None] * 500_000\n",
        "def main():\n    return [[]] * 400_000\n",
        "def main():\n    return {str(i): 1.5 for i in range(200_000)}\n",
        "def main():\n    print('\U0001f600' * 750_000)\n    return 'x' * 2_200_000\n",
        "def main():\n    print('é' * 1_500_000)\n    return list(range(100_000))\n",
    ],
)
async def test_what_is_answered_fits_into_a_message(target: Target, code: str) -> None:
    name = f"large.f{abs(hash(code))}"
    limits = pb.FunctionLimits(max_output_bytes=3 << 20, max_memory_bytes=512 << 20)
    await target.admin.create(name, code, limits=limits)
    execution = await target.admin.execute(name)
    assert reason_of(execution) in ("COMPLETED", "OUTPUT_LIMIT")
    assert execution.ByteSize() < 4 << 20
    again = await target.admin.stub.GetExecution(
        pb.GetExecutionRequest(execution_id=execution.execution_id), metadata=target.admin.metadata
    )
    assert again.execution == execution
    await target.intact()


async def test_who_waits_for_others_loses_no_time(target: Target) -> None:
    await target.admin.create("waits.little", "def main():\n    return 1\n", limits=seconds(1))
    spinning = [
        asyncio.create_task(
            refused(
                target.admin.create(
                    f"waits.spins{index}",
                    "while True:\n    pass\ndef main():\n    return 1\n",
                    limits=seconds(3),
                )
            )
        )
        for index in range(WORKERS)
    ]
    await asyncio.sleep(0.5)
    executions = await asyncio.gather(*(target.admin.execute("waits.little") for _ in range(4)))
    assert [reason_of(execution) for execution in executions] == ["COMPLETED"] * 4
    for task in spinning:
        assert (await task).reason in ALWAYS
    await target.intact()


async def test_sleeps_are_as_long_as_they_say(target: Target) -> None:
    await target.admin.create(
        "waits.sleeps",
        "import time\ndef main(n):\n    time.sleep(n)\n    return 1\n",
        allowed_imports=["time"],
        limits=seconds(11),
    )
    assert reason_of(await target.admin.execute("waits.sleeps", {"n": 99})) == "TIME_LIMIT"
    assert reason_of(await target.admin.execute("waits.sleeps", {"n": 0.1})) == "COMPLETED"
    await target.intact()


async def test_callers_who_go_leave_nothing_running(target: Target) -> None:
    await target.admin.create(
        "waits.gone", "def main():\n    while True:\n        pass\n", limits=seconds(30)
    )
    for _ in range(3):
        tasks = [asyncio.create_task(target.admin.execute("waits.gone")) for _ in range(6)]
        await asyncio.sleep(0.2)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        async with asyncio.timeout(HANGS_SECONDS):
            await target.intact()


async def test_bombs_of_many_do_not_stop_others(target: Target) -> None:
    bombs = (
        "def main():\n    x = []\n    while True:\n        x.append('x' * 1000)\n",
        "def main():\n    while True:\n        pass\n",
        "def main():\n    while True:\n        print('x' * 1000)\n",
        "def main():\n    return main()\n",
        "def main():\n    return 10**10**8\n",
    )
    for index, bomb in enumerate(bombs):
        await target.admin.create(
            f"bombs.b{index}", bomb, limits=seconds(1, max_memory_bytes=MEMORY)
        )
    mallory = [
        asyncio.create_task(target.admin.execute(f"bombs.b{i % 5}", limits=seconds(0.2)))
        for i in range(40)
    ]
    alice = [
        asyncio.create_task(target.admin.execute("ordinary", {"n": i % 10})) for i in range(40)
    ]
    async with asyncio.timeout(HANGS_SECONDS):
        for execution in await asyncio.gather(*alice):
            assert execution.state == COMPLETED, execution.error
        for execution in await asyncio.gather(*mallory):
            assert execution.state == LIMITED, execution.error
        await target.intact()


async def test_progress_has_an_end(target: Target) -> None:
    await target.admin.create(
        "progress.flood",
        "import mesh\nasync def main():\n    text = 'x' * 1_000_000\n"
        "    for _ in range(100):\n        await mesh.progress(text)\n    return 1\n",
        is_async=True,
        host_functions=["mesh.progress"],
    )
    async with asyncio.timeout(HANGS_SECONDS):
        events = await target.admin.stream("progress.flood")
    assert "TOO_MUCH_PROGRESS" in events[-1].ended.error.message
    assert sum(event.ByteSize() for event in events) < 20 << 20
    await target.intact()
