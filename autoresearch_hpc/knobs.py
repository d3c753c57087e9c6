"""Knobs: module-level constants of a script, `NAME = literal`, read and rewritten in place.

A knob is an upper-case name that the module assigns exactly once, at its top level, to a plain value: numbers and
arithmetic of numbers, strings, booleans, None, tuples and lists of these. `rewrite` replaces the value's characters
and nothing else: comments, formatting and line endings stay, and the notation where it fits (2**19 becomes 2**18).
The script is only parsed, never run. Nothing here touches a file.
"""

import ast
import difflib
import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import cast

from autoresearch_hpc.errors import KnobError
from autoresearch_hpc.literals import MAX_BITS, NotPlainError, render, value_of
from autoresearch_hpc.records import Knobs, KnobValue, knob_value

__all__ = ["check", "fit", "no_such_knob", "read", "rewrite"]

_NAME = re.compile(r"[A-Z][A-Z0-9_]*")


def read(source: str, path: str = "train.py") -> dict[str, KnobValue]:
    """Every knob of source with its value, in the order of the file; what is no plain constant is left out.

    Raises KnobError, with file and line, where the source does not parse.
    """
    found: dict[str, KnobValue] = {}
    for name, bindings in _bindings(source, path).items():
        if len(bindings) == 1 and bindings[0].value is not None:
            try:
                found[name] = bindings[0].literal()
            except (NotPlainError, RecursionError):
                continue
    return found


def check(source: str, names: Collection[str], path: str = "train.py") -> None:
    """Raise KnobError, with the reason, for the first of names that is not a knob of source."""
    bindings = _bindings(source, path)
    for name in names:
        _knob(bindings, name, path)


def rewrite(source: str, settings: Knobs, path: str = "train.py") -> str:
    """The source with knobs set; a knob that has its value already keeps its exact text.

    A whole float is welcome for an integer knob, an integer for a float, a list for a tuple. Raises KnobError for any
    other mismatch and for a name that is missing, assigned twice or not a plain constant.
    """
    bindings = _bindings(source, path)
    text = _Text(source)
    edits: list[tuple[int, int, str]] = []
    for name, wanted in settings.items():
        binding = _knob(bindings, name, path)
        assert binding.value is not None
        old = binding.literal()
        new = fit(name, old, wanted, f"{path}:{binding.line}: ")
        edits += [(*text.span(node), words) for node, words in _edits(binding.value, old, new, text)]
    for start, end, words in sorted(edits, reverse=True):
        source = source[:start] + words + source[end:]
    return source


def fit(name: str, current: KnobValue, wanted: object, where: str = "") -> KnobValue:
    """The wanted value in the type of the current one. Raises KnobError where it has another type."""
    try:
        value = knob_value(wanted)
    except ValueError as error:
        raise KnobError(f"{where}{name} cannot be {wanted!r}", str(error)) from error
    if current is None or value is None:
        _require_finite(name, value, where)
        return value
    if isinstance(current, tuple) and isinstance(value, tuple):
        if len(current) == len(value):
            pairs = zip(current, value, strict=True)
            return tuple(fit(name, old, new, where) for old, new in pairs)
        if current and all(type(item) is type(current[0]) for item in current):
            return tuple(fit(name, current[0], item, where) for item in value)
        _require_finite(name, value, where)
        return value
    if _kind(current) == _kind(value) == "number":
        assert isinstance(current, int | float)
        assert isinstance(value, int | float)
        _require_finite(name, value, where)
        if isinstance(current, float):
            return float(value)
        if value == int(value):
            return int(value)
        raise KnobError(
            f"{where}{name} is a whole number and cannot be {value!r}",
            f"set a whole number, or write {name} = {float(current)!r} in the script",
        )
    if _kind(current) == _kind(value):
        return value
    raise KnobError(
        f"{where}{name} holds a {_kind(current)} and cannot be {value!r}, a {_kind(value)}",
        f"set a {_kind(current)} such as {current!r}",
    )


def no_such_knob(name: str, known: Collection[str], path: str = "the script") -> KnobError:
    """The error for a name that is no knob, with the nearest one that is."""
    near = difflib.get_close_matches(name.upper(), sorted(known), n=1)
    if near:
        return KnobError(f"{path} has no knob {name}", f"did you mean {near[0]}?")
    knobs = ", ".join(sorted(known)) or "none"
    return KnobError(f"{path} has no knob {name}", f"its knobs are module-level constants in upper case: {knobs}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Binding:
    """One place that gives a name its value; `value` is None where that is no plain top-level assignment."""

    line: int
    value: ast.expr | None = None
    is_float: bool = False  # annotated as float: an integer literal is only a short way to write one

    def literal(self) -> KnobValue:
        assert self.value is not None
        value = value_of(self.value)
        return float(value) if self.is_float and type(value) is int else value


def _knob(bindings: Mapping[str, list[_Binding]], name: str, path: str) -> _Binding:
    """The only binding of name. Raises KnobError where there is none, more than one, or no plain value."""
    if not bindings.get(name):
        raise no_such_knob(name, [n for n, b in bindings.items() if len(b) == 1 and b[0].value is not None], path)
    first, *more = bindings[name]
    if more:
        lines = ", ".join(str(binding.line) for binding in (first, *more))
        raise KnobError(f"{path} assigns knob {name} more than once (lines {lines})", "keep one assignment")
    where = f"{path}:{first.line}: knob {name}"
    if first.value is None:
        raise KnobError(f"{where} is not a plain assignment", f"write {name} = VALUE at the top level of the module")
    try:
        first.literal()
    except (NotPlainError, RecursionError) as error:
        raise KnobError(f"{where} is not a plain value: {error}", "use a number, string, boolean or tuple") from error
    return first


def _bindings(source: str, path: str) -> dict[str, list[_Binding]]:
    """Upper-case names of the module's scope -> the places that bind them."""
    try:
        tree = ast.parse(source.removeprefix("\ufeff"), filename=path)
        collector = _Collector()
        for statement in tree.body:
            collector.top_level(statement)
    except SyntaxError as error:
        line = f":{error.lineno}" if error.lineno else ""
        raise KnobError(f"{path}{line}: does not parse: {error.msg}", "correct the script") from error
    except (RecursionError, MemoryError) as error:
        raise KnobError(f"{path}: does not parse: nested too deeply", "simplify the script") from error
    except ValueError as error:  # null bytes, lone surrogates
        raise KnobError(f"{path}: does not parse: {error}", "correct the script") from error
    return collector.found


class _Collector(ast.NodeVisitor):
    """Finds every binding in the module's own scope, plain assignments and all others."""

    def __init__(self) -> None:
        self.found: dict[str, list[_Binding]] = {}

    def top_level(self, node: ast.stmt) -> None:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                self._add(name, _Binding(line=node.lineno, value=value))
                self.visit(value)  # for a walrus inside it
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value, annotation=annotation):
                is_float = isinstance(annotation, ast.Name) and annotation.id == "float"
                self._add(name, _Binding(line=node.lineno, value=value, is_float=is_float))
                self.visit(value)
            case _:
                self.visit(node)

    def visit_Name(self, node: ast.Name) -> None:
        if not isinstance(node.ctx, ast.Load):
            self._add(node.id, _Binding(line=node.lineno))

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:  # a bare `X: int` binds nothing
            self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        self.visit(node.iter)  # its targets live in a scope of their own
        for condition in node.ifs:
            self.visit(condition)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        pass

    def generic_visit(self, node: ast.AST) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            self._add(node.name, _Binding(line=node.lineno))
            for inner in ast.walk(node):
                if isinstance(inner, ast.Global):  # declared to be assigned there
                    for name in inner.names:
                        self._add(name, _Binding(line=inner.lineno))
            return
        if isinstance(node, ast.alias | ast.ExceptHandler | ast.MatchAs | ast.MatchStar):
            bound = node.asname or node.name.partition(".")[0] if isinstance(node, ast.alias) else node.name
            self._add(bound or "", _Binding(line=node.lineno))
        if isinstance(node, ast.MatchMapping):
            self._add(node.rest or "", _Binding(line=node.lineno))
        super().generic_visit(node)

    def _add(self, name: str, binding: _Binding) -> None:
        if _NAME.fullmatch(name):
            self.found.setdefault(name, []).append(binding)


def _require_finite(name: str, value: KnobValue, where: str) -> None:
    for item in value if isinstance(value, tuple) else (value,):
        if isinstance(item, tuple):
            _require_finite(name, item, where)
        elif isinstance(item, float) and not math.isfinite(item):
            raise KnobError(f"{where}{name} cannot be {item!r}", "set a finite number")
        elif isinstance(item, int) and item.bit_length() > MAX_BITS:
            raise KnobError(f"{where}{name} cannot be so large a number", f"stay below 2**{MAX_BITS}")


def _kind(value: KnobValue) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, str):
        return "string"
    return "tuple" if isinstance(value, tuple) else "none"


def _edits(node: ast.expr, old: KnobValue, new: KnobValue, text: "_Text") -> Iterator[tuple[ast.expr, str]]:
    """The smallest replacements, (node, new text), that turn a value of old into new."""
    if type(old) is type(new) and old == new and not isinstance(old, tuple):
        return
    match node:
        case ast.Tuple(elts=items) | ast.List(elts=items) if isinstance(new, tuple) and len(items) == len(new):
            for item, old_item, new_item in zip(items, cast("tuple[KnobValue, ...]", old), new, strict=True):
                yield from _edits(item, old_item, new_item, text)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant() as operand) if (
            isinstance(old, int | float) and isinstance(new, int | float) and new < 0
        ):
            yield from _edits(operand, -old, -new, text)
        case ast.BinOp(left=ast.Constant(value=int(base)), op=ast.Pow() | ast.LShift(), right=exponent) if (
            type(new) is int and (power := _exponent(base, node.op, new)) is not None
        ):
            yield exponent, str(power)
        case _:
            yield node, render(new, text.of(node), is_list=isinstance(node, ast.List))


def _exponent(base: int, op: ast.operator, value: int) -> int | None:
    """The e with base**e, or base << e, equal to value."""
    if value < 1 or base < 1 or (isinstance(op, ast.Pow) and base < 2):
        return None
    exponents = range(value.bit_length() + 1)
    return next((e for e in exponents if (base**e if isinstance(op, ast.Pow) else base << e) == value), None)


class _Text:
    """Source text addressed by the positions of ast nodes, which count lines from 1 and UTF-8 bytes."""

    def __init__(self, source: str) -> None:
        bom = len(source) - len(source.removeprefix("\ufeff"))
        # Not str.splitlines, which also splits at form feeds and Unicode separators; the parser does not.
        self._starts = [bom, *(match.end() for match in re.finditer(r"\r\n|\r|\n", source))]
        self._source = source

    def span(self, node: ast.expr) -> tuple[int, int]:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return self._at(node.lineno, node.col_offset), self._at(node.end_lineno, node.end_col_offset)

    def of(self, node: ast.expr) -> str:
        start, end = self.span(node)
        return self._source[start:end]

    def _at(self, line: int, column: int) -> int:
        start = self._starts[line - 1]
        end = self._starts[line] if line < len(self._starts) else len(self._source)
        return start + len(self._source[start:end].encode()[:column].decode())
