"""What can be told of an edit from its text alone: files, syntax, names, knobs, the script's contract."""

import ast
import warnings
from collections.abc import Iterator, Mapping, Sequence

from autoresearch_hpc import knobs
from autoresearch_hpc.config import KnobsBy, TaskConfig, TaskKind
from autoresearch_hpc.errors import KnobError
from autoresearch_hpc.quoting import quoted_line
from autoresearch_hpc.screening import names

_BLOCKS = ("body", "orelse", "finalbody", "handlers", "cases")


def problem(
    task: TaskConfig, required_knobs: Sequence[str], before: Mapping[str, str], after: Mapping[str, str]
) -> str:
    """The first thing that is wrong, in words; "" where nothing is."""
    found = _files(task, before, after)
    if found:
        return found
    trees: dict[str, ast.Module] = {}
    for path, text in sorted(after.items()):
        if path.endswith(".py"):
            parsed = _parsed(path, text)
            if isinstance(parsed, str):
                return parsed
            trees[path] = parsed
    for path in trees:
        if after[path] != before.get(path) and (found := names.problem(path, before.get(path, ""), after[path])):
            return found
    script = task.script
    if script not in trees:
        return ""
    if task.kind is TaskKind.gpt or task.knobs_by is KnobsBy.rewrite:
        try:
            knobs.check(after[script], required_knobs, script)
        except KnobError as error:
            return f"The search sets knobs of {script}, which have to stay: {error}."
    if task.kind is TaskKind.gpt and "build_model" not in set(_bound(trees[script].body)):
        return f"{script} no longer defines build_model(meta) at its top level; the evaluation calls it."
    return ""


def _files(task: TaskConfig, before: Mapping[str, str], after: Mapping[str, str]) -> str:
    editable = task.editable_paths
    foreign = sorted(set(after) - set(editable))
    if foreign:
        return f"The edit changes {quoted_line(', '.join(foreign))}; only {', '.join(editable)} may be edited."
    for path in sorted({*before, task.script} & set(editable)):
        if path not in after:
            return f"{path} is missing; every editable file has to stay."
        if not after[path].strip() and before.get(path, "x").strip():
            return f"{path} is empty; give its whole text."
    return ""


def _parsed(path: str, text: str) -> ast.Module | str:
    """The syntax tree, or what is wrong with it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of strings like "\d"
            return ast.parse(text.removeprefix("\ufeff"), filename=path)
    except SyntaxError as error:
        where = f"{path}:{error.lineno}" if error.lineno else path
        lines = text.splitlines()
        line = lines[error.lineno - 1] if error.lineno and error.lineno <= len(lines) else ""
        return f"{where}: it does not parse: {error.msg}" + (f"\n    {quoted_line(line)}" if line.strip() else "")
    except (RecursionError, MemoryError):
        return f"{path} does not parse: it is nested too deeply."
    except ValueError as error:  # null bytes, lone surrogates
        return f"{path} does not parse: {quoted_line(str(error))}."


def _bound(statements: Sequence[ast.stmt]) -> Iterator[str]:
    """Names that a module's statements define, those within its `if`, `try` and `with` included."""
    for node in statements:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                yield from (alias.asname or alias.name for alias in aliases)
            case ast.Assign() | ast.AnnAssign():
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                yield from (t.id for target in targets for t in ast.walk(target) if isinstance(t, ast.Name))
            case _:
                for field in _BLOCKS:
                    for inner in getattr(node, field, []):
                        yield from _bound([inner] if isinstance(inner, ast.stmt) else inner.body)
