"""The sandbox: a subset of Python in worker processes without files, network or our memory."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
from collections import defaultdict
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Generator,
    Iterator,
    Mapping,
)
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from inspect import GEN_SUSPENDED, getgeneratorstate
from typing import Any, TypeVar, TypeVarTuple

from pydantic_monty import (
    ExternalModule,
    ExternalSettledResult,
    FunctionSnapshot,
    FutureSnapshot,
    Monty,
    MontyComplete,
    MontyConversionError,
    MontyCrashedError,
    MontyError,
    MontyRuntimeError,
    MontySyntaxError,
    MontyTypingError,
    NameLookupSnapshot,
    ResourceLimits,
    SyncSnapshot,
)

from bxmesh.server.errors import MeshError, unavailable
from bxmesh.server.functions.engine import Call, HostFunction, Outcome, failed, over_limit
from bxmesh.server.functions.limits import MOST
from bxmesh.server.functions.peaks import peak_of, reset_peak
from bxmesh.server.streams.ending import end_tasks

__all__ = ["INPUT_NAME", "Sandbox", "sandbox"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

INPUT_NAME = "bxmesh_input"
"""Under which a call finds its arguments."""

_GRACE_SECONDS = 1.0
_MOST_HOST_CALLS = 1_000
# A worker is replaced after so many calls, so that nothing grows for ever.
_CALLS_OF_WORKER = 10_000
# The pool's own threads end a little later than the pool; an interpreter that ends before aborts.
_FAREWELL_SECONDS = 0.2
_STUBS = "from typing import Any\nasync def {}(*args: Any, **kwargs: Any) -> Any: ...\n"
_LONGEST_MESSAGE = 600
_BLOCKING_SLEEPS = frozenset({"time.sleep", "system.sleep"})
_SLEEPS = _BLOCKING_SLEEPS | {"asyncio.sleep", "system.async_sleep"}


@asynccontextmanager
async def sandbox(workers: int, sessions: int) -> AsyncIterator[Sandbox]:
    """Keeps so many worker processes ready within a block; more sessions at a time start more."""
    threads = ThreadPoolExecutor(sessions, "sandbox")
    pool = Monty(
        min_processes=workers,
        max_processes=sessions,
        request_timeout=MOST.timeout + 10.0,
        max_checkouts_per_worker=_CALLS_OF_WORKER,
        feed_duration_limit_grace=_GRACE_SECONDS,
        turn_duration_limit_grace=_GRACE_SECONDS,
    )
    try:
        await asyncio.to_thread(pool.__enter__)
        yield Sandbox(pool, threads)
    finally:
        await asyncio.to_thread(pool.__exit__, None, None, None)
        threads.shutdown()
        await asyncio.sleep(_FAREWELL_SECONDS)


class Sandbox:
    """Executes calls, each in a session of its own."""

    def __init__(self, pool: Monty, threads: ThreadPoolExecutor) -> None:
        self._pool = pool
        self._threads = threads

    async def run(self, call: Call) -> Outcome:
        """Runs a call in a fresh session; see `Engine`."""
        printer = _Printer(call)
        session = _Session(self._pool, self._threads, call, printer)
        task = asyncio.create_task(session.run())
        printer.when_full(task.cancel)
        try:
            # The sandbox looks at its own clock first, which leaves its worker alive.
            async with asyncio.timeout(call.limits.timeout + _GRACE_SECONDS / 4) as timeout:
                value = await task
        except TimeoutError:
            if not timeout.expired():
                raise
            return session.outcome(error=_too_slow(call), limited=True)
        except MontyError as error:
            if not printer.full:
                limited, problem = _problem(error, call)
                return session.outcome(error=problem, limited=limited)
        except asyncio.CancelledError:
            if not printer.full:
                raise
        finally:
            await end_tasks(task)
        if printer.full:
            return session.outcome(error=printer.refusal(), limited=True)
        return session.outcome(value=value)


def _feeds(call: Call) -> Iterator[tuple[str, dict[str, Any]]]:
    """The snippets that a session is fed one after another; the last one gives the value."""
    code = call.code
    if call.checked:
        # The checker only knows the host's modules when they were imported before, at the top.
        for module in sorted({name.rpartition(".")[0] for name in call.host}):
            yield f"import {module}", {}
        # Types are checked in the code alone, as the call is ours.
        yield code, {}
        code = ""
    awaiting = "await " if call.is_async else ""
    yield (
        f"{code}\n{awaiting}{call.entry_point}(**{INPUT_NAME})",
        {"inputs": {INPUT_NAME: dict(call.arguments)}, "skip_type_check": call.checked},
    )


Answers = dict[int, ExternalSettledResult]
HostCall = Callable[[], Awaitable[Any]]
Pieces = Generator[Collection[int], Answers, Any]


class _Session:
    """The session of one call. It computes in threads, a piece at a time; between these it waits on the
    event loop, where what it has called of the host runs."""

    def __init__(
        self, pool: Monty, threads: ThreadPoolExecutor, call: Call, printer: _Printer
    ) -> None:
        self._pool = pool
        self._threads = threads
        self._call = call
        self._printer = printer
        self._loop = asyncio.get_running_loop()
        self._called: dict[int, asyncio.Task[ExternalSettledResult]] = {}
        self._lock = threading.Lock()
        self._worker: int | None = None
        self._stopped = False
        self._value: Any = None
        self._seconds = 0.0
        self._peak = 0

    async def run(self) -> Any:
        """Returns what the function returns; raises MontyError."""
        pieces = self._pieces()
        answers = None
        try:
            while (awaited := await self._in_thread(self._compute, pieces, answers)) is not None:
                answers = await self._answers(awaited)
        finally:
            await end_tasks(*self._called.values())
            if getgeneratorstate(pieces) == GEN_SUSPENDED:
                await self._in_thread(pieces.close)
        return self._value

    def outcome(self, **fields: Any) -> Outcome:
        """How the call ended, with what it has used."""
        return Outcome(cpu_seconds=self._seconds, peak_memory=self._peak, **fields)

    # On the event loop

    async def _in_thread(self, work: Callable[[*Ts], T], *given: *Ts) -> T:
        """When this is cancelled, so is what the worker does."""
        future = self._loop.run_in_executor(self._threads, work, *given)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            self._stop()
            await asyncio.wait([future])
            future.exception()
            raise

    async def _answers(self, awaited: Collection[int]) -> Answers:
        """Waits for any of the calls, with the place left to others."""
        tasks = {number: self._called[number] for number in awaited}
        async with self._call.place.left():
            await asyncio.wait(tasks.values(), return_when=asyncio.FIRST_COMPLETED)
        ended = [number for number, task in tasks.items() if task.done()]
        return {number: self._called.pop(number).result() for number in ended}

    def _begin(self, number: int, call: HostCall) -> None:
        self._called[number] = asyncio.create_task(_settled(call))

    def _stop(self) -> None:
        with self._lock:
            self._stopped = True
            if self._worker is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._worker, signal.SIGKILL)

    # In threads

    def _compute(self, pieces: Pieces, answers: Answers | None) -> Collection[int] | None:
        """Goes on with what was awaited; returns which calls are awaited next, None at the end."""
        began = time.monotonic()
        try:
            return next(pieces) if answers is None else pieces.send(answers)
        except StopIteration as end:
            self._value = end.value
            return None
        finally:
            self._seconds += time.monotonic() - began

    def _pieces(self) -> Pieces:
        with self._pool.checkout(
            external_modules=_modules(self._call.host), **_session(self._call)
        ) as session:
            worker = session.worker_pid
            reset_peak(worker)
            with self._lock:
                self._worker = worker
                stopped = self._stopped
            try:
                if stopped:
                    return None
                value = None
                for code, options in _feeds(self._call):
                    snapshot = session.feed_start(code, print_callback=self._printer, **options)
                    while not isinstance(snapshot, MontyComplete):
                        snapshot = yield from self._answered(snapshot)
                    value = snapshot.output
                return value
            finally:
                # From here on it is another's.
                with self._lock:
                    self._worker = None
                self._peak = peak_of(worker)

    def _answered(
        self, snapshot: FunctionSnapshot | FutureSnapshot | NameLookupSnapshot
    ) -> Generator[Collection[int], Answers, SyncSnapshot]:
        """Gives a session what it stopped for."""
        if isinstance(snapshot, FutureSnapshot):
            return snapshot.resume((yield snapshot.pending_call_ids))
        if isinstance(snapshot, NameLookupSnapshot):
            return snapshot.resume_auto()
        call = self._host_call(snapshot)
        if call is None:
            return snapshot.resume_auto()
        number = snapshot.call_id
        self._loop.call_soon_threadsafe(self._begin, number, call)
        if snapshot.function_name in _BLOCKING_SLEEPS:
            answers = yield (number,)
            return snapshot.resume(answers[number])
        return snapshot.resume({"future": ...})

    def _host_call(self, snapshot: FunctionSnapshot) -> HostCall | None:
        """What the event loop has to do, if anything."""
        name = str(snapshot.function_name)
        if snapshot.is_os_function:
            return partial(_sleep, *snapshot.args) if name in _SLEEPS else None
        function = self._call.host.get(name)
        return partial(function, *snapshot.args, **snapshot.kwargs) if function else None


async def _sleep(seconds: float) -> None:
    # Longer than any call may take is long enough.
    await asyncio.sleep(seconds if 0 <= seconds < MOST.timeout else MOST.timeout)


async def _settled(call: HostCall) -> ExternalSettledResult:
    """Makes a call; returns what the session is told of its end."""
    try:
        return {"return_value": await call()}
    except MeshError as error:
        # What crosses into the sandbox is an exception that it knows.
        text = f"{error.reason}: {error.message}"[:_LONGEST_MESSAGE]
        return {"exception": RuntimeError(text)}
    except (TypeError, ValueError) as error:
        return {"exception": error}


def _modules(host: Mapping[str, HostFunction]) -> Mapping[str, ExternalModule] | None:
    """The granted host functions as modules."""
    by_module: defaultdict[str, dict[str, HostFunction]] = defaultdict(dict)
    for name, function in host.items():
        module, _, attribute = name.rpartition(".")
        by_module[module][attribute] = function
    return {
        name: ExternalModule(
            functions, stubs="".join(_STUBS.format(attribute) for attribute in functions)
        )
        for name, functions in by_module.items()
    } or None


def _session(call: Call) -> dict[str, Any]:
    return {
        "script_name": "function.py",
        "limits": _limits(call),
        # No sleep is cut short.
        "os_policy": {"sleep_system_max": MOST.timeout},
        "type_check": call.checked,
        "type_check_format": "concise",
    }


def _limits(call: Call) -> ResourceLimits:
    return ResourceLimits(
        max_feed_duration_secs=call.limits.timeout,
        max_memory=call.limits.memory,
        max_recursion_depth=call.limits.recursion,
        max_suspensions=_MOST_HOST_CALLS,
    )


class _Printer:
    """Hands on what is printed, up to the limit, and then ends the call."""

    def __init__(self, call: Call) -> None:
        self._left = self._most = call.limits.output
        self._hand_on = call.printed
        self._loop = asyncio.get_running_loop()
        self._stop: Callable[[], object] = lambda: None
        self.full = False

    def when_full(self, stop: Callable[[], object]) -> None:
        self._stop = stop

    def __call__(self, stream: str, text: str) -> None:
        # It may come from the pool's thread.
        self._loop.call_soon_threadsafe(self._take, text)

    def _take(self, text: str) -> None:
        if self.full:
            return
        data = text.encode(errors="replace")
        self._hand_on(data[: self._left].decode(errors="ignore"))
        self._left -= len(data)
        if self._left < 0:
            self.full = True
            self._stop()

    def refusal(self) -> MeshError:
        return over_limit("OUTPUT_LIMIT", f"It printed more than {self._most} bytes.")


def _too_slow(call: Call) -> MeshError:
    return over_limit("TIME_LIMIT", f"It took longer than {call.limits.timeout:g} seconds.")


def _problem(error: MontyError, call: Call) -> tuple[bool, MeshError]:
    """Whether it is a limit, and the error."""
    match error:
        case MontyCrashedError(timed_out=True):
            return True, _too_slow(call)
        case MontyCrashedError():
            raise unavailable(
                "The sandbox was lost while the function ran. Try again.",
                reason="SANDBOX_LOST",
                retry_after=0.1,
            ) from None
        case MontySyntaxError():
            return False, failed("CODE_INVALID", _clip(str(error)))
        case MontyTypingError():
            return False, failed("TYPES_INVALID", _clip(str(error)))
        case MontyConversionError():
            return False, failed("OUTPUT_INVALID", _clip(str(error)))
        case MontyRuntimeError():
            return _runtime(error, call)
    raise unavailable(
        "The sandbox does not work. Try again.", reason="SANDBOX_LOST", retry_after=1.0
    ) from error


def _runtime(error: MontyRuntimeError, call: Call) -> tuple[bool, MeshError]:
    text = error.display("type-msg")
    kind, _, message = text.partition(": ")
    frames = error.traceback()
    # The last line is the call that we add.
    lines = call.code.count("\n") + 1
    line = next((frame.line for frame in reversed(frames) if frame.line <= lines), 0)
    if kind == "TimeoutError" and "limit exceeded" in message:
        return True, _too_slow(call)
    if kind == "MemoryError" and _says(
        message, "memory limit exceeded", "exceeded its memory limit"
    ):
        return True, over_limit(
            "MEMORY_LIMIT", f"It wanted more than {call.limits.memory} bytes of memory."
        )
    if kind == "RecursionError":
        return True, over_limit(
            "RECURSION_LIMIT", f"It called itself deeper than {call.limits.recursion} calls."
        )
    if kind == "RuntimeError" and message.startswith("suspension limit "):
        return True, over_limit(
            "HOST_CALL_LIMIT", f"It called the host more than {_MOST_HOST_CALLS} times."
        )
    if kind == "NotImplementedError" and _says(message, "syntax parser", "Wildcard imports"):
        message = message.replace(
            "The monty syntax parser does not yet support", "The sandbox knows no"
        )
        return False, failed("CODE_INVALID", f"{_clip(message)}{_where(line)}")
    return False, failed(
        "FUNCTION_FAILED", f"{_clip(text)}{_where(line)}", exception=kind[:100], line=str(line)
    )


def _where(line: int) -> str:
    return f" (line {line})" if line else ""


def _says(message: str, *texts: str) -> bool:
    return any(text in message for text in texts)


def _clip(text: str) -> str:
    text = text.encode(errors="replace").decode().strip()
    return text if len(text) <= _LONGEST_MESSAGE else f"{text[:_LONGEST_MESSAGE]}…"
