"""C-beta atoms away from where the backbone says they are."""

from typing import Any

from mmtbx.validation import cbetadev

from bxmesh.server.geometry.engine.validation.naming import residue_name
from bxmesh.server.geometry.engine.validation.types import Finding, Outlier

CHECK = "cbeta"
LIMIT = 0.25
"""In Å; Lovell et al., Proteins 50, 437 (2003)."""


def cbeta(hierarchy: Any) -> Finding:
    """Return the C-beta atoms that are too far off. The score is the distance in Å."""
    results = cbetadev.cbetadev(pdb_hierarchy=hierarchy, outliers_only=False, quiet=True).results
    outliers = [_outlier(result) for result in results if result.deviation >= LIMIT]
    outliers.sort(key=lambda outlier: -outlier.score)
    return Finding(len(results), outliers)


def _outlier(result: Any) -> Outlier:
    return Outlier(
        CHECK,
        (
            residue_name(
                result.chain_id, result.resseq, result.icode, result.resname, result.altloc
            ),
        ),
        result.deviation,
        0.0,
        result.deviation,
        f"C-beta {result.deviation:.2f} Å from its ideal position",
    )
