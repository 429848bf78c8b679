"""The report as Markdown, for a pull request or a chat: findings, baselines and gains.

Decides what of the report goes there. Names and messages are escaped: in Markdown too they are
only texts.
"""

import re

from raypeft.report.findings import findings
from raypeft.report.morning import Morning
from raypeft.report.page_tables import baselines_table, failures_table, heat_map
from raypeft.report.standings import adapters_without_results, standings
from raypeft.report.table_views import TableView

_MARKUP = re.compile(r"([\\`*_\[\]<>#!|~&$@])")


def render_markdown(morning: Morning, title: str) -> str:
    """Return the findings and the tables that fit a page, as GitHub's Markdown."""
    parts = [f"# {escape(title)}", *(f"- {escape(one.text)}" for one in findings(morning))]
    for number, report in enumerate(morning.bases):
        ranked = standings(report, adapters_without_results(morning, report.base))
        parts += _table(heat_map(report, ranked, f"heat{number}"))
        parts += _table(baselines_table(report, f"baseline{number}"))
    if morning.failures:
        parts += _table(failures_table(morning.failures))
    return "\n".join(parts) + "\n"


def escape(text: str) -> str:
    """Return a text in which Markdown finds nothing to do; it must be one line."""
    return _MARKUP.sub(r"\\\1", " ".join(text.split()))


def _table(view: TableView) -> list[str]:
    heads = [escape(f"{head.text} {head.hint}".strip()) for head in view.heads]
    lines = ["---:" if head.is_number else "---" for head in view.heads]
    rows = [[escape(cell.text) for cell in row] for row in view.rows]
    note = ["", escape(view.note)] if view.note else []
    grid = [f"| {' | '.join(row)} |" for row in (heads, lines, *rows)]
    return ["", f"## {escape(view.caption)}", "", *grid, *note]
