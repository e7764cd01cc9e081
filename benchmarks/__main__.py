"""Runs benchmarks one after another, prints a table, and writes JSON."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.figures import Figure

NAMES = (
    "session",
    "batch",
    "cold",
    "bundles",
    "streams",
    "messages",
    "registry",
    "security",
    "functions",
    "host",
    "chains",
    "conversations",
    "search",
    "torch",
    "minimization",
    "restraints",
    "scaling",
    "memory",
)
RESULTS = Path(__file__).parent / "results"


def machine() -> str:
    """The machine in words."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return (
        f"{os.cpu_count()} cores ({model}), {platform.system()}, Python {platform.python_version()}"
    )


def run_apart(name: str) -> list[Figure]:
    """Runs one benchmark in a process of its own, so that none inherits another's memory."""
    output = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--one", name],
        stdout=subprocess.PIPE,
        check=True,
        timeout=3600,
    ).stdout
    return [Figure(**row) for row in json.loads(output)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*NAMES, []], help="which; all of them")
    parser.add_argument("--one", choices=NAMES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        module = importlib.import_module(f"benchmarks.bench_{arguments.one}")
        print(json.dumps([figure._asdict() for figure in module.run()]))
        return
    console = Console()
    table = Table(title=f"bxmesh on {machine()}", title_justify="left")
    for column in ("what", "figure", "goal", "measured"):
        table.add_column(column)
    rows = []
    failed: list[str] = []
    for name in arguments.names or NAMES:
        console.print(f"{name} …", style="dim")
        try:
            figures = run_apart(name)
        except subprocess.CalledProcessError:
            # Its own words are on the screen; the others are measured all the same.
            failed.append(name)
            continue
        for figure in figures:
            rows.append({"benchmark": name, **figure._asdict()})
            mark = "" if figure.reached is None else " ✓" if figure.reached else " ✗"
            table.add_row(figure.what, figure.text + mark, figure.goal_text, figure.details)
    console.print(table)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    path.write_text(json.dumps({"machine": machine(), "figures": rows}, indent=1))
    console.print(f"written to {path}")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
