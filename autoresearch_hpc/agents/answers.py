"""A language model's answer as drafts: one JSON object, however much prose or however little end there is around it.

    {"proposals": [{"title": ..., "reasoning": ..., "fix": "r02-c01" or absent, and one or several of
                    "knobs": {NAME: value},
                    "edits": [{"path": ..., "search": ..., "replace": ...}],
                    "diff": a unified diff,
                    "files": {path: whole text}}]}

Where drafts of an earlier answer are looked at again, {"draft": 1} in place of a proposal keeps the first of them.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from autoresearch_hpc.agents.drafts import Draft, Rejected
from autoresearch_hpc.agents.edits import Edit, Patch, Replacement, WholeFile
from autoresearch_hpc.quoting import quoted_line
from autoresearch_hpc.records import knob_value

__all__ = ["parse"]

_DECODER = json.JSONDecoder(strict=False)  # models put line ends into strings as they are
_START = re.compile(r'[\[{](\s*"proposals")?')
_MAX_STARTS = 500
_MAX_TITLE = 120
_MAX_REASONING = 1000


def parse(text: str, default_path: str, drafts: Sequence[Draft] = ()) -> list[Draft | Rejected]:
    """The drafts of an answer, in order; a Rejected for each part that is none, or for an answer without any.

    Of an answer that was cut off the whole proposals count. `default_path` is the file of an edit that names none;
    `drafts` are those that the answer may keep by their number.
    """
    items, problem = _items(text)
    found = [_kept(item, drafts) or _draft(item, default_path) for item in items]
    return [*found, Rejected(problem=problem)] if problem else found


def _items(text: str) -> tuple[list[Any], str]:
    """The proposals, and what is wrong with the answer as a whole."""
    if not text.strip():
        return [], "the answer is empty"
    for value in _values(text):
        if isinstance(value, dict) and isinstance(value.get("proposals"), list):
            return value["proposals"], "" if value["proposals"] else "the list of proposals is empty"
        if isinstance(value, dict) and "title" in value:
            return [value], ""
        if isinstance(value, list) and any(isinstance(item, dict) and "title" in item for item in value):
            return value, ""
    items = _beginning(text)
    if items:
        return items, f"the answer was cut off after {len(items)} whole proposals"
    return [], f"the answer has no JSON object with proposals; it begins: {quoted_line(text, 200)}"


def _values(text: str) -> Iterator[Any]:
    """Every JSON object or array that begins somewhere outside of another one."""
    at = 0
    for _ in range(_MAX_STARTS):
        start = _START.search(text, at)
        if start is None:
            return
        try:
            value, at = _DECODER.raw_decode(text, start.start())
            yield value
        except (ValueError, RecursionError):
            if start[1]:  # the object itself is broken: its parts are `_beginning`'s
                return
            at = start.start() + 1


def _beginning(text: str) -> list[Any]:
    """The whole items at the beginning of a list of proposals that has no end."""
    _, found, rest = text.partition('"proposals"')
    at = rest.find("[") + 1
    items: list[Any] = []
    while found and at:
        while at < len(rest) and rest[at] in " \t\r\n,":
            at += 1
        try:
            value, at = _DECODER.raw_decode(rest, at)
        except (ValueError, RecursionError):
            break
        items.append(value)
    return items


def _kept(item: object, drafts: Sequence[Draft]) -> Draft | None:
    number = item.get("draft") if isinstance(item, dict) else None
    return drafts[number - 1] if isinstance(number, int) and 1 <= number <= len(drafts) else None


def _draft(item: object, default_path: str) -> Draft | Rejected:
    if not isinstance(item, dict):
        return Rejected(problem=f"a proposal is no JSON object but {quoted_line(repr(item), 100)}")
    title = item.get("title")
    if not isinstance(title, str) or not title.strip():
        return Rejected(problem=f"a proposal has no title: {quoted_line(json.dumps(item), 200)}")
    title = quoted_line(title, _MAX_TITLE)
    try:
        fixes, reasoning = item.get("fix") or None, item.get("reasoning") or ""
        if fixes is not None and not isinstance(fixes, str):
            raise ValueError("fix is no candidate's id")
        return Draft(
            title=title,
            reasoning=quoted_line(str(reasoning), _MAX_REASONING),
            edits=tuple(_edits(item, default_path)),
            knobs={str(name): knob_value(value) for name, value in _mapping(item, "knobs").items()},
            fixes=fixes,
        )
    except ValueError as error:
        return Rejected(problem=str(error), draft=Draft(title=title))


def _edits(item: Mapping[str, Any], default_path: str) -> Iterator[Edit]:
    blocks = item.get("edits") or []
    for block in blocks if isinstance(blocks, list) else [blocks]:
        if not isinstance(block, dict):
            raise ValueError("an edit is no object with path, search and replace")
        path = _text(block, "path", default_path)
        if "search" in block:
            yield Replacement(path=path, search=_text(block, "search"), replace=_text(block, "replace", ""))
        elif "text" in block:
            yield WholeFile(path=path, text=_text(block, "text"))
        else:
            raise ValueError("an edit has neither search and replace nor text")
    if item.get("diff"):
        yield Patch(diff=_text(item, "diff"))
    for path, text in _mapping(item, "files").items():
        if not isinstance(text, str):
            raise ValueError(f"files: {path} is no text")
        yield WholeFile(path=path, text=text)


def _text(block: Mapping[str, Any], name: str, default: str | None = None) -> str:
    value = block.get(name, default)
    if not isinstance(value, str):
        raise ValueError(f"{name} is no text but {quoted_line(repr(value), 100)}")
    return value


def _mapping(item: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = item.get(name) or {}
    if not isinstance(value, dict):
        raise ValueError(f"{name} is no object but {quoted_line(repr(value), 100)}")
    return value
