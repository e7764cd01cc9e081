"""What a worker may import once it has started, and that it starts no programs."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any

__all__ = ["ModuleFence"]

_log = logging.getLogger(__name__)

# What calculations import on their way, besides what is loaded by then.
_NEEDED = frozenset(
    {
        "boost", "boost_adaptbx", "boost_rational_ext", "cctbx", "cma_es", "fable", "fftw3tbx",
        "gltbx", "iotbx", "libtbx", "mmtbx", "omptbx", "scitbx", "smtbx", "spotfinder", "tntbx",
        "ply", "reduce", "probe", "chem_data", "monomer_library", "six", "numpy", "encodings",
        "unicodedata", "bxmesh", "google", "grpc", "opentelemetry", "importlib", "zoneinfo",
    }
)  # fmt: skip
_PROGRAMS = frozenset(
    {
        "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.startfile",
        "os.system", "pty.spawn", "subprocess.Popen",
    }
)  # fmt: skip


class ModuleFence:
    """Refuses imports outside a list, and programs, from `close` on; it never opens again."""

    def __init__(self, on_refused: Callable[[str], None] = lambda what: None) -> None:
        """Takes who is told what was tried; it is called in whatever thread tried."""
        self.extra: frozenset[str] = frozenset()
        """Modules that the policy allows besides; one covers its submodules."""
        self._on_refused = on_refused
        self._allowed: frozenset[str] = frozenset()

    def close(self) -> None:
        """Puts the fence up: what is loaded by now, and what calculations need, may be imported."""
        self._allowed = _NEEDED | {name.partition(".")[0] for name in sys.modules}
        # A hook cannot be taken away again.
        sys.addaudithook(self._audit)

    def allows(self, module: str) -> bool:
        """Whether a module may be imported."""
        return module.partition(".")[0] in self._allowed or any(
            module == name or module.startswith(f"{name}.") for name in self.extra
        )

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "import":
            name = arguments[0]
            # Compiled modules that are loaded by path have the name of their package already.
            if isinstance(name, str) and not self.allows(name):
                self._refuse(f"import {name}")
                raise ImportError(
                    f"A worker may not import {name}. The policy's module_whitelists can allow it.",
                    name=name,
                )
        elif event in _PROGRAMS:
            self._refuse(event)
            raise PermissionError(f"A worker starts no programs ({event}).")

    def _refuse(self, what: str) -> None:
        _log.error("refused: %s", what)
        self._on_refused(what)
