"""The mesh for Prefect: calculations and jobs as tasks, with retries, progress and reports.

Needs the extra `prefect`: pip install 'bxmesh[prefect]'.
"""

try:
    import prefect  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "prefect":
        raise
    raise ModuleNotFoundError(
        "bxmesh.client.prefect needs Prefect, which is not installed: pip install 'bxmesh[prefect]'",
        name="prefect",
    ) from error

from bxmesh.client.prefect.calculations import (
    compute_gradients,
    create_model,
    minimize,
    validate,
)
from bxmesh.client.prefect.connection import MeshConnection
from bxmesh.client.prefect.jobs import JobFailed, submit_job, wait_for_job
from bxmesh.client.prefect.retries import retryable

__all__ = [
    "JobFailed",
    "MeshConnection",
    "compute_gradients",
    "create_model",
    "minimize",
    "retryable",
    "submit_job",
    "validate",
    "wait_for_job",
]
