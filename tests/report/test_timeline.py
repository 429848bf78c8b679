import itertools
from dataclasses import replace
from random import Random
from xml.etree import ElementTree

import pytest

from raypeft.core.retry import Policy
from raypeft.core.simulate import Chances, Simulated, Span, simulate
from raypeft.report.timeline import BLOCKS, MAX_LANES, timeline_svg, timeline_text
from tests.support.plans import make_plan


def night(slots: int = 3, **changes: float) -> Simulated:
    plan = make_plan(bases=3, adapters=4, tasks=2, load_seconds=4.0)
    return simulate(plan, Policy(slots=slots), Chances(**changes), Random(1))


def rectangles(svg: str) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}rect"))


def test_the_picture_is_svg_with_a_lane_for_each_slot() -> None:
    found = rectangles(timeline_svg(night(slots=3)))
    assert len({element.get("y") for element in found}) == 3
    assert any(element.get("fill") == "#bbb" for element in found)


def test_what_was_lost_is_red() -> None:
    fills = {element.get("fill") for element in rectangles(timeline_svg(night(unit_failure=0.4)))}
    assert "#d33" in fills


def test_bars_of_a_lane_do_not_overlap_and_stay_in_the_picture() -> None:
    by_lane: dict[str, list[tuple[float, float]]] = {}
    for element in rectangles(timeline_svg(night(slot_loss=0.2))):
        x, width = float(element.get("x", "")), float(element.get("width", ""))
        by_lane.setdefault(element.get("y", ""), []).append((x, x + width))
    for bars in by_lane.values():
        assert all(left[1] <= right[0] + 0.3 for left, right in itertools.pairwise(bars))
        assert bars[-1][1] <= 1200 + 40 + 0.3


def test_a_name_that_is_markup_is_shown_as_it_is() -> None:
    spans = (Span("slot-1", '<script>"&', "answering", 0.0, 5.0),)
    svg = timeline_svg(replace(night(), spans=spans, makespan_seconds=5.0))
    assert "<script>" not in svg
    (bar,) = rectangles(svg)
    assert '<script>"&' in "".join(bar.itertext())


def test_more_slots_than_can_be_seen_are_cut_and_said() -> None:
    spans = tuple(Span(f"slot-{n}", "b", "answering", 0.0, 5.0) for n in range(MAX_LANES + 50))
    svg = timeline_svg(replace(night(), spans=spans, makespan_seconds=5.0))
    assert len(rectangles(svg)) == MAX_LANES
    assert f"{MAX_LANES} of {MAX_LANES + 50} slots shown" in svg


def test_the_line_of_text_shows_how_many_slots_answer() -> None:
    spans = (
        Span("slot-1", "b", "answering", 0.0, 10.0),
        Span("slot-2", "b", "loading", 0.0, 5.0),
        Span("slot-2", "b", "answering", 5.0, 10.0),
    )
    text = timeline_text(replace(night(), spans=spans, makespan_seconds=10.0, num_slots=2), 10)
    assert text == BLOCKS[4] * 5 + BLOCKS[8] * 5


@pytest.mark.parametrize("columns", [1, 72])
def test_a_night_without_work_is_an_empty_line(columns: int) -> None:
    empty = replace(night(), spans=(), makespan_seconds=0.0)
    assert timeline_text(empty, columns) == " " * columns
    assert rectangles(timeline_svg(empty)) == []
