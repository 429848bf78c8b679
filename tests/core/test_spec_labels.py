import pytest

from raypeft.core.spec import Sweep, make_sweep
from raypeft.errors import SpecError


def sweep(labels: object) -> Sweep:
    return make_sweep(
        {"output": "o", "bases": ["b"], "tasks": ["t"], "hardware": {"labels": labels}}
    )


@pytest.mark.parametrize("value", ["a100-80", "!a100-40", "in(a,b-c)", "!in(x)"])
def test_a_label_is_chosen_by_a_value_or_a_set(value: str) -> None:
    assert sweep({"raypeft/hw": value}).hardware.labels == {"raypeft/hw": value}


@pytest.mark.parametrize(
    ("name", "value"),
    [("raypeft/hw", "a b"), ("x y", "a"), ("a/b/c", "x"), ("hw", "in()"), ("hw", ""), ("", "x")],
)
def test_what_ray_takes_for_no_label_is_named(name: str, value: str) -> None:
    with pytest.raises(SpecError, match="which Ray takes for no label") as caught:
        sweep({name: value})
    assert f'hardware.labels: a mapping holds "{name}: {value}"' in str(caught.value)


def test_labels_are_a_mapping_of_texts() -> None:
    for wrong in ("x", {"hw": 3}, ["hw"]):
        with pytest.raises(SpecError, match="a mapping of Ray's node labels to values"):
            sweep(wrong)
