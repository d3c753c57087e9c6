"""Bounds: conditions between knobs, written in a small language of their own.

It has names, numbers, strings, tuples, `+ - * / // % **`, comparisons (chained ones too), `in`, `and`, `or`, `not`,
`min`, `max` and `abs`; anything else is refused when the bound is read. Nothing is ever passed to `eval`.
"""

import ast
import difflib
import operator
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from autoresearch_hpc.errors import ConfigError
from autoresearch_hpc.records import Knobs

__all__ = ["Bound"]

_BINARY: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_UNARY: Mapping[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Not: operator.not_,
}
_COMPARE: Mapping[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}
_FUNCTIONS: Mapping[str, Callable[..., Any]] = {"min": min, "max": max, "abs": abs}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """One condition; `text` is how the configuration states it."""

    text: str
    names: frozenset[str]
    tree: ast.expr

    @classmethod
    def parse(cls, text: str) -> "Bound":
        """Read a bound. Raises ConfigError where it is no expression of the language above."""
        try:
            tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise ConfigError(
                f"bound {text!r} does not parse", 'write a condition such as "HEAD_DIM % 2 == 0"'
            ) from error
        names: set[str] = set()
        _validate(tree, text, names)
        return cls(text=text, names=frozenset(names), tree=tree)

    def validate_names(self, known: Collection[str]) -> None:
        """Raise ConfigError where the bound names something unknown."""
        for name in sorted(self.names - set(known)):
            near = difflib.get_close_matches(name, sorted(known), n=1)
            hint = f"did you mean {near[0]}?" if near else f"it may name {', '.join(sorted(known))}"
            raise ConfigError(f"bound {self.text!r} names {name}, which is no knob", hint)

    def holds(self, values: Knobs) -> bool:
        """Whether the bound is met; a division by zero means it is not. Raises ConfigError where it has no answer."""
        self.validate_names(values)
        try:
            return bool(_value(self.tree, values))
        except ArithmeticError:
            return False
        except (TypeError, ValueError) as error:
            raise ConfigError(f"bound {self.text!r} cannot be computed: {error}", "correct the bound") from error


def _validate(node: ast.expr, text: str, names: set[str]) -> None:
    """Collect the names; raise ConfigError on anything that `_value` does not know."""
    parts: list[ast.expr]
    match node:
        case ast.Constant(value=bool() | int() | float() | str() | None):
            return
        case ast.Name(id=name):
            names.add(name)
            return
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            parts = [left, right]
        case ast.UnaryOp(op=unary, operand=operand) if type(unary) in _UNARY:
            parts = [operand]
        case ast.BoolOp(values=values):
            parts = values
        case ast.Compare(left=left, ops=ops, comparators=others) if all(type(op) in _COMPARE for op in ops):
            parts = [left, *others]
        case ast.Tuple(elts=items) | ast.List(elts=items):
            parts = items
        case ast.Call(func=ast.Name(id=name), args=[_, *_] as arguments, keywords=[]) if name in _FUNCTIONS:
            parts = arguments
        case _:
            raise ConfigError(
                f"bound {text!r} uses {ast.unparse(node)!r}, which bounds do not know",
                "use arithmetic, comparisons, in, and, or, not, min, max, abs",
            )
    for part in parts:
        _validate(part, text, names)


def _value(node: ast.expr, values: Knobs) -> Any:
    match node:
        case ast.Constant(value=constant):
            return constant
        case ast.Name(id=name):
            return values[name]
        case ast.BinOp(left=left, op=op, right=right):
            return _BINARY[type(op)](_value(left, values), _value(right, values))
        case ast.UnaryOp(op=unary, operand=operand):
            return _UNARY[type(unary)](_value(operand, values))
        case ast.BoolOp(op=ast.And(), values=parts):
            return all(_value(part, values) for part in parts)
        case ast.BoolOp(values=parts):
            return any(_value(part, values) for part in parts)
        case ast.Compare(left=left, ops=ops, comparators=others):
            sides = [_value(side, values) for side in (left, *others)]
            return all(_COMPARE[type(op)](a, b) for op, a, b in zip(ops, sides, sides[1:], strict=False))
        case ast.Tuple(elts=items) | ast.List(elts=items):
            return tuple(_value(item, values) for item in items)
        case ast.Call(func=ast.Name(id=name), args=arguments):
            return _FUNCTIONS[name](*(_value(argument, values) for argument in arguments))
    raise AssertionError(f"not validated: {ast.dump(node)}")
