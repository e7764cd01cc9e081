"""Python and the packages that everything stands on."""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
import sys

from bxmesh.server.doctor.findings import Finding, fail, ok, warn
from bxmesh.server.settings import Settings

__all__ = ["check_packages", "check_python"]

_OLDEST = (3, 11)
_PACKAGES = ("grpcio", "protobuf", "protovalidate", "redis")
_INSTALL = "pip install --upgrade 'bxmesh[server,monomers]'"


def check_python(settings: Settings) -> list[Finding]:
    """Looks at the interpreter."""
    version = platform.python_version()
    message = f"{version} ({platform.system()} {platform.machine()}, {sys.executable})"
    if sys.version_info < _OLDEST:
        return [fail("python", message, "Make an environment with Python 3.11 or newer.")]
    if sys.maxsize < 2**32:
        return [fail("python", f"{message}, 32 bit", "Use a 64-bit Python.")]
    if not sys.flags.utf8_mode and sys.getfilesystemencoding() != "utf-8":
        return [warn("python", f"{message}, no UTF-8", "Set PYTHONUTF8=1 or a UTF-8 locale.")]
    return [ok("python", message)]


def check_packages(settings: Settings) -> list[Finding]:
    """Loads the contract, which is particular about the versions of gRPC and protobuf."""
    versions = []
    for name in _PACKAGES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            return [fail("packages", f"{name} is not installed", f"Run: {_INSTALL}")]
    message = ", ".join(versions)
    try:
        importlib.import_module("bxmesh.geometry.v1.geometry_service_pb2_grpc")
    except Exception as error:
        reason = str(error).splitlines()[0]
        return [
            fail("packages", f"{message} do not fit the contract: {reason}", f"Run: {_INSTALL}")
        ]
    return [ok("packages", message)]
