"""How much anybody may keep, what goes first, and how much one call looks at."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from redis.asyncio import Redis
from sqlalchemy import func, insert, select

from bxmesh.agent.v1 import chain_run_pb2, function_pb2
from bxmesh.agent.v1.chain_service_pb2_grpc import ChainServiceStub
from bxmesh.registry.v1 import agent_definition_pb2 as pb
from bxmesh.security.v1.visibility_pb2 import VISIBILITY_ALL, VISIBILITY_OWNER
from bxmesh.server.chains.store import ChainStore
from bxmesh.server.database import Database, open_database
from bxmesh.server.database.migration import downgrade, upgrade
from bxmesh.server.database.retention import Kept
from bxmesh.server.database.tables import CHAIN_RUNS, CHAIN_STEPS, EXECUTIONS
from bxmesh.server.definitions import store
from bxmesh.server.functions import history
from bxmesh.server.functions.history import History
from bxmesh.server.functions.keeper import ExecutionKeeper
from bxmesh.server.functions.records import Record
from bxmesh.server.time_ids import id_at, time_id
from tests.functions.mesh import COMPLETED, FAILED, PENDING, Caller, World, refused, struct
from tests.functions.mesh import world as run_world
from tests.functions.test_chains import Chains, chain, step
from tests.functions.test_storing import MAIN, create, delete, get, listed, number

RUNNING = function_pb2.EXECUTION_STATE_RUNNING
WRITES = ("function_read", "function_write", "registry_read", "registry_write")
LOOK = "bxmesh.server.database.windows._MOST_LOOKED"


@pytest.fixture
async def world(
    redis: Redis, shared_valkey: str, database_url: str, options: dict[str, Any]
) -> AsyncIterator[World]:
    async with run_world(shared_valkey, database_url=database_url, **options) as running:
        yield running


async def define(caller: Caller, name: str, **fields: Any) -> None:
    """Stores a definition."""
    await caller.registry.CreateAgentDefinition(
        pb.CreateAgentDefinitionRequest(
            definition=pb.AgentDefinition(definition_id=name, **fields)
        ),
        metadata=caller.metadata,
    )


async def redefine(caller: Caller, name: str, **fields: Any) -> None:
    """Stores a new version of it."""
    await caller.registry.UpdateAgentDefinition(
        pb.UpdateAgentDefinitionRequest(
            definition=pb.AgentDefinition(definition_id=name, **fields)
        ),
        metadata=caller.metadata,
    )


async def activate(caller: Caller, name: str, state: Any = pb.DEFINITION_STATE_ACTIVE) -> None:
    await caller.registry.SetAgentDefinitionState(
        pb.SetAgentDefinitionStateRequest(definition_id=name, state=state),
        metadata=caller.metadata,
    )


async def undefine(caller: Caller, name: str) -> None:
    await caller.registry.DeleteAgentDefinition(
        pb.DeleteAgentDefinitionRequest(definition_id=name), metadata=caller.metadata
    )


def require_quota(error: Any, reason: str, quota: str) -> None:
    """That an error says whose quota is spent, and what to do."""
    assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, reason)
    assert error.metadata["quota"] == quota
    assert "elete" in error.message


# What may be stored


@pytest.mark.parametrize("options", [{"max_functions": 2, "max_function_versions": 2}])
async def test_functions_and_versions_of_one_owner_have_an_end(world: World) -> None:
    alice, bob = await world.caller("alice", *WRITES), await world.caller("bob", *WRITES)
    answers = await asyncio.gather(
        *(create(alice, f"test.f{n}", MAIN) for n in range(6)), return_exceptions=True
    )
    assert sum(not isinstance(answer, BaseException) for answer in answers) == 2
    (page,) = await listed(alice)
    first = page[0].name
    require_quota(
        await refused(create(alice, "test.more", MAIN)), "TOO_MANY_FUNCTIONS", "max_functions"
    )
    assert (await refused(get(alice, "test.more"))).reason == "FUNCTION_NOT_FOUND"
    await create(bob, "test.bobs", MAIN)
    await create(alice, first, number(2))
    error = await refused(create(alice, first, number(3)))
    require_quota(error, "TOO_MANY_VERSIONS", "max_function_versions")
    # The same is no more.
    assert (await create(alice, first, number(2))).existed
    await delete(alice, first, "1.0.0")
    await create(alice, first, number(3))
    await delete(alice, first)
    await create(alice, "test.more", MAIN)


@pytest.mark.parametrize("options", [{"max_stored_bytes": 10_000}])
async def test_what_one_owner_stores_has_a_size(world: World) -> None:
    alice, bob = await world.caller("alice", *WRITES), await world.caller("bob", *WRITES)
    text = "def main(x):\n    return '%s'\n"
    await create(alice, "test.a", text % ("1" * 6_000))
    error = await refused(create(alice, "test.a", text % ("2" * 6_000)))
    require_quota(error, "TOO_MANY_BYTES", "max_stored_bytes")
    error = await refused(create(alice, "test.b", text % ("2" * 6_000)))
    require_quota(error, "TOO_MANY_BYTES", "max_stored_bytes")
    # Nor does more of what does not decide what it does.
    error = await refused(
        create(alice, "test.a", text % ("1" * 6_000), example_input=struct(x="y" * 6_000))
    )
    require_quota(error, "TOO_MANY_BYTES", "max_stored_bytes")
    await create(bob, "test.b", text % ("2" * 6_000))
    await create(alice, "test.a", text % "3")
    await delete(alice, "test.a", "1.0.0")
    await create(alice, "test.a", text % ("2" * 6_000))

    await define(alice, "a", system_prompt="1" * 6_000)
    error = await refused(define(alice, "b", system_prompt="2" * 6_000))
    require_quota(error, "TOO_MANY_BYTES", "max_stored_bytes")
    error = await refused(redefine(alice, "a", system_prompt="2" * 6_000))
    require_quota(error, "TOO_MANY_BYTES", "max_stored_bytes")
    await undefine(alice, "a")
    await define(alice, "b", system_prompt="2" * 6_000)


@pytest.mark.parametrize("options", [{"max_definitions": 2, "max_definition_versions": 2}])
async def test_definitions_and_versions_of_one_owner_have_an_end(world: World) -> None:
    alice, bob = await world.caller("alice", *WRITES), await world.caller("bob", *WRITES)
    for name in ("a", "b"):
        await define(alice, name)
    require_quota(await refused(define(alice, "c")), "TOO_MANY_DEFINITIONS", "max_definitions")
    await define(bob, "c")
    await redefine(alice, "a", description="two")
    error = await refused(redefine(alice, "a", description="three"))
    require_quota(error, "TOO_MANY_VERSIONS", "max_definition_versions")
    await undefine(alice, "a")
    await define(alice, "d")


@pytest.mark.parametrize("options", [{"max_definitions": 1}])
async def test_deleted_definitions_take_no_room(
    admin: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_MOST_DELETED", 2)
    for name in ("a", "b", "c", "d", "a", "e"):
        await define(admin, name)
        await undefine(admin, name)

    def watch(after: int) -> Any:
        return admin.registry.WatchAgentDefinitions(
            pb.WatchAgentDefinitionsRequest(after_revision=after), metadata=admin.metadata
        )

    # What is not kept any more is not passed over in silence.
    error = await refused(watch(1).read())
    assert (error.code, error.reason) == (grpc.StatusCode.OUT_OF_RANGE, "REVISION_COMPACTED")
    assert (await refused(watch(7).read())).reason == "REVISION_COMPACTED"
    again = watch(8)
    told = [(await again.read()).definition.definition_id for _ in range(2)]
    assert told == ["a", "e"]
    again.cancel()
    anew = watch(0)
    assert (await anew.read()).complete
    anew.cancel()


# What is kept of what has ended


def record(owner: str, state: Any, *, durable: bool = False, size: int = 0) -> Record:
    """An execution."""
    execution = function_pb2.Execution(
        execution_id=time_id(),
        function_name="test.it",
        function_version="1.0.0",
        owner=owner,
        state=state,
        printed="x" * size,
    )
    return Record(execution, durable)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    async with open_database(database_url) as opened:
        yield opened


async def kept(database: Database, owner: str) -> list[str]:
    async with database.reading() as connection:
        return list(
            await connection.scalars(
                select(EXECUTIONS.c.execution_id)
                .where(EXECUTIONS.c.owner == owner)
                .order_by(EXECUTIONS.c.execution_id)
            )
        )


async def test_only_an_owners_own_oldest_that_have_ended_go(database: Database) -> None:
    executions = History(database, Kept(30.0, 3, 1 << 30))
    mine = [record("alice", COMPLETED) for _ in range(3)]
    opened = [record("bob", PENDING, durable=True), record("bob", RUNNING)]
    flood = [record("bob", COMPLETED) for _ in range(1200)]
    for each in (*mine, *opened, *flood):
        executions.note(each)
    await executions._flush()
    await executions.retention.sweep()
    assert await kept(database, "alice") == [each.execution.execution_id for each in mine]
    assert await kept(database, "bob") == [
        each.execution.execution_id for each in (*opened, *flood[-3:])
    ]


async def test_what_has_ended_takes_so_much_and_no_more(database: Database) -> None:
    executions = History(database, Kept(30.0, 1000, 10_000))
    made = [record("alice", COMPLETED, size=3_000) for _ in range(5)]
    for each in made:
        await executions.keep(each)
    await executions.retention.sweep()
    assert await kept(database, "alice") == [each.execution.execution_id for each in made[-3:]]


async def test_what_is_old_goes_unless_it_is_open(database: Database) -> None:
    executions = History(database, Kept(1.0, 1000, 1 << 30))
    old = [record("alice", COMPLETED), record("alice", PENDING, durable=True)]
    for each in old:
        each.execution.execution_id = id_at(1e9) + each.execution.execution_id[16:]
        await executions.keep(each)
    await executions.retention.sweep()
    assert await kept(database, "alice") == [old[1].execution.execution_id]


async def test_what_waits_to_be_written_takes_so_much_and_no_more(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "_MOST_GATHERED_BYTES", 10_000)
    executions = History(database, Kept(30.0, 1000, 1 << 30))
    made = [record("alice", RUNNING) for _ in range(10)]
    for each in made:
        executions.note(each)
    for each in made:
        each.execution.state = COMPLETED
        each.execution.printed = "x" * 3_000
        executions.note(each)
    assert sum(each.size for each in executions._gathered.values()) <= 10_000
    await executions._flush()
    assert executions._gathered_bytes == 0
    executions.note(record("alice", COMPLETED, size=9_000))
    assert len(executions._gathered) == 1


async def test_what_nobody_ends_ends(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    executions = History(database, Kept(30.0, 1000, 1 << 30))
    lost, durable = record("alice", RUNNING), record("alice", PENDING, durable=True)
    young = record("alice", RUNNING)
    for each in (lost, durable):
        age = 3 * 3600.0 if each is lost else 120.0
        name = each.execution.execution_id
        each.execution.execution_id = id_at(int(name[:16], 16) / 1e9 - age) + name[16:]
    for each in (lost, durable, young):
        await executions.keep(each)
    settled = []

    async def settle(each: Record) -> Record:
        settled.append(each.execution.execution_id)
        return each

    await ExecutionKeeper(executions, settle).look()
    assert settled == [durable.execution.execution_id]
    assert (await executions.get(lost.execution.execution_id)).execution.state == FAILED
    assert (await executions.get(young.execution.execution_id)).execution.state == RUNNING
    assert await executions.count_open("alice") == 1


@pytest.mark.parametrize("options", [{"max_open_executions": 2}])
async def test_durable_executions_that_have_not_ended_have_an_end(world: World) -> None:
    admin = world.admin
    await admin.create(
        "test.it",
        "import asyncio\n\nasync def main():\n    await asyncio.sleep(30)\n",
        is_async=True,
        allowed_imports=["asyncio"],
    )
    begun = [await admin.execute("test.it", durable=True, detach=True) for _ in range(2)]
    error = await refused(admin.execute("test.it", durable=True, detach=True))
    assert (error.reason, error.metadata["quota"]) == ("TOO_MANY_EXECUTIONS", "max_open_executions")
    for each in begun:
        await admin.stub.CancelExecution(
            function_pb2.CancelExecutionRequest(execution_id=each.execution_id),
            metadata=admin.metadata,
        )
    last = await admin.execute("test.it", durable=True, detach=True)
    await admin.stub.CancelExecution(
        function_pb2.CancelExecutionRequest(execution_id=last.execution_id),
        metadata=admin.metadata,
    )


@pytest.mark.parametrize("options", [{"max_runs": 2}])
async def test_runs_of_chains_go_the_oldest_first(world: World) -> None:
    admin = world.admin
    await admin.create("test.echo", "def main(**fields):\n    return fields\n")
    chains = Chains(admin)
    one = chain(step("a", function="test.echo"))
    runs = [(await chains.run(one, {"n": n})).run_id for n in range(4)]
    assert world.server.database is not None
    async with world.server.database.reading() as connection:
        sizes = list(await connection.scalars(select(CHAIN_RUNS.c.size)))
    assert min(sizes) > 0
    kept_runs = ChainStore(world.server.database, Kept(30.0, 2, 1 << 30))
    kept_runs.retention.wrote("admin", 1)
    await kept_runs.retention.sweep()
    page = await chains.stub.ListChains(chain_run_pb2.ListChainsRequest(), metadata=chains.metadata)
    assert [run.run_id for run in page.runs] == runs[:1:-1]
    async with world.server.database.reading() as connection:
        assert await connection.scalar(select(func.count()).select_from(CHAIN_STEPS)) == 2


# How much one call looks at


async def pages(call: Any, request: Any, metadata: Any, field: str) -> list[list[Any]]:
    """All pages of a list."""
    found = []
    while True:
        answer = await call(request, metadata=metadata)
        found.append(list(getattr(answer, field)))
        if not answer.next_page_token:
            return found
        request.page_token = answer.next_page_token


async def test_a_call_looks_at_so_much_and_no_more(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LOOK, 3)
    monkeypatch.setattr("bxmesh.server.pages._MOST_READS", 2)
    admin, other = (
        world.admin,
        await world.caller("other", *WRITES, "function_execute", "task_read"),
    )
    for n in range(20):
        await create(admin, f"test.f{n:02}", MAIN, visibility=1 if n != 9 else 3)
        await define(admin, f"d{n:02}", labels={"n": str(n)})
    assert world.server.database is not None
    executions = History(world.server.database, Kept(30.0, 1000, 1 << 30))
    made = [record("other", FAILED if n == 9 else COMPLETED) for n in range(20)]
    for each in made:
        await executions.keep(each)
    async with world.server.database.writing() as connection:
        for n in range(20):
            run = chain_run_pb2.ChainRun(run_id=f"run{n:02}", owner="other")
            await connection.execute(
                insert(CHAIN_RUNS).values(
                    run_id=run.run_id,
                    definition_id="",
                    owner="other",
                    state=chain_run_pb2.RUN_STATE_FAILED if n == 9 else 3,
                    revision=1,
                    run=run.SerializeToString(),
                    size=1,
                )
            )
    found: Any
    for call, request, field, wanted in (
        (
            other.stub.ListFunctions,
            function_pb2.ListFunctionsRequest(),
            "functions",
            lambda function: function.name == "test.f09",
        ),
        (
            other.stub.ListExecutions,
            function_pb2.ListExecutionsRequest(states=[FAILED]),
            "executions",
            lambda execution: execution.execution_id == made[9].execution.execution_id,
        ),
        (
            other.registry.ListAgentDefinitions,
            pb.ListAgentDefinitionsRequest(labels={"n": "9"}),
            "definitions",
            lambda definition: definition.definition_id == "d09",
        ),
        (
            ChainServiceStub(other.channel).ListChains,
            chain_run_pb2.ListChainsRequest(states=[chain_run_pb2.RUN_STATE_FAILED]),
            "runs",
            lambda run: run.run_id == "run09",
        ),
    ):
        found = await pages(call, request, other.metadata, field)
        assert len(found) >= 3, field
        assert [wanted(one) for page in found for one in page] == [True], field


async def test_what_runs_is_told_in_parts(admin: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_ROWS_AT_ONCE", 2)
    model = pb.ModelSettings(model="test:model")
    for n in range(5):
        await define(admin, f"d{n}", model=model)
        await activate(admin, f"d{n}")
    watch = admin.registry.WatchAgentDefinitions(
        pb.WatchAgentDefinitionsRequest(), metadata=admin.metadata
    )
    told = [await watch.read() for _ in range(5)]
    assert [each.definition.definition_id for each in told] == [f"d{n}" for n in range(5)]
    assert [each.complete for each in told] == [False] * 4 + [True]
    for n in range(3):
        await activate(admin, f"d{n}", pb.DEFINITION_STATE_INACTIVE)
    changed = [await watch.read() for _ in range(3)]
    assert [each.definition.definition_id for each in changed] == ["d0", "d1", "d2"]
    watch.cancel()


# What others make of what is mine


async def test_others_keep_nobody_from_deleting_what_is_theirs(world: World) -> None:
    alice, bob = await world.caller("alice", *WRITES), await world.caller("bob", *WRITES)
    await create(alice, "test.it", MAIN, visibility=VISIBILITY_ALL)
    rules = [pb.MessageRule(message_type="x", call=pb.ToolReference(function="test.it"))]
    for caller, name in ((alice, "mine"), (bob, "theirs")):
        await define(caller, name, rules=rules)
        await activate(caller, name)
    # That it is another's comes first.
    assert (await refused(delete(bob, "test.it"))).reason == "NOT_THE_OWNER"
    error = await refused(delete(alice, "test.it"))
    assert (error.reason, "mine" in error.message) == ("FUNCTION_IN_USE", True)
    assert (await refused(delete(world.admin, "test.it"))).reason == "FUNCTION_IN_USE"
    await activate(alice, "mine", pb.DEFINITION_STATE_INACTIVE)
    await delete(alice, "test.it")


# What is stored again, and what is only checked


async def test_what_does_not_decide_what_it_does_is_taken_anew(world: World) -> None:
    alice, bob = await world.caller("alice", *WRITES), await world.caller("bob", *WRITES)
    first = await create(
        alice, "test.it", MAIN, description="one", visibility=VISIBILITY_OWNER, labels={"a": "1"}
    )
    assert (await refused(get(bob, "test.it"))).reason == "FUNCTION_NOT_FOUND"
    again = await create(
        alice, "test.it", MAIN, description="two", visibility=VISIBILITY_ALL, labels={"b": "2"}
    )
    assert (again.existed, again.function.version) == (True, "1.0.0")
    seen = await get(bob, "test.it")
    assert (seen.description, dict(seen.labels)) == ("two", {"b": "2"})
    assert (seen.visibility, seen.digest) == (VISIBILITY_ALL, first.function.digest)
    assert seen.create_time == first.function.create_time
    (page,) = await listed(bob)
    assert [function.description for function in page] == ["two"]
    await create(alice, "test.it", MAIN)
    assert await listed(bob) == [[]]


async def test_only_checking_refuses_what_storing_would(world: World) -> None:
    alice, bob = await world.caller("alice", *WRITES), await world.caller("bob", *WRITES)
    await create(alice, "test.it", number(1), version="1.2.3")
    for caller, fields, reason in (
        (alice, {"version": "01.2.3"}, "VERSION_INVALID"),
        (alice, {"version": f"1.{'9' * 20}.1"}, "VERSION_INVALID"),
        (alice, {"version": "1.2.3"}, "VERSION_EXISTS"),
        (bob, {}, "NOT_THE_OWNER"),
    ):
        for only in (True, False):
            error = await refused(caller.create("test.it", number(2), validate_only=only, **fields))
            assert error.reason == reason
    assert error.code is grpc.StatusCode.PERMISSION_DENIED
    checked = await alice.create("test.it", number(2), validate_only=True, aliases=["beta"])
    assert not checked.version
    assert (await get(alice, "test.it")).version == "1.2.3"
    assert (await refused(get(alice, "test.it", "beta"))).reason == "FUNCTION_NOT_FOUND"
    await alice.create("test.new", MAIN, validate_only=True)
    assert (await bob.create("test.new", MAIN)).owner == "bob"


async def test_a_version_after_the_last_is_refused_plainly(world: World) -> None:
    admin = world.admin
    await create(admin, "test.it", number(1), version="1.0.999999999999")
    error = await refused(create(admin, "test.it", number(2)))
    assert (error.reason, error.field_violations[0][0]) == ("VERSION_INVALID", "function.version")
    assert "must be given" in error.message


async def test_what_was_stored_before_sizes_were_is_measured(database: Database) -> None:
    """The sizes that the migration fills in are those that are written."""
    executions = History(database, Kept(30.0, 1000, 1 << 30))
    await executions.keep(record("alice", COMPLETED, size=1_000))

    async def size() -> int | None:
        async with database.reading() as connection:
            found: int | None = await connection.scalar(select(EXECUTIONS.c.size))
            return found

    before = await size()
    async with database.writing() as connection:
        await connection.run_sync(downgrade, "0003")
        await connection.run_sync(upgrade)
    assert await size() == before
