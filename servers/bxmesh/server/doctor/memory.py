"""How much memory there is, for this machine or the container around the process."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bxmesh.server.doctor.findings import Finding, fail, ok, warn
from bxmesh.server.settings import Settings

__all__ = ["Memory", "check_memory", "memory"]

_LEAST_BYTES = 128 << 20
_WORKER_BYTES = 512 << 20


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of memory."""

    total: int
    """All there is, or may be used."""
    available: int
    """What can still be had without swapping."""
    process: int
    """What this process holds."""


def memory(system: Path = Path("/")) -> Memory:
    """Returns how much there is. Raises OSError where the kernel does not tell."""
    fields = dict(line.split(":", 1) for line in (system / "proc/meminfo").read_text().splitlines())
    total, available = (
        1024 * int(fields[name].split()[0]) for name in ("MemTotal", "MemAvailable")
    )
    pages = int((system / "proc/self/statm").read_text().split()[1])
    for limit, used in _groups(system):
        total, available = min(total, limit), min(available, max(0, limit - used))
    return Memory(total, available, pages * os.sysconf("SC_PAGE_SIZE"))


def check_memory(settings: Settings) -> list[Finding]:
    """Looks whether there is room for the server and its workers."""
    try:
        found = memory()
    except (OSError, KeyError, ValueError):
        return [ok("memory", "this system does not tell")]
    message = f"{found.available / 2**30:.1f} of {found.total / 2**30:.1f} GiB available"
    remedy = "Free some, or start fewer workers (--workers)."
    if found.available < _LEAST_BYTES:
        return [fail("memory", message, remedy)]
    if found.available < _WORKER_BYTES:
        return [warn("memory", message, remedy)]
    return [ok("memory", message)]


def _groups(system: Path) -> list[tuple[int, int]]:
    """Limits and use of the control groups around this process, without what can be given up."""
    found = []
    with suppress(OSError, ValueError, IndexError):
        name = (system / "proc/self/cgroup").read_text().splitlines()[-1].split("::", 1)[1]
        root = system / "sys/fs/cgroup"
        group = root / name.strip("/")
        for folder in (group, *group.parents):
            with suppress(OSError, ValueError):
                limit = int((folder / "memory.max").read_text())
                used = int((folder / "memory.current").read_text())
                cache = dict(
                    line.split() for line in (folder / "memory.stat").read_text().splitlines()
                )
                found.append((limit, used - int(cache.get("inactive_file", 0))))
            if folder == root:
                break
    return found
