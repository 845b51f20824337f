"""Printing of tables without truncation: a table wider than the terminal or log continues below itself."""

from __future__ import annotations

from collections.abc import Iterator

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

LOG_WIDTH = 160
"""Width of a log in characters: the usual 80 would split most tables."""
_EDGE = 3
"""Characters that the border and padding of a cell take."""


def show(*tables: Table) -> None:
    """Print tables on stdout without truncation."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=LOG_WIDTH)
    for table in tables:
        for part in parts(table, console.width):
            console.print(part)


def parts(table: Table, width: int) -> Iterator[Table]:
    """Split a table into groups of columns, each after the first column, none wider than ``width`` unless two columns
    are. Rows without values in these columns are left out.
    """
    texts = [[str(column.header), *map(str, column.cells)] for column in table.columns]
    widths = [_EDGE + max(map(cell_len, text)) for text in texts]
    groups: list[list[int]] = [[0]]
    for index in range(1, len(widths)):
        if len(groups[-1]) > 1 and sum(widths[i] for i in groups[-1]) + widths[index] >= width:
            groups.append([0])
        groups[-1].append(index)
    for group in groups:
        part = Table(title=table.title, caption=table.caption if group is groups[-1] else None)
        for index in group:
            part.add_column(texts[index][0], justify=table.columns[index].justify, no_wrap=index > 0)
        for number, row in enumerate(table.rows, start=1):
            cells = [texts[index][number] for index in group]
            if any(cells[1:]):
                part.add_row(*cells, style=row.style, end_section=row.end_section)
        yield part
