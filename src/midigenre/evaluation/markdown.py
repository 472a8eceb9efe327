"""Tables as Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def cell(text: str) -> str:
    """Text that Markdown shows as it is, inside a table too."""
    for mark in "\\|*_`<[":
        text = text.replace(mark, "\\" + mark)
    return text.replace("\n", " ")


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], n_left: int) -> str:
    """A table without a newline at its end.

    Args:
        header: Names of the columns.
        rows: Texts of each row, as many as columns.
        n_left: How many columns from the left hold text; the others align to the right.
    """
    rule = ["---" if i < n_left else "---:" for i in range(len(header))]
    lines = [list(map(cell, header)), rule, *(list(map(cell, row)) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
