"""The fences around a worker process, which reads files that anybody may have made.

The kernel's come first: Landlock for files and TCP, seccomp for system calls. Python's own, which
refuses imports and new processes, says more clearly what was tried, and holds back nobody who
has taken over the interpreter.
"""

from .confinement import Confinement, confine
from .modules import ModuleFence

__all__ = ["Confinement", "ModuleFence", "confine"]
