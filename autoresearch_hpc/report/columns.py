"""Tables for a terminal: every column as wide as its content, the last one gets what is left."""

from collections.abc import Collection, Sequence

from rich import box
from rich.table import Table
from rich.text import Text


def columns(
    head: Sequence[str], rows: Sequence[Sequence[Text]], right: Collection[int] = (), bold: Collection[int] = ()
) -> Table:
    """A table whose last column is cut where the terminal is too narrow; `right` and `bold` are indices."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True, header_style="")
    last = len(head) - 1
    for index, name in enumerate(head):
        width = max([len(name), *(row[index].cell_len for row in rows)])
        table.add_column(
            name,
            justify="right" if index in right else "left",
            no_wrap=True,
            overflow="ellipsis",
            min_width=None if index == last else width,
            ratio=1 if index == last else None,
        )
    for index, row in enumerate(rows):
        table.add_row(*row, style="bold" if index in bold else None)
    return table
