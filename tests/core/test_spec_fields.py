import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raypeft.core.spec_fields import check_name, last_component

# How fast a busy machine is proves nothing.
RELAXED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize("name", ["r64", "Llama-3.1-8B", "my adapter (old)", "ünïcode", "a.b"])
def test_a_name_that_breaks_nothing_is_taken(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "cannot be a name"),
        (".", "cannot be a name"),
        ("..", "cannot be a name"),
        ("a/b", 'holds a "/"'),
        ("a\\b", 'holds a "/"'),
        ("a\nb", "cannot be printed"),
        ("a\x1b[31m", "cannot be printed"),
        ("a\u202eb", "cannot be printed"),
        ("\ud800", "cannot be printed"),
        (" a", "begins or ends with a space"),
        ("a ", "begins or ends with a space"),
        ("a" * 201, "has 201 characters, at most 200"),
    ],
)
def test_a_name_that_would_break_files_or_tables_is_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_name(name)


@RELAXED
@given(st.text())
def test_every_accepted_name_is_one_printable_utf8_line(name: str) -> None:
    try:
        check_name(name)
    except ValueError:
        return
    assert name.encode("utf-8")
    assert name.splitlines() == [name]
    assert "/" not in name


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("org/model", "model"),
        ("gpt2", "gpt2"),
        ("a/b/", "b"),
        ("/", ""),
        ("./x", "x"),
        ("..", ".."),
    ],
)
def test_the_default_name_is_the_last_component(path: str, name: str) -> None:
    assert last_component(path) == name
