"""What an edit means, as a short hash: two texts that run alike have the same one.

Comments, formatting and docstrings of Python files do not count, and arithmetic of plain numbers counts by its value.
Files of other kinds, and Python that does not parse, count by their text.
"""

import ast
import json
import warnings
from collections.abc import Mapping

from autoresearch_hpc.files import sha256_text
from autoresearch_hpc.literals import NotPlainError, value_of
from autoresearch_hpc.records import Knobs

_NUM_DIGITS = 16


def fingerprint(files: Mapping[str, str], knobs: Knobs | None = None) -> str:
    """16 hex digits of the files (path -> text) and of the knobs that travel beside them."""
    meanings = {path: _meaning(path, text) for path, text in files.items()}
    return sha256_text(json.dumps([meanings, dict(knobs or {})], sort_keys=True))[:_NUM_DIGITS]


def _meaning(path: str, text: str) -> str:
    if path.endswith(".py"):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of strings like "\d", wherever those are from
                tree = ast.parse(text.removeprefix("\ufeff"))
            return "python " + ast.dump(_Plain().visit(tree))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            pass
    return "text " + text


class _Plain(ast.NodeTransformer):
    """Drops docstrings, and folds arithmetic of plain numbers."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            match node.body:
                case [ast.Expr(value=ast.Constant(value=str())), *rest]:
                    node.body = rest or [ast.Pass()]
        return super().generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        return ast.Constant(value=node.value)  # without its kind, which tells u"" from ""

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        return self._folded(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        return self._folded(node)

    def _folded(self, node: ast.expr) -> ast.AST:
        try:
            return ast.Constant(value=value_of(node))  # type: ignore[arg-type]
        except NotPlainError:
            return super().generic_visit(node)
