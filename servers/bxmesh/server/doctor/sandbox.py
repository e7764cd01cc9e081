"""Whether this kernel can confine workers."""

from __future__ import annotations

from bxmesh.server.doctor.findings import Finding, fail, ok, warn
from bxmesh.server.sandbox.confinement import possible
from bxmesh.server.settings import Settings

__all__ = ["check_sandbox"]


def check_sandbox(settings: Settings) -> list[Finding]:
    """Looks which of the kernel's fences there are for workers."""
    if settings.sandbox == "off":
        remedy = "Leave BXMESH_SANDBOX out, unless something does not work with it."
        return [warn("sandbox", "off: a hostile file may take over a worker whole", remedy)]
    has = possible()
    if has.complete:
        return [ok("sandbox", "workers open their own files and connections only")]
    missing = [
        what
        for there, what in (
            (has.files, "Landlock (files)"),
            (has.network, "Landlock 4 (TCP)"),
            (has.calls, "seccomp"),
        )
        if not there
    ]
    message = f"this kernel lacks {', '.join(missing)}: workers are confined without"
    remedy = "Use Linux 6.7 or newer with Landlock, outside of containers that hide it."
    if settings.sandbox == "require":
        return [fail("sandbox", f"{message}, and that is required: they do not start", remedy)]
    return [warn("sandbox", message, remedy)]
