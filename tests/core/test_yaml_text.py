import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raypeft.core.yaml_text import read_yaml, write_yaml
from raypeft.errors import SpecError

# How fast a busy machine is proves nothing.
RELAXED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def problems(text: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        read_yaml(text, source="sweep.yaml")
    assert caught.value.source == "sweep.yaml"
    return [str(problem) for problem in caught.value.problems]


def test_anchors_aliases_and_merging_work() -> None:
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: *a\n"
    assert read_yaml(text, source="") == {
        "a": {"x": 1, "y": 2},
        "b": {"x": 1, "y": 3},
        "c": {"x": 1, "y": 2},
    }


def test_merging_from_what_is_merged_itself_repeats_no_key() -> None:
    # The constructor reaches `c` before the deeper `d`, and merges into `d` on the way.
    text = "a: &a {x: 1}\ndeep: {deeper: {d: &b {<<: *a, x: 2}}}\nc: {<<: *b}\n"
    assert read_yaml(text, source="")["c"] == {"x": 2}


def test_every_repeated_key_is_reported_with_both_places() -> None:
    found = problems("a: 1\nb: {c: 1, c: 2}\n'a': 3\n")
    assert found == [
        "line 3, column 1: the key `a` stands here again, first at line 1, column 1; "
        "YAML would silently take the last one; keep one of them",
        "line 2, column 11: the key `c` stands here again, first at line 2, column 5; "
        "YAML would silently take the last one; keep one of them",
    ]


def test_a_value_that_holds_itself_is_refused() -> None:
    assert problems("a: &x [1, *x]") == [
        "line 1, column 4: this value holds itself; remove the alias in it"
    ]


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("a: [1, 2", "line 1, column 9", "expected ',' or ']'"),
        ("a: 1\n b: 2\n", "line 2, column 3", "mapping values are not allowed here"),
        ("a: b: c", "line 1, column 5", "mapping values are not allowed here"),
        ("a:\n\tb: 1", "line 2, column 1", "indent with spaces"),
        ("a: *nowhere", "line 1, column 4", "undefined alias"),
        ("a: 2024-13-45", "line 1, column 4", "cannot be read as tag:yaml.org,2002:timestamp"),
        ("a: !!bool maybe", "line 1, column 4", "cannot be read as tag:yaml.org,2002:bool"),
        ("a: !!timestamp x", "line 1, column 4", "cannot be read as"),
        ("a: !!int ''", "line 1, column 4", "cannot be read as"),
        ("a: !!python/object:os.system x", "line 1, column 4", "could not determine a constructor"),
        ("{[1, 2]: x}", "line 1, column 2", "found unhashable key"),
        ("a: 1\n---\nb: 2", "line 2, column 1", "but found another document"),
    ],
)
def test_what_is_no_yaml_is_reported_with_line_and_column(
    text: str, place: str, message: str
) -> None:
    (found,) = problems(text)
    assert found.startswith(f"{place}: no valid YAML: ")
    assert message in found


def test_a_character_that_yaml_forbids_is_named() -> None:
    assert problems("a: \x00") == [
        "no valid YAML: character 4 of the text is 0 (a code point), "
        "special characters are not allowed"
    ]


def test_deep_nesting_is_a_problem_and_no_crash() -> None:
    assert problems("[" * 5000) == ["is nested too deeply"]


def test_an_empty_text_is_null() -> None:
    assert read_yaml("# nothing\n", source="") is None


@RELAXED
@given(st.text(max_size=60) | st.text("ab:-[]{}!&*<,'\"# \n\t|>%@`?=~0.e", max_size=60))
def test_any_text_gives_a_value_or_a_spec_error(text: str) -> None:
    try:
        value = read_yaml(text, source="")
    except SpecError:
        return
    assert value is None or read_yaml(text, source="again") is not None


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text("abc ~1=<", min_size=1), inner),
    max_leaves=8,
)


@pytest.mark.parametrize("char", ["\x85", "\u2028", "\u2029", "\ufeff", "\t", "\r\n", "\x00"])
def test_characters_that_yaml_would_fold_or_forbid_are_written_escaped(char: str) -> None:
    for text in (char, f"a{char}b", f"a {char} b\n", f"{char}#"):
        assert read_yaml(write_yaml({"k": text}), source="") == {"k": text}


@RELAXED
@given(JSON)
def test_what_is_written_is_read_back(value: object) -> None:
    assert read_yaml(write_yaml(value), source="") == value
