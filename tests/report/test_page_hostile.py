"""Names, messages and model outputs made to break the page: they are shown, and that is all."""

from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from raypeft import api
from tests.report.pages import PHONE, cells, opened
from tests.support.made_up import MadeUp, write_made_up

pytestmark = pytest.mark.browser

SCRIPT = "<script>window.pwned = 1; alert(1)</script>"
HOSTILE = {
    "script": SCRIPT,
    "end of script": "</script>" + SCRIPT,
    "end of style": "</style></textarea></title></svg>" + SCRIPT,
    "comment": "<!--" + SCRIPT + "-->",
    "comment in script": "<!--<script>",
    "cdata": "]]>" + SCRIPT,
    "attribute": "\"'><img src=x onerror='window.pwned=1'> onmouseover=\"window.pwned=1\"",
    "address": "javascript:window.pwned=1",
    "template": "{{ 7 * 7 }}{% raw %}${window.pwned=1}",
    "formula": r"$\frac{1}{$ \undefined _x^",
    "directions": "safe\u202egnp.exe\u2066\u200f\u2028\u2029",
    "nothing to see": "\u200b\ufeff\u00ad\u3164\U000e0041",
    "controls": "\x00\x07\x1b[2J\r\n\x85",
    "zalgo": "z" + "\u0301\u0489" * 300,
    "one line": "x" * 1_000_000,
    "entities": "&lt;b&gt;&amp;&#x3c;script&#x3e;",
    "underscore": "_hidden",
}
HIDDEN = "\u202e\u2066\u200f\u2028\u2029\u200b\ufeff\u00ad\u3164\U000e0041\x00\x07\x1b\x85"


def write(folder: Path, sweep: MadeUp) -> str:
    return api.html_report(write_made_up(folder, sweep))


def check_harmless(browser: Browser, path: str) -> str:
    """Open a page, check that nothing of it ran, and return its text."""
    with opened(browser, path, size=PHONE) as found:
        page = found.page
        assert page.evaluate("window.pwned") is None
        counts = "(tags) => tags.map((tag) => document.querySelectorAll(tag).length)"
        tags = ["script", "img", "iframe", "style", "base", "link", "form", "object"]
        assert page.evaluate(counts, tags) == [2, 0, 0, 1, 0, 0, 0, 0]
        links = page.evaluate("[...document.links].map((link) => link.getAttribute('href'))")
        assert all(link.startswith("#") for link in links)
        handlers = "[...document.querySelectorAll('*')].flatMap((e) => e.getAttributeNames())"
        assert not [name for name in page.evaluate(handlers) if name.startswith("on")]
        assert page.evaluate(
            "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
        )
        text: str = page.evaluate("document.body.textContent")
        assert not set(HIDDEN) & set(text)
        return text


def test_hostile_names_of_adapters_and_tasks_are_shown_and_do_nothing(
    browser: Browser, tmp_path: Path
) -> None:
    names = tuple(text[:5000] for text in HOSTILE.values())
    sweep = MadeUp(
        base=SCRIPT,
        adapters=names,
        tasks=(SCRIPT, HOSTILE["directions"], HOSTILE["formula"], HOSTILE["controls"]),
        documents=40,
        effects={(names[0], SCRIPT): 0.4},
        metric=HOSTILE["attribute"],
    )
    path = write(tmp_path, sweep)
    text = check_harmless(browser, path)
    assert SCRIPT in text
    assert HOSTILE["address"] in text
    assert HOSTILE["template"] in text
    assert HOSTILE["entities"] in text
    with opened(browser, path) as found:
        assert SCRIPT in cells(found.page, "gains", "adapter")
        found.page.locator("#gains thead th button").first.click()
        found.page.get_by_label("Filter “All gains”").fill("<script>")
        assert cells(found.page, "gains", "adapter")


def test_hostile_messages_and_reasons_are_shown_and_do_nothing(
    browser: Browser, tmp_path: Path
) -> None:
    names = tuple(f"adapter{number}" for number in range(2 * len(HOSTILE)))
    failed = dict(zip(names, HOSTILE.values(), strict=False))
    refused = dict(zip(names[len(HOSTILE) :], HOSTILE.values(), strict=False))
    sweep = MadeUp(
        adapters=("plain", *names), tasks=("red",), documents=20, failed=failed, refused=refused
    )
    text = check_harmless(browser, write(tmp_path, sweep))
    assert text.count(SCRIPT) > 4


@pytest.mark.parametrize("kind", [*HOSTILE, "lone surrogate"])
def test_hostile_outputs_are_shown_and_do_nothing(
    browser: Browser, tmp_path: Path, kind: str
) -> None:
    answer = HOSTILE.get(kind, "half \ud800 and \udc00 half")
    sweep = MadeUp(
        adapters=("plain",), tasks=("red",), documents=30, effects={("plain", "red"): 0.3}
    )
    path = write(tmp_path, replace(sweep, answer=answer))
    assert Path(path).stat().st_size < 1_000_000
    text = check_harmless(browser, path)
    shown = {
        "directions": "safe⟨U+202E⟩gnp.exe⟨U+2066⟩⟨U+200F⟩⟨U+2028⟩⟨U+2029⟩",
        "controls": "⟨U+0000⟩⟨U+0007⟩⟨U+001B⟩[2J⟨U+000D⟩\n⟨U+0085⟩",
        "nothing to see": "⟨U+200B⟩⟨U+FEFF⟩⟨U+00AD⟩⟨U+3164⟩⟨U+E0041⟩",
        "lone surrogate": "half ⟨U+D800⟩ and ⟨U+DC00⟩ half",
        "one line": "x" * 1500,
    }
    assert shown.get(kind, answer) in text
    if kind == "one line":
        assert "more characters" in text
