"""The Common Expression Language over JSON values, under bounds.

The implementations at hand know none: one aborts the process when memory runs out, one holds the
interpreter while it fills memory, one needs exponential time to read an open quote. So the grammar
is read by a library, and what it means is ours: every loop and every copy is paid from a budget.

Left out are bytes, unsigned integers, times, message literals and triple quotes. Added is that
integers and doubles, which is what numbers in JSON are, mix in arithmetic: the result is a double.
"""

from bxmesh.server.chains.cel.compiler import Path, Program, compile_program
from bxmesh.server.chains.cel.problems import EvaluationError, SourceError
from bxmesh.server.chains.cel.scope import Scope

__all__ = ["EvaluationError", "Path", "Program", "Scope", "SourceError", "compile_program"]
