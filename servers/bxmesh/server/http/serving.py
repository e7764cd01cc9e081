"""The gateway as a process: where it listens, and how it stops."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncIterator, Generator

import uvicorn

from bxmesh.client.endpoint import Endpoint
from bxmesh.server.http.app import make_app
from bxmesh.server.http.gateway import Gateway
from bxmesh.server.http.mesh import MeshLink
from bxmesh.server.http.settings import HttpSettings

__all__ = ["serving", "until_stopped"]

_BACKLOG = 512
_KEEP_ALIVE_SECONDS = 15


@contextlib.asynccontextmanager
async def serving(settings: HttpSettings, endpoint: Endpoint) -> AsyncIterator[str]:
    """Serves for the block, and gives the URL.

    Raises ValueError for settings that are not safe, OSError for an address that is taken.
    """
    settings.refuse_insecure()
    paths = settings.certificate_paths
    listener = _listener(settings)
    link = MeshLink(endpoint, settings.request_timeout)
    configuration = uvicorn.Config(
        make_app(Gateway(settings, link)),
        http="h11",
        ws="websockets-sansio",
        lifespan="off",
        log_config=None,
        access_log=False,
        # What a proxy says of its clients is not believed.
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=round(settings.drain_grace),
        ws_max_size=settings.max_json_bytes,
        ssl_certfile=paths and paths[0],
        ssl_keyfile=paths and paths[1],
    )
    configuration.load()
    server = _Server(configuration)
    running = asyncio.create_task(server.serve([listener]))
    try:
        # uvicorn tells it in no other way.
        while not server.started and not running.done():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        if running.done():
            running.result()
            raise OSError("the gateway does not start; its log says why")
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        yield f"{'https' if paths else 'http'}://{shown}:{port}"
    finally:
        server.should_exit = True
        await running
        listener.close()
        await link.close()


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        # Whoever runs it listens to signals.
        yield


def _listener(settings: HttpSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            # The kernel ends connections whose clients take nothing of what waits for them.
            milliseconds = round(1000 * settings.send_timeout)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        listener.bind((settings.host, settings.port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise OSError(f"{settings.address} cannot be listened on: {error.strerror}") from error
    return listener


async def until_stopped() -> None:
    """Waits for SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await stop.wait()
