"""The container: full CPython behind bubblewrap, without network and with nothing to write to.

It costs a process for each call, and is there where bubblewrap is and the kernel lets it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from bxmesh.server.errors import MeshError
from bxmesh.server.functions.engine import Call, Outcome, failed, over_limit
from bxmesh.server.sandbox import seccomp

__all__ = ["Container", "find_container"]

_MAIN = Path(__file__).with_name("container_main.py")
_MARGIN_BYTES = 64 << 10
# JSON writes a character in at most six, and host calls carry some more.
_EXPANSION = 6
_START_SECONDS = 5.0
_LONGEST_MESSAGE = 600
_SYSTEM = ("/usr", "/bin", "/lib", "/lib64", "/etc/ld.so.cache")


def find_container() -> Container | None:
    """Returns what runs containers; None where bubblewrap is not there or may not. Takes a moment."""
    bubblewrap = shutil.which("bwrap")
    if bubblewrap is None or not seccomp.available():
        return None
    container = Container(bubblewrap)
    return container if container.works() else None


class Container:
    """Executes calls, each in a container of its own."""

    def __init__(self, bubblewrap: str) -> None:
        self._command = _command(bubblewrap)

    def works(self) -> bool:
        """Whether the kernel lets it."""
        command = [*self._command[:-1], "-c", "import sys; sys.path.append('/tmp'); import seccomp"]
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            done = subprocess.run(command, capture_output=True, timeout=_START_SECONDS, check=False)
            return done.returncode == 0
        return False

    async def run(self, call: Call) -> Outcome:
        """Runs a call in a fresh container; see `Engine`."""
        process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            limit=_EXPANSION * call.limits.output + _MARGIN_BYTES,
        )
        try:
            async with asyncio.timeout(call.limits.timeout) as timeout:
                return await _Conversation(process, call).hold()
        except TimeoutError:
            if not timeout.expired():
                raise
            return Outcome(error=_too_slow(call), limited=True, cpu_seconds=call.limits.timeout)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


class _Conversation:
    """What is said with one container. Whatever comes from it is its code's word."""

    def __init__(self, process: asyncio.subprocess.Process, call: Call) -> None:
        self._process = process
        self._call = call
        self._left = call.limits.output
        self._calls: set[asyncio.Task[None]] = set()

    async def hold(self) -> Outcome:
        call = self._call
        try:
            await self._tell(
                code=call.code,
                entry_point=call.entry_point,
                is_async=call.is_async,
                arguments=dict(call.arguments),
                host=list(call.host),
                limits={
                    "timeout": call.limits.timeout,
                    "memory": call.limits.memory,
                    "recursion": call.limits.recursion,
                },
            )
            ended: dict[str, Any] = {}
            while line := await self._hear():
                if "printed" in line:
                    if not self._print(str(line["printed"])):
                        return _full(call)
                elif "call" in line:
                    self._host_call(line)
                elif "cpu" in line:
                    return _outcome(call, ended, line)
                else:
                    ended = line
            return self._lost(ended)
        except ValueError:
            # A line that is too long, or no JSON.
            return _full(call)
        finally:
            for task in self._calls:
                task.cancel()

    async def _tell(self, **line: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(line).encode() + b"\n")
        with contextlib.suppress(ConnectionError):
            await self._process.stdin.drain()

    async def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        heard = json.loads(line) if line.strip() else {}
        if not isinstance(heard, dict):
            raise ValueError("it said what is no object")
        return heard

    def _print(self, text: str) -> bool:
        data = text.encode(errors="replace")
        self._call.printed(data[: self._left].decode(errors="ignore"))
        self._left = max(0, self._left - len(data))
        return self._left > 0 or not data

    def _host_call(self, line: dict[str, Any]) -> None:
        task = asyncio.create_task(self._answer(line))
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    async def _answer(self, line: dict[str, Any]) -> None:
        function = self._call.host.get(str(line.get("name")))
        try:
            if function is None:
                raise failed("HOST_FUNCTION_UNKNOWN", "There is no such host function.")
            async with self._call.place.left():
                value = await function(*line.get("args", ()), **line.get("kwargs", {}))
            await self._tell(call=line["call"], value=value)
        except MeshError as error:
            await self._tell(call=line["call"], error=f"{error.reason}: {error.message}")
        except (TypeError, ValueError) as error:
            await self._tell(call=line["call"], error=str(error)[:_LONGEST_MESSAGE])

    def _lost(self, ended: dict[str, Any]) -> Outcome:
        if ended:
            return _outcome(self._call, ended, {})
        # The kernel ended it, as it does with what takes too much.
        return Outcome(
            error=over_limit("CONTAINER_ENDED", "Its process ended before the function did."),
            limited=True,
        )


def _outcome(call: Call, ended: dict[str, Any], usage: dict[str, Any]) -> Outcome:
    cpu, peak = usage.get("cpu", 0.0), usage.get("peak", 0)
    figures = {
        "cpu_seconds": float(cpu) if isinstance(cpu, int | float) else 0.0,
        "peak_memory": int(peak) if isinstance(peak, int) else 0,
    }
    error = ended.get("error")
    if not isinstance(error, dict):
        return Outcome(value=ended.get("value"), **figures)  # type: ignore[arg-type]
    kind = str(error.get("kind"))[:100]
    message = str(error.get("message"))[:_LONGEST_MESSAGE]
    line = error.get("line")
    if kind == "MemoryError":
        problem = over_limit(
            "MEMORY_LIMIT", f"It wanted more than {call.limits.memory} bytes of memory."
        )
        return Outcome(error=problem, limited=True, **figures)  # type: ignore[arg-type]
    if kind == "RecursionError":
        problem = over_limit(
            "RECURSION_LIMIT", f"It called itself deeper than {call.limits.recursion} calls."
        )
        return Outcome(error=problem, limited=True, **figures)  # type: ignore[arg-type]
    where = f" (line {line})" if isinstance(line, int) and line else ""
    problem = failed(
        "FUNCTION_FAILED", f"{kind}: {message}{where}", exception=kind, line=str(line or "")
    )
    return Outcome(error=problem, **figures)  # type: ignore[arg-type]


def _full(call: Call) -> Outcome:
    return Outcome(
        error=over_limit("OUTPUT_LIMIT", f"It wrote more than {call.limits.output} bytes."),
        limited=True,
    )


def _too_slow(call: Call) -> MeshError:
    return over_limit("TIME_LIMIT", f"It took longer than {call.limits.timeout:g} seconds.")


def _command(bubblewrap: str) -> list[str]:
    prefix = Path(sys.base_prefix).resolve()
    places = [*_SYSTEM]
    if not prefix.is_relative_to("/usr"):
        places.append(str(prefix))
    command = [bubblewrap, "--unshare-all", "--die-with-parent", "--new-session", "--clearenv"]
    for place in places:
        command += ["--ro-bind-try", place, place]
    command += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--chdir", "/tmp"]
    for path, name in ((_MAIN, "main.py"), (Path(seccomp.__file__), "seccomp.py")):
        command += ["--ro-bind", str(path), f"/tmp/{name}"]
    command += ["--remount-ro", "/tmp", "--uid", "65534", "--gid", "65534"]
    command += ["--setenv", "HOME", "/tmp", "--setenv", "LANG", "C.UTF-8"]
    return [*command, _interpreter(), "-I", "-S", "-B", "/tmp/main.py"]


def _interpreter() -> str:
    base: str = getattr(sys, "_base_executable", sys.executable)
    return str(Path(base).resolve())
