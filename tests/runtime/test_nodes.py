import pytest

from raypeft.runtime.nodes import MAX_NODES, Node, label_fits, why_not, why_nowhere
from raypeft.runtime.options import HardwareProfile, actor_options, avoiding

PLAIN = Node(id="0" * 40, host="plain", resources={"CPU": 8.0})
H100 = Node(
    id="1" * 40,
    host="big",
    resources={"CPU": 8.0, "GPU": 2.0, "accelerator_type:H100": 1.0},
    labels={"raypeft/hw": "h100-80", "ray.io/node-id": "1" * 40},
)


@pytest.mark.parametrize(
    ("wanted", "value", "fits"),
    [
        ("x", "x", True),
        ("x", "y", False),
        ("x", None, False),
        ("!x", "y", True),
        ("!x", "x", False),
        ("!x", None, True),
        ("in(x,y)", "y", True),
        ("in(x, y)", "y", True),
        ("in(x,y)", None, False),
        ("!in(x,y)", "y", False),
        ("!in(x,y)", None, True),
    ],
)
def test_a_label_is_as_wanted_or_not(wanted: str, value: str | None, fits: bool) -> None:
    assert label_fits(wanted, value) is fits


@pytest.mark.parametrize(
    ("profile", "why"),
    [
        (HardwareProfile(gpus=2), ""),
        (HardwareProfile(gpus=0.5, accelerator="H100"), ""),
        (HardwareProfile(gpus=4), "has 2 GPU of 4"),
        (HardwareProfile(gpus=1, cpus=16), "has 8 CPU of 16"),
        (HardwareProfile(gpus=1, accelerator="A100"), "has 0 accelerator_type:A100 of 0.001"),
        (HardwareProfile(gpus=1, labels={"raypeft/hw": "a100"}), "has 'h100-80' where raypeft/hw"),
        (HardwareProfile(gpus=1, labels={"zone": "a"}), "has no such label where zone must be 'a'"),
    ],
)
def test_it_is_said_why_a_node_holds_no_slot(profile: HardwareProfile, why: str) -> None:
    assert why_not(actor_options(profile), H100).startswith(why)
    assert bool(why_not(actor_options(profile), H100)) == bool(why)


def test_a_node_that_goes_away_and_one_that_is_avoided_hold_none() -> None:
    options = actor_options(HardwareProfile(gpus=1))
    going = Node(id="g", host="g", resources=H100.resources, drains=True)
    assert why_not(options, going) == "is going away"
    assert "ray.io/node-id must be '!in(" in why_not(avoiding(options, {H100.id, "z"}), H100)
    assert avoiding(options, ()) is options


def test_what_no_node_has_is_told_node_by_node() -> None:
    options = actor_options(HardwareProfile(gpus=4))
    assert why_nowhere(actor_options(HardwareProfile(gpus=1)), [PLAIN, H100]) == ""
    assert why_nowhere(options, [PLAIN, H100]) == (
        "plain (00000000) has 0 GPU of 4; big (11111111) has 2 GPU of 4"
    )
    assert why_nowhere(options, [PLAIN] * (MAX_NODES + 2)).endswith("; and 2 more")


def test_labels_of_the_sweep_stay_where_nodes_are_avoided() -> None:
    options = actor_options(HardwareProfile(gpus=1, labels={"raypeft/hw": "a"}))
    selector = avoiding(options, {"n2", "n1"})["label_selector"]
    assert selector == {"raypeft/hw": "a", "ray.io/node-id": "!in(n1,n2)"}
