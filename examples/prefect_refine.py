"""A Prefect flow that minimizes a structure as a job and says what that did to its validation.

Needs a running mesh and Prefect: `bxmesh serve`, then `python examples/prefect_refine.py model.pdb
data.mtz`. Progress and reports are artifacts of the flow's run.
"""

import argparse
from pathlib import Path

from prefect import flow

from bxmesh.client.prefect import create_model, submit_job, validate, wait_for_job
from bxmesh.client.validation import compare


@flow(log_prints=True)
def refine(model_file: Path, data_file: Path, evaluations: int) -> None:
    """Minimizes geometry and data together; validates before and after."""
    model = create_model(model_file, data_file)
    before = validate.submit(model)
    job_id = submit_job(model, "minimization", {"maxEvaluations": evaluations})
    sites = wait_for_job(job_id).tensors["sites"]
    for figure in compare(before.result(), validate(model, sites)):
        if figure.name in ("bond rms", "angle rms", "R-work", "R-free"):
            print(f"{figure.name} {figure.before:.4f} -> {figure.after:.4f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="the macromolecule, PDB or mmCIF")
    parser.add_argument("data", type=Path, help="its reflections, MTZ")
    parser.add_argument("--evaluations", type=int, default=50)
    options = parser.parse_args()
    refine(options.model, options.data, options.evaluations)
