"""Foreign text as data: what a candidate's process printed, made fit to be shown to people and handed to agents.

Whatever a terminal would obey is taken out (colours, cursor movements, overwritten lines, NUL), and whatever makes
text look like other text (bidirectional overrides, invisible characters). What is left is bounded.
"""

import re
import unicodedata

MAX_LINES = 40
MAX_CHARS = 8_192
MAX_LINE_CHARS = 500

_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c|$)"  # OSC and its like: titles
    r"|\x1b[ -/]*[0-~]?"  # any other
)  # fmt: skip
_KEPT = "\n\t"


def quoted(text: str, *, max_lines: int = MAX_LINES, max_chars: int = MAX_CHARS) -> str:
    """The end of the text as plain lines: at most so many lines and characters, `…` where a line lost its middle."""
    text = text[-8 * max_chars :]  # what is cut anyway need not be cleaned
    lines = [_line(line) for line in text.replace("\r\n", "\n").split("\n")]
    kept = "\n".join(lines[-max_lines - 1 :] if lines[-1] == "" else lines[-max_lines:])
    return kept[-max_chars:].rstrip()


def quoted_line(text: str, max_chars: int = MAX_LINE_CHARS) -> str:
    """The text as one plain line, cut at its end."""
    line = " ".join(_plain(text[: 8 * max_chars]).split())
    return line if len(line) <= max_chars else line[: max_chars - 1] + "…"


def _line(line: str) -> str:
    shown = _ESCAPES.sub("", line).rstrip("\r").rpartition("\r")[2]  # a progress bar's last state
    plain, half = _plain(shown), MAX_LINE_CHARS // 2
    return plain if len(plain) <= MAX_LINE_CHARS else f"{plain[: half - 1]}…{plain[-half:]}"


def _plain(text: str) -> str:
    """Without control, format, surrogate and private characters."""
    return "".join(c for c in _ESCAPES.sub("", text) if c in _KEPT or unicodedata.category(c)[0] != "C")
