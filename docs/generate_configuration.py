"""Writes docs/configuration.md from the schema in autoresearch_hpc/: `python docs/generate_configuration.py`.

Every key with its type, default and meaning. The meaning is the comment behind the field, so that the schema and its
documentation cannot part; with --check nothing is written and the exit code says whether the page is up to date.
"""

import ast
import io
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("agent_config.py", "plan_config.py", "task_config.py", "cluster_config.py", "config.py")
SCHEMA = [ROOT / "autoresearch_hpc" / name for name in PARTS]
PAGE = ROOT / "docs" / "configuration.md"

HEAD = """\
# Configuration

<!-- Written by docs/generate_configuration.py from config.py and its four parts; change the comments there. -->

A run is configured by [Hydra](https://hydra.cc): the files under `conf/`, then the command line. `+round=NAME` chooses
a plan, `GROUP=NAME` a file of `conf/GROUP/`, and `GROUP.KEY=VALUE` sets one key, e.g.
`python -m autoresearch_hpc +round=cookbook cluster=slurm cluster.partition=gpu task.train_s=60`.
A `conf/` directory where the command is started is searched too, and `--config-dir DIR` adds one more. An unknown key
or an impossible value ends the command with one line that says so, and exit code 2, before anything is touched.

`python -m autoresearch_hpc.plan +round=NAME [overrides]` shows what a configuration would do and cost.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One field of the schema. `record` is the schema class of its value, `within` how it is held."""

    name: str
    type: str
    default: str
    meaning: str
    record: str | None = None
    within: str = ""  # "list" or "dict" where the value holds several records


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One class of the schema."""

    meaning: str
    keys: tuple[Key, ...]


def source() -> str:
    """The schema's files, one after the other."""
    return "\n".join(path.read_text(encoding="utf-8") for path in SCHEMA)


def read_schema(source: str) -> dict[str, Record]:
    """The schema's dataclasses by name."""
    tree = ast.parse(source)
    comments = _comments(source)
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    enums = {node.name: _members(node) for node in classes if any(ast.unparse(b).endswith("Enum") for b in node.bases)}
    enums["Direction"] = ["min", "max"]  # of records.py
    names = {node.name for node in classes if node.name not in enums}
    return {
        node.name: Record(
            meaning=(ast.get_docstring(node) or "").splitlines()[0],
            keys=tuple(
                _key(field, comments.get(field.end_lineno or 0, ""), enums, names)
                for field in node.body
                if isinstance(field, ast.AnnAssign)
            ),
        )
        for node in classes
        if node.name in names
    }


def page(schema: dict[str, Record]) -> str:
    """The whole page: the top-level keys, then a section for each group and for the records inside it."""
    top = schema["Config"]
    parts = [HEAD, "## Top level\n", *_table([key for key in top.keys if not key.record], "")]
    for key in top.keys:
        if key.record:
            parts += ["", *_section(schema, key.record, key.name, 2)]
    return "\n".join(parts).rstrip() + "\n"


def _section(schema: dict[str, Record], name: str, path: str, level: int) -> Iterator[str]:
    record = schema[name]
    yield f"{'#' * level} {path}\n"
    yield f"{record.meaning}\n"
    yield from _table(record.keys, path + ".")
    for key in record.keys:
        if key.record:
            inside = {"list": "[i]", "dict": ".NAME"}.get(key.within, "")
            yield ""
            yield from _section(schema, key.record, f"{path}.{key.name}{inside}", level + 1)


def _table(keys: list[Key] | tuple[Key, ...], prefix: str) -> Iterator[str]:
    yield "| key | type | default | meaning |"
    yield "|---|---|---|---|"
    for key in keys:
        default = f"`{key.default}`" if key.default else "required"
        cells = (
            f"`{prefix}{key.name}`",
            key.type,
            "see below" if key.record and not key.within else default,
            key.meaning,
        )
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _key(field: ast.AnnAssign, comment: str, enums: dict[str, list[str]], names: set[str]) -> Key:
    annotation = ast.unparse(field.annotation)
    words = {node.id for node in ast.walk(field.annotation) if isinstance(node, ast.Name)}
    record = next(iter(words & names), None)
    within = next((w for w in ("list", "dict") if annotation.startswith(w)), "")
    return Key(
        name=ast.unparse(field.target),
        type=_type(annotation, enums, record, within),
        default=_default(field.value),
        meaning=comment,
        record=record,
        within=within,
    )


def _type(annotation: str, enums: dict[str, list[str]], record: str | None, within: str) -> str:
    if annotation in enums:
        return " or ".join(f"`{member}`" for member in enums[annotation])
    if record:
        return {"list": "list of groups", "dict": "groups by name"}.get(within, "group")
    words = {"str": "text", "dict[str, Any]": "values by name", "dict[str, str]": "texts by name", "Any": "any value"}
    parts = [part for part in annotation.split(" | ") if part != "None"]
    named = [words.get(part, part.replace("list[str]", "list of texts").replace("list[Any]", "list")) for part in parts]
    return " or ".join([*named, "null"] if "None" in annotation else named)


def _default(value: ast.expr | None) -> str:
    """The default as YAML would have it; empty where a value is required."""
    if value is None or (isinstance(value, ast.Name) and value.id == "MISSING"):
        return ""
    if isinstance(value, ast.Call):  # field(default_factory=...)
        factory = value.keywords[0].value
        made = _flow(factory.body if isinstance(factory, ast.Lambda) else factory)
        return {"list": "[]", "dict": "{}"}.get(made, made)
    if isinstance(value, ast.Attribute):  # a member of an enumeration
        return value.attr
    constant = ast.literal_eval(value)
    words = {None: "null", True: "true", False: "false", "": '""'}
    return words[constant] if constant is None or isinstance(constant, bool) or constant == "" else str(constant)


def _flow(value: ast.expr) -> str:
    """A list or a record in YAML's flow style."""
    if isinstance(value, ast.List):
        return f"[{', '.join(map(_flow, value.elts))}]"
    if isinstance(value, ast.Call):
        return f"{{{', '.join(f'{k.arg}: {_flow(k.value)}' for k in value.keywords)}}}"
    return ast.unparse(value).replace("'", "")


def _members(node: ast.ClassDef) -> list[str]:
    return [ast.unparse(s.targets[0]) for s in node.body if isinstance(s, ast.Assign)]


def _comments(source: str) -> dict[int, str]:
    """The comment behind each line, by line number."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}


def main(arguments: list[str]) -> int:
    text = page(read_schema(source()))
    if "--check" in arguments:
        same = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text
        if not same:
            print(f"{PAGE.name} is out of date: python docs/generate_configuration.py", file=sys.stderr)
        return 0 if same else 1
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
