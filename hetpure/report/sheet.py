"""A table that can be shown in a terminal and written as Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console, OverflowMethod
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True)
class Sheet:
    """Rows of cells with a title and a note; the first `left` columns are names, which are never
    cut off, as numbers are not where they may wrap."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    left: int = 1

    def markdown(self) -> str:
        """As Markdown: title, table, note."""
        title = [f"**{self.title}**", ""] if self.title else []
        heads, *rows = (list(map(_cell, row)) for row in (self.heads, *self.rows))
        lines = [heads, ["---"] * len(heads), *rows]
        table = ["| " + " | ".join(cells) + " |" for cells in lines]
        return "\n".join([*title, *table, *(["", self.note] if self.note else [])])

    def terminal(self, *, wrap: bool = True) -> Table:
        """As a rich table. Unless numbers may `wrap`, they take a line each and names the rest."""
        table = Table(
            title=Text(self.title),
            caption=Text(self.note) if self.note else None,
            caption_justify="left",
            box=SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
        )
        for head in self.heads[: self.left]:
            table.add_column(head, overflow="fold")
        for head in self.heads[self.left :]:
            overflow: OverflowMethod = "fold" if wrap else "ellipsis"
            table.add_column(head, justify="right", no_wrap=not wrap, overflow=overflow)
        for row in self.rows:
            table.add_row(*map(Text, row))  # as it is: names may look like markup
        return table


def _cell(text: str) -> str:
    """What stands in a cell of Markdown, where `|` and a line's end have a meaning."""
    return " ".join(text.split()).replace("|", "\\|")


def wide_console() -> Console:
    """As wide as the terminal; wide enough for tables where the output goes elsewhere. Text is
    shown as it is: [a] and :a: are names."""
    width = None if Console().is_terminal else 140
    return Console(width=width, markup=False, emoji=False, highlight=False)
