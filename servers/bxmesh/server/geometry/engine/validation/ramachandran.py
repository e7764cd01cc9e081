"""The Ramachandran plot: with the contours of the Top8000 set, which cctbx has compiled in."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from mmtbx.rotamer.ramachandran_eval import RamachandranEval
from mmtbx.validation import ramalyze

from bxmesh.server.geometry.engine.validation.naming import residue_name
from bxmesh.server.geometry.engine.validation.shares import shares
from bxmesh.server.geometry.engine.validation.types import Finding, Outlier, RamachandranPoint

CHECK = "ramachandran"
REGIONS = ("favored", "allowed", "outlier")
GRID = 4
"""The distance between the points of `regions`, in degrees."""

_REGION_OF = {
    ramalyze.RAMALYZE_FAVORED: "favored",
    ramalyze.RAMALYZE_ALLOWED: "allowed",
    ramalyze.RAMALYZE_OUTLIER: "outlier",
}


def ramachandran(hierarchy: Any) -> Finding:
    """Return the residues that have both angles, each conformation; the shares; the outliers.

    A residue with alternative conformations counts in the shares with its first one. The score is the
    percentage of the residues of the Top8000 set that are less usual: less is worse.
    """
    results = ramalyze.ramalyze(pdb_hierarchy=hierarchy, outliers_only=False, quiet=True).results
    points, outliers = [], []
    first: dict[tuple[str, ...], str] = {}
    for result in results:
        region = _REGION_OF[result.rama_type]
        residue = residue_name(
            result.chain_id, result.resseq, result.icode, result.resname, result.altloc
        )
        kind = ramalyze.res_types[result.res_type]
        point = RamachandranPoint(residue, result.phi, result.psi, kind, region, result.score)
        points.append(point)
        first.setdefault((result.chain_id, result.resseq, result.icode), region)
        if region == "outlier":
            outliers.append(_outlier(point))
    outliers.sort(key=lambda outlier: outlier.score)
    classes = shares(CHECK, REGIONS, first.values())
    return Finding(len(points), outliers, classes, tuple(points))


@cache
def regions() -> Mapping[str, tuple[str, ...]]:
    """Return for each class of residue what its plot looks like behind the points.

    A row for each psi and a letter for each phi, both from -180 in steps of `GRID`: f for favored, a for
    allowed, o for outlier, at the middle of each square.
    """
    evaluation = RamachandranEval()
    middles = [-180 + GRID * (index + 0.5) for index in range(360 // GRID)]
    return {
        name: tuple(
            "".join(
                _REGION_OF[
                    ramalyze.ramalyze.evalScore(kind, evaluation.evaluate(name, (phi, psi)))
                ][0]
                for phi in middles
            )
            for psi in middles
        )
        for kind, name in enumerate(ramalyze.res_types)
    }


def _outlier(point: RamachandranPoint) -> Outlier:
    return Outlier(
        CHECK,
        (point.residue,),
        point.score,
        0.0,
        point.score,
        f"phi {point.phi:.0f}°, psi {point.psi:.0f}° ({point.residue_class}): {point.score:.2g} % of "
        "well-determined residues are less usual",
    )
