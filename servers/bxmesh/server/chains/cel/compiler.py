"""From a syntax tree to a program; whatever can be said without values is said here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lark import Token

from bxmesh.server.chains.cel.evaluation import MACROS, Code, Frame, decided, each
from bxmesh.server.chains.cel.functions import FUNCTIONS, METHODS
from bxmesh.server.chains.cel.operators import OPERATORS
from bxmesh.server.chains.cel.problems import EvaluationError, SourceError, quoted
from bxmesh.server.chains.cel.scope import Scope
from bxmesh.server.chains.cel.syntax import Node, parse, text_of
from bxmesh.server.chains.cel.values import at, boolean, kind, negative

__all__ = ["Path", "Program", "compile_program"]

_ROOTS = ("input", "steps")
_STEP = 'steps must be followed by a step and .output: steps.a.output or steps["a-b"].output'


@dataclass(frozen=True)
class Path:
    """An expression that only picks: `keys` out of a step's output, or of the input for None."""

    step: str | None
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Program:
    """A compiled expression: what it refers to, and how to evaluate it."""

    steps: frozenset[str]
    path: Path | None
    _code: Code

    def run(self, scope: Scope, levels: int = 0) -> Any:
        """Returns the value as JSON, to stand so many levels deep; raises EvaluationError."""
        return scope.written(self._code(Frame(scope, scope.budget)), levels)


def compile_program(source: str) -> Program:
    """Returns the program of a source; raises SourceError."""
    tree = parse(source)
    compiler = _Compiler()
    code = compiler.code(tree)
    return Program(frozenset(compiler.steps), _path(tree), code)


def _step(node: Node) -> str | None:
    """Returns the step whose output this is: its name is all up to the first `.output`."""
    if node.data != "select" or node.children[1] != "output":
        return None
    parts: list[str] = []
    inner: Any = node.children[0]
    while inner.data == "select" and inner.children[1] != "output":
        parts.append(str(inner.children[1]))
        inner = inner.children[0]
    if _is_steps(inner) and parts:
        return ".".join(reversed(parts))
    if inner.data == "index" and not parts and _is_steps(inner.children[0]):
        return _text(inner.children[1])
    return None


def _is_steps(node: Any) -> bool:
    return bool(node.data == "name" and node.children[0] == "steps")


def _text(node: Any) -> str | None:
    return text_of(node.children[0]) if node.data == "string" else None


def _path(tree: Node) -> Path | None:
    keys: list[str] = []
    node: Any = tree
    while node.data in ("select", "index"):
        step = _step(node)
        if step is not None:
            return Path(step, tuple(reversed(keys)))
        inner, last = node.children
        key = str(last) if isinstance(last, Token) else _text(last)
        if key is None:
            return None
        keys.append(key)
        node = inner
    if node.data == "name" and node.children[0] == "input":
        return Path(None, tuple(reversed(keys)))
    return None


class _Compiler:
    """A method for each kind of node; it takes the node's children."""

    def __init__(self) -> None:
        self.steps: set[str] = set()
        self._variables: list[str] = []

    def code(self, node: Any) -> Code:
        """Returns what evaluates a node."""
        step = _step(node)
        if step is not None:
            self.steps.add(step)
            return lambda frame: frame.scope.output(step)
        compiled: Code = getattr(self, f"_{node.data}")(*node.children)
        return compiled

    def _codes(self, nodes: Any) -> list[Code]:
        return [self.code(node) for node in nodes]

    def _name(self, token: Token) -> Code:
        name = str(token)
        if name in self._variables:
            return lambda frame: frame.variables[name]
        if name == "input":
            return lambda frame: frame.scope.input()
        if name == "steps":
            raise SourceError(_STEP)
        raise SourceError(f"knows input and steps, but no {quoted(name)}")

    def _integer(self, token: Token, sign: int = 1) -> Code:
        value = sign * int(token, 16 if token.startswith("0x") else 10)
        if not -(2**63) <= value < 2**63:
            raise SourceError(f"has an integer of more than 64 bits: {quoted(str(token))}")
        return lambda frame: value

    def _double(self, token: Token) -> Code:
        value = float(token)
        return lambda frame: value

    def _string(self, token: Token) -> Code:
        value = text_of(token)
        return lambda frame: value

    def _true(self) -> Code:
        return lambda frame: True

    def _false(self) -> Code:
        return lambda frame: False

    def _null(self) -> Code:
        return lambda frame: None

    def _list(self, arguments: Node | None = None) -> Code:
        codes = self._codes(arguments.children if arguments else [])
        return lambda frame: [code(frame) for code in codes]

    def _map(self, *entries: Node) -> Code:
        pairs = [(self.code(key), self.code(value)) for key, value in (e.children for e in entries)]

        def build(frame: Frame) -> dict[str, Any]:
            built: dict[str, Any] = {}
            for key_code, value_code in pairs:
                key = key_code(frame)
                if not isinstance(key, str):
                    raise EvaluationError(f"a map has {kind(key)} as key; JSON has strings")
                if key in built:
                    raise EvaluationError(f"a map has the key {quoted(key)} twice")
                built[key] = value_code(frame)
            return built

        return build

    def _conditional(self, condition: Node, yes: Node, no: Node) -> Code:
        holds, first, second = self._codes((condition, yes, no))
        return lambda frame: (first if boolean(holds(frame)) else second)(frame)

    def _disjunction(self, *nodes: Node) -> Code:
        codes = self._codes(nodes)
        return lambda frame: decided(True, ((code, frame) for code in codes))

    def _conjunction(self, *nodes: Node) -> Code:
        codes = self._codes(nodes)
        return lambda frame: decided(False, ((code, frame) for code in codes))

    def _binary(self, left: Node, operator: Token, right: Node) -> Code:
        first, second = self._codes((left, right))
        operate = OPERATORS[operator]
        return lambda frame: operate(frame.budget, first(frame), second(frame))

    def _negation(self, node: Node) -> Code:
        code = self.code(node)
        return lambda frame: not boolean(code(frame))

    def _minus(self, sign: Token, node: Any) -> Code:
        if node.data == "integer":
            return self._integer(node.children[0], -1)
        code = self.code(node)
        return lambda frame: negative(code(frame))

    def _select(self, node: Node, key: Token) -> Code:
        code, name = self.code(node), str(key)
        return lambda frame: at(code(frame), name)

    def _index(self, node: Node, key: Node) -> Code:
        container, index = self._codes((node, key))
        return lambda frame: at(container(frame), index(frame))

    def _call(self, name: Token, arguments: Node | None = None) -> Code:
        nodes = arguments.children if arguments else []
        if name == "has":
            return self._has(nodes)
        return self._function(FUNCTIONS, name, self._codes(nodes), len(nodes))

    def _method(self, target: Node, name: Token, arguments: Node | None = None) -> Code:
        nodes = arguments.children if arguments else []
        macro = MACROS.get((str(name), len(nodes)))
        if macro is not None:
            return self._macro(macro, target, *nodes)
        return self._function(METHODS, name, self._codes([target, *nodes]), len(nodes))

    def _function(
        self,
        known: dict[str, tuple[int, Callable[..., Any]]],
        name: Token,
        codes: list[Code],
        count: int,
    ) -> Code:
        if name not in known:
            raise SourceError(f"has an unknown function {quoted(str(name))}")
        arity, function = known[name]
        if arity != count:
            raise SourceError(f"gives {name} {count} arguments; it takes {arity}")
        return lambda frame: function(frame.budget, *(code(frame) for code in codes))

    def _has(self, nodes: Any) -> Code:
        if len(nodes) != 1 or nodes[0].data != "select":
            raise SourceError("calls has without one field, as in has(input.a)")
        step = _step(nodes[0])
        if step is not None:
            self.steps.add(step)
            return lambda frame: frame.scope.has(step)
        code, name = self.code(nodes[0].children[0]), str(nodes[0].children[1])

        def has(frame: Frame) -> bool:
            container = code(frame)
            if not isinstance(container, dict):
                raise EvaluationError(f"{kind(container)} has no fields")
            return name in container

        return has

    def _macro(self, macro: Callable[..., Any], target: Node, variable: Any, *bodies: Any) -> Code:
        if variable.data != "name" or variable.children[0] in _ROOTS:
            raise SourceError("needs the name of a variable as a macro's first argument")
        name = str(variable.children[0])
        container = self.code(target)
        self._variables.append(name)
        codes = self._codes(bodies)
        self._variables.pop()
        cost = sum(1 for body in bodies for _ in body.iter_subtrees())
        return lambda frame: macro(each(frame, container(frame), name, cost), *codes)
