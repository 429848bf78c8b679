"""Plan, doctor and comparison as tables on a terminal."""

from collections.abc import Mapping, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from raypeft.report.text import clean

MAX_ROWS = 60
"""Longer lists are cut on a terminal; `--json` has everything."""


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> RenderableType:
    """Return a plain table; numbers stand on the right, and nothing is read as markup."""
    shown = Table(title=Text(clean(title)), title_justify="left", title_style="")
    numeric = [
        bool(rows) and all(isinstance(row[i], int | float) for row in rows)
        for i in range(len(columns))
    ]
    for name, is_number in zip(columns, numeric, strict=True):
        shown.add_column(name, justify="right" if is_number else "left", overflow="fold")
    for row in rows[:MAX_ROWS]:
        shown.add_row(*(Text(clean(_cell_text(value))) for value in row))
    if len(rows) <= MAX_ROWS:
        return shown
    rest = Text(f"… and {len(rows) - MAX_ROWS} more (--json shows all)", style="dim")
    return Group(shown, rest)


def records_view(title: str, records: Sequence[Mapping[str, object]]) -> RenderableType:
    """Return records of equal keys as a table."""
    columns = list(records[0]) if records else []
    return table(title, columns, [[record[name] for name in columns] for record in records])


def _cell_text(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}".replace(",", " ")
    return str(value)
