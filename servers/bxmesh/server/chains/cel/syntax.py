"""From source to a syntax tree, in time linear in the source."""

from __future__ import annotations

import re
from functools import cache

from lark import Lark, Token, Tree
from lark.exceptions import UnexpectedCharacters, UnexpectedInput, UnexpectedToken

from bxmesh.server.chains.cel.problems import SourceError, quoted

__all__ = ["MOST_CHARACTERS", "Node", "parse", "text_of"]

MOST_CHARACTERS = 4096
_MOST_NODES = 2000
_DEEPEST = 48

Node = Tree[Token]

# In no string can one character be read in two ways: an open quote costs no more than a closed one.
_GRAMMAR = r"""
?start: expression
?expression: disjunction | disjunction "?" disjunction ":" expression -> conditional
?disjunction: conjunction | conjunction ("||" conjunction)+ -> disjunction
?conjunction: relation | relation ("&&" relation)+ -> conjunction
?relation: sum | relation (COMPARE | IN) sum -> binary
?sum: product | sum (PLUS | MINUS) product -> binary
?product: unary | product TIMES unary -> binary
?unary: member | "!" unary -> negation | MINUS unary -> minus
?member: primary
       | member "." NAME -> select
       | member "." NAME "(" [arguments] ")" -> method
       | member "[" expression "]" -> index
?primary: NAME -> name
        | NAME "(" [arguments] ")" -> call
        | "(" expression ")"
        | "[" [arguments] "]" -> list
        | "{" [entry ("," entry)* ","?] "}" -> map
        | INTEGER -> integer
        | DOUBLE -> double
        | (RAW | STRING) -> string
        | "true" -> true
        | "false" -> false
        | "null" -> null
arguments: expression ("," expression)* ","?
entry: expression ":" expression

COMPARE: /[<>]=?|[=!]=/
IN: "in"
PLUS: "+"
MINUS: "-"
TIMES: /[*\/%]/
NAME: /[A-Za-z_][A-Za-z0-9_]*/
DOUBLE.2: /[0-9]+\.[0-9]+([eE][+-]?[0-9]+)?|[0-9]+[eE][+-]?[0-9]+|\.[0-9]+([eE][+-]?[0-9]+)?/
INTEGER: /0x[0-9A-Fa-f]+|[0-9]+/
RAW.2: /[rR]("[^"\n]*"|'[^'\n]*')/
STRING: /"([^"\\\n]|\\.)*"|'([^'\\\n]|\\.)*'/
%ignore /[\t\n\f\r ]+/
%ignore /\/\/[^\n]*/
"""

_ESCAPE = re.compile(
    r"""\\(?:([abfnrtv\\?"'`])|x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|([0-3][0-7]{2})|.)""",
    re.DOTALL,
)
_SIMPLE = dict(zip("abfnrtv\\?\"'`", "\a\b\f\n\r\t\v\\?\"'`", strict=True))


@cache
def _parser() -> Lark:
    return Lark(_GRAMMAR, parser="lalr", lexer="contextual", maybe_placeholders=False)


def parse(source: str) -> Node:
    """Returns the tree; raises SourceError for what is no expression, or too long or deep a one."""
    if len(source) > MOST_CHARACTERS:
        raise SourceError(f"is longer than {MOST_CHARACTERS} characters")
    try:
        tree = _parser().parse(source)
    except UnexpectedInput as error:
        raise SourceError(_described(error)) from None
    _measure(tree)
    return tree


def _described(error: UnexpectedInput) -> str:
    where = f"line {error.line}, column {error.column}"
    match error:
        case UnexpectedCharacters():
            return f"has an unexpected {quoted(error.char)} in {where}"
        case UnexpectedToken() if error.token.type != "$END":
            return f"has an unexpected {quoted(str(error.token))} in {where}"
    return "ends too early"


def _measure(tree: Node) -> None:
    nodes = 0
    waiting = [(tree, 1)]
    while waiting:
        node, depth = waiting.pop()
        nodes += 1
        if depth > _DEEPEST:
            raise SourceError(f"is nested more than {_DEEPEST} deep")
        if nodes > _MOST_NODES:
            raise SourceError(f"has more than {_MOST_NODES} parts")
        waiting += [(each, depth + 1) for each in node.children if isinstance(each, Tree)]


def text_of(literal: Token) -> str:
    """Returns what a string literal stands for."""
    if literal.type == "RAW":
        return literal[2:-1]
    return _ESCAPE.sub(_unescaped, literal[1:-1])


def _unescaped(found: re.Match[str]) -> str:
    simple, *hexadecimal, octal = found.groups()
    if simple:
        return _SIMPLE[simple]
    digits = next(filter(None, hexadecimal), "")
    if not (digits or octal):
        raise SourceError(f"has an unknown escape {quoted(found[0])}")
    code = int(digits, 16) if digits else int(octal, 8)
    if code > 0x10FFFF or 0xD800 <= code <= 0xDFFF:
        raise SourceError(f"has an escape {quoted(found[0])} that is no character")
    return chr(code)
