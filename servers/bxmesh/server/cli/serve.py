"""`bxmesh serve`."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
from pydantic import ValidationError

from bxmesh.server.logs import configure_logging
from bxmesh.server.settings import SERVICES, Settings, complaints

_EPILOG = (
    "Every option can also come from the environment: --state-dir from BXMESH_STATE_DIR, and so on. "
    "A key for this machine is made in the state directory, and clients here find it by themselves."
)


@click.command(epilog=_EPILOG)
@click.option("--listen", metavar="HOST:PORT|unix:PATH", help="Where to serve; 127.0.0.1:50051.")
@click.option("--admin-listen", metavar="HOST:PORT|unix:PATH", help="Where channelz is served.")
@click.option(
    "--services",
    metavar="NAME[,NAME…]",
    help=f"Which to offer: {', '.join(SERVICES)}; all of them.",
)
@click.option("--redis-url", metavar="URL", help="Redis or Valkey; without one it runs its own.")
@click.option(
    "--adopt-redis",
    is_flag=True,
    default=None,
    help="Go on with the Redis of a mesh whose key is lost.",
)
@click.option("--workers", type=int, metavar="N", help="Geometry worker processes; 2.")
@click.option(
    "--state-dir", type=click.Path(path_type=Path, file_okay=False), help="Keys, bundles and queue."
)
@click.option(
    "--database-url",
    metavar="URL",
    help="postgresql://USER@HOST/NAME or sqlite:///PATH; mesh.db in the state directory.",
)
@click.option(
    "--function-workers", type=int, metavar="N", help="Functions that compute at a time; up to 4."
)
@click.option(
    "--function-sessions", type=int, metavar="N", help="Functions that may have begun; 64."
)
@click.option(
    "--function-queue", type=int, metavar="N", help="Executions that may wait for that; 1000."
)
@click.option("--execution-days", type=float, metavar="DAYS", help="Keep executions so long; 30.")
@click.option(
    "--max-executions", type=int, metavar="N", help="Keep so many of an identity; 100,000."
)
@click.option(
    "--max-history-bytes", type=int, metavar="N", help="Keep so much of an identity; 1 GiB."
)
@click.option(
    "--max-stored-bytes",
    type=int,
    metavar="N",
    help="What an identity's functions may take, and its definitions; 256 MiB.",
)
@click.option(
    "--embedding-url", metavar="URL", help="An OpenAI-compatible server for meaning, up to /v1."
)
@click.option("--embedding-model", metavar="NAME", help="Its model.")
@click.option("--embedding-dimension", type=int, metavar="N", help="Numbers in its vectors.")
@click.option(
    "--qdrant-url", metavar="URL", help="Qdrant for vectors; a folder in the state directory."
)
@click.option(
    "--tls",
    is_flag=True,
    default=None,
    help="TLS by what `bxmesh tls init` made in the state directory.",
)
@click.option("--tls-certificate", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option("--tls-key", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option("--tls-client-ca", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option("--allow-insecure", is_flag=True, default=None, help="No TLS on public addresses.")
@click.option("--reflection/--no-reflection", default=None, help="Tell anyone the services.")
@click.option(
    "--activity-log",
    type=click.Path(path_type=Path, file_okay=False),
    help="Log what agents, messages and tasks do, by day.",
)
@click.option("--trace", metavar="console|FILE", help="Write traces for people.")
@click.option("--prometheus-port", type=int, metavar="PORT", help="Serve metrics on loopback.")
@click.option("--with-parent", is_flag=True, hidden=True, help="Stop when standard input ends.")
def serve(services: str | None, listen: str | None, with_parent: bool, **options: Any) -> None:
    """Serve the mesh until it is interrupted."""
    values = {name: value for name, value in options.items() if value is not None}
    for name in ("redis", "database"):
        if urlsplit(values.get(f"{name}_url", "")).password:
            click.echo(
                f"Others on this machine can see the password in --{name}-url (ps shows it); "
                f"BXMESH_{name.upper()}_URL hides it.",
                err=True,
            )
    if listen is not None and listen != "unix:":
        values["listen"] = listen
    if services is not None:
        values["services"] = tuple(part.strip() for part in services.split(",") if part.strip())
    try:
        settings = Settings(**values)
    except ValidationError as error:
        raise click.UsageError("\n".join(complaints(error))) from None
    if listen == "unix:":
        # Without a path it is a socket in the state directory.
        settings.listen = f"unix:{settings.run_dir}/bxmesh.sock"
    configure_logging("server")
    try:
        asyncio.run(_serve(settings, with_parent))
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error


async def _serve(settings: Settings, with_parent: bool) -> None:
    from bxmesh.server.app import serve as start
    from bxmesh.server.telemetry import configure

    telemetry = configure(
        "server", trace_output=settings.trace or None, prometheus_port=settings.prometheus_port
    )
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if with_parent:
        # A daemon, so that it does not keep the process: nothing else ends a read of a pipe.
        threading.Thread(
            target=lambda: (sys.stdin.read(), loop.call_soon_threadsafe(stop.set)), daemon=True
        ).start()
    try:
        async with start(settings) as server:
            click.echo(
                f"bxmesh serves on {server.address or 'no address (workers only)'}", err=True
            )
            await stop.wait()
            click.echo("bxmesh stops", err=True)
    finally:
        telemetry.shutdown()
