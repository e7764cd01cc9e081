"""`bxmesh status`: how the mesh is and who is in it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from datetime import datetime

import click

from bxmesh.client.cli.agents import show_agents
from bxmesh.client.cli.connecting import Where, connecting, tracing
from bxmesh.client.cli.tables import show

__all__ = ["status"]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@connecting
def status(where: Where, as_json: bool) -> None:
    """Say how the mesh is and who is in it. Exit code 1 when it does not serve."""
    with tracing("status"), where.connect() as mesh:
        address, health, agents = mesh.address, mesh.health(), mesh.agents()
    if as_json:
        plain = {"address": address, "health": health, "agents": [asdict(a) for a in agents]}
        click.echo(json.dumps(plain, default=datetime.isoformat))
    else:
        click.echo(f"The mesh at {address} is {health.get('', 'unknown').replace('_', ' ')}.\n")
        rows = [(name, state.replace("_", " ")) for name, state in health.items() if name]
        show(("service or dependency", "health"), rows)
        click.echo()
        show_agents(agents)
    if health.get("") != "serving":
        sys.exit(1)
