"""Tables for a terminal: every column as wide as its content, the last one gets what is left."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from rich import box
from rich.console import Console, ConsoleOptions
from rich.table import Table
from rich.text import Text

_GAP = 2
_LEAST = 4  # of the last column; a terminal that is narrower cuts the lines


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """A table whose last column is cut where the terminal is too narrow; `right` and `bold` are indices."""

    head: Sequence[str]
    rows: Sequence[Sequence[Text]]
    right: Collection[int] = ()
    bold: Collection[int] = ()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        widths = [max([len(name), *(row[i].cell_len for row in self.rows)]) for i, name in enumerate(self.head)]
        left = options.max_width - sum(widths[:-1]) - _GAP * (len(widths) - 1)
        widths[-1] = min(widths[-1], max(left, _LEAST))
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True, header_style="")
        for index, (name, width) in enumerate(zip(self.head, widths, strict=True)):
            justify: Literal["left", "right"] = "right" if index in self.right else "left"
            table.add_column(Text(name), justify=justify, no_wrap=True, overflow="ellipsis", width=width)
        for index, row in enumerate(self.rows):
            table.add_row(*row, style="bold" if index in self.bold else None)
        yield table
