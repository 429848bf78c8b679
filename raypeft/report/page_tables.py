"""The tables of the page: standings, heat map, baselines, gains, cost, failures.

Decides which rows of a sweep's tables stand where. What may be said about them is decided by
`findings` and `standings`, how a table looks by the template.
"""

from collections.abc import Mapping, Sequence

from raypeft.report.findings import column_label
from raypeft.report.morning import BaseReport, Column, Row
from raypeft.report.standings import (
    Standing,
    better_by,
    scale,
    shrunk,
    worst_bound,
    worst_of,
)
from raypeft.report.table_views import (
    MARKS,
    Cell,
    Head,
    TableView,
    any_of,
    count_cell,
    interval_cell,
    names,
    number_cell,
    numbers,
    slug,
    text_cell,
    verdict_cell,
)
from raypeft.report.text import clean

MAX_ROWS = 4000
"""Rows of one table at most: what a telephone still scrolls. The Parquet files have all."""

HEAT_LEVELS = 5


def standings_table(base: str, ranked: Sequence[Standing], key: str) -> TableView:
    """Return the adapters of one base, the best first."""
    rows = []
    for one in ranked:
        lacking = [clean(column.task) for column in one.missing]
        rows.append(
            (
                text_cell(one.adapter),
                count_cell(one.place),
                Cell(text=str(one.tier), css=f"tier {one.tier.name.lower()}"),
                number_cell(one.mean_gain, "+.3f"),
                *(
                    count_cell(len(own))
                    for own in (one.gains, one.losses, one.equivalent, one.inconclusive)
                ),
                _worst_cell(one.inconclusive),
                text_cell(", ".join([*lacking, *(clean(r["task"]) for r in one.refused)]) or None),
            )
        )
    heads = (
        *names("adapter"),
        *numbers("place"),
        *names("what may be said"),
        *numbers("mean gain", "gains", "losses", "equivalent", "undecided"),
        *numbers("loss not ruled out"),
        *names("not known on"),
    )
    return TableView(
        key=key,
        caption=f"Adapters of {clean(base)}, the best first",
        heads=heads,
        rows=tuple(rows),
        note=(
            "Ordered by what may be said, then by the mean gain: over the sweep's task entries with"
            " metrics between 0 and 1, shrunk where the table has it. “Loss not ruled out” is the"
            " worst end of an interval among the undecided columns, by its share of the baseline's"
            " value. Intervals are of one comparison."
        ),
    )


def _worst_cell(rows: Sequence[Row]) -> Cell:
    """Return the loss that undecided rows allow, with its task: units differ between tasks."""
    unknown = [clean(row["task"]) for row in rows if worst_bound(row) is None]
    if unknown:
        return Cell(text=f"any, on {', '.join(unknown[:3])}{' …' if unknown[3:] else ''}")
    found = worst_of(rows)
    if found is None:
        return Cell(text="–")
    bound, row = found
    return Cell(text=f"{bound:+.3g} on {clean(row['task'])}", value=bound / scale(row))


# --- heat map ---------------------------------------------------------------------------------


def heat_map(report: BaseReport, ranked: Sequence[Standing], key: str) -> TableView:
    """Return adapters × tasks, each gain with its verdict as a mark and a shade."""
    tops = {column: _top(column, report) for column in report.columns}
    baseline = (Cell(text="baseline"), *(_baseline_cell(report, c) for c in report.columns))
    rows = [baseline]
    for one in ranked:
        own = report.gains.get(one.adapter, {})
        cells = [_heat_cell(own.get(column), tops[column]) for column in report.columns]
        rows.append((text_cell(one.adapter), *cells))
    heads = (
        Head(text="adapter"),
        *(
            Head(text=task_label(column), is_number=True, hint=column_label(column))
            for column in report.columns
        ),
    )
    return TableView(
        key=key,
        caption=f"Gains over {clean(report.base)}",
        heads=heads,
        rows=tuple(rows),
        note=(
            "▲ gain and ▼ loss are significant after correction, ≈ is equivalent within the margin,"
            " · could be either, ✗ is refused, – has no result. The shade of a gain or loss is its"
            " size, shrunk where the table has it, relative to the largest of its column; where"
            " lower is better (↓) a negative difference is a gain."
        ),
        css="heat",
    )


def _top(column: Column, report: BaseReport) -> float:
    values = (
        shrunk(rows[column]) for rows in report.gains.values() if rows.get(column) is not None
    )
    return max((abs(value) for value in values if value is not None), default=0.0)


def _baseline_cell(report: BaseReport, column: Column) -> Cell:
    score = report.baseline.get(column)
    if score is None or score.value is None:
        return Cell(text="–", css="base")
    error = "" if score.stderr is None else f" ± {score.stderr:.2g}"
    return Cell(text=f"{score.value:.4g}{error}", value=score.value, css="base")


def _heat_cell(row: Row | None, top: float) -> Cell:
    if row is None:
        return Cell(text="–", css="none", hint="no result")
    verdict = str(row["verdict"])
    mark = MARKS.get(verdict, "?")
    if row["gain"] is None:
        return Cell(text=mark, css=f"verdict {slug(verdict)}", hint=verdict)
    better = better_by(row, shrunk(row))
    shade = "g0"
    if better is not None and top > 0:
        # What may be chance is shaded faintly, however large it is.
        deepest = HEAT_LEVELS if verdict in {"gain", "loss"} else 1
        level = min(deepest, round(HEAT_LEVELS * abs(better) / top))
        shade = f"{'g' if better > 0 else 'l'}{level}" if level else "g0"
    return Cell(
        text=f"{row['gain']:+.3g} {mark}",
        value=row["gain"],
        css=f"verdict {slug(verdict)} {shade}",
        hint=verdict,
    )


def task_label(column: Column) -> str:
    """Return a column's task, marked where it is a group."""
    return clean(column.task) + (" (group)" if column.is_group else "")


# --- baselines and gains ----------------------------------------------------------------------


def baselines_table(report: BaseReport, key: str) -> TableView:
    """Return the baseline of one base, one row for each column."""
    intervals: dict[Column, Row] = {}
    for rows in report.gains.values():
        for column, row in rows.items():
            intervals.setdefault(column, row)
    rows_shown = []
    for column in report.columns:
        score = report.baseline.get(column)
        rows_shown.append(
            (
                Cell(text=task_label(column)),
                Cell(text=column_label(column)),
                number_cell(None if score is None else score.value),
                number_cell(None if score is None else score.stderr),
                interval_cell(intervals.get(column, {}), "baseline_low", "baseline_high"),
                count_cell(None if score is None else score.n),
            )
        )
    return TableView(
        key=key,
        caption=f"Baseline of {clean(report.base)}",
        heads=(
            *names("task", "metric"),
            *numbers("value", "standard error", "interval", "documents"),
        ),
        rows=tuple(rows_shown),
    )


OPTIONAL = {
    "shrunk_gain": "shrunk gain",
    "q": "q (false discoveries)",
    "p_equivalent": "p of equivalence",
    "margin": "margin",
    "rank": "rank",
    "p_best": "probability of being best",
    "noise_floor": "noise floor",
    "num_clusters": "clusters",
    "documents_needed": "documents needed",
}
"""Columns of the gains table that are shown where any row has a value."""


def gains_table(rows: Sequence[Row], several_bases: bool) -> TableView:
    """Return every gain with all its numbers, the most certain first."""
    ordered = sorted(rows, key=lambda r: 1.0 if r["p_corrected"] is None else r["p_corrected"])
    shown = ordered[:MAX_ROWS]
    optional = any_of(rows, *OPTIONAL)
    heads = (
        *names("adapter", *(("base",) if several_bases else ()), "task", "metric", "verdict"),
        *numbers("baseline", "with the adapter", "gain", "interval", "p", "corrected p"),
        *numbers("n", "wins", "losses", "smallest detectable"),
        *numbers(*(OPTIONAL[name] for name in optional)),
        *names("method", "notes"),
    )
    note = (
        "p is of one comparison, corrected p of all adapters and tasks of the metric together;"
        " verdicts use the corrected one. The interval is of one comparison."
    )
    if len(ordered) > len(shown):
        note += f" {len(ordered) - len(shown)} more rows are in tables/gains.parquet."
    return TableView(
        key="gains",
        caption="All gains",
        heads=heads,
        rows=tuple(_gain_row(row, optional, several_bases) for row in shown),
        note=note,
        num_left_out=len(ordered) - len(shown),
    )


def _gain_row(row: Row, optional: Sequence[str], several_bases: bool) -> tuple[Cell, ...]:
    suffix = " (group)" if row["is_group"] else ""
    method = row["method"] + (f", {row['correction']}" if row.get("correction") else "")
    return (
        text_cell(row["adapter"]),
        *((text_cell(row["base"]),) if several_bases else ()),
        Cell(text=clean(row["task"]) + suffix),
        text_cell(f"{row['metric']},{row['filter']}"),
        verdict_cell(row),
        number_cell(row["baseline_value"]),
        number_cell(row["adapter_value"]),
        number_cell(row["gain"], "+.4g"),
        interval_cell(row),
        number_cell(row["p"], ".3g"),
        number_cell(row["p_corrected"], ".3g"),
        *(count_cell(row[name]) for name in ("n", "wins", "losses")),
        number_cell(row["smallest_detectable_gain"], ".3g"),
        *(number_cell(row.get(name)) for name in optional),
        text_cell(method, "long"),
        text_cell(row["reason"], "long" if row["reason"] else ""),
    )


# --- cost, failures, refusals -----------------------------------------------------------------


def cost_table(cells: Sequence[Row]) -> TableView:
    """Return what each subject cost: time of accelerators or processors, and tokens."""
    by_subject: dict[str, list[Row]] = {}
    for row in cells:
        if row["seconds"] is not None:
            by_subject.setdefault(row["subject"], []).append(row)
    rows = []
    for subject, own in by_subject.items():
        # A slot without accelerators is its processor's time.
        seconds = sum(row["seconds"] * max(row["num_devices"] or 0, 1) for row in own)
        kind = "GPU" if any(row["num_devices"] for row in own) else "CPU"
        tokens = sum(row["tokens"] or 0 for row in own)
        rows.append(
            (
                text_cell(subject),
                count_cell(len(own)),
                number_cell(seconds / 3600, ".3g"),
                number_cell(seconds, ".4g"),
                count_cell(tokens),
                number_cell(tokens / seconds if seconds else None, ".3g"),
                text_cell(f"{kind}: {', '.join(sorted({str(row['device']) for row in own}))}"),
            )
        )
    return TableView(
        key="cost",
        caption="What each subject cost",
        heads=(
            *names("subject"),
            *numbers("cells", "device hours", "device seconds", "tokens", "tokens per second"),
            *names("device"),
        ),
        rows=tuple(rows),
        note=(
            "Time in which answers were computed, times the devices of the slot; loading bases and"
            " scoring are not in it. Answers of earlier runs count with what they cost then."
        ),
    )


def failures_table(failures: Sequence[Row]) -> TableView:
    """Return what failed, once for each subject and reason, with the tasks it cost."""
    grouped: dict[tuple[str, str, str], list[str]] = {}
    for row in failures:
        key = (row["subject"], row["reason"] or row["state"], row["message"] or "")
        grouped.setdefault(key, []).append(row["task"])
    rows = [
        (
            text_cell(subject),
            text_cell(reason),
            count_cell(len(tasks)),
            text_cell(", ".join(tasks), max_chars=2000),
            text_cell(message, "long", max_chars=4000),
        )
        for (subject, reason, message), tasks in grouped.items()
    ]
    return TableView(
        key="failures",
        caption="Failed cells",
        heads=(*names("subject", "reason"), *numbers("cells"), *names("tasks", "message")),
        rows=tuple(rows),
    )


def refusals_table(rows: Sequence[Row]) -> TableView:
    """Return why comparisons were refused."""
    grouped: dict[tuple[str, str, str], set[str]] = {}
    for row in rows:
        if row["verdict"] == "refused":
            reason = str(row["reason"]).split("not comparable, ")[-1]
            grouped.setdefault((row["adapter"], row["base"], reason), set()).add(row["task"])
    return TableView(
        key="refusals",
        caption="Refused comparisons",
        heads=names("adapter", "base", "tasks", "reason"),
        rows=tuple(
            (
                text_cell(adapter),
                text_cell(base),
                text_cell(", ".join(sorted(tasks)), max_chars=2000),
                text_cell(reason, "long", max_chars=2000),
            )
            for (adapter, base, reason), tasks in grouped.items()
        ),
        note=(
            "Answer both sides alike: run on the same hardware and software, with a new `store`"
            " where the old answers differ; or let it through, flagged, by `hardware.allow_mixed`."
        ),
    )


# --- recipes ----------------------------------------------------------------------------------


def recipes_table(
    recipes: Mapping[tuple[str, str], Mapping[str, object]],
    ranked: Sequence[Standing],
) -> TableView:
    """Return the training recipe of each adapter beside its mean gain.

    Args:
        recipes: For each base and adapter what `recipes.recipe_of` found.
        ranked: Every adapter.
    """
    fields = list(dict.fromkeys(name for found in recipes.values() for name in found))
    rows = []
    for one in ranked:
        found = recipes.get((one.base, one.adapter))
        if found is None:
            continue
        cells = [_recipe_cell(found.get(name)) for name in fields]
        counts = (count_cell(len(one.gains)), count_cell(len(one.losses)))
        rows.append((text_cell(one.adapter), *cells, number_cell(one.mean_gain, "+.3f"), *counts))
    is_number = {
        name: all(isinstance(found.get(name), int | float | None) for found in recipes.values())
        for name in fields
    }
    return TableView(
        key="recipes",
        caption="Training recipe and gain",
        heads=(
            *names("adapter"),
            *(Head(text=name, is_number=is_number[name]) for name in fields),
            *numbers("mean gain", "gains", "losses"),
        ),
        rows=tuple(rows),
        note="From the adapter_config.json of each adapter.",
    )


def _recipe_cell(value: object) -> Cell:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return number_cell(value, "g")
    return text_cell(value)
