"""All checks, side by side."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from bxmesh.server.doctor import (
    engine,
    functions,
    memory,
    network,
    python,
    redis,
    sandbox,
    storage,
    tls,
)
from bxmesh.server.doctor.findings import Finding, fail
from bxmesh.server.settings import Settings

__all__ = ["examine"]

Check = Callable[[Settings], list[Finding]]

_CHECKS: tuple[Check, ...] = (
    python.check_python,
    python.check_packages,
    engine.check_engine,
    redis.check_redis,
    network.check_server,
    network.check_socket_paths,
    storage.check_directories,
    storage.check_disk,
    memory.check_memory,
    tls.check_tls,
    sandbox.check_sandbox,
    functions.check_database,
    functions.check_functions,
)


def examine(settings: Settings) -> list[Finding]:
    """Returns what all checks find, in a fixed order; takes seconds and changes nothing."""
    with ThreadPoolExecutor(len(_CHECKS)) as threads:
        return [
            finding
            for findings in threads.map(lambda check: _run(check, settings), _CHECKS)
            for finding in findings
        ]


def _run(check: Check, settings: Settings) -> list[Finding]:
    try:
        return check(settings)
    # A check meets what nobody thought of; the others must be told nevertheless.
    except Exception as error:
        name = check.__name__.removeprefix("check_").replace("_", " ")
        return [
            fail(
                name,
                f"could not be looked at: {type(error).__name__}: {error}",
                "Report this message together with the output of `bxmesh doctor --json`.",
            )
        ]
