"""What is checked before a function is stored, and its versions afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from redis.asyncio import Redis

from bxmesh.agent.v1 import function_pb2 as pb
from bxmesh.registry.v1.schema_pb2 import Schema
from tests.functions.mesh import COMPLETED, Caller, World, objects, refused, schema, struct
from tests.functions.mesh import world as run_world

MAIN = "def main():\n    return 1\n"
INTEGER = {"type": "integer"}


@pytest.fixture
async def stores(redis: Redis, shared_valkey: str, database_url: str) -> AsyncIterator[World]:
    """A server on an empty database of each kind."""
    async with run_world(shared_valkey, database_url=database_url) as running:
        yield running


def limits(**fields: Any) -> pb.FunctionLimits:
    """Limits, their timeout in seconds."""
    timeout = fields.pop("timeout", 0)
    made = pb.FunctionLimits(**fields)
    made.timeout.FromSeconds(timeout)
    return made


async def create(caller: Caller, name: str, code: str, **fields: Any) -> Any:
    """Stores a function; returns the answer."""
    request = {key: fields.pop(key) for key in ("aliases", "request_id") if key in fields}
    return await caller.stub.CreateFunction(
        pb.CreateFunctionRequest(function=pb.Function(name=name, code=code, **fields), **request),
        metadata=caller.metadata,
    )


async def get(caller: Caller, name: str, version: str = "") -> Any:
    """A function."""
    answer = await caller.stub.GetFunction(
        pb.GetFunctionRequest(name=name, version=version), metadata=caller.metadata
    )
    return answer.function


async def point(caller: Caller, name: str, alias: str, version: str, **fields: Any) -> Any:
    """Moves an alias."""
    answer = await caller.stub.UpdateFunctionAlias(
        pb.UpdateFunctionAliasRequest(name=name, alias=alias, version=version, **fields),
        metadata=caller.metadata,
    )
    return answer.function


async def delete(caller: Caller, name: str, version: str = "", **fields: Any) -> None:
    """Deletes a function, or a version."""
    await caller.stub.DeleteFunction(
        pb.DeleteFunctionRequest(name=name, version=version, **fields), metadata=caller.metadata
    )


async def listed(caller: Caller, size: int = 0, **fields: Any) -> list[list[Any]]:
    """All pages of a list."""
    pages = []
    request = pb.ListFunctionsRequest(page_size=size, **fields)
    while True:
        answer = await caller.stub.ListFunctions(request, metadata=caller.metadata)
        pages.append(list(answer.functions))
        if not answer.next_page_token:
            return pages
        request.page_token = answer.next_page_token


def number(value: int) -> str:
    """Code of which no two are the same."""
    return f"def main():\n    return {value}\n"


# Checks

REFUSED: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "no_syntax": ("def main(:\n", {}, "CODE_INVALID", "code"),
    "nul": ("def main():\n    return '\0'\n", {}, "CODE_INVALID", "code"),
    "too_deep": (f"def main():\n    return {'-' * 50_000}1\n", {}, "CODE_INVALID", "code"),
    "taken_name": (
        "def main():\n    return bxmesh_input\n",
        {},
        "CODE_INVALID",
        "code",
    ),
    "not_in_the_sandbox": (
        "class A(dict):\n    pass\ndef main():\n    return 1\n",
        {},
        "CODE_INVALID",
        "code",
    ),
    "fails_at_its_top": (f"x = 1 / 0\n{MAIN}", {}, "TRIAL_FAILED", "code"),
    "import": (f"import os\n{MAIN}", {}, "IMPORT_NOT_ALLOWED", "code"),
    "import_within": (
        "def main():\n    from socket import socket\n    return 1\n",
        {},
        "IMPORT_NOT_ALLOWED",
        "code",
    ),
    "import_of_the_defaults_when_others_are_said": (
        f"import json\n{MAIN}",
        {"allowed_imports": ["math"]},
        "IMPORT_NOT_ALLOWED",
        "code",
    ),
    "no_entry": ("x = 1\n", {}, "ENTRY_POINT_MISSING", "entry_point"),
    "other_entry": (MAIN, {"entry_point": "run"}, "ENTRY_POINT_MISSING", "entry_point"),
    "entry_within": (
        "class A:\n    def main(self):\n        return 1\n",
        {},
        "ENTRY_POINT_MISSING",
        "entry_point",
    ),
    "entry_is_no_function": ("main = 5\n", {}, "ENTRY_POINT_MISSING", "entry_point"),
    "coroutine": ("async def main():\n    return 1\n", {}, "SIGNATURE_MISMATCH", "is_async"),
    "no_coroutine": (MAIN, {"is_async": True}, "SIGNATURE_MISMATCH", "is_async"),
    "host_without_coroutine": (
        MAIN,
        {"host_functions": ["mesh.request"]},
        "SIGNATURE_MISMATCH",
        "is_async",
    ),
    "no_parameter": (
        "def main(a):\n    return a\n",
        {"input_schema": objects(["a"], a=INTEGER, b=INTEGER)},
        "SIGNATURE_MISMATCH",
        "code",
    ),
    "parameter_not_required": (
        "def main(a):\n    return a\n",
        {"input_schema": objects([], a=INTEGER)},
        "SIGNATURE_MISMATCH",
        "code",
    ),
    "parameter_not_there": (
        "def main(a, b):\n    return a\n",
        {"input_schema": objects(["a"], a=INTEGER)},
        "SIGNATURE_MISMATCH",
        "code",
    ),
    "keyword_not_there": (
        "def main(*, a):\n    return a\n",
        {"input_schema": objects([])},
        "SIGNATURE_MISMATCH",
        "code",
    ),
    "positional_only": (
        "def main(a, /):\n    return a\n",
        {},
        "SIGNATURE_MISMATCH",
        "code",
    ),
    "types": ("def main():\n    return 1 + 'x'\n", {}, "TYPES_INVALID", "code"),
    "unknown_name": ("def main():\n    return nowhere\n", {}, "TYPES_INVALID", "code"),
    "no_schema": (
        MAIN,
        {"input_schema": schema(type="no-such-type")},
        "SCHEMA_INVALID",
        "input_schema",
    ),
    "input_is_no_object": (
        MAIN,
        {"input_schema": schema(type="array")},
        "SCHEMA_INVALID",
        "input_schema",
    ),
    "no_output_schema": (
        MAIN,
        {"output_schema": schema(required="x")},
        "SCHEMA_INVALID",
        "output_schema",
    ),
    "protobuf": (
        MAIN,
        {"output_schema": Schema(protobuf_type="google.protobuf.Empty")},
        "SCHEMA_INVALID",
        "output_schema",
    ),
    "schema_elsewhere": (
        MAIN,
        {"output_schema": schema(**{"$ref": "http://127.0.0.1:1/x"})},
        "SCHEMA_INVALID",
        "output_schema",
    ),
    "pattern": (
        MAIN,
        {"output_schema": schema(pattern="(?=a)")},
        "SCHEMA_INVALID",
        "output_schema",
    ),
    "host_function": (
        "async def main():\n    return 1\n",
        {"is_async": True, "host_functions": ["mesh.progress", "os.system"]},
        "HOST_FUNCTION_UNKNOWN",
        "host_functions[1]",
    ),
    "memory": (
        MAIN,
        {"limits": limits(max_memory_bytes=2 << 30)},
        "LIMIT_TOO_LARGE",
        "limits.max_memory_bytes",
    ),
    "recursion": (
        MAIN,
        {"limits": limits(max_recursion_depth=5_000)},
        "LIMIT_TOO_LARGE",
        "limits.max_recursion_depth",
    ),
    "output": (
        MAIN,
        {"limits": limits(max_output_bytes=8 << 20)},
        "LIMIT_TOO_LARGE",
        "limits.max_output_bytes",
    ),
    "example_fails": (
        "def main(n):\n    return 1 / n\n",
        {"example_input": struct(n=0)},
        "TRIAL_FAILED",
        "example_input",
    ),
    "example_takes_too_much": (
        "def main():\n    return 'x' * 10**10\n",
        {"example_input": struct()},
        "TRIAL_FAILED",
        "example_input",
    ),
    "example_takes_too_long": (
        "def main():\n    while True:\n        pass\n",
        {"example_input": struct(), "limits": limits(timeout=1)},
        "TRIAL_FAILED",
        "example_input",
    ),
    "example_answers_no_json": (
        "def main():\n    return {1, 2}\n",
        {"example_input": struct()},
        "TRIAL_FAILED",
        "example_input",
    ),
    "example_answers_something_else": (
        "def main():\n    return 'x'\n",
        {"example_input": struct(), "output_schema": schema(type="integer")},
        "TRIAL_FAILED",
        "example_input",
    ),
    "example_does_not_fit": (
        "def main(n):\n    return n\n",
        {"example_input": struct(n="x"), "input_schema": objects(["n"], n=INTEGER)},
        "SCHEMA_MISMATCH",
        "example_input.n",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_a_place_is_named(admin: Caller, name: str) -> None:
    code, fields, reason, place = REFUSED[name]
    for validate_only in (True, False):
        error = await refused(
            admin.create("test.refused", code, validate_only=validate_only, **fields)
        )
        assert error.code is grpc.StatusCode.INVALID_ARGUMENT
        assert error.reason == reason, error
        assert [field for field, _ in error.field_violations] == [f"function.{place}"]
        assert all(description for _, description in error.field_violations)
    assert (await refused(get(admin, "test.refused"))).reason == "FUNCTION_NOT_FOUND"


async def test_lines_are_named(admin: Caller) -> None:
    for code in (
        "def main():\n    return 1\n\n\nx = = 1\n",
        "def main():\n    return 1\n\n\nimport os\n",
        "def f():\n    return 1\n\n\ndef main(a, /):\n    return a\n",
        "def f():\n    return 1\n\n\nX = 1 / 0\ndef main():\n    return 1\n",
    ):
        error = await refused(admin.create("test.refused", code))
        assert "line 5" in error.field_violations[0][1], error


async def test_all_places_are_named_at_once(admin: Caller) -> None:
    error = await refused(
        admin.create(
            "test.refused",
            "import os\nimport sys\nasync def main(a, b):\n    return a\n",
            input_schema=objects(["a"], a=INTEGER, c=INTEGER),
            host_functions=["no.where"],
        )
    )
    assert [field for field, _ in error.field_violations] == [
        "function.host_functions[0]",
        *["function.code"] * 2,
        "function.is_async",
        *["function.code"] * 2,
    ]
    assert "5 more" in error.message
    error = await refused(admin.create("test.refused", "import os\n" * 100 + MAIN))
    assert len(error.field_violations) == 10


async def test_no_containers_are_said(
    redis: Redis, shared_valkey: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    async with run_world(shared_valkey) as world:
        error = await refused(
            world.admin.create("test.full", MAIN, engine=pb.FUNCTION_ENGINE_CONTAINER)
        )
    assert (error.code, error.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "ENGINE_UNAVAILABLE",
    )


async def test_what_fits_is_stored(admin: Caller) -> None:
    for index, (code, fields) in enumerate(
        [
            ("def main(a, b=1, *, c, d=2, **more):\n    return a\n", {}),
            (
                "def main(a, b=1, **more):\n    return a\n",
                {"input_schema": objects(["a"], a=INTEGER, b=INTEGER, z=INTEGER)},
            ),
            ("def main(a: int = 1):\n    return a\n", {"input_schema": objects([], a=INTEGER)}),
            ("def main(**fields):\n    return 1\n", {"input_schema": schema(type="object")}),
            ("def run():\n    return 1\n", {"entry_point": "run"}),
            ("def main():\n    return 1\ndef main():\n    return 2\n", {}),
            ("from __future__ import annotations\nimport typing\n" + MAIN, {}),
            ("from collections import deque\n" + MAIN, {}),
            (
                "import mesh\nasync def main():\n    return await mesh.request('a', 'b')\n",
                {
                    "is_async": True,
                    "host_functions": ["mesh.request"],
                    # It is tried as far as the first call of the host.
                    "example_input": struct(),
                    "output_schema": schema(type="integer"),
                },
            ),
            ("def main(n):\n    return n\n", {"example_input": struct(n=1)}),
        ]
    ):
        stored = await admin.create(f"test.fits{index}", code, **fields)
        assert stored.version == "1.0.0"


async def test_only_checking_stores_nothing(admin: Caller) -> None:
    checked = await admin.create("test.checked", MAIN, validate_only=True)
    assert checked.digest.startswith("sha256:")
    assert not checked.version
    assert (await refused(get(admin, "test.checked"))).reason == "FUNCTION_NOT_FOUND"


@pytest.mark.parametrize("alias", ["1.0.0", "sha256abc", "sha256:abc"])
async def test_aliases_are_words(admin: Caller, alias: str) -> None:
    error = await refused(admin.create("test.alias", MAIN, aliases=["fine", alias]))
    assert error.field_violations[0][0] == "aliases[1]"


# Versions


async def test_versions_count_on(stores: World) -> None:
    admin = stores.admin
    first = await admin.create("test.v", number(1))
    assert (first.version, list(first.aliases)) == ("1.0.0", ["latest"])
    assert (await admin.create("test.v", number(2))).version == "1.0.1"
    assert (await admin.create("test.v", number(3), version="2.9.9")).version == "2.9.9"
    assert (await admin.create("test.v", number(4))).version == "2.9.10"
    # What is stored last is the latest, not what is highest; counted on is from the highest.
    old = await admin.create("test.v", number(5), version="0.1.0")
    assert (old.version, list(old.aliases)) == ("0.1.0", ["latest"])
    assert (await admin.create("test.v", number(6))).version == "2.9.11"
    assert (await get(admin, "test.v")).code == number(6)
    assert (await get(admin, "test.v", "0.1.0")).code == number(5)


async def test_a_version_never_changes(stores: World) -> None:
    admin = stores.admin
    await admin.create("test.v", number(1), version="1.2.3")
    error = await refused(admin.create("test.v", number(2), version="1.2.3"))
    assert (error.code, error.reason) == (grpc.StatusCode.ALREADY_EXISTS, "VERSION_EXISTS")
    assert error.metadata["version"] == "1.2.3"
    assert (await get(admin, "test.v", "1.2.3")).code == number(1)
    assert (await get(admin, "test.v")).code == number(1)


async def test_the_same_content_is_the_same_version(stores: World) -> None:
    admin = stores.admin
    first = await create(admin, "test.v", MAIN, allowed_imports=["math", "json"], description="one")
    assert not first.existed
    second = await create(admin, "test.v", number(2))
    assert (second.function.version, second.existed) == ("1.0.1", False)
    again = await create(
        admin, "test.v", MAIN, allowed_imports=["json", "math"], description="two", version="7.0.0"
    )
    assert again.existed
    assert again.function.version == "1.0.0"
    assert again.function.digest == first.function.digest
    assert list(again.function.aliases) == ["latest"]
    assert (await get(admin, "test.v")).version == "1.0.0"
    for fields in (
        {"entry_point": "main", "is_async": False, "limits": limits(timeout=5)},
        {"input_schema": objects()},
        {"output_schema": schema(type="integer")},
        {"allowed_imports": ["math"]},
    ):
        other = await create(admin, "test.v", MAIN, **fields)
        assert not other.existed
        assert other.function.digest != first.function.digest


async def test_versions_are_found_by_digest(stores: World) -> None:
    admin = stores.admin
    stored = [await admin.create("test.v", number(n)) for n in range(3)]
    for function in stored:
        found = await get(admin, "test.v", function.digest)
        assert (found.version, found.code) == (function.version, function.code)
        execution = await admin.execute("test.v", version=function.digest)
        assert (execution.state, execution.function_version) == (COMPLETED, function.version)
    for wanted in ("sha256:" + "0" * 64, "sha256:", "9.9.9", "no-such-alias", "1.0", "latest "):
        error = await refused(get(admin, "test.v", wanted))
        assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "FUNCTION_NOT_FOUND")


async def test_aliases_move_and_move_back(stores: World) -> None:
    admin = stores.admin
    await admin.create("test.v", number(1), aliases=["stable"])
    second = await admin.create("test.v", number(2))
    assert list(second.aliases) == ["latest"]
    assert (await get(admin, "test.v", "stable")).version == "1.0.0"
    moved = await point(admin, "test.v", "stable", "1.0.1")
    assert list(moved.aliases) == ["latest", "stable"]
    assert (await admin.execute("test.v", version="stable")).output.number_value == 2
    await point(admin, "test.v", "stable", "1.0.0")
    assert (await admin.execute("test.v", version="stable")).output.number_value == 1
    assert list((await get(admin, "test.v", "1.0.1")).aliases) == ["latest"]
    third = await admin.create("test.v", number(3), aliases=["stable", "canary"])
    assert list(third.aliases) == ["canary", "latest", "stable"]
    removed = await point(admin, "test.v", "canary", "")
    assert list(removed.aliases) == ["latest", "stable"]
    assert (await refused(get(admin, "test.v", "canary"))).reason == "FUNCTION_NOT_FOUND"
    for alias, version, reason in (
        ("canary", "", "FUNCTION_NOT_FOUND"),
        ("stable", "9.9.9", "FUNCTION_NOT_FOUND"),
    ):
        assert (await refused(point(admin, "test.v", alias, version))).reason == reason
    assert (await refused(point(admin, "test.v", "latest", "1.0.0"))).field_violations[0][
        0
    ] == "alias"


async def test_versions_are_deleted(stores: World) -> None:
    admin = stores.admin
    for n in range(4):
        await admin.create("test.v", number(n), aliases=[f"alias{n}"])
    await admin.execute("test.v", version="1.0.3")
    await delete(admin, "test.v", "1.0.3")
    latest = await get(admin, "test.v")
    assert (latest.version, list(latest.aliases)) == ("1.0.2", ["alias2", "latest"])
    for wanted in ("1.0.3", "alias3"):
        assert (await refused(get(admin, "test.v", wanted))).reason == "FUNCTION_NOT_FOUND"
    # The number is free again, and so is the content.
    assert (await admin.create("test.v", number(3))).version == "1.0.3"
    await delete(admin, "test.v", "1.0.0")
    assert (await get(admin, "test.v")).version == "1.0.3"
    assert (await refused(delete(admin, "test.v", "1.0.0"))).reason == "FUNCTION_NOT_FOUND"
    await delete(admin, "test.v")
    assert (await refused(get(admin, "test.v"))).reason == "FUNCTION_NOT_FOUND"
    assert (await refused(delete(admin, "test.v"))).reason == "FUNCTION_NOT_FOUND"
    page = await admin.stub.ListExecutions(
        pb.ListExecutionsRequest(function_name="test.v"), metadata=admin.metadata
    )
    assert len(page.executions) == 1
    assert (await admin.create("test.v", number(9))).version == "1.0.0"


async def test_the_last_version_takes_the_name_along(stores: World) -> None:
    alice = await stores.caller("alice")
    bob = await stores.caller("bob")
    await alice.create("test.v", MAIN)
    assert (await refused(bob.create("test.v", MAIN))).reason == "NOT_THE_OWNER"
    await delete(alice, "test.v", "1.0.0")
    assert (await bob.create("test.v", MAIN)).owner == "bob"


async def test_many_versions_at_once(stores: World) -> None:
    admin = stores.admin
    answers = await asyncio.gather(*(create(admin, "test.v", number(n)) for n in range(10)))
    versions = {answer.function.version for answer in answers}
    assert versions == {f"1.0.{n}" for n in range(10)}
    assert not any(answer.existed for answer in answers)
    for answer in answers:
        found = await get(admin, "test.v", answer.function.version)
        assert found.code == answer.function.code
    assert (await get(admin, "test.v")).version in versions
    (page,) = await listed(admin, name="test.v")
    assert sum("latest" in function.aliases for function in page) == 1


async def test_one_version_at_once(stores: World) -> None:
    admin = stores.admin
    answers = await asyncio.gather(*(create(admin, "test.v", MAIN) for _ in range(10)))
    assert {answer.function.version for answer in answers} == {"1.0.0"}
    assert sum(not answer.existed for answer in answers) == 1
    results = await asyncio.gather(
        *(create(admin, "test.v", number(n + 10), version="3.0.0") for n in range(10)),
        return_exceptions=True,
    )
    assert sum(not isinstance(result, BaseException) for result in results) == 1


async def test_names_that_many_want_at_once(stores: World) -> None:
    callers = [await stores.caller(f"user{n}") for n in range(5)]
    results = await asyncio.gather(
        *(caller.create("test.wanted", number(n)) for n, caller in enumerate(callers)),
        return_exceptions=True,
    )
    (winner,) = [result for result in results if not isinstance(result, BaseException)]
    assert winner.version == "1.0.0"


async def test_numbers_of_versions_have_an_end(stores: World) -> None:
    admin = stores.admin
    error = await refused(admin.create("test.v", MAIN, version="1.0.1000000000000"))
    assert error.field_violations[0][0] == "function.version"
    await admin.create("test.v", MAIN, version="1.0.999999999999")
    error = await refused(admin.create("test.v", number(2)))
    assert error.code in (
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    )
    assert (await admin.create("test.v", number(2), version="1.1.0")).version == "1.1.0"
    assert (await admin.create("test.v", number(3))).version == "1.1.1"


@pytest.mark.parametrize("version", ["01.0.0", "1.00.0", "1.0.000"])
async def test_there_is_one_way_to_write_a_version(admin: Caller, version: str) -> None:
    error = await refused(admin.create("test.v", number(1), version=version))
    assert error.field_violations[0][0] == "function.version"
    assert (await admin.create("test.v", number(1), version="0.10.0")).version == "0.10.0"


async def test_two_servers_see_each_others_changes(
    redis: Redis, shared_valkey: str, database_url: str, tmp_path: Path
) -> None:
    options = {"database_url": database_url, "mesh_key_file": tmp_path / "mesh.key"}
    async with (
        run_world(shared_valkey, **options) as one,
        run_world(shared_valkey, **options) as two,
    ):
        for n in range(10):
            here, there = (one.admin, two.admin) if n % 2 else (two.admin, one.admin)
            stored = await here.create("test.v", number(n))
            assert (await get(there, "test.v")).version == stored.version
            assert (await there.execute("test.v")).output.number_value == n
            await point(there, "test.v", "stable", stored.version)
            assert (await here.execute("test.v", version="stable")).output.number_value == n
        await delete(one.admin, "test.v", "1.0.9")
        assert (await two.admin.execute("test.v")).output.number_value == 8
        await delete(two.admin, "test.v")
        assert (await refused(one.admin.execute("test.v"))).reason == "FUNCTION_NOT_FOUND"
        answers = await asyncio.gather(
            *(create((one if n % 2 else two).admin, "test.w", number(n)) for n in range(10))
        )
        assert {answer.function.version for answer in answers} == {f"1.0.{n}" for n in range(10)}


# Requests, lists, permissions


async def test_repeated_requests_get_the_first_answer(stores: World) -> None:
    admin = stores.admin
    first = await create(admin, "test.v", number(1), request_id="a")
    await admin.create("test.v", number(2))
    again = await create(admin, "test.v", number(1), request_id="a")
    assert again == first
    assert (await get(admin, "test.v")).version == "1.0.1"
    await point(admin, "test.v", "stable", "1.0.0", request_id="b")
    await point(admin, "test.v", "stable", "1.0.1")
    await point(admin, "test.v", "stable", "1.0.0", request_id="b")
    assert (await get(admin, "test.v", "stable")).version == "1.0.1"
    await delete(admin, "test.v", "1.0.0", request_id="c")
    await delete(admin, "test.v", "1.0.0", request_id="c")
    assert (await refused(delete(admin, "test.v", "1.0.0"))).reason == "FUNCTION_NOT_FOUND"
    # Ids of others mean others' requests.
    alice = await stores.caller("alice")
    mine = await create(alice, "test.mine", number(1), request_id="a")
    assert mine.function.name == "test.mine"


async def test_versions_are_listed_highest_first(stores: World) -> None:
    admin = stores.admin
    order = ["1.10.0", "1.9.0", "0.0.1", "10.0.0", "2.0.0", "1.9.10", "1.9.2"]
    for n, version in enumerate(order):
        await admin.create("test.v", number(n), version=version, labels={"n": str(n % 2)})
    expected = ["10.0.0", "2.0.0", "1.10.0", "1.9.10", "1.9.2", "1.9.0", "0.0.1"]
    for size in (0, 1, 2, 3, 7, 100):
        pages = await listed(admin, size, name="test.v")
        assert [function.version for page in pages for function in page] == expected
        assert all(len(page) <= (size or 100) for page in pages)
    assert not any(function.code for page in pages for function in page)
    pages = await listed(admin, 2, name="test.v", labels={"n": "0"})
    assert [function.version for page in pages for function in page] == [
        version for version in expected if order.index(version) % 2 == 0
    ]
    assert (await refused(listed(admin, name="test.nothing"))).reason == "FUNCTION_NOT_FOUND"


async def test_names_are_listed_in_order(stores: World) -> None:
    admin = stores.admin
    names = ["b.a", "a", "a.b", "a_b", "ab", "z9", "b.a.c"]
    for n, name in enumerate(names):
        await admin.create(name, number(n), labels={"kind": "even" if n % 2 == 0 else "odd"})
        await admin.create(name, number(n + 100), labels={"kind": "new"} if n == 0 else {})
    for size in (0, 1, 3, 7):
        pages = await listed(admin, size)
        found = [(function.name, function.version) for page in pages for function in page]
        assert sorted(found) == sorted((name, "1.0.1") for name in names)
        assert [name for name, _ in found] == sorted(names)
    (page,) = await listed(admin, labels={"kind": "new"})
    assert [function.name for function in page] == ["b.a"]
    assert await listed(admin, labels={"kind": "even"}) == [[]]


async def test_page_tokens_belong_to_their_filter(stores: World) -> None:
    admin = stores.admin
    for n in range(3):
        await admin.create("test.v", number(n))
        await admin.create(f"test.n{n}", number(n))
    for first, second in (
        ({"name": "test.v"}, {}),
        ({}, {"name": "test.v"}),
        ({}, {"labels": {"a": "b"}}),
    ):
        answer = await admin.stub.ListFunctions(
            pb.ListFunctionsRequest(page_size=1, **first), metadata=admin.metadata
        )
        assert answer.next_page_token
        for token in (answer.next_page_token, "x", ":", f"{answer.next_page_token[:16]}:"):
            error = await refused(
                admin.stub.ListFunctions(
                    pb.ListFunctionsRequest(page_token=token, **second), metadata=admin.metadata
                )
            )
            assert error.reason == "PAGE_TOKEN_INVALID", token
    answer = await admin.stub.ListFunctions(
        pb.ListFunctionsRequest(page_size=1, name="test.v"), metadata=admin.metadata
    )
    digest = answer.next_page_token.partition(":")[0]
    for place in ("x", "1.0", "9" * 30, "1.0.0' OR 1=1", "9" * 20 + ".0.0"):
        error = await refused(
            admin.stub.ListFunctions(
                pb.ListFunctionsRequest(name="test.v", page_token=f"{digest}:{place}"),
                metadata=admin.metadata,
            )
        )
        assert error.reason == "PAGE_TOKEN_INVALID", place


async def test_a_page_goes_on_where_it_was_whatever_is_deleted(stores: World) -> None:
    admin = stores.admin
    for n in range(6):
        await admin.create("test.v", number(n))
    request = pb.ListFunctionsRequest(page_size=2, name="test.v")
    first = await admin.stub.ListFunctions(request, metadata=admin.metadata)
    assert [function.version for function in first.functions] == ["1.0.5", "1.0.4"]
    await delete(admin, "test.v", "1.0.4")
    await delete(admin, "test.v", "1.0.3")
    await admin.create("test.v", number(9))
    request.page_token = first.next_page_token
    second = await admin.stub.ListFunctions(request, metadata=admin.metadata)
    assert [function.version for function in second.functions] == ["1.0.2", "1.0.1"]


async def test_large_functions_are_listed_in_pages_that_fit(stores: World) -> None:
    admin = stores.admin
    for n in range(12):
        await admin.create(
            "test.large",
            f"def main(text):\n    return {n}\n",
            example_input=struct(text="y" * 250_000),
        )
    pages = await listed(admin, name="test.large")
    assert [function.version for page in pages for function in page] == [
        f"1.0.{n}" for n in reversed(range(12))
    ]
    assert len(pages) > 1


async def test_permissions(stores: World) -> None:
    owner = await stores.caller("owner", "function_write", "function_read", "function_execute")
    reader = await stores.caller("reader", "function_read")
    writer = await stores.caller("writer", "function_write")
    runner = await stores.caller("runner", "function_execute")
    await owner.create("test.shared", MAIN, visibility=3)

    for caller, allowed in ((reader, {"get", "list"}), (writer, {"create"}), (runner, {"execute"})):
        calls = {
            "get": get(caller, "test.shared"),
            "list": listed(caller),
            "create": caller.create("test.own", MAIN),
            "execute": caller.execute("test.shared"),
            "point": point(caller, "test.shared", "stable", "1.0.0"),
            "delete": delete(caller, "test.shared"),
        }
        for name, call in calls.items():
            if name in allowed:
                await call
            else:
                error = await refused(call)
                assert error.code is grpc.StatusCode.PERMISSION_DENIED, (name, error)
                # A writer may write, but not what is another's.
                own = caller is writer and name in ("point", "delete")
                assert error.reason == ("NOT_THE_OWNER" if own else "PERMISSION_MISSING")


async def test_who_sees_what(stores: World) -> None:
    alice = await stores.caller("alice", team="blue")
    bob = await stores.caller("bob", team="blue")
    carol = await stores.caller("carol", team="red")
    await alice.create("test.owners", number(1), visibility=1)
    await alice.create("test.teams", number(2), visibility=2)
    await alice.create("test.everyones", number(3), visibility=3)
    seen = {"alice": 3, "bob": 2, "carol": 1}
    for name, caller in (("alice", alice), ("bob", bob), ("carol", carol)):
        (page,) = await listed(caller)
        assert [function.name for function in page] == sorted(
            ["test.everyones", "test.teams", "test.owners"][: seen[name]]
        )
    for caller in (bob, carol):
        error = await refused(delete(caller, "test.everyones"))
        assert error.reason == "NOT_THE_OWNER"
        error = await refused(point(caller, "test.everyones", "stable", "1.0.0"))
        assert error.reason == "NOT_THE_OWNER"
    # Who administers may change what is another's, which stays the other's.
    changed = await stores.admin.create("test.owners", number(9))
    assert changed.owner == "alice"
