import re
from xml.etree import ElementTree

import pytest

from raypeft.report import figures
from raypeft.report.html import content_policy, render_html
from raypeft.report.morning import headline_columns, summarise
from raypeft.report.page import Page, SweepFacts, build_page
from raypeft.report.page_tables import standings_table
from raypeft.report.recipes import recipe_of, varying_number
from raypeft.report.standings import standings
from raypeft.report.svg import drawing, to_svg
from tests.support.gain_rows import gain_row, morning_of, result_row

GAINS = [
    gain_row("one", "red", "gain", 0.2, shrunk_gain=0.15, p_best=0.9, correction="max-T"),
    gain_row("one", "blue", "equivalent", 0.0, margin=0.02, baseline_low=0.4, baseline_high=0.6),
    gain_row("two", "red", "inconclusive", 0.02),
    gain_row("two", "blue", "loss", -0.1),
]
RECIPES = {
    ("base", "one"): recipe_of({"peft_type": "LORA", "r": 8, "lora_alpha": 16}),
    ("base", "two"): recipe_of({"peft_type": "LORA", "r": 16, "use_dora": True}),
}


def page() -> Page:
    morning = morning_of(GAINS)
    return build_page(
        SweepFacts(
            title="sweep",
            place="runs/x",
            version="1",
            morning=morning,
            results=[],
            cells=[],
            recipes=RECIPES,
            sweep_text="name: x",
        )
    )


def test_the_same_sweep_gives_the_same_page() -> None:
    assert render_html(page()) == render_html(page())


def test_no_style_or_script_stands_in_the_page_but_those_of_its_policy() -> None:
    html = render_html(page())
    assert len(re.findall(r"<style", html)) == 1
    assert len(re.findall(r"<script", html)) == 1
    assert " style=" not in html
    assert "unsafe" not in html
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)
    assert "default-src &#39;none&#39;" in policy


def test_the_policy_follows_script_and_style() -> None:
    assert content_policy("a", "b") != content_policy("a", "c") != content_policy("d", "c")


def test_columns_that_only_some_sweeps_have_are_shown_where_they_are() -> None:
    heads = {head.text for head in page().gains.heads}
    assert {"shrunk gain", "margin", "probability of being best"} <= heads
    assert "noise floor" not in heads


def test_a_figure_has_words_for_whoever_cannot_see_it_and_no_style() -> None:
    (column,) = headline_columns([result_row("red")])
    svg = figures.forest(column, {"one": GAINS[0], "two": GAINS[2]}, key="k")
    assert svg is not None
    root = ElementTree.fromstring(svg)
    assert root.get("role") == "img"
    title = root.find("{http://www.w3.org/2000/svg}title")
    assert title is not None
    assert title.text == "red: gain in acc ↑ over the baseline"
    assert not [e for e in root.iter() if e.get("style") or e.tag.endswith("}style")]
    assert {e.text for e in root.iter() if e.tag.endswith("}text")} >= {"one", "two"}
    names = [name for e in root.iter() if (name := e.get("id"))]
    assert len(names) == len(set(names))
    assert all(name.startswith("k-") for name in names)


def test_every_reference_of_a_figure_leads_to_its_own_part() -> None:
    (column,) = headline_columns([result_row("red")])
    text = str(figures.forest(column, {"one": GAINS[0]}, key="k"))
    referred = set(re.findall(r'href="#([^"]+)"', text)) | set(re.findall(r"url\(#([^)]+)\)", text))
    assert referred
    assert referred <= set(re.findall(r'id="([^"]+)"', text))


def test_a_name_is_neither_formula_nor_markup_in_a_figure() -> None:
    with drawing(100, 100, 20) as (figure, axes):
        axes.set_title(r"<b>$\frac{$ & \undefined")
        text = to_svg(figure, key="k", title="</svg><script>", description="")
    root = ElementTree.fromstring(text)
    assert r"<b>$\frac{$ & \undefined" in {e.text for e in root.iter()}
    assert "<script" not in text


def test_a_task_without_any_gain_has_no_figure() -> None:
    (column,) = headline_columns([result_row("red")])
    assert figures.forest(column, {"one": gain_row("one", "red", "refused", None)}, key="k") is None


@pytest.mark.parametrize(
    ("config", "recipe"),
    [
        ({}, {}),
        (
            {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "lora_dropout": 0.1, "bias": "all"},
            {"method": "LORA", "rank": 8, "alpha": 16, "dropout": 0.1, "bias": "all"},
        ),
        (
            {"peft_type": "LORA", "use_dora": True, "target_modules": ["v", "q"]},
            {"method": "LORA + dora", "target modules": "q, v"},
        ),
        (
            {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 20},
            {"method": "PROMPT_TUNING", "virtual tokens": 20},
        ),
    ],
)
def test_a_recipe_says_what_adapters_are_compared_by(
    config: dict[str, object], recipe: dict[str, object]
) -> None:
    assert recipe_of(config) == recipe


def test_only_a_number_that_differs_is_worth_a_picture() -> None:
    assert varying_number([{"rank": 4}, {"rank": 8}]) == "rank"
    assert varying_number([{"rank": 8, "alpha": 8}, {"rank": 8, "alpha": 16}]) == "alpha"
    assert varying_number([{"rank": 8}, {"rank": 8}]) == ""


def test_a_base_without_adapters_has_a_page_of_its_baseline() -> None:
    morning = summarise([result_row("red", 0.75)], [], [])
    facts = SweepFacts(
        title="sweep", place="runs/x", version="1", morning=morning, results=[], cells=[]
    )
    html = render_html(build_page(facts))
    assert "no adapter has a result yet" in html
    assert 'data-value="0.75"' in html


@pytest.mark.parametrize("value", [10**400, float("inf"), float("nan"), -(10**30)])
def test_a_recipe_of_absurd_numbers_is_shown_and_breaks_no_picture(value: float) -> None:
    absurd = recipe_of({"peft_type": "$\\frac$", "r": value, "target_modules": ["<script>"]})
    assert absurd["rank"] == str(value)
    recipes = RECIPES | {("base", "one"): absurd, ("base", "three"): RECIPES["base", "one"]}
    facts = SweepFacts(
        title="s", place="p", version="1", morning=morning_of(GAINS), results=[], cells=[],
        recipes=recipes,
    )  # fmt: skip
    html = render_html(build_page(facts))
    assert str(value)[:20] in html
    assert "<script>&" not in html


def test_losses_of_different_units_are_compared_by_their_baselines() -> None:
    ppl = {"metric": "ppl", "higher_is_better": False, "baseline_value": 50.0}
    rows = [
        gain_row("one", "wiki", "inconclusive", 0.5, low=-0.5, high=1.5, **ppl),
        gain_row("one", "red", "inconclusive", 0.0, low=-0.1, high=0.1),
        gain_row("two", "red", "inconclusive", 0.0, low=None, high=None),
    ]
    morning = morning_of(rows, wiki={"metric": "ppl", "higher_is_better": False, "value": 50.0})
    (report,) = morning.bases
    view = standings_table("base", standings(report), "k")
    place = [head.text for head in view.heads].index("loss not ruled out")
    shown = {line[0].text: line[place].text for line in view.rows}
    assert shown == {"one": "-0.1 on red", "two": "any, on red"}
