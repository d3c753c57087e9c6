"""The HTML of tables and pictures, escaped."""

import base64
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

__all__ = ["picture", "row", "table"]


def table(head: Sequence[str], rows: Sequence[str], number: set[int]) -> str:
    """Rows under a head; `number` are the columns that are aligned to the right."""
    titles, body = row(head, number, tag="th"), "".join(rows)
    return f'<div class="scroll"><table><thead>{titles}</thead><tbody>{body}</tbody></table></div>'


def row(cells: Sequence[str], number: set[int], css: str = "", tag: str = "td", escaped: bool = False) -> str:
    text = ""
    for index, cell in enumerate(cells):
        attributes = ' class="number"' if index in number else ""
        text += f"<{tag}{attributes}>{cell if escaped else escape(cell)}</{tag}>"
    return f'<tr class="{css}">{text}</tr>' if css else f"<tr>{text}</tr>"


def picture(path: Path, words: str) -> Iterator[str]:
    """A PNG inside the page; nothing where there is no such file."""
    if path.is_file():
        data = base64.b64encode(path.read_bytes()).decode()
        yield f'<img class="progress" alt="{escape(words)}" src="data:image/png;base64,{data}">'
