"""TorchRef beside us: in an environment of its own, as it needs an older NumPy, and a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["TorchRef"]

_ROOT = Path(__file__).parents[2]
_ENVIRONMENT = _ROOT / ".venv-torchref"
_PACKAGES = ("torchref==0.7.0", "torch==2.13.0")


class TorchRef:
    """Its geometry target of one model. Raises subprocess.CalledProcessError if it cannot be installed."""

    def __init__(self, model: Path) -> None:
        python = _ENVIRONMENT / "bin" / "python"
        ready = _ENVIRONMENT / ".ready"
        if not ready.exists():
            print("installing TorchRef …", file=sys.stderr)
            subprocess.run([sys.executable, "-m", "venv", str(_ENVIRONMENT)], check=True)
            pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            subprocess.run([*pip, *_PACKAGES], check=True)
            ready.touch()
        script = Path(__file__).with_name("torchref_geometry.py")
        self._process = subprocess.Popen(
            [str(python), str(script), str(model)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.atoms = int(self._answer())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()

    def step(self, jitter: float) -> None:
        """Has it evaluate energy and gradients elsewhere, so many Å away."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{jitter}\n")
        self._process.stdin.flush()
        self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("="):
                return line.removeprefix("=")
        raise RuntimeError("TorchRef ended before it answered")
