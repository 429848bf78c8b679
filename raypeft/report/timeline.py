"""A simulated night as a picture: what each slot did when, as SVG; and as one line of text.

Decides how it looks; what happened is `raypeft.core.simulate`'s.
"""

import heapq
from collections.abc import Sequence
from xml.sax.saxutils import escape

from raypeft.core.simulate import Simulated, Span
from raypeft.report.progress import duration_text

MAX_LANES = 200
"""Lanes that are drawn: a thousand would be thinner than a pixel."""

WIDTH, LANE_HEIGHT, MARGIN = 1200, 6, 40
BLOCKS = " ▁▂▃▄▅▆▇█"
COLUMNS = 72


def timeline_svg(night: Simulated) -> str:
    """Return the night as SVG: a lane for each slot, a colour for each base."""
    lanes = _lanes(night.spans)
    shown = lanes[:MAX_LANES]
    hues = {name: index for index, name in enumerate(dict.fromkeys(s.base for s in night.spans))}
    scale = WIDTH / max(night.makespan_seconds, 1e-9)
    height = MARGIN * 2 + LANE_HEIGHT * len(shown)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH + 2 * MARGIN}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        f"<title>{escape(_caption(night, len(lanes)))}</title>",
        f'<text x="{MARGIN}" y="24">{escape(_caption(night, len(lanes)))}</text>',
    ]
    for number, lane in enumerate(shown):
        top = MARGIN + LANE_HEIGHT * number
        for span in _merged(lane, least=night.makespan_seconds / WIDTH):
            parts.append(_rectangle(span, top, scale, hues))
    for tick in range(5):
        x = MARGIN + WIDTH * tick / 4
        text = duration_text(night.makespan_seconds * tick / 4)
        parts.append(f'<text x="{x:.0f}" y="{height - 16}" text-anchor="middle">{text}</text>')
    return "\n".join([*parts, "</svg>", ""])


def timeline_text(night: Simulated, columns: int = COLUMNS) -> str:
    """Return the share of slots that answer, from begin to end, as a line of blocks."""
    width = night.makespan_seconds / columns
    busy = [0.0] * columns
    for span in night.spans if width else ():
        if span.activity != "answering":
            continue
        first = min(int(span.begin_seconds / width), columns - 1)
        last = min(int(span.end_seconds / width), columns - 1)
        for column in range(first, last + 1):
            begin = max(span.begin_seconds, column * width)
            busy[column] += max(0.0, min(span.end_seconds, (column + 1) * width) - begin)
    shares = [seconds / (width * night.num_slots) if width else 0.0 for seconds in busy]
    return "".join(BLOCKS[round(min(share, 1.0) * (len(BLOCKS) - 1))] for share in shares)


def _caption(night: Simulated, num_lanes: int) -> str:
    bound = "" if night.ratio is None else f", {night.ratio:.3f} times the lower bound"
    cut = f"; {MAX_LANES} of {num_lanes} slots shown" if num_lanes > MAX_LANES else ""
    return (
        f"{night.num_units} units on {night.num_slots} slots in "
        f"{duration_text(night.makespan_seconds)}{bound}; slots answer "
        f"{night.utilisation:.0%} of the time; grey: loading, red: lost{cut}"
    )


def _lanes(spans: Sequence[Span]) -> list[list[Span]]:
    """Return the spans by lane: a slot whose base changes is another slot in the same place."""
    by_slot: dict[str, list[Span]] = {}
    for span in spans:
        by_slot.setdefault(span.slot, []).append(span)
    slots = sorted(by_slot.values(), key=lambda own: own[0].begin_seconds)
    lanes: list[list[Span]] = []
    free: list[tuple[float, int]] = []
    for own in slots:
        if free and free[0][0] <= own[0].begin_seconds:
            _, lane = heapq.heappop(free)
        else:
            lane = len(lanes)
            lanes.append([])
        lanes[lane] += own
        heapq.heappush(free, (own[-1].end_seconds, lane))
    return lanes


def _merged(lane: Sequence[Span], least: float) -> list[Span]:
    """Return a lane with what nobody could tell apart in one piece."""
    merged: list[Span] = []
    for span in lane:
        last = merged[-1] if merged else None
        alike = last and (last.slot, last.activity) == (span.slot, span.activity)
        if last and alike and span.begin_seconds - last.end_seconds < least:
            merged[-1] = Span(
                last.slot, last.base, last.activity, last.begin_seconds, span.end_seconds
            )
        else:
            merged.append(span)
    return merged


def _rectangle(span: Span, top: int, scale: float, hues: dict[str, int]) -> str:
    # Steps of the golden angle keep the colours of neighbours apart, however many there are.
    colours = {"loading": "#bbb", "lost": "#d33"}
    hue = round(hues[span.base] * 137.508) % 360
    fill = colours.get(span.activity, f"hsl({hue},55%,55%)")
    x, width = MARGIN + span.begin_seconds * scale, max(span.seconds * scale, 0.2)
    what = f"{span.slot}, {span.base}: {span.activity} for {duration_text(span.seconds)}"
    return (
        f'<rect x="{x:.1f}" y="{top}" width="{width:.1f}" height="{LANE_HEIGHT - 1}" '
        f'fill="{fill}"><title>{escape(what)}</title></rect>'
    )
