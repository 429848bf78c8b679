"""The whole page as values: what a sweep found, in the order it is read.

Decides which sections there are and what is left out of them. The sentences are `findings`, the
tables `page_tables`, the pictures `figures`; how it becomes HTML is decided by `html`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from raypeft.core.records import Json
from raypeft.report import figures, page_tables
from raypeft.report.findings import Finding, column_label, findings
from raypeft.report.morning import BaseReport, Column, Morning, Row
from raypeft.report.provenance import provenance
from raypeft.report.recipes import varying_number
from raypeft.report.standings import (
    Standing,
    Tier,
    adapters_without_results,
    better_by,
    is_share,
    shrunk,
    standings,
)
from raypeft.report.table_views import TableView
from raypeft.report.text import clean, excerpt

MAX_FORESTS = 60
"""Forest plots in one page at most; each takes some ten kilobytes and a tenth of a second."""

MAX_SWEEP_CHARS = 200_000

TIER_KINDS: Mapping[Tier, str] = {
    Tier.GAINS_ONLY: "gain",
    Tier.MIXED: "mixed",
    Tier.HARMFUL: "loss",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepFacts:
    """What the page is made from.

    Attributes:
        title: The sweep's name.
        place: Its output.
        version: raypeft's version.
        morning: What the morning table says.
        results: Rows of the results table.
        cells: Rows of the cells table.
        recipes: For each base and adapter what its config says; see `recipes.recipe_of`.
        samples: What `samples.sample_data` returned.
        notes: What could not be read, and why.
        sweep_text: The sweep file as it was run.
    """

    title: str
    place: str
    version: str
    morning: Morning
    results: Sequence[Row]
    cells: Sequence[Row]
    recipes: Mapping[tuple[str, str], Mapping[str, Json]] = field(default_factory=dict)
    samples: Mapping[str, Json] = field(default_factory=dict)
    notes: Sequence[str] = ()
    sweep_text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forest:
    """The forest plot of one task.

    Attributes:
        key: Its name within the page.
        task: The task.
        metric: Its metric.
        figure: The picture.
    """

    key: str
    task: str
    metric: str
    figure: Markup


@dataclass(frozen=True, slots=True, kw_only=True)
class BasePage:
    """One base's part of the page.

    Attributes:
        base: Its name.
        key: Its name within the page.
        standings: Its adapters, the best first.
        heat: Adapters × tasks.
        baseline: The baseline's values.
        trade_off: Target gain against the worst change elsewhere; None without enough metrics.
        forests: One picture for each task.
        num_left_out: Tasks whose pictures were left out.
    """

    base: str
    key: str
    standings: TableView
    heat: TableView
    baseline: TableView
    trade_off: Markup | None
    forests: tuple[Forest, ...]
    num_left_out: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Everything the template needs.

    Attributes:
        title: The sweep's name.
        place: Its output.
        version: raypeft's version.
        counts: Cells done, failed, open.
        findings: The sentences.
        bases: One part for each base that has adapters.
        gains: Every gain.
        recipes: Training recipes; None where none is known.
        recipe_figure: One number of them against the mean gain.
        cost: What each subject cost.
        failures: What failed; None if nothing did.
        refusals: What was refused; None if nothing was.
        samples: The JSON of the samples; empty without any.
        provenance: Identities, requests, hardware, cells.
        sweep_text: The sweep file.
        notes: What could not be read.
    """

    title: str
    place: str
    version: str
    counts: str
    findings: tuple[Finding, ...]
    bases: tuple[BasePage, ...]
    gains: TableView
    recipes: TableView | None
    recipe_figure: Markup | None
    cost: TableView
    failures: TableView | None
    refusals: TableView | None
    samples: Mapping[str, Json]
    provenance: tuple[TableView, ...]
    sweep_text: str
    notes: tuple[str, ...]


def build_page(facts: SweepFacts) -> Page:
    """Return the page of a sweep."""
    morning = facts.morning
    ranked = {
        report.base: standings(report, adapters_without_results(morning, report.base))
        for report in morning.bases
    }
    every = [one for found in ranked.values() for one in found]
    room = MAX_FORESTS // max(1, sum(1 for report in morning.bases if report.gains))
    recipes = page_tables.recipes_table(facts.recipes, every)
    refusals = page_tables.refusals_table(morning.details)
    return Page(
        title=clean(facts.title),
        place=clean(facts.place),
        version=facts.version,
        counts=_counts(morning),
        findings=findings(morning),
        bases=tuple(
            _base_page(report, ranked[report.base], f"base{number}", room)
            for number, report in enumerate(morning.bases)
        ),
        gains=page_tables.gains_table(morning.details, len(morning.bases) > 1),
        recipes=recipes if recipes.rows else None,
        recipe_figure=_recipe_figure(facts.recipes, every),
        cost=page_tables.cost_table(facts.cells),
        failures=page_tables.failures_table(morning.failures) if morning.failures else None,
        refusals=refusals if refusals.rows else None,
        samples=facts.samples if facts.samples.get("pairs") else {},
        provenance=provenance(facts.results, facts.cells),
        sweep_text=excerpt(facts.sweep_text, MAX_SWEEP_CHARS).text,
        notes=tuple(clean(note, 1000) for note in facts.notes),
    )


def _counts(morning: Morning) -> str:
    text = f"{morning.num_done} of {morning.num_cells} cells scored"
    if morning.failures:
        text += f", {len(morning.failures)} failed"
    if morning.num_open:
        text += f", {morning.num_open} open"
    if morning.stopped_early:
        text += f", {len(morning.stopped_early)} stopped early"
    counts = [f"{number} {verdict}" for verdict, number in morning.verdicts.items()]
    return f"{text}; gains: {', '.join(sorted(counts))}" if counts else text


def _base_page(report: BaseReport, ranked: Sequence[Standing], key: str, room: int) -> BasePage:
    # Groups first: where there is no room for every task, they speak for theirs.
    columns = sorted(report.columns, key=lambda column: not column.is_group)[:room]
    forests = [
        _forest(report, column, f"{key}-forest{number}")
        for number, column in enumerate(report.columns)
        if column in columns
    ]
    return BasePage(
        base=clean(report.base),
        key=key,
        standings=page_tables.standings_table(report.base, ranked, f"{key}-standings"),
        heat=page_tables.heat_map(report, ranked, f"{key}-heat"),
        baseline=page_tables.baselines_table(report, f"{key}-baseline"),
        trade_off=_trade_off(report, ranked, f"{key}-tradeoff"),
        forests=tuple(forest for forest in forests if forest is not None),
        num_left_out=len(report.columns) - len(columns),
    )


def _forest(report: BaseReport, column: Column, key: str) -> Forest | None:
    rows = {name: rows[column] for name, rows in report.gains.items() if column in rows}
    figure = figures.forest(column, rows, key=key)
    if figure is None:
        return None
    return Forest(
        key=key,
        task=page_tables.task_label(column),
        metric=column_label(column),
        figure=figure,
    )


def _trade_off(report: BaseReport, ranked: Sequence[Standing], key: str) -> Markup | None:
    columns = [c for c in report.columns if not c.is_group and is_share(c, report)]
    measured = []
    for one in ranked:
        rows = report.gains.get(one.adapter, {})
        known = [(c, rows[c]) for c in columns if c in rows]
        values = [v for _, row in known if (v := better_by(row, shrunk(row))) is not None]
        if len(values) >= 2:
            # Its target is where it gained most; what is left is elsewhere.
            *elsewhere, target = sorted(values)
            measured.append((one, target, min(elsewhere)))
    if len(measured) < 2:
        return None
    points = [
        figures.Point(
            # Who was not measured everywhere may hide its worst change.
            name=one.adapter if one.is_complete else f"{one.adapter} (in part)",
            x=target,
            y=worst,
            kind=TIER_KINDS.get(one.tier, ""),
            is_best=one.is_complete
            and not any(
                x >= target and y >= worst and (x, y) != (target, worst) for _, x, y in measured
            ),
        )
        for one, target, worst in measured
    ]
    return figures.trade_off(
        points,
        key=key,
        title=f"Adapters of {clean(report.base)}: largest gain against worst change elsewhere",
        labels=("gain on its best task", "worst change on another task"),
    )


def _recipe_figure(
    recipes: Mapping[tuple[str, str], Mapping[str, Json]], ranked: Sequence[Standing]
) -> Markup | None:
    name = varying_number(list(recipes.values()))
    if not name:
        return None
    points = [
        (str(found["method"]), float(number), one.mean_gain)
        for one in ranked
        if isinstance(
            number := (found := recipes.get((one.base, one.adapter), {})).get(name), int | float
        )
        and one.mean_gain is not None
    ]
    if len({x for _, x, _ in points}) < 2:
        return None
    return figures.recipe(
        points, key="recipe", title=f"{name} against mean gain", labels=(name, "mean gain")
    )
