"""What `engine.kind` means for a base and its adapters, and the reason that is said."""

import pytest

from raypeft.core.engine_choice import (
    AskedKind,
    Assignment,
    Surroundings,
    assign_engines,
    with_request_types,
)

HERE = Surroundings(vllm_installed=True, has_gpus=True)
NOWHERE = Surroundings()
ADAPTERS = {"base/lora": "", "base/dora": "use_dora is set"}


def assigned(
    asked: AskedKind = "auto",
    surroundings: Surroundings = HERE,
    why_base_not: str = "",
    adapters: dict[str, str] | None = None,
) -> Assignment:
    return assign_engines(
        asked,
        surroundings,
        why_base_not=why_base_not,
        why_adapters_not=ADAPTERS if adapters is None else adapters,
    )


def kinds(found: Assignment) -> dict[str, str]:
    routes = {"base": found.baseline, **found.adapters}
    return {name: route.kind for name, route in routes.items()}


def test_auto_takes_vllm_for_all_that_it_can_do() -> None:
    found = assigned()
    assert kinds(found) == {"base": "vllm", "base/lora": "vllm", "base/dora": "hf"}
    assert "installed and has a GPU" in found.baseline.reason
    assert found.adapters["base/dora"].why_not_vllm == "use_dora is set"
    assert "use_dora is set" in found.adapters["base/dora"].reason
    assert found.adapters["base/lora"].why_not_vllm == ""
    assert not found.refused


@pytest.mark.parametrize(
    ("surroundings", "words"),
    [
        (NOWHERE, "not installed"),
        (Surroundings(has_gpus=True), "not installed"),
        (Surroundings(vllm_installed=True), "no GPU"),
        (Surroundings(vllm_installed=True, is_recorded=True), "engine.json"),
    ],
)
def test_auto_without_vllm_or_a_gpu_is_hf(surroundings: Surroundings, words: str) -> None:
    found = assigned(surroundings=surroundings)
    assert set(kinds(found).values()) == {"hf"}
    assert words in found.baseline.reason
    assert found.baseline.why_not_vllm == ""


def test_auto_is_hf_for_a_base_that_vllm_cannot_do() -> None:
    found = assigned(why_base_not="quantization bnb-4bit")
    assert set(kinds(found).values()) == {"hf"}
    assert {route.why_not_vllm for route in found.adapters.values()} == {"quantization bnb-4bit"}


def test_auto_is_hf_for_a_base_of_whose_adapters_vllm_can_do_none() -> None:
    found = assigned(adapters={"base/dora": "use_dora is set", "base/ia3": "of type IA3"})
    assert set(kinds(found).values()) == {"hf"}
    assert "none of its adapters" in found.baseline.reason


def test_auto_is_vllm_for_a_base_without_adapters() -> None:
    assert assigned(adapters={}).baseline.kind == "vllm"


def test_vllm_by_name_is_taken_on_any_machine_and_refuses_what_it_cannot_do() -> None:
    found = assigned("vllm", NOWHERE)
    assert set(kinds(found).values()) == {"vllm"}
    assert found.refused.keys() == {"base/dora"}
    assert "use_dora is set" in found.refused["base/dora"]
    assert "kind: hf" in found.refused["base/dora"]
    assert found.base_refused == ""
    assert "bnb" in assigned("vllm", HERE, why_base_not="bnb").base_refused


@pytest.mark.parametrize("asked", ["hf", "fake"])
def test_other_engines_by_name_take_everything(asked: AskedKind) -> None:
    found = assigned(asked, HERE, why_base_not="anything")
    assert set(kinds(found).values()) == {asked}
    assert not found.refused
    assert not found.base_refused
    assert found.baseline.reason == "as the sweep file says"


@pytest.mark.parametrize(
    ("types", "text"),
    [
        ({"multiple_choice", "loglikelihood"}, "the tasks ask for log-likelihoods"),
        ({"generate_until", "multiple_choice"}, "the tasks ask for log-likelihoods and texts"),
        ({"loglikelihood_rolling"}, "share no prefix: vllm gains by answering adapters together"),
    ],
)
def test_the_reason_names_what_the_tasks_ask_for_and_the_choice_stays(
    types: set[str], text: str
) -> None:
    route = assigned("auto", HERE).baseline
    named = with_request_types(route, types)

    assert text in named.reason
    assert (named.kind, named.why_not_vllm) == (route.kind, route.why_not_vllm)
    assert with_request_types(route, ()) == route
    asked = assigned("vllm", HERE).baseline
    assert with_request_types(asked, types) == asked
