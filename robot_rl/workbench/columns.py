"""Tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence


def as_columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows of equally many cells as aligned columns, the first row underlined."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])
