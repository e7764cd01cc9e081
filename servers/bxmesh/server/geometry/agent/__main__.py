"""The entry of a worker process: `python -m bxmesh.server.geometry.agent WORKER_ID`.

Its first line of standard input is the settings as JSON, so that no secret is on a command line. Standard
input then stays open: when it ends, the parent is gone, and so goes the worker.
"""

# cctbx comes first: some libraries, torch among them, crash the process when they are loaded before it.
import bxmesh.server.geometry.engine.model  # noqa: F401, I001

import asyncio
import fcntl
import logging
import os
import signal
import sys
from pathlib import Path

from bxmesh.restraints.preparation import compile_kernels
from bxmesh.server.geometry.agent.worker import GeometryWorker
from bxmesh.server.logs import configure_logging
from bxmesh.server.sandbox import confine
from bxmesh.server.security.mesh_key import MeshKey, load_or_create
from bxmesh.server.settings import Settings
from bxmesh.server.streams import connect
from bxmesh.server.telemetry import configure as configure_telemetry

_log = logging.getLogger(__name__)


async def _watch_parent(worker: GeometryWorker) -> None:
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.read()
    _log.warning("the server is gone; this worker ends")
    worker.stop()


async def _main(worker_id: str, settings: Settings, key: MeshKey) -> None:
    redis = connect(settings.redis_url.get_secret_value())
    worker = GeometryWorker(worker_id, settings, redis, key)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, worker.stop)
    parent = asyncio.create_task(_watch_parent(worker))
    try:
        await worker.run()
    finally:
        parent.cancel()
        await redis.aclose()


def _compile_kernels(cache_dir: Path) -> None:
    """Readies the evaluator of restraints; the first worker on a machine compiles for all."""
    cache_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (cache_dir / "kernels.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # The thread that would tell is gone when this returns: the sandbox needs a process with one.
        compile_kernels(_log.info)


# While one thread calculates, those that fetch and store ask for the interpreter a few times each; by
# default each of these waits 5 ms.
_SWITCH_SECONDS = 0.0002


def main() -> None:
    """Runs one worker until it is told to stop."""
    sys.setswitchinterval(_SWITCH_SECONDS)
    worker_id = sys.argv[1]
    settings = Settings.model_validate_json(os.read(sys.stdin.fileno(), 65536).split(b"\n")[0])
    configure_logging(worker_id)
    # Files that the sandbox keeps from whoever takes over.
    key = load_or_create(settings.mesh_key_path)
    assert settings.seals.sealing
    # What is compiled lies on disk, where a confined worker could not put it nor should.
    _compile_kernels(settings.cache_dir)
    if settings.sandbox != "off":
        confine(settings)
    telemetry = configure_telemetry("worker", trace_output=settings.trace or None)
    try:
        asyncio.run(_main(worker_id, settings, key))
    finally:
        telemetry.shutdown()


if __name__ == "__main__":
    main()
