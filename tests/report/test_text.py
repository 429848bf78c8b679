import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypeft.report.text import clean, excerpt

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=50)


@given(ANY_TEXT)
def test_a_clean_text_is_one_printable_line_that_utf8_can_hold(text: str) -> None:
    shown = clean(text)
    assert shown.isprintable()
    shown.encode()


@given(ANY_TEXT, st.integers(0, 60), st.booleans())
def test_an_excerpt_hides_nothing_and_counts_what_it_leaves_out(
    text: str, max_chars: int, end: bool
) -> None:
    found = excerpt(text, max_chars, end=end)
    found.text.encode()
    kept = set(found.text) - {"\n", "\t"}
    assert not {unicodedata.category(char) for char in kept} & {"Cc", "Cf", "Cs", "Zl", "Zp"}
    assert found.num_left_out == max(0, len(text) - max_chars)


@given(st.text(st.characters(categories=("L", "N", "P")), max_size=50))
def test_what_anybody_can_see_stays_as_it_is(text: str) -> None:
    seen = "".join(char for char in text if unicodedata.name(char, "").find("FILLER") < 0)
    assert excerpt(seen, 100).text == seen


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a\nb\tc", "a\nb\tc"), ("a\rb", "a⟨U+000D⟩b"), ("\u202eabc", "⟨U+202E⟩abc"), ("é", "é")],
)
def test_line_breaks_stay_and_what_reorders_them_is_named(text: str, shown: str) -> None:
    assert excerpt(text, 100).text == shown


def test_the_end_of_a_prompt_is_kept() -> None:
    assert excerpt("shots and a question", 8, end=True).text == "question"
    assert excerpt("shots and a question", 5).text == "shots"


def test_a_long_line_is_cut_and_says_so() -> None:
    assert clean("x" * 1_000_000) == "x" * 299 + "…"
