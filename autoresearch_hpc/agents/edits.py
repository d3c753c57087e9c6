"""Edits of text, as language models write them, applied strictly.

A search block must be found: exactly, else with other white space (then what replaces it is indented alike), and once.
A hunk of a diff is such a block, since the line numbers of models are guesses; they only choose among several places.
Nothing is applied in part: an edit that cannot be made raises EditError, whose words are meant for its author.
"""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Edit", "EditError", "Patch", "Replacement", "WholeFile", "apply", "difference"]

_SHOWN_CHARS = 200
_HUNK = re.compile(r"@@ -(\d+)(?:,\d+)? \+\d+(?:,\d+)? @@")


class EditError(ValueError):
    """An edit that cannot be made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replacement:
    """The text `search` of a file, which occurs once, becomes `replace`."""

    path: str
    search: str
    replace: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Patch:
    """A unified diff of one file or several."""

    diff: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeFile:
    """A file's new text."""

    path: str
    text: str


Edit = Replacement | Patch | WholeFile


def apply(edits: Sequence[Edit], files: Mapping[str, str]) -> dict[str, str]:
    """The files with the edits made one after another. Raises EditError for the first that cannot be made."""
    edited = dict(files)
    for edit in edits:
        match edit:
            case WholeFile(path=path, text=text):
                _require_known(path, edited)
                if not text.strip():
                    raise EditError(f"the whole text given for {path} is empty")
                edited[path] = text if text.endswith("\n") else f"{text}\n"
            case Replacement(path=path, search=search, replace=replace):
                _require_known(path, edited)
                edited[path] = _replaced(edited[path], search, replace, path)
            case Patch(diff=diff):
                for path, hunk in _hunks(diff, list(edited)):
                    _require_known(path, edited)
                    edited[path] = _patched(edited[path], hunk, path)
    return edited


def difference(before: Mapping[str, str], after: Mapping[str, str]) -> Patch | None:
    """The edit that turns one into the other, and may apply to other texts too; None where there is none."""
    lines = [
        line if line.endswith("\n") else f"{line}\n"
        for path, text in after.items()
        for line in difflib.unified_diff(
            before[path].splitlines(keepends=True), text.splitlines(keepends=True), f"a/{path}", f"b/{path}"
        )
    ]
    return Patch(diff="".join(lines)) if lines else None


def _require_known(path: str, files: Mapping[str, str]) -> None:
    if path not in files:
        raise EditError(f"{path} may not be edited, only {', '.join(files)}")


def _replaced(text: str, search: str, replace: str, path: str) -> str:
    if not search.strip():
        raise EditError(f"a search block of {path} is empty: quote the lines that change")
    count = text.count(search)
    if count == 1:
        return text.replace(search, replace)
    if count > 1:
        raise EditError(f"this search block occurs {count} times in {path}, add lines around it: {_shown(search)}")
    places = list(_places(text, search))
    if len(places) == 1:
        return _put(text, places[0], search, replace)
    if places:
        raise EditError(
            f"this search block occurs {len(places)} times in {path} but for white space, add lines: {_shown(search)}"
        )
    raise EditError(f"this search block does not occur in {path}: {_shown(search)}")


def _places(text: str, search: str) -> Iterator[int]:
    """Lines at which the block stands if white space does not count."""
    lines, wanted = [_bare(line) for line in text.splitlines()], [_bare(line) for line in _block(search)]
    for i in range(len(lines) - len(wanted) + 1):
        if lines[i : i + len(wanted)] == wanted:
            yield i


def _put(text: str, at: int, search: str, replace: str) -> str:
    """The block at line `at` replaced, by lines that are shifted as the block is."""
    lines, block = text.splitlines(keepends=True), _block(search)
    first = next(i for i, line in enumerate(block) if line.strip())
    have, given = _indent(lines[at + first]), _indent(block[first])
    end = "\r\n" if lines[at].endswith("\r\n") else "\n"
    new = [_shifted(line, given, have) + end for line in _block(replace)]
    return "".join([*lines[:at], *new, *lines[at + len(block) :]])


def _block(text: str) -> list[str]:
    """Its lines, without blank ones around them."""
    lines = text.splitlines()
    while lines and not lines[0].strip():
        lines.pop(0)
    while lines and not lines[-1].strip():
        lines.pop()
    return lines


def _shifted(line: str, given: str, have: str) -> str:
    if not line.strip() or given == have:
        return line.rstrip("\r")
    if line.startswith(given):
        return have + line[len(given) :]
    short = len(given) - len(have)  # a line further left than the block's first: as far to the left as it goes
    return line[min(short, len(_indent(line))) :] if short > 0 else " " * -short + line


def _indent(line: str) -> str:
    return line[: len(line) - len(line.lstrip())]


def _bare(line: str) -> str:
    return " ".join(line.split())


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}...")


@dataclass(slots=True)
class _Hunk:
    line: int | None  # where the old text is said to begin, from 1
    old: list[str]
    new: list[str]


def _hunks(diff: str, known: list[str]) -> Iterator[tuple[str, _Hunk]]:
    """The hunks with their files; a diff without headers is of the only file there is."""
    path = known[0] if len(known) == 1 else ""
    hunk: _Hunk | None = None
    found = False
    for line in diff.splitlines():
        if line.startswith(("diff --git", "index ", "--- ", "+++ ", "@@")):
            if hunk and (hunk.old or hunk.new):
                yield path, hunk
            hunk = None
            if line.startswith("+++ "):
                path = line[4:].split("\t")[0].strip().removeprefix("b/")
                if path == "/dev/null":
                    raise EditError("the diff removes a file")
            if line.startswith("@@"):
                at = _HUNK.match(line)
                hunk, found = _Hunk(int(at[1]) if at else None, [], []), True
        elif hunk is not None:
            mark, rest = (line[0], line[1:]) if line else (" ", "")
            if mark not in "+- \\":
                raise EditError(f"a line of the diff begins neither with a blank nor with + or -: {_shown(line)}")
            if mark in " -":
                hunk.old.append(rest)
            if mark in " +":
                hunk.new.append(rest)
    if hunk and (hunk.old or hunk.new):
        yield path, hunk
    if not found:
        raise EditError("the diff has no hunk: lines that begin with @@, blank, + and -")


def _patched(text: str, hunk: _Hunk, path: str) -> str:
    old, new = "\n".join(hunk.old), "\n".join(hunk.new)
    if not old.strip():  # nothing but new lines: only their number says where
        lines = text.splitlines(keepends=True)
        if hunk.line is None or hunk.line > len(lines):
            raise EditError(f"a hunk of {path} has no context line, so it is not known where it goes")
        return "".join([*lines[: hunk.line], *(f"{line}\n" for line in hunk.new), *lines[hunk.line :]])
    while hunk.old and hunk.new and not hunk.old[-1].strip() and not hunk.new[-1].strip():
        hunk.old.pop(), hunk.new.pop()  # a blank line at the end of the answer is no context
    old, new = "\n".join(hunk.old), "\n".join(hunk.new)
    places = list(_places(text, old))
    if hunk.line is not None and len(places) > 1 and hunk.line - 1 in places:
        return _put(text, hunk.line - 1, old, new)
    whole_lines = [i for i in places if text.splitlines()[i : i + len(hunk.old)] == hunk.old]
    if len(whole_lines) == 1:
        return _put(text, whole_lines[0], old, new)
    return _replaced(text, old, new, path)
