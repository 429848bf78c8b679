"""The pictures of the page: forest plots, the trade-off, training recipe against gain.

Decides what is drawn from which rows. How a figure becomes part of the page is decided by `svg`.
Every number in a picture stands in a table of the page too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.axes import Axes

from raypeft.report.findings import column_label
from raypeft.report.morning import Column, Row
from raypeft.report.standings import better_by
from raypeft.report.svg import BAND, GAIN, GRID, INK, LOSS, MUTED, PAPER, drawing, to_svg
from raypeft.report.text import clean

WIDTH = 400.0
"""Points. A phone shows it nearly at its size, so that its letters can be read there."""

ROW_HEIGHT = 17.0
LETTER_WIDTH = 5.4
"""Points that a letter of a label takes on average, rather more than less."""

MAX_NAME_CHARS = 26
MAX_POINT_NAMES = 12
MARKERS: Mapping[str, str] = {"gain": "^", "loss": "v", "equivalent": "s", "mixed": "D"}
COLOURS: Mapping[str, str] = {"gain": GAIN, "loss": LOSS, "equivalent": INK, "mixed": INK}


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One adapter in a picture of two measures.

    Attributes:
        name: The adapter.
        x: Across; more is better.
        y: Up; more is better.
        kind: The verdict that decides marker and colour.
        is_best: Whether no other adapter is better in both: these are named first.
    """

    name: str
    x: float
    y: float
    kind: str = "inconclusive"
    is_best: bool = False


def forest(column: Column, rows: Mapping[str, Row], *, key: str) -> Markup | None:
    """Return the gains of one task with their intervals; None if no adapter has one.

    Args:
        column: The task and its metric.
        rows: By adapter.
        key: The figure's name in the page.
    """
    shown = [(name, row) for name, row in rows.items() if row["gain"] is not None]
    if not shown:
        return None
    # The best at the top, where the eye begins; the axis counts upwards.
    shown.sort(key=lambda pair: better_by(pair[1], pair[1]["gain"]) or pair[1]["gain"])
    title = f"{clean(column.task)}: gain in {column_label(column)} over the baseline"
    labels = [_short(name) for name, _ in shown]
    left = LETTER_WIDTH * max(map(len, labels)) + 10
    with drawing(WIDTH, 42 + ROW_HEIGHT * len(shown), left) as (figure, axes):
        _zero(axes, shown[0][1])
        _intervals(axes, [row for _, row in shown])
        axes.set_yticks(range(len(shown)), labels)
        axes.set_ylim(-0.7, len(shown) - 0.3)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(f"gain in {_short(column_label(column))}", loc="right")
        axes.grid(axis="x", color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        return to_svg(
            figure, key=key, title=title, description="The numbers are in the table of all gains."
        )


def _zero(axes: Axes, row: Row) -> None:
    """Draw the baseline at 0, its own interval behind it, and the margin of equivalence."""
    value, low, high = row["baseline_value"], row.get("baseline_low"), row.get("baseline_high")
    if None not in (value, low, high):
        axes.axvspan(low - value, high - value, facecolor=BAND, linewidth=0)
    if (margin := row.get("margin")) is not None:
        for end in (-margin, margin):
            axes.axvline(end, color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)))
    axes.axvline(0, color=MUTED, linewidth=1.0)


def _intervals(axes: Axes, rows: Sequence[Row]) -> None:
    """Draw intervals and marks, row by row upwards; one verdict at a time is fastest."""
    for verdict in dict.fromkeys(str(row["verdict"]) for row in rows):
        own = [(place, row) for place, row in enumerate(rows) if row["verdict"] == verdict]
        known = [(place, row) for place, row in own if None not in (row["low"], row["high"])]
        axes.hlines(
            [place for place, _ in known],
            [row["low"] for _, row in known],
            [row["high"] for _, row in known],
            color=COLOURS.get(verdict, MUTED),
            linewidth=1.6,
        )
        _mark(axes, [row["gain"] for _, row in own], [place for place, _ in own], verdict)


def _mark(axes: Axes, x: Sequence[float], y: Sequence[float], kind: str) -> None:
    # Known by shape before colour: filled triangles are shown, an empty ring is not.
    colour = COLOURS.get(kind, MUTED)
    axes.plot(
        x,
        y,
        marker=MARKERS.get(kind, "o"),
        markersize=6.5,
        markerfacecolor=colour if kind in MARKERS else PAPER,
        markeredgecolor=colour,
        markeredgewidth=1.3,
        linestyle="none",
    )


def trade_off(points: Sequence[Point], *, key: str, title: str, labels: tuple[str, str]) -> Markup:
    """Return two measures of each adapter against one another, more of both being better.

    Args:
        points: The adapters.
        key: The figure's name in the page.
        title: What it shows.
        labels: Of the axis across and the axis up.
    """
    with drawing(WIDTH, 290, 50) as (figure, axes):
        axes.axhline(0, color=MUTED, linewidth=0.8)
        axes.axvline(0, color=MUTED, linewidth=0.8)
        for kind in dict.fromkeys(point.kind for point in points):
            own = [point for point in points if point.kind == kind]
            _mark(axes, [point.x for point in own], [point.y for point in own], kind)
        axes.margins(x=0.22, y=0.12)
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        axes.grid(color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        _name_points(axes, points)
        named = ", ".join(clean(point.name) for point in points if point.is_best)
        description = f"No adapter is better in both than any of these: {named}."
        return to_svg(figure, key=key, title=title, description=description)


def _name_points(axes: Axes, points: Sequence[Point]) -> None:
    """Write names beside the points, those that matter most, without one on top of another."""
    ordered = sorted(points, key=lambda point: (not point.is_best, -point.x, point.name))
    chosen = sorted(ordered[:MAX_POINT_NAMES], key=lambda point: point.y)
    low, high = axes.get_ylim()
    gap, height = (high - low) * 0.05, low
    for point in chosen:
        height = max(point.y, height + gap)
        axes.annotate(
            _short(point.name),
            (point.x, point.y),
            xytext=(8, (height - point.y) / (high - low) * 225),
            textcoords="offset points",
            va="center",
            color=INK,
            fontsize=8,
        )


def recipe(
    points: Sequence[tuple[str, float, float]], *, key: str, title: str, labels: tuple[str, str]
) -> Markup:
    """Return a number of the recipe against the gain, one letter for each method.

    Args:
        points: Method, number and gain of each adapter.
        key: The figure's name in the page.
        title: What it shows.
        labels: Of the axis across and the axis up.
    """
    methods = list(dict.fromkeys(method for method, _, _ in points))
    shapes = "osD^v<>pXP"
    with drawing(WIDTH, 260, 50) as (figure, axes):
        axes.axhline(0, color=MUTED, linewidth=0.8)
        for number, method in enumerate(methods):
            own = [(x, y) for name, x, y in points if name == method]
            axes.plot(
                [x for x, _ in own],
                [y for _, y in own],
                marker=shapes[number % len(shapes)],
                markerfacecolor=PAPER,
                markeredgecolor=INK,
                linestyle="none",
                label=f"\u200a{clean(method)}",  # a label that begins with `_` would be left out
            )
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted({x for _, x, _ in points}), minor=False)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        axes.margins(x=0.15, y=0.15)
        axes.grid(color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.legend(frameon=False, labelcolor=INK, ncols=2, fontsize=8)
        return to_svg(figure, key=key, title=title, description="The numbers are in the table.")


def _short(name: str) -> str:
    """Return a name in few letters, its end kept: names of one family differ there."""
    text = clean(name)
    if len(text) <= MAX_NAME_CHARS:
        return text
    head = MAX_NAME_CHARS // 2 - 1
    return f"{text[:head]}…{text[len(text) - (MAX_NAME_CHARS - head - 1) :]}"
