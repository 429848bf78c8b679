"""The report as one HTML file: gathers what the page says and writes it.

What the page says is decided by `raypeft.report`. Needs the extra `report`; whoever calls without
it is told so.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from raypeft import __version__
from raypeft.api.reading import read_report
from raypeft.api.stored import SWEEP_FILE, read_planned
from raypeft.core.records import Json, RequestSet
from raypeft.core.spec import parse_sweep
from raypeft.errors import RaypeftError, SetupError
from raypeft.report.morning import Column, Morning
from raypeft.report.recipes import recipe_of
from raypeft.report.samples import Asked, Pair, per_pair, sample_data
from raypeft.report.standings import standings
from raypeft.report.text import clean
from raypeft.store.changes import Changes, Values, changes, read_texts, read_values
from raypeft.store.files import Folder
from raypeft.store.output import Results, open_output
from raypeft.store.store import Store

REPORT_FILE = "report.html"
NEEDED = ("jinja2", "matplotlib")

Row = Mapping[str, Any]
Recipes = dict[tuple[str, str], dict[str, Json]]


def can_write_html() -> bool:
    """Return whether the packages of the extra `report` are installed."""
    return all(find_spec(name) is not None for name in NEEDED)


def html_report(output: str, path: Path | str | None = None) -> str:
    """Write a sweep's report as one HTML file that needs nothing else.

    Args:
        output: The sweep's output.
        path: The file; `report.html` in the output if None.

    Returns:
        Where it was written.

    Raises:
        SetupError: If the extra is not installed, no sweep has run there, or the file cannot be
            written.
    """
    if not can_write_html():
        raise SetupError(
            f"the HTML report needs {' and '.join(NEEDED)}", "pip install 'raypeft[report]'"
        )
    from raypeft.report.html import render_html  # the extra, which nothing else needs
    from raypeft.report.page import SweepFacts, build_page

    morning = read_report(output)
    results = open_output(output)
    found = _Gathered.from_output(output, results, morning)
    page = build_page(
        SweepFacts(
            title=found.title,
            place=output,
            version=__version__,
            morning=morning,
            results=found.rows,
            cells=results.cells.to_pylist(),
            recipes=found.recipes,
            samples=found.samples,
            notes=found.notes,
            sweep_text=found.sweep_text,
        )
    )
    return _write(render_html(page).encode(), output, path)


def html_report_line(output: str) -> str:
    """Write the page beside a sweep's tables, and return a line that says where, or why not.

    For the end of a run: its numbers do not depend on a page, and neither does how it ended.
    """
    try:
        return f"report: {html_report(output)}"
    except Exception as error:  # noqa: BLE001 - the night is over, and its tables are written
        return f"no HTML report: {clean(error)}"


def _write(data: bytes, output: str, path: Path | str | None) -> str:
    if path is None:
        folder = Folder(output)
        folder.write(REPORT_FILE, data)
        return folder.place(REPORT_FILE)
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    except OSError as error:
        raise SetupError(f"{target} cannot be written: {error}", "name another file") from error
    return str(target)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Gathered:
    """What is not in the morning: recipes, samples, the sweep file."""

    title: str
    rows: list[Row]
    recipes: Recipes
    samples: dict[str, Json]
    notes: tuple[str, ...]
    sweep_text: str

    @staticmethod
    def from_output(output: str, results: Results, morning: Morning) -> "_Gathered":
        text = (Folder(output).read(SWEEP_FILE) or b"").decode(errors="replace")
        rows = results.results.to_pylist()
        notes: list[str] = []
        sweep = parse_sweep(text, source=f"{output}/{SWEEP_FILE}") if text else None
        store = None if sweep is None else Store(sweep.store)
        if store is None:
            notes.append(f"{output} holds no {SWEEP_FILE}: prompts and recipes are not shown.")
        samples = _samples(results, rows, morning, store, notes)
        return _Gathered(
            title=output if sweep is None else (sweep.name or output),
            rows=rows,
            recipes=_recipes(output, notes) if sweep is not None else {},
            samples=samples,
            notes=tuple(notes),
            sweep_text=text,
        )


def _recipes(output: str, notes: list[str]) -> Recipes:
    """Return each adapter's recipe; where the sweep cannot be planned again, a note says why."""
    try:
        planned, _ = read_planned(output)
    except RaypeftError as error:
        notes.append(f"Training recipes are not shown: {error}")
        return {}
    return {
        (subject.base, subject.adapter.name): recipe_of(subject.adapter.config)
        for subject in planned.resolved.subjects.values()
        if subject.adapter is not None and subject.adapter.config
    }


# --- samples ----------------------------------------------------------------------------------


def _samples(
    results: Results,
    rows: Sequence[Row],
    morning: Morning,
    store: Store | None,
    notes: list[str],
) -> dict[str, Json]:
    pairs = _pairs(results, rows, morning, notes)
    wanted: dict[tuple[str, str], set[int]] = {}
    filters: dict[tuple[str, str], str] = {}
    by_request_set: dict[str, set[int]] = {}
    for pair in pairs:
        doc_ids = {c.doc_id for c in (*pair.changes.better, *pair.changes.worse)}
        for subject in (pair.baseline, pair.subject):
            wanted.setdefault((subject, pair.task), set()).update(doc_ids)
            filters[subject, pair.task] = pair.filter
        by_request_set.setdefault(pair.request_set, set()).update(doc_ids)
    said = read_texts(results, {c: (filters[c], frozenset(ids)) for c, ids in wanted.items()})
    asked = {}
    for digest, doc_ids in by_request_set.items():
        request_set = None if store is None else store.get_request_set(digest)
        if request_set is not None:
            asked[digest] = _asked(request_set, doc_ids)
    return sample_data(pairs, asked, said)


def _asked(request_set: RequestSet, doc_ids: set[int]) -> dict[int, Asked]:
    requests: dict[int, list[Any]] = {doc_id: [] for doc_id in doc_ids}
    for request in request_set.requests:
        if request.doc_id in requests and request.repeat == 0:
            requests[request.doc_id].append(request)
    return {
        document.doc_id: Asked(
            requests=tuple(sorted(requests[document.doc_id], key=lambda r: r.idx)),
            target=document.target,
        )
        for document in request_set.documents
        if document.doc_id in doc_ids
    }


def _pairs(results: Results, rows: Sequence[Row], morning: Morning, notes: list[str]) -> list[Pair]:
    """Return every adapter and task with documents that changed."""
    sides = _sides(rows, morning)
    metrics = {
        (row["subject"], column.task): (column.metric, column.filter)
        for column, _, *both in sides
        for row in both
    }
    values = read_values(results, metrics)
    limit = per_pair(len(sides))
    pairs = []
    for column, gain, baseline, adapter in sides:
        left, right = (values.get((row["subject"], column.task)) for row in (baseline, adapter))
        found = _changes(left, right, column, limit)
        if found is None or not found.num_better + found.num_worse:
            continue
        if gain["wins"] is not None and (gain["wins"], gain["losses"]) != (
            found.num_better,
            found.num_worse,
        ):
            name = f"{adapter['subject']} on {column.task}"
            notes.append(f"The samples of {name} do not match its gain and are not shown.")
            continue
        pairs.append(_pair(column, baseline, adapter, found))
    return pairs


def _changes(
    left: Values | None, right: Values | None, column: Column, limit: int
) -> Changes | None:
    if left is None or right is None or column.higher_is_better is None:
        return None
    return changes(left, right, higher_is_better=column.higher_is_better, limit=limit)


def _pair(column: Column, baseline: Row, adapter: Row, found: Changes) -> Pair:
    return Pair(
        base=adapter["base"],
        adapter=adapter["adapter"],
        subject=adapter["subject"],
        baseline=baseline["subject"],
        task=column.task,
        metric=column.metric,
        filter=column.filter,
        request_set=adapter["request_set"],
        higher_is_better=bool(column.higher_is_better),
        changes=found,
    )


def _sides(rows: Sequence[Row], morning: Morning) -> list[tuple[Column, Row, Row, Row]]:
    """Return for each comparable gain of a task its column, its row and the results' two rows."""
    by_name: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if not row["is_group"]:
            name = (row["base"], row["adapter"], row["task"], row["metric"], row["filter"])
            by_name.setdefault(name, []).append(row)
    found = []
    for report in morning.bases:
        # The best first: the documents that a reader is shown are those of the adapter to ship.
        ranked = [one.adapter for one in standings(report) if one.adapter in report.gains]
        for adapter, gains in ((name, report.gains[name]) for name in ranked):
            for column, gain in gains.items():
                if column.is_group or gain["verdict"] == "refused":
                    continue
                tail = (column.task, column.metric, column.filter)
                for own in by_name.get((report.base, adapter, *tail), [])[:1]:
                    candidates = by_name.get((report.base, None, *tail), [])
                    baseline = baseline_of(own, candidates)
                    if baseline is not None:
                        found.append((column, gain, baseline, own))
    return found


def baseline_of(row: Row, candidates: Sequence[Row]) -> Row | None:
    """Return the baseline's row that an adapter's gain was computed against.

    The same choice as `raypeft.core.comparable.match_baseline`, from what the tables hold.
    """
    numerics = json.loads(row["numerics"])
    # A baseline answered again never stands for the base: only the noise floor reads it.
    alike = [
        one
        for one in candidates
        if one["request_set"] == row["request_set"] and not json.loads(one["numerics"]).get("again")
    ]
    for setting in ("engine", "vocab_size", "tokenizer"):
        wanted = numerics.get(setting)
        closer = [one for one in alike if json.loads(one["numerics"]).get(setting) == wanted]
        alike = closer or alike
    return min(alike, key=lambda one: (one["subject"] != one["base"], one["subject"]), default=None)
