"""The result of `bxmesh gradients`, as a table and as JSON."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bxmesh.client.gradients import Gradients
from bxmesh.client.models import ModelSummary
from bxmesh.client.values import CombinedValue, GeometryValue, SampleValue, XrayValue

__all__ = ["Report"]


@dataclass(frozen=True)
class Report:
    """What was found and computed, with the time it took."""

    model: ModelSummary
    result: Gradients
    seconds: dict[str, float]
    trace_id: str

    def as_dict(self) -> dict[str, Any]:
        """Returns the report as plain values; numbers that are not finite become None."""
        report: dict[str, Any] = {
            "atoms": self.model.atoms,
            "atoms_set_aside": self.model.atoms_set_aside,
            "space_group": self.model.space_group,
            "unit_cell": self.model.unit_cell,
            **_values(self.result.sample),
            "seconds": self.seconds | {"steps": self.result.step_times},
            "engine": self.result.engine,
            "trace_id": self.trace_id,
            "notices": self.model.notices,
        }
        if self.model.reflections is not None:
            report["reflections"] = asdict(self.model.reflections)
        if len(self.result.samples) > 1 or not self.result.ok:
            report["samples"] = [
                {"sample": sample.sample, "status": sample.status, "message": sample.message}
                | _values(sample)
                for sample in self.result.samples
            ]
        plain: dict[str, Any] = _plain(report)
        return plain

    def show(self, output: Path | None) -> None:
        """Writes the report to stdout for people."""
        console = Console(highlight=False)
        table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
        table.add_column(style="bold")
        table.add_column()
        table.add_column(justify="right")
        for row in self._rows():
            table.add_row(*map(escape, row))
        console.print(table)
        for notice in self.model.notices:
            console.print(f"[yellow]notice[/]  {escape(notice)}", soft_wrap=True)
        if output is not None:
            console.print(f"gradients written to {output}", markup=False, soft_wrap=True)

    def _rows(self) -> list[tuple[str, ...]]:
        sample = self.result.sample
        rows = self._model_rows()
        if len(self.result.samples) > 1 or not sample.ok:
            rows += self._sample_rows()
        if sample.geometry:
            rows += _geometry_rows(sample.geometry)
        if sample.xray:
            rows += _xray_rows(sample.xray)
        if sample.combined:
            rows += _combined_rows(sample.combined)
        rows.append(("seconds", "total", f"{self.seconds['total']:.3f}"))
        rows += [("", name, f"{s:.3f}") for name, s in self.seconds.items() if name != "total"]
        rows += [("", f"  {step}", f"{s:.3f}") for step, s in self.result.step_times.items()]
        rows.append(("trace", self.trace_id))
        return rows

    def _model_rows(self) -> list[tuple[str, ...]]:
        model = self.model
        rows: list[tuple[str, ...]] = [("atoms", f"{model.atoms}")]
        if model.atoms_set_aside:
            rows.append(("", f"{model.atoms_set_aside} of them set aside"))
        rows.append(("space group", model.space_group or "none"))
        if data := model.reflections:
            rows.append(("resolution", f"{data.d_max:.2f} – {data.d_min:.2f} Å"))
            rows.append(("reflections", f"{data.reflections} ({data.free_reflections} free)"))
            rows.append(("data labels", data.data_labels))
        return rows

    def _sample_rows(self) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = []
        for sample in self.result.samples:
            energy = f"{sample.geometry.energy:.4g}" if sample.geometry else ""
            says = f"{sample.status}  {sample.message}".rstrip()
            rows.append((f"sample {sample.sample}", says, energy))
        return rows


def _geometry_rows(geometry: GeometryValue) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("geometry", "energy", f"{geometry.energy:.4f}")]
    for name, term in geometry.terms.items():
        rows.append(("", f"{name} ({term.count})", f"{term.energy:.4f}"))
    return [*rows, ("", "gradient norm", f"{geometry.gradient_norm:.4g}")]


def _xray_rows(xray: XrayValue) -> list[tuple[str, ...]]:
    r_free = "no free flags" if xray.r_free is None else f"{xray.r_free:.4f}"
    rows: list[tuple[str, ...]] = [
        ("X-ray", f"target ({xray.target})", f"{xray.value:.6f}"),
        ("", "R-work", f"{xray.r_work:.4f}"),
        ("", "R-free", r_free),
        ("", "reflections", f"{xray.reflections}"),
        ("", "gradient norm", f"{xray.gradient_norm:.4g}"),
    ]
    if xray.twin_fraction is not None:
        rows.append(("", "twin fraction", f"{xray.twin_fraction:.2f}"))
    return rows


def _combined_rows(combined: CombinedValue) -> list[tuple[str, ...]]:
    return [
        ("combined", "value", f"{combined.value:.4f}"),
        ("", "geometry weight", f"{combined.geometry_weight:.4g}"),
        ("", "X-ray weight", f"{combined.xray_weight:.4g}"),
        ("", "gradient norm", f"{combined.gradient_norm:.4g}"),
    ]


def _values(sample: SampleValue) -> dict[str, Any]:
    values: dict[str, Any] = {
        "geometry": asdict(sample.geometry) if sample.geometry else None,
        "xray": asdict(sample.xray) if sample.xray else None,
    }
    if sample.combined:
        values["combined"] = asdict(sample.combined)
    return values


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
