"""Tables as values: what stands in each cell, what it sorts by, how it is marked.

Decides how numbers are written. Which tables there are is decided by `page_tables`; the template
draws them all alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from raypeft.report.morning import Row
from raypeft.report.text import clean

MARKS = {"gain": "▲", "loss": "▼", "equivalent": "≈", "inconclusive": "·", "refused": "✗"}
"""What a verdict looks like to whoever sees no colours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One cell.

    Attributes:
        text: What is shown.
        value: The number behind it, exactly; None where it is a text.
        css: Classes.
        hint: What a mark or a colour says, for whoever sees neither.
    """

    text: str
    value: float | None = None
    css: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """One column's head.

    Attributes:
        text: What is shown.
        is_number: Whether its cells stand on the right and sort by their values.
        hint: A second line.
    """

    text: str
    is_number: bool = False
    hint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableView:
    """A whole table; the first cell of each row names the row.

    Attributes:
        key: Its name in the page.
        caption: What it holds.
        heads: Columns.
        rows: Cells, one for each column.
        note: What must be known to read it, or what was left out.
        css: Classes.
    """

    key: str
    caption: str
    heads: tuple[Head, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    css: str = ""
    num_left_out: int = field(default=0)


def text_cell(value: object, css: str = "", max_chars: int = 300) -> Cell:
    """Return a cell that holds a text of somebody else's."""
    return Cell(text="–" if value is None else clean(value, max_chars), css=css)


def number_cell(value: float | None, spec: str = ".4g", css: str = "") -> Cell:
    """Return a cell that shows a number rounded and holds it exactly."""
    if value is None:
        return Cell(text="–", css=css)
    return Cell(text=f"{value:{spec}}", value=float(value), css=css)


def count_cell(value: int | None) -> Cell:
    """Return a cell that holds a count, its thousands apart."""
    if value is None:
        return Cell(text="–")
    return Cell(text=f"{value:,}".replace(",", "\u202f"), value=float(value))


def interval_cell(row: Row, low: str = "low", high: str = "high") -> Cell:
    """Return a cell that holds both ends of an interval; it sorts by the lower one."""
    ends: tuple[Any, Any] = (row.get(low), row.get(high))
    if ends[0] is None or ends[1] is None:
        return Cell(text="–")
    sign = "+" if low == "low" else ""  # a gain has one, a value has none
    return Cell(text=f"{ends[0]:{sign}.3g} to {ends[1]:{sign}.3g}", value=float(ends[0]))


def verdict_cell(row: Row) -> Cell:
    """Return a cell that holds a verdict, marked."""
    verdict = str(row["verdict"])
    return Cell(text=f"{MARKS.get(verdict, '?')} {clean(verdict)}", css=f"verdict {slug(verdict)}")


def names(*heads: str) -> tuple[Head, ...]:
    """Return heads of columns of texts."""
    return tuple(Head(text=head) for head in heads)


def numbers(*heads: str) -> tuple[Head, ...]:
    """Return heads of columns of numbers."""
    return tuple(Head(text=head, is_number=True) for head in heads)


def slug(text: str) -> str:
    """Return a word that may stand as a class: letters only."""
    return "".join(char for char in text.lower() if "a" <= char <= "z")


def any_of(rows: Sequence[Row], *columns: str) -> tuple[str, ...]:
    """Return the columns that have a value in any row."""
    return tuple(name for name in columns if any(row.get(name) is not None for row in rows))
