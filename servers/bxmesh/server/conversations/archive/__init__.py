"""What was said is kept here, and found again."""

from bxmesh.server.conversations.archive.archive import Archive, MeaningOptions, open_archive
from bxmesh.server.conversations.archive.search import Found

__all__ = ["Archive", "Found", "MeaningOptions", "open_archive"]
