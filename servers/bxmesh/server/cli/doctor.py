"""`bxmesh doctor`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bxmesh.server.doctor import Finding, Level, examine
from bxmesh.server.doctor.findings import fail
from bxmesh.server.settings import Settings, complaints
from bxmesh.server.version import VERSION

__all__ = ["doctor"]

_STYLES = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "bold red"}
_WIDTH_OF_A_FILE = 240
_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.option("--state-dir", type=click.Path(path_type=Path, file_okay=False))
@click.option("--listen", metavar="HOST:PORT|unix:PATH", help="Where the mesh is to serve.")
@click.option("--redis-url", metavar="URL", help="Redis or Valkey; without one, the embedded.")
@click.option("--tls-certificate", type=_FILE)
@click.option("--tls-key", type=_FILE)
@click.option("--tls-client-ca", type=_FILE)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(as_json: bool, **options: Any) -> None:
    """Check what people get stuck on. Exit code 1 when something fails."""
    findings = _examine({name: value for name, value in options.items() if value is not None})
    healthy = all(finding.level is not Level.FAIL for finding in findings)
    if as_json:
        checks = [asdict(finding) for finding in findings]
        click.echo(json.dumps({"version": VERSION, "ok": healthy, "checks": checks}))
    else:
        _show(findings)
    if not healthy:
        sys.exit(1)


def _examine(options: dict[str, Any]) -> list[Finding]:
    try:
        settings = Settings(**options)
    except ValidationError as error:
        remedy = "Correct the option, or the environment variable BXMESH_… of that name."
        return [fail("settings", complaint, remedy) for complaint in complaints(error)]
    return examine(settings)


def _show(findings: list[Finding]) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_WIDTH_OF_A_FILE)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for finding in findings:
        said = Text(finding.message)
        if finding.remedy:
            said.append(f"\n→ {finding.remedy}", style="bold")
        table.add_row(Text(finding.level, style=_STYLES[finding.level]), Text(finding.check), said)
    console.print(table)
