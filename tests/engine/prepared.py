"""The restraint library that servers on this machine use, which is made ready once."""

from functools import cache

from bxmesh.server.geometry.engine import RestraintLibrary
from bxmesh.server.settings import Settings


@cache
def prepared_library() -> RestraintLibrary:
    """The library of this process, loaded."""
    library = RestraintLibrary(Settings().cache_dir)
    library.load()
    return library
