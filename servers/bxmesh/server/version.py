"""The version of the installed distribution."""

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("bxmesh")
except PackageNotFoundError:
    VERSION = "0"
