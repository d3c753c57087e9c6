"""An exception of foreign code as words: its type, its message, and where in the edited files it came from."""

import traceback
from pathlib import Path

from autoresearch_hpc.quoting import quoted, quoted_line

_MAX_FRAMES = 6
_MAX_MESSAGE = 1_500


def words(error: BaseException, src: Path) -> dict[str, str]:
    """`type`, `message` and `tail`, the last frames that lie below src, under their names there."""
    return {
        "type": quoted_line(type(error).__name__, 100),
        "message": quoted(_text(error)[:_MAX_MESSAGE], max_lines=12, max_chars=_MAX_MESSAGE),
        "tail": _tail(error, src),
    }


def _text(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, str) else f"exit code {error.code}"
    try:
        return str(error)
    except Exception as another:  # noqa: BLE001 - __str__ may be the script's own
        return f"its message cannot be shown: {type(another).__name__}"


def _tail(error: BaseException, src: Path) -> str:
    frames: list[tuple[Path, int, str]] = []
    if isinstance(error, SystemExit) and error.__context__ is not None:
        error = error.__context__  # what the script gave as its reason to end
    for frame, line in traceback.walk_tb(error.__traceback__):
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(src):
            frames = [*frames[1 - _MAX_FRAMES :], (path, line, frame.f_code.co_name)]
    lines: list[str] = []
    for path, line, name in frames:
        lines.append(f"{path.relative_to(src)}:{line}, in {name}")
        text = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
        lines += [f"    {quoted_line(text[line - 1])}"] if line and line <= len(text) else []
    return quoted("\n".join(lines))
