"""Plain values in source text: what an expression of literals is worth, and how a value is written.

Numbers and arithmetic of numbers, strings, booleans, None, tuples and lists of these. The text may come from anyone,
so nothing is evaluated by Python itself and no arithmetic can take long.
"""

import ast
import math
import re

from autoresearch_hpc.records import KnobValue

__all__ = ["MAX_BITS", "NotPlainError", "render", "value_of"]

MAX_BITS = 1024  # an integer beyond this is no setting, and computing it could take for ever


class NotPlainError(ValueError):
    """The expression is no plain value."""


def value_of(node: ast.expr) -> KnobValue:
    """The value of a plain expression. Raises NotPlainError."""
    match node:
        case ast.Constant(value=value) if value is None or isinstance(value, bool | int | float | str):
            return _sane(value) if isinstance(value, int | float) else value
        case ast.Tuple(elts=items) | ast.List(elts=items):
            return tuple(value_of(item) for item in items)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_number(operand)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _number(operand)
        case ast.BinOp(left=left, op=op, right=right):
            return _arithmetic(op, _number(left), _number(right))
    raise NotPlainError(f"found {ast.unparse(node)[:60]!r}")


def _number(node: ast.expr) -> int | float:
    value = value_of(node)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise NotPlainError(f"arithmetic with {value!r}")
    return value


def _arithmetic(op: ast.operator, a: int | float, b: int | float) -> int | float:
    result: object = None
    try:
        match op:
            case ast.Add():
                result = a + b
            case ast.Sub():
                result = a - b
            case ast.Mult():
                result = a * b
            case ast.Div():
                result = a / b
            case ast.FloorDiv():
                result = a // b
            case ast.Mod():
                result = a % b
            case ast.Pow() if isinstance(a, float) or isinstance(b, float) or a.bit_length() * abs(b) <= 2 * MAX_BITS:
                result = a**b
            case ast.LShift() if isinstance(a, int) and isinstance(b, int) and 0 <= b <= MAX_BITS:
                result = a << b
            case ast.RShift() if isinstance(a, int) and isinstance(b, int) and b >= 0:
                result = a >> b
    except ArithmeticError as error:
        raise NotPlainError(str(error)) from error
    if not isinstance(result, int | float):
        raise NotPlainError("arithmetic that gives no ordinary number")
    return _sane(result)


def _sane(value: int | float) -> int | float:
    if isinstance(value, float) and not math.isfinite(value):
        raise NotPlainError("not a finite number")
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise NotPlainError("too large a number")
    return value


def render(value: KnobValue, like: str, *, is_list: bool = False) -> str:
    """A value as source text, in the notation of `like` where that fits."""
    if isinstance(value, tuple):
        items = ", ".join(render(item, "") for item in value)
        return f"[{items}]" if is_list else f"({items},)" if len(value) == 1 else f"({items})"
    if isinstance(value, bool) or value is None:
        return repr(value)
    if isinstance(value, int):
        for prefix, number_format in (("0x", "#x"), ("0o", "#o"), ("0b", "#b")):
            if re.fullmatch(prefix + r"[0-9a-f_]+", like.lower()):
                return format(value, number_format)
        return format(value, "_" if re.fullmatch(r"[0-9]+(_[0-9]+)+", like) else "d")
    if isinstance(value, float):
        return _scientific(value) if re.fullmatch(r"[0-9._]+e[+-]?[0-9]+", like.lower()) else repr(value)
    if like.endswith('"') and '"' not in value:
        return '"' + repr("'" + value)[2:]  # the leading ' makes repr choose double quotes
    return repr(value)


def _scientific(value: float) -> str:
    """The shortest d.ddde-n that reads back as value."""
    shortest = next(words for digits in range(18) if float(words := f"{value:.{digits}e}") == value)
    mantissa, exponent = shortest.split("e")
    return f"{mantissa}e{int(exponent)}"
