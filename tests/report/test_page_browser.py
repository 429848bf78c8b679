"""The page in a real browser: its numbers are the tables', and its own script works."""

import math
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser

from raypeft import api
from tests.report.pages import DESKTOP, PHONE, Scheme, cells, opened, values
from tests.support.made_up import MadeUp, write_made_up

pytestmark = pytest.mark.browser

SWEEP = MadeUp(
    base="base",
    adapters=("good", "mixed", "idle", "broken", "odd"),
    tasks=("red", "blue", "green"),
    effects={
        **{("good", task): 0.2 for task in ("red", "blue")},
        ("mixed", "red"): 0.3,
        ("mixed", "blue"): -0.2,
    },
    failed={"broken": "the tensors are not those of this base"},
    refused={
        "odd": "base/odd against base on red: not comparable, engine differs: 'a' against 'b'"
    },
)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_made_up(tmp_path_factory.mktemp("sweep"), SWEEP)


@pytest.fixture(scope="module")
def path(output: str) -> str:
    return api.html_report(output)


def test_the_table_of_gains_holds_the_numbers_of_the_parquet_file(
    browser: Browser, output: str, path: str
) -> None:
    rows = {(r["adapter"], r["task"]): r for r in api.open(output).gains.to_pylist()}
    shown = {
        "baseline": "baseline_value",
        "with the adapter": "adapter_value",
        "gain": "gain",
        "p": "p",
        "corrected p": "p_corrected",
        "n": "n",
        "wins": "wins",
        "losses": "losses",
        "smallest detectable": "smallest_detectable_gain",
    }
    with opened(browser, path) as found:
        names = list(
            zip(
                cells(found.page, "gains", "adapter"),
                cells(found.page, "gains", "task"),
                strict=True,
            )
        )
        assert sorted(names) == sorted(rows)
        for head, name in shown.items():
            column = values(found.page, "gains", head)
            wanted = [rows[key][name] for key in names]
            assert [None if math.isnan(v) else v for v in column] == wanted
        verdicts = [text.split()[-1] for text in cells(found.page, "gains", "verdict")]
        assert verdicts == [rows[key]["verdict"] for key in names]


def test_the_heat_map_holds_every_gain_and_marks_the_significant_ones(
    browser: Browser, output: str, path: str
) -> None:
    rows = {(r["adapter"], r["task"]): r for r in api.open(output).gains.to_pylist()}
    marks = {"gain": "▲", "loss": "▼", "inconclusive": "·", "refused": "✗"}
    with opened(browser, path) as found:
        adapters = cells(found.page, "base0-heat", "adapter")
        assert set(adapters) == {"baseline", *SWEEP.adapters}
        for task in SWEEP.tasks:
            texts = dict(zip(adapters, cells(found.page, "base0-heat", task), strict=True))
            numbers = dict(zip(adapters, values(found.page, "base0-heat", task), strict=True))
            assert texts["broken"] == "–"
            for adapter in ("good", "mixed", "idle", "odd"):
                row = rows[adapter, task]
                assert texts[adapter].endswith(marks[row["verdict"]])
                if row["gain"] is not None:
                    assert numbers[adapter] == row["gain"]


def test_the_cost_is_that_of_the_cells(browser: Browser, output: str, path: str) -> None:
    rows = [r for r in api.open(output).cells.to_pylist() if r["subject"] == "base/good"]
    with opened(browser, path) as found:
        place = cells(found.page, "cost", "subject").index("base/good")
        seconds = values(found.page, "cost", "device seconds")[place]
        assert seconds == sum(row["seconds"] * row["num_devices"] for row in rows)
        assert values(found.page, "cost", "tokens")[place] == sum(row["tokens"] for row in rows)


def test_a_click_sorts_by_value_and_another_one_the_other_way(browser: Browser, path: str) -> None:
    with opened(browser, path) as found:
        button = found.page.locator("#gains thead th", has_text="gain").locator("button").first
        button.focus()
        found.page.keyboard.press("Enter")
        falling = values(found.page, "gains", "gain")
        known = [value for value in falling if not math.isnan(value)]
        assert known == sorted(known, reverse=True)
        assert all(math.isnan(value) for value in falling[len(known) :])
        assert found.page.locator("#gains th[aria-sort=descending]").inner_text().startswith("gain")
        button.click()
        rising = values(found.page, "gains", "gain")
        assert rising[: len(known)] == sorted(known)
        assert math.isnan(rising[-1])


def test_the_filter_shows_the_rows_that_hold_every_word(browser: Browser, path: str) -> None:
    with opened(browser, path) as found:
        found.page.get_by_label("Filter “All gains”").fill("mixed BLUE")
        assert cells(found.page, "gains", "adapter") == ["mixed"]
        assert cells(found.page, "gains", "task") == ["blue"]
        assert "1 of 12 rows" in found.page.locator("#numbers output").inner_text()
        found.page.get_by_label("Filter “All gains”").fill("")
        assert len(cells(found.page, "gains", "adapter")) == 12


def test_documents_that_changed_are_searched_filtered_and_paged(
    browser: Browser, output: str, path: str
) -> None:
    gains = {(r["adapter"], r["task"]): r for r in api.open(output).gains.to_pylist()}
    with opened(browser, path) as found:
        samples, page = found.page.locator("#samples"), found.page
        assert samples.locator(".sample").count() == 10
        first = samples.locator(".sample h3").first.inner_text()
        page.get_by_role("button", name="Next").click()
        assert samples.locator(".sample h3").first.inner_text() != first
        page.get_by_role("combobox", name="Adapter").select_option("mixed")
        page.get_by_role("combobox", name="Task").select_option("blue")
        row = gains["mixed", "blue"]
        said = samples.locator("output").inner_text()
        assert f"{row['losses']} changed to the worse and {row['wins']} to the better" in said
        page.get_by_role("combobox", name="Changed to the").select_option("worse")
        sides = samples.locator(".sample").first.locator(".sides pre").all_inner_texts()
        assert "the answer is right" in sides[0]
        assert "the answer is wrong" in sides[1]
        page.get_by_role("searchbox", name="Search").fill("no document says this")
        assert samples.locator(".sample").count() == 0
        assert page.get_by_role("button", name="Next").is_disabled()


@pytest.mark.parametrize(("scheme", "size"), [("light", DESKTOP), ("dark", PHONE)])
def test_nothing_serious_bars_anybody_from_the_page(
    browser: Browser, path: str, scheme: Scheme, size: tuple[int, int]
) -> None:
    with opened(browser, path, size=size, scheme=scheme) as found:
        found.page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
        response = Axe().run(found.page).response
        assert {"color-contrast", "scrollable-region-focusable"} <= {
            rule["id"] for rule in response["passes"]
        }
        bad = [(v["id"], v["nodes"][0]["html"]) for v in response["violations"]]
        assert bad == []


def test_the_page_itself_does_not_scroll_sideways_on_a_phone(browser: Browser, path: str) -> None:
    with opened(browser, path, size=PHONE) as found:
        widths = "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
        inner, outer = found.page.evaluate(widths)
        assert inner <= outer
        table = "document.querySelector('#gains').closest('.scroll')"
        assert found.page.evaluate(f"{table}.scrollWidth > {table}.clientWidth")


def test_paper_shows_what_is_folded_and_no_tools(
    browser: Browser, path: str, tmp_path: Path
) -> None:
    with opened(browser, path) as found:
        found.page.pdf(path=str(tmp_path / "page.pdf"))  # fires what a reader's printing fires
        assert found.page.locator("details:not([open])").count() == 0
        found.page.emulate_media(media="print")
        assert found.page.locator(".tools").first.is_hidden()
        assert found.page.locator("#provenance-subjects").is_visible()
    assert (tmp_path / "page.pdf").stat().st_size > 10_000


def test_the_policy_stops_scripts_styles_and_requests_that_are_not_the_pages(
    browser: Browser, path: str
) -> None:
    with opened(browser, path) as found:
        stopped = found.page.evaluate(
            """() => new Promise((done) => {
              const seen = new Set();
              document.addEventListener("securitypolicyviolation", (event) => {
                seen.add(event.effectiveDirective);
                if (seen.size === 4) done([...seen].sort());
              });
              const style = document.createElement("p");
              style.setAttribute("style", "color: red");
              document.body.append(style);
              const image = document.createElement("img");
              image.src = "http://127.0.0.1:9/x.png";
              fetch("http://127.0.0.1:9/x").catch(() => {});
              try {
                document.body.insertAdjacentHTML("beforeend", "<b>x</b>");
              } catch { /* that is what is asked for */ }
            })"""
        )
        assert stopped == [
            *("connect-src", "img-src", "require-trusted-types-for", "style-src-attr")
        ]
        # The browser says each of them aloud, and counts what it stopped among the requests.
        found.said.clear()
        del found.requests[1:]
