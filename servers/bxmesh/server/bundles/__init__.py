"""The content-addressed store of bundles."""

from .directory import Swept
from .store import BundleStore
from .usage import Usage
from .writer import BundleWriter

__all__ = ["BundleStore", "BundleWriter", "Swept", "Usage"]
