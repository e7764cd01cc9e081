"""`bxmesh host`: definitions as agents."""

from __future__ import annotations

import asyncio
import logging
import signal
from contextlib import suppress

import click

from bxmesh.client.cli.connecting import Where, connecting
from bxmesh.client.cli.tables import show
from bxmesh.client.host import AgentFigures, Host
from bxmesh.client.mesh import AsyncMesh

__all__ = ["host"]


@click.command()
@click.option("--name", default="", help="Its name; the machine's, and the process's number.")
@click.option("--only", multiple=True, metavar="ID", help="Only this definition; repeatable.")
@click.option("--max", "most", type=click.IntRange(min=1), help="At most so many agents.")
@click.option(
    "--server",
    "servers",
    multiple=True,
    metavar="URL",
    help="Ask models at this base URL where a definition names one, and at no other; repeatable.",
)
@click.option(
    "--lend",
    "lent",
    multiple=True,
    metavar="MODEL[=URL]",
    help="Let conversations ask this model, such as openai:gpt-5 or openai:qwen=http://host/v1; "
    "the first is the default; repeatable.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=600.0,
    show_default=True,
    help="Seconds for a message where its definition does not say.",
)
@click.option(
    "--lease",
    type=click.IntRange(1, 3600),
    help="Seconds until others take its agents when it is lost; the server's default.",
)
@click.option(
    "--stats", is_flag=True, help="Print what its agents have done, at the end and on SIGUSR1."
)
@connecting
def host(
    where: Where,
    name: str,
    only: tuple[str, ...],
    most: int | None,
    servers: tuple[str, ...],
    lent: tuple[str, ...],
    timeout: float,
    lease: int | None,
    stats: bool,
) -> None:
    """Run the active definitions of a mesh as agents, until it is interrupted.

    Several hosts share them. Keys of models come from the environment: OPENAI_API_KEY and the like,
    and BXMESH_MODEL_KEY_<HOST> for servers that definitions name.
    """
    logging.basicConfig(format="%(asctime)s %(message)s")
    logging.getLogger("bxmesh.client.host").setLevel(logging.INFO)

    models = dict(map(_lent, lent))

    async def run() -> None:
        async with AsyncMesh(**vars(where)) as mesh:
            running = Host(
                mesh,
                name=name,
                only=only,
                most=most,
                servers=servers,
                lent=models,
                timeout=timeout,
                lease_seconds=lease or 0,
            )
            if stats:
                # Not every system has this signal.
                with suppress(AttributeError, NotImplementedError):
                    asyncio.get_running_loop().add_signal_handler(
                        signal.SIGUSR1, lambda: _print(running.figures())
                    )
            click.echo(f"{running.name} runs definitions of {mesh.address}", err=True)
            try:
                await running.run()
            finally:
                if stats:
                    _print(running.figures())

    asyncio.run(run())


def _lent(text: str) -> tuple[str, str]:
    model, _, url = text.partition("=")
    provider, _, name = model.partition(":")
    if not provider or not name:
        raise click.BadParameter(
            f"{text!r} names no model of a provider, as openai:gpt-5 does", param_hint="--lend"
        )
    return model, url


def _print(figures: list[AgentFigures]) -> None:
    show(
        ("agent", "version", "messages", "tasks", "failed", "seconds", "calls", "tokens", "cached"),
        [
            (
                one.agent_id,
                f"{one.version}",
                f"{one.messages}",
                f"{one.tasks}",
                f"{one.failed}",
                f"{one.seconds:.3g}",
                f"{one.tool_calls}",
                f"{one.input_tokens}/{one.output_tokens}",
                f"{one.cache_hits}",
            )
            for one in figures
        ],
    )
