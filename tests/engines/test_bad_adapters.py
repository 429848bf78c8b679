"""Many ways to be a bad adapter: each is named, in words that help, and leaves the base clean.

What the files tell is told before anything is loaded; the rest by the engine, which must answer
for its baseline afterwards as before, bit for bit.
"""

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from raypeft.core.records import (
    Adapter,
    Answer,
    EngineSpec,
    Failure,
    FailureKind,
    Shard,
    Subject,
)
from raypeft.engines.adapters import (
    CONFIG_FILE,
    PICKLED_WEIGHTS_FILE,
    SAFE_WEIGHTS_FILE,
    read_adapter,
)
from raypeft.engines.bases import read_base
from raypeft.engines.hf import HFEngine
from raypeft.engines.recorded_base import TargetBase
from raypeft.errors import CellError
from tests.engines.samples import mixed_calls, request_set
from tests.engines.spoiling import (
    Spoil,
    both,
    config,
    config_text,
    each,
    folder_as,
    header,
    link,
    loop,
    malicious,
    nan,
    one_entry,
    outputs,
    pickled,
    removed,
    renamed,
    replaced,
    tensors,
    twice,
    unreadable,
    weights_bytes,
    wider,
    without,
)
from tests.engines.zoo import make_adapter
from tests.support.tiny import tiny_llama, tiny_lora

pytestmark = pytest.mark.torch

BASELINE = Subject(id="base", base="base")
REQUESTS = request_set(mixed_calls()[:30])

SPEC, UNREADABLE, UNSAFE = FailureKind.SPEC, FailureKind.UNREADABLE, FailureKind.UNSAFE
UNSUPPORTED, DOES_NOT_FIT = FailureKind.UNSUPPORTED, FailureKind.DOES_NOT_FIT
NOT_FINITE, NO_EFFECT = FailureKind.NOT_FINITE, FailureKind.NO_EFFECT


class Bad(NamedTuple):
    """One way to be bad: how a good adapter is spoilt, and what is to be said about it."""

    name: str
    spoil: Spoil
    kind: FailureKind
    words: str


# --- what the files tell ----------------------------------------------------------------------

FILES = (
    Bad("no folder", folder_as(lambda path: None), SPEC, "no such folder .*correct the path"),
    Bad("a file", folder_as(Path.touch), SPEC, "is a file; give the folder that holds it"),
    Bad("folder is a link loop", folder_as(loop), SPEC, "symbolic links"),
    Bad("folder is a dangling link", folder_as(link("nowhere")), SPEC, "no such folder"),
    Bad("empty folder", folder_as(Path.mkdir), UNREADABLE, "holds no adapter_config.json"),
    Bad(
        "the base's folder",
        folder_as(lambda path: shutil.copytree(path.parent / "base", path)),
        UNREADABLE,
        "whole model's folder .*list it under `bases`",
    ),
    Bad("no config", removed(CONFIG_FILE), UNREADABLE, "holds no adapter_config.json; give"),
    Bad("empty config", config_text(b""), UNREADABLE, "adapter_config.json is not JSON"),
    Bad("config no JSON", config_text(b"{r: 4}"), UNREADABLE, "adapter_config.json is not JSON"),
    Bad("config a list", config_text(b"[]"), UNREADABLE, "holds a list, not an object"),
    Bad("config in UTF-16", config_text("{}".encode("utf-16")), UNREADABLE, "not UTF-8"),
    Bad("config a folder", replaced(CONFIG_FILE, Path.mkdir), UNREADABLE, "Is a directory"),
    Bad("config a link loop", replaced(CONFIG_FILE, loop), UNREADABLE, "symbolic links"),
    Bad("no peft_type", config(peft_type=None), UNREADABLE, "names no peft_type"),
    Bad("unknown peft_type", config(peft_type="NEWRA"), UNSUPPORTED, "'NEWRA'; known are ADALORA"),
    Bad("peft_type in small letters", config(peft_type="lora"), UNSUPPORTED, "'lora'; known are"),
    Bad("a mixture", config(peft_type="XLORA"), UNSUPPORTED, "further adapters"),
    Bad("task numbers", config(peft_type="POLY"), UNSUPPORTED, "task number"),
    Bad("a type that mixes rows", config(peft_type="LILY"), UNSUPPORTED, "requests beside it"),
    Bad("a classifier", config(task_type="SEQ_CLS"), UNSUPPORTED, "classification head"),
    Bad("unknown setting", config(new_maths="on"), UNSUPPORTED, 'new_maths="on"; PEFT would drop'),
    Bad("unknown setting 0", config(new_scale=0), UNSUPPORTED, "new_scale=0"),
    Bad("setting of another type", config(d_initial=0.1), UNSUPPORTED, "type LORA .*d_initial=0.1"),
    Bad("unknown init", config(init_lora_weights="zeros"), UNSUPPORTED, "'zeros' is unknown"),
    Bad("random init", config(init_lora_weights="pissa_niter_4"), UNSUPPORTED, "drawn at random"),
    Bad("lost init", config(init_lora_weights="corda"), UNSUPPORTED, "covariances"),
    Bad("a router", config(arrow_config={"top_k": 2}), UNSUPPORTED, "further adapters"),
    Bad("rank is text", config(r="4"), UNREADABLE, "r='4', which is not a whole number"),
    Bad("targets a number", config(target_modules=3), UNREADABLE, "target_modules=3, which is not"),
    Bad("targets no pattern", config(target_modules="(q"), UNREADABLE, "not a regular expression"),
    Bad("pattern a list", config(rank_pattern=[4]), UNREADABLE, "rank_pattern=.4., which is not"),
    Bad(
        "no weights", removed(SAFE_WEIGHTS_FILE), UNREADABLE, "holds no weights .*there is: README"
    ),
    Bad("empty file", weights_bytes(lambda data: b""), UNREADABLE, "whole .*: it is empty"),
    Bad("five bytes", weights_bytes(lambda data: data[:5]), UNREADABLE, "it has 5 bytes"),
    Bad("truncated header", weights_bytes(lambda data: data[:99]), UNREADABLE, "the file has 99"),
    Bad("truncated data", weights_bytes(lambda data: data[:-7]), UNREADABLE, "file ends at"),
    Bad("more data", weights_bytes(lambda data: data + b"xyz"), UNREADABLE, "file goes on at"),
    Bad("noise", weights_bytes(lambda data: b"\xff" * 500), UNREADABLE, "header claims"),
    Bad("header no JSON", header(lambda text: "x" * len(text)), UNREADABLE, "header is not JSON"),
    Bad("a shape that lies", one_entry("shape", [9, 9]), UNREADABLE, r"of shape \(9, 9\) needs"),
    Bad("offsets that lie", one_entry("data_offsets", [8, 1032]), UNREADABLE, "overlaps|a gap"),
    Bad("negative offsets", one_entry("data_offsets", [-4, 4]), UNREADABLE, "impossible numbers"),
    Bad("unknown dtype", one_entry("dtype", "F3"), UNREADABLE, "unknown dtype 'F3'"),
    Bad("a tensor twice", header(twice), UNREADABLE, "names 'base_model.*' twice"),
    Bad("no tensors", tensors(lambda all_: {}), UNREADABLE, "holds no tensors"),
    Bad("dangling weights", replaced(SAFE_WEIGHTS_FILE, link("x")), UNREADABLE, "no such file"),
    Bad("weights a link loop", replaced(SAFE_WEIGHTS_FILE, loop), UNREADABLE, "symbolic links"),
    Bad("weights a folder", replaced(SAFE_WEIGHTS_FILE, Path.mkdir), UNREADABLE, "Is a directory"),
    Bad("only pickled", pickled(lambda all_: all_), UNSAFE, "run code; .*`allow_pickle: true`"),
    Bad("NaN in one q", each(nan, "0.self_attn.q_proj.lora_A"), NOT_FINITE, "1 of 8 .*q_proj"),
    Bad("inf in float16", each(lambda t: (t * 1e9).half(), "lora_B"), NOT_FINITE, "4 of 8 tensors"),
    Bad("all zero", each(torch.zeros_like, "lora"), NO_EFFECT, "all 8 tensors is zero"),
    Bad("B zero", each(torch.zeros_like, "lora_B"), NO_EFFECT, "before it was trained"),
    Bad("integers", each(lambda t: (t * 99).int(), "lora_A"), DOES_NOT_FIT, "floating.*of I32"),
    Bad("no values", each(lambda t: t[:0], "lora_A"), DOES_NOT_FIT, r"any values.*\(0, 64\)"),
    Bad("A without B", without("1.self_attn.q_proj.lora_B"), DOES_NOT_FIT, "lora_A without lora_B"),
    Bad("B without A", without("1.self_attn.q_proj.lora_A"), DOES_NOT_FIT, "lora_B without lora_A"),
    Bad("names of another tool", renamed("lora_", "delta_"), DOES_NOT_FIT, "no tensor has a LoRA"),
    Bad("other rank", config(r=8), DOES_NOT_FIT, "says r=8.*expected rank 8.* and 5 more"),
    Bad(
        "other rank pattern",
        config(rank_pattern={"layers.1.self_attn.v_proj": 2}),
        DOES_NOT_FIT,
        "with a rank_pattern, .*layers.1.self_attn.v_proj.lora_A",
    ),
    Bad(
        "alpha pattern", config(alpha_pattern={"c_attn": 9}), DOES_NOT_FIT, "alpha_pattern.*c_attn"
    ),
    Bad("rank pattern", config(rank_pattern={"c_attn": 9}), DOES_NOT_FIT, "rank_pattern.*c_attn"),
    Bad("other width", each(wider, "lora_A"), DOES_NOT_FIT, "sizes differ: .*128→64 at a weight"),
    Bad("other layers", renamed("layers.1.", "layers.9."), DOES_NOT_FIT, "no module: .*layers.9"),
    Bad(
        "more layers",
        renamed("layers.1.", "layers.9.", keep=True),
        DOES_NOT_FIT,
        "belongs to another base: .*layers.9",
    ),
    Bad(
        "fewer targets", config(target_modules=["q_proj"]), DOES_NOT_FIT, "without a word: .*v_proj"
    ),
    Bad(
        "more targets",
        config(target_modules=["q_proj", "v_proj", "o_proj"]),
        DOES_NOT_FIT,
        "targets modules without any weights: o_proj",
    ),
    Bad("targets of GPT-2", config(target_modules=["c_attn"]), DOES_NOT_FIT, "targets c_attn, but"),
    Bad(
        "a saved head of another width",
        both(
            config(modules_to_save=["lm_head"]),
            tensors(
                lambda all_: all_ | {"base_model.model.lm_head.weight": torch.ones(400, 32)},
            ),
        ),
        DOES_NOT_FIT,
        r"\(400, 32\) for a weight \(\d+, 64\)",
    ),
    Bad(
        "another base of the same shapes",
        lambda folder: config(
            base_model_name_or_path=str(
                tiny_llama(folder.parent / "twin", seed=8, attention_bias=True, mlp_bias=True)
            )
        )(folder),
        DOES_NOT_FIT,
        "trained on '.*/twin' .content .*, and this base is '.*base'; .*`any_base: true`",
    ),
    Bad(
        "another base of other shapes",
        lambda folder: config(
            base_model_name_or_path=str(tiny_llama(folder.parent / "small", hidden=32))
        )(folder),
        DOES_NOT_FIT,
        "trained on '.*/small', whose tensors are others",
    ),
)


# --- what only the loaded base can tell -------------------------------------------------------

ENGINE = (
    Bad(
        "all names changed",
        renamed("base_model.", "module.base_model."),
        DOES_NOT_FIT,
        r"8 missing from the file \(.*8 in the file that nothing uses \(module\.",
    ),
    Bad(
        "half the layers", without(".layers.1."), DOES_NOT_FIT, "4 missing from the file .*layers.1"
    ),
    Bad(
        "a tensor nothing uses",
        tensors(lambda all_: all_ | {"base_model.model.extra": torch.ones(3)}),
        DOES_NOT_FIT,
        "1 in the file that nothing uses .*extra",
    ),
    Bad("layers it lacks", config(layers_to_transform=[7]), DOES_NOT_FIT, "cannot be attached"),
    Bad("DoRA in the config alone", config(use_dora=True), DOES_NOT_FIT, "missing .*magnitude"),
    Bad(
        "DoRA in the file alone",
        tensors(
            lambda all_: (
                all_
                | {
                    name.replace("lora_A.weight", "lora_magnitude_vector"): torch.ones(len(b))
                    for name, b in outputs(all_).items()
                }
            )
        ),
        DOES_NOT_FIT,
        "nothing uses .*magnitude",
    ),
    Bad("no saved module", config(modules_to_save=["lm_head"]), DOES_NOT_FIT, "lacks .*lm_head"),
    Bad("bias without values", config(bias="all"), DOES_NOT_FIT, "missing .*bias"),
    Bad("alpha 0", config(lora_alpha=0), NO_EFFECT, "changes nothing: .*within rounding; was it"),
    Bad("huge values", each(lambda t: t * 1e30, "lora"), NOT_FINITE, "NaN or infinite"),
    Bad(
        "parameters that no module has",
        both(
            config(target_modules=[], target_parameters=["experts.down_proj"]),
            renamed("self_attn.q_proj", "mlp.experts"),
        ),
        DOES_NOT_FIT,
        "cannot be attached|nothing uses|attached nothing",
    ),
    Bad("replicated layers it lacks", config(layer_replication=[[0, 9]]), DOES_NOT_FIT, "attached"),
    Bad(
        "a prompt for another width",
        folder_as(
            lambda path: make_adapter(
                tiny_llama(path.parent / "narrow", hidden=32), path, "prompt_tuning"
            )
        ),
        FailureKind.CRASHED,
        "RuntimeError",
    ),
)

PICKLES = (
    Bad("malicious", malicious, UNSAFE, "holds more than tensors, and what it holds was not run"),
    Bad("pickled list", pickled(lambda all_: list(all_.values())), UNREADABLE, "tensors by name"),
    Bad(
        "a truncated pickle",
        both(
            pickled(lambda all_: all_),
            lambda folder: (folder / PICKLED_WEIGHTS_FILE).write_bytes(
                (folder / PICKLED_WEIGHTS_FILE).read_bytes()[:-300]
            ),
        ),
        UNREADABLE,
        "cannot be read: .*save it again",
    ),
    Bad(
        "a pickle without layers",
        both(without(".layers.1."), pickled(lambda all_: all_)),
        DOES_NOT_FIT,
        "4 missing from the file",
    ),
    Bad(
        "NaN in a pickle",
        both(each(nan, "q_proj.lora_A"), pickled(lambda all_: all_)),
        NOT_FINITE,
        "q_proj.* holds NaN",
    ),
    Bad(
        "zeros in a pickle",
        both(each(torch.zeros_like, "lora_B"), pickled(lambda all_: all_)),
        NO_EFFECT,
        "changes nothing",
    ),
)


# --- the tests --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def good(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_lora(tiny_base, tmp_path_factory.mktemp("good") / "lora")


@pytest.fixture
def folder(good: Path, tiny_base: Path, tmp_path: Path) -> Path:
    (tmp_path / "base").symlink_to(tiny_base)
    shutil.copytree(good, tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.fixture(scope="module")
def engine(tiny_spec: EngineSpec) -> Iterator[HFEngine]:
    engine = HFEngine(tiny_spec)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def baseline(engine: HFEngine) -> tuple[Answer, ...]:
    return answers_of(engine)


def answers_of(engine: HFEngine) -> tuple[Answer, ...]:
    (answered,) = engine.answer(Shard(REQUESTS), [BASELINE])
    assert answered.failure is None, answered.failure
    return answered.answers


def failure_of(engine: HFEngine, adapter: Adapter) -> Failure:
    subject = Subject(id=f"base/{adapter.name}", base="base", adapter=adapter)
    (answered,) = engine.answer(Shard(REQUESTS), [subject])
    assert answered.failure is not None
    assert answered.answers == ()
    return answered.failure


def read(folder: Path, base: Path, **reading: Any) -> Adapter:
    target = TargetBase(name=str(base), folder=str(base), digest=read_base(str(base)).digest)
    return read_adapter(str(folder), name="mine", base_path=str(base), base=target, **reading)


def check(failure: CellError | Failure, bad: Bad) -> None:
    assert failure.kind == bad.kind, failure.message
    assert "mine" in failure.message
    assert re.search(bad.words, failure.message, re.DOTALL), failure.message


def test_there_are_more_than_forty_ways_and_a_good_adapter_is_none_of_them(
    folder: Path, tiny_base: Path, engine: HFEngine
) -> None:
    assert len({bad.name for bad in (*FILES, *ENGINE, *PICKLES)}) >= 90
    subject = Subject(id="base/mine", base="base", adapter=read(folder, tiny_base))
    (answered,) = engine.answer(Shard(REQUESTS), [subject])
    assert answered.failure is None


@pytest.mark.parametrize("bad", FILES, ids=lambda bad: bad.name)
def test_what_the_files_tell_is_told_before_anything_is_loaded(
    folder: Path,
    good: Path,
    tiny_base: Path,
    engine: HFEngine,
    baseline: tuple[Answer, ...],
    bad: Bad,
) -> None:
    unspoilt = read(good, tiny_base)
    bad.spoil(folder)

    with pytest.raises(CellError) as raised:
        read(folder, tiny_base)
    check(raised.value, bad)
    assert not raised.value.retryable

    # Spoilt after it was read, it is the engine that must not answer for it.
    late = Adapter(name="mine", path=str(folder), digest=unspoilt.digest, config=unspoilt.config)
    if "trained on" not in bad.words:  # an engine knows no other base, and the tensors fit
        failure_of(engine, late)
    assert answers_of(engine) == baseline


@pytest.mark.parametrize("bad", ENGINE, ids=lambda bad: bad.name)
def test_what_only_the_loaded_base_can_tell(
    folder: Path, tiny_base: Path, engine: HFEngine, baseline: tuple[Answer, ...], bad: Bad
) -> None:
    bad.spoil(folder)

    failure = failure_of(engine, read_adapter(str(folder), name="mine", base_path=str(tiny_base)))

    check(failure, bad)
    assert answers_of(engine) == baseline


@pytest.mark.parametrize("bad", PICKLES, ids=lambda bad: bad.name)
def test_pickles_that_are_allowed_and_bad(
    folder: Path, engine: HFEngine, baseline: tuple[Answer, ...], bad: Bad
) -> None:
    bad.spoil(folder)

    failure = failure_of(engine, read_adapter(str(folder), name="mine", allow_pickle=True))

    check(failure, bad)
    assert not (folder.parent / "ran").exists()
    assert answers_of(engine) == baseline


def test_values_that_overflow_in_half_precision_alone(
    folder: Path, tiny_base: Path, engine: HFEngine, tiny_spec: EngineSpec
) -> None:
    each(lambda tensor: tensor * 300, "v_proj")(folder)
    adapter = read(folder, tiny_base)
    half = HFEngine(replace(tiny_spec, dtype="float16"))
    before = answers_of(half)

    failure = failure_of(half, adapter)

    assert failure.kind is NOT_FINITE
    assert "NaN or infinite" in failure.message
    assert answers_of(half) == before
    subject = Subject(id="base/mine", base="base", adapter=adapter)
    assert engine.answer(Shard(REQUESTS), [subject])[0].failure is None  # float32 reaches far


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_weights_that_may_not_be_read(folder: Path, tiny_base: Path) -> None:
    unreadable(folder)
    with pytest.raises(CellError, match="cannot be read: Permission denied"):
        read(folder, tiny_base)


@pytest.mark.parametrize(
    ("recorded", "name", "fits"),
    [
        ("org/other", "org/model", False),
        ("Org/Model", "org/model", True),
        ("org/other", "/local/folder", True),
        ("/nowhere/base", "org/model", True),
        (None, "org/model", True),
        ("", "org/model", True),
    ],
)
def test_bases_are_compared_by_name_where_both_are_hub_ids(
    folder: Path, tiny_base: Path, recorded: str | None, name: str, fits: bool
) -> None:
    config(base_model_name_or_path=recorded)(folder)
    target = TargetBase(name=name, folder=str(tiny_base), digest="0" * 32)
    if fits:
        read_adapter(str(folder), name="mine", base=target)
        return
    with pytest.raises(CellError, match=f"trained on '{recorded}', and this base is '{name}'"):
        read_adapter(str(folder), name="mine", base=target)
    read_adapter(str(folder), name="mine", base=target, any_base=True)


def test_a_copy_of_the_same_base_elsewhere_is_the_same_base(
    folder: Path, tiny_base: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(tiny_base, tmp_path / "copy")
    config(base_model_name_or_path=str(copy))(folder)

    read(folder, tiny_base)
    (copy / "model.safetensors").unlink()
    read(folder, tiny_base)  # what lies there now is no base: nothing is known
