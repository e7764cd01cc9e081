"""Which tests run in which process, when several run at a time."""

from __future__ import annotations

from pathlib import PurePosixPath

from xdist.scheduler import LoadScopeScheduling

# Their tests share a mesh with geometry workers, which takes seconds to start.
WHOLE = ("mesh", "torch", "workflows")


class ByMesh(LoadScopeScheduling):
    """A folder with a mesh of its own goes to one process; of others, file by file."""

    def _split_scope(self, nodeid: str) -> str:
        file = PurePosixPath(nodeid.partition("::")[0])
        return file.parent.name if file.parent.name in WHOLE else str(file)
