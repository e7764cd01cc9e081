"""cctbx and its restraint library, in a process of their own: they may crash."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import Any

from bxmesh.server.doctor.findings import Finding, fail, ok, warn
from bxmesh.server.settings import Settings

__all__ = ["check_engine"]

_SECONDS = 60.0
_OLDEST = (2025, 11)
_INSTALL = "pip install --upgrade 'bxmesh[server,monomers]'"

# Prints one JSON line per thing that works, so that a crash tells how far it came.
_PROBE = """
import json, sys, tempfile
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
import bxmesh.server.geometry.engine.model
names = [n for n in ("cctbx-base", "cctbx") if any(True for _ in metadata.distributions(name=n))]
print(json.dumps({"cctbx": f"{names[0]} {metadata.version(names[0])}" if names else "installed"}))
sys.stdout.flush()
from bxmesh.server.geometry.engine import EngineError, RestraintLibrary
with tempfile.TemporaryDirectory(prefix="bxmesh-doctor-") as folder:
    library = RestraintLibrary(Path(folder))
    description = asdict(library.describe())
    try:
        library.load()
    except EngineError as error:
        description["error"] = error.message
print(json.dumps({"library": description}))
"""


def check_engine(settings: Settings) -> list[Finding]:
    """Loads cctbx, finds the restraint library and reads it."""
    try:
        probe = subprocess.run(
            [sys.executable, "-c", _PROBE],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        message = f"did not load within {_SECONDS:g} s"
        return [fail("cctbx", message, "Look whether the disk or a network folder is slow.")]
    found: dict[str, Any] = {}
    for line in probe.stdout.splitlines():
        if line.startswith("{"):
            found |= json.loads(line)
    if "cctbx" not in found:
        message = f"cannot be loaded: {_ending(probe)}"
        return [fail("cctbx", message, f"In an environment of its own run: {_INSTALL}")]
    findings = [_cctbx(found["cctbx"])]
    if "library" not in found:
        message = f"cannot be looked at: {_ending(probe)}"
        return [*findings, fail("restraint library", message, f"Run: {_INSTALL}")]
    return [*findings, _library(found["library"])]


def _cctbx(found: str) -> Finding:
    version = tuple(int(part) for part in found.rpartition(" ")[2].split(".") if part.isdecimal())
    if version and version < _OLDEST:
        return warn("cctbx", f"{found}, older than what this was tested with", f"Run: {_INSTALL}")
    return ok("cctbx", found)


def _library(library: dict[str, Any]) -> Finding:
    check, remedy = "restraint library", library["remedy"]
    if not library["source"]:
        return fail(check, "there is none: nothing can be restrained", remedy)
    lacks = [
        what
        for what, there in (
            ("links of DNA and RNA", library["has_nucleic_acid_links"]),
            ("hydrogens", library["knows_hydrogens"]),
        )
        if not there
    ]
    message = f"{library['source']}, {library['residues']} residues"
    if lacks:
        message += f", without {' and '.join(lacks)}"
    message += f" ({library['path']})"
    if "error" in library:
        return fail(check, library["error"], remedy or f"Run: {_INSTALL}")
    if not library["complete"]:
        return warn(check, message, remedy)
    return ok(check, message)


def _ending(probe: subprocess.CompletedProcess[str]) -> str:
    if probe.returncode < 0:
        return f"Python crashed ({signal.Signals(-probe.returncode).name})"
    lines = [line for line in probe.stderr.splitlines() if line.strip()]
    return lines[-1].strip() if lines else f"Python ended with {probe.returncode}"
