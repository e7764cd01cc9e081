"""What people read on standard error."""

from __future__ import annotations

import logging
import os


def configure_logging(process: str) -> None:
    """Logs of this process as lines with its name; BXMESH_LOG sets the level."""
    logging.basicConfig(
        level=os.environ.get("BXMESH_LOG", "INFO").upper(),
        format=f"%(asctime)s {process} %(levelname)s %(name)s: %(message)s",
        force=True,
    )
    logging.getLogger("grpc").setLevel(logging.WARNING)
