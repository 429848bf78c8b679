"""Adapters that vLLM gets wrong, or cannot take, fail by name and leave the others alone."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from raypeft.core.records import Adapter, FailureKind, Shard, Subject
from raypeft.engines.adapters import adapter_digest, read_adapter_files
from raypeft.engines.tensorfiles import hash_file
from raypeft.engines.zero_adapter import find_zero_adapter
from tests.engines.samples import mixed_calls, request_set
from tests.support.tiny import pickled, tiny_lora
from tests.vllm.conftest import VLLMLab, subject_of

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore::Warning")]

Make = Callable[[Path, Path], Path]


def made(**settings: Any) -> Make:
    return lambda base, folder: tiny_lora(base, folder, **settings)


def renamed(old: str, new: str) -> Make:
    """Return a maker of adapters whose tensors have other names than the base's modules."""

    def make(base: Path, folder: Path) -> Path:
        tiny_lora(base, folder)
        file = folder / "adapter_model.safetensors"
        tensors = {name.replace(old, new): value for name, value in load_file(file).items()}
        save_file(tensors, file)
        return folder

    return make


def with_config(**changes: Any) -> Make:
    def make(base: Path, folder: Path) -> Path:
        tiny_lora(base, folder)
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
        return folder

    return make


def not_a_number(base: Path, folder: Path) -> Path:
    tiny_lora(base, folder)
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    for name, value in tensors.items():
        if "v_proj.lora_B" in name:
            value[:] = float("nan")
    save_file(tensors, file)
    return folder


def half_sized(base: Path, folder: Path) -> Path:
    """Return an adapter of a smaller base: vLLM would copy it into a corner."""
    tiny_lora(base, folder)
    file = folder / "adapter_model.safetensors"
    halves = {
        name: value[:, : value.shape[1] // 2].copy() if "lora_A" in name else value
        for name, value in load_file(file).items()
    }
    save_file(halves, file)
    return folder


BAD: dict[str, tuple[Make, FailureKind, str]] = {
    "dora": (made(use_dora=True), FailureKind.UNSUPPORTED, "DoRA|magnitude"),
    "bias": (made(bias="lora_only"), FailureKind.UNSUPPORTED, "bias"),
    "saved": (made(modules_to_save=["lm_head"]), FailureKind.UNSUPPORTED, "lm_head"),
    "head": (made(target_modules=("lm_head", "q_proj")), FailureKind.UNSUPPORTED, "lm_head"),
    "tokens": (made(target_modules=("embed_tokens",)), FailureKind.UNSUPPORTED, "embed_tokens"),
    "rank": (made(rank=32), FailureKind.UNSUPPORTED, "rank 32"),
    "pissa": (with_config(init_lora_weights="pissa"), FailureKind.UNSUPPORTED, "pissa"),
    "fan": (with_config(fan_in_fan_out=True), FailureKind.UNSUPPORTED, "fan_in_fan_out"),
    "r_config": (with_config(r=8), FailureKind.DOES_NOT_FIT, "r=8"),
    "r_only": (
        with_config(r=64, rank_pattern={"q_proj": 4, "v_proj": 4}),
        FailureKind.UNSUPPORTED,
        "vLLM refuses it",
    ),
    "prefix": (
        renamed("base_model.model.", "base_model.model.language_model."),
        FailureKind.DOES_NOT_FIT,
        "base has no",
    ),
    "layer": (renamed("layers.1.", "layers.7."), FailureKind.DOES_NOT_FIT, "another base"),
    "smaller": (half_sized, FailureKind.DOES_NOT_FIT, "sizes differ"),
    "nan": (not_a_number, FailureKind.NOT_FINITE, "NaN"),
    "zero": (made(scale=0.0), FailureKind.NO_EFFECT, "changes nothing"),
}


def unchecked(folder: Path) -> Adapter:
    """Return an adapter as a slot gets it, had nobody looked at its tensors before."""
    files = read_adapter_files(str(folder), what="adapter", allow_pickle=True)
    digest = adapter_digest(hash_file(files.weights), files.config)
    return Adapter(
        name=folder.name, path=str(folder), digest=digest, allow_pickle=True, config=files.config
    )


def test_each_bad_adapter_fails_by_name_and_the_good_ones_answer(
    vllm_engine: Any, vllm_lab: VLLMLab, tmp_path: Path
) -> None:
    requests = Shard(request_set(mixed_calls()))
    good = [vllm_lab.baseline, subject_of(vllm_lab.adapters[0])]
    expected = [one.answers for one in vllm_engine.answer(requests, good)]
    bad = {
        name: subject_of(unchecked(make(vllm_lab.base, tmp_path / name)))
        for name, (make, _, _) in BAD.items()
    }
    (tmp_path / "bin").mkdir()
    bin_folder = pickled(tmp_path / "zero", tmp_path / "bin" / "pickled")
    subjects = [*list(bad.values())[:8], good[1], *list(bad.values())[8:], good[0]]

    answered = {one.subject: one for one in vllm_engine.answer(requests, subjects)}
    (refused,) = vllm_engine.answer(requests, [subject_of(unchecked(bin_folder))])

    assert [answered[subject.id].answers for subject in good] == expected
    assert refused.failure.kind is FailureKind.UNSUPPORTED
    for name, (_, kind, text) in BAD.items():
        failure = answered[bad[name].id].failure
        assert failure is not None, name
        assert failure.kind is kind, (name, failure)
        assert any(part in failure.message for part in text.split("|")), (name, failure)
        assert not answered[bad[name].id].answers


def test_one_of_zero_effect_answers_as_the_base_and_is_proven_to(
    vllm_engine: Any, vllm_lab: VLLMLab, tmp_path: Path
) -> None:
    requests = Shard(request_set(mixed_calls()))
    zero = find_zero_adapter(vllm_lab.adapters, str(vllm_lab.base))
    assert zero is not None
    zero.write(tmp_path / "base@zero")
    adapter = zero.named("base@zero", tmp_path / "base@zero")

    def through(adapter: Adapter) -> Subject:
        return Subject(id="base@zero", base="base", again=True, through=adapter)

    alone, found = (
        vllm_engine.answer(requests, [one])[0] for one in (vllm_lab.baseline, through(adapter))
    )
    assert found.failure is None
    assert found.path.startswith("shared context, lane shared")
    nats = [
        abs(ours.logprob - theirs.logprob)
        for ours, theirs in zip(alone.answers, found.answers, strict=True)
        if ours.logprob is not None
    ]
    assert max(nats) < 1e-3

    trained = vllm_lab.adapters[0]
    good, falsely = (
        vllm_engine.answer(requests, [one])[0]
        for one in (subject_of(trained), through(replace(trained, expects_effect=False)))
    )
    assert good.failure is None
    assert falsely.failure is not None
    assert falsely.failure.kind is FailureKind.UNSUPPORTED
    assert "it is of zero effect" in falsely.failure.message


def test_an_adapter_that_was_trained_on_in_place_is_not_taken_for_the_planned_one(
    vllm_engine: Any, vllm_lab: VLLMLab, tmp_path: Path
) -> None:
    requests = Shard(request_set(mixed_calls()))
    planned = unchecked(tiny_lora(vllm_lab.base, tmp_path / "changing", seed=31))
    tiny_lora(vllm_lab.base, tmp_path / "changing", seed=32)
    later = unchecked(tmp_path / "changing")

    first, second = (vllm_engine.answer(requests, [subject_of(one)])[0] for one in (planned, later))

    assert first.failure is not None
    assert first.failure.kind is FailureKind.UNREADABLE
    assert second.failure is None


def test_more_adapters_than_it_holds_are_answered_in_groups(
    vllm_engine: Any, vllm_lab: VLLMLab, tmp_path: Path
) -> None:
    requests = Shard(request_set(mixed_calls()[:12]))
    more = [
        subject_of(unchecked(tiny_lora(vllm_lab.base, tmp_path / f"more{at}", seed=40 + at)))
        for at in range(4)
    ]
    known = [subject_of(adapter) for adapter in vllm_lab.adapters]
    expected = {one.subject: one.answers for one in vllm_engine.answer(requests, known)}

    answered = vllm_engine.answer(requests, [*more, *known])

    assert {one.failure for one in answered} == {None}
    assert len({one.answers for one in answered}) == len(more) + len(known)
    found = {one.subject: one.answers for one in answered}
    assert {name: found[name] for name in expected} == expected
