"""What must hold between the fields of a sweep file, beyond what each field allows by itself.

Works on the pieces that are right by themselves, so that one wrong value hides nothing else.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from raypeft.core.engine_choice import AGAIN_SUFFIX, HF_SUFFIX, SECOND_SUFFIXES, ZERO_SUFFIX
from raypeft.core.spec_models import (
    AdapterEntry,
    Base,
    EngineSection,
    Evaluation,
    HardwareSection,
    TaskEntry,
    VLLMSection,
)
from raypeft.errors import Problem

_Model = TypeVar("_Model", bound=BaseModel)

_SOURCE_KEYS = ("name", "revision", "merge", "tokenizer")
"""What tells one entry of adapters from another, beside its path."""


def check_between(raw: Mapping[str, Any]) -> list[Problem]:
    """Return the problems between the fields of a sweep file, whatever else is wrong with it.

    Args:
        raw: The file's plain values.
    """
    return [
        *_check_bases(raw.get("bases")),
        *_check_tasks(raw.get("tasks")),
        *_check_evaluation(_right_values(Evaluation, raw.get("evaluation", {}))),
        *_check_engine(
            _right_values(EngineSection, raw.get("engine", {})),
            _right_values(HardwareSection, raw.get("hardware", {})),
        ),
        *_check_folders(raw),
    ]


def check_adapters(entries: Iterable[tuple[str, AdapterEntry]]) -> Iterator[Problem]:
    """Yield the problems between adapters of one base: the same name, or the same adapter, twice.

    Args:
        entries: Each with its place in the file. One without a name is judged by its path alone.
    """
    names: dict[str, tuple[str, AdapterEntry]] = {}
    sources: dict[tuple[str, str | None, bool, str], str] = {}
    for place, entry in entries:
        # Merged and unmerged, say, are two subjects.
        source = (entry.path.rstrip("/"), entry.revision, entry.merge, entry.tokenizer)
        if source in sources:
            message = f'the adapter "{entry.path}" stands here again, first at {sources[source]}'
            yield Problem(place, message, "remove one of them")
            continue
        sources[source] = place
        if entry.name is None:
            continue
        if entry.name in names:
            first_place, first = names[entry.name]
            message = (
                f'"{entry.path}" has the name "{entry.name}", '
                f'as "{first.path}" at {first_place} has'
            )
            yield Problem(place, message, "give one of them another `name:`")
        names.setdefault(entry.name, (place, entry))


def _check_bases(raw: object) -> Iterator[Problem]:
    names: dict[str, int] = {}
    for index, item in enumerate(_items(raw)):
        base = _entry(Base, item, main_key="path", keys=("name",))
        if base is not None and names.setdefault(base.name, index) != index:
            yield Problem(
                f"bases[{index}]",
                f'"{base.path}" has the name "{base.name}", as bases[{names[base.name]}] has',
                "give one of them another `name:`",
            )
        if base is not None and (other := _namesake(base.name, names)):
            yield Problem(
                f"bases[{index}]",
                f'"{base.name}" and "{other}" differ by {HF_SUFFIX}, {AGAIN_SUFFIX} or '
                f"{ZERO_SUFFIX} alone, which is how second baselines of a base are named: that of "
                "another engine, and those which are answered again",
                "give one of them another `name:`",
            )
        adapters = _items(item.get("adapters")) if isinstance(item, dict) else []
        entries = (
            (f"bases[{index}].adapters[{number}]", entry)
            for number, adapter in enumerate(adapters)
            if (entry := _entry(AdapterEntry, adapter, main_key="path", keys=_SOURCE_KEYS))
        )
        yield from check_adapters(entries)


def _namesake(name: str, others: Iterable[str]) -> str:
    """Return the base whose further baseline would have this name, or the other way round."""
    ends = (HF_SUFFIX, *SECOND_SUFFIXES, *(HF_SUFFIX + end for end in SECOND_SUFFIXES))
    pairs = ((name, other) for other in others)
    return next((b for a, b in pairs if any(a == b + end or b == a + end for end in ends)), "")


def _check_tasks(raw: object) -> Iterator[Problem]:
    first: dict[str, int] = {}
    for index, item in enumerate(_items(raw)):
        entry = _entry(TaskEntry, item, main_key="name")
        if entry is not None and first.setdefault(entry.name, index) != index:
            yield Problem(
                f"tasks[{index}]",
                f'the task "{entry.name}" stands here again, first at tasks[{first[entry.name]}]',
                "put other settings of it into a sweep of their own (the store is shared)",
            )


def _check_evaluation(evaluation: Mapping[str, Any]) -> Iterator[Problem]:
    if evaluation.get("fewshot_as_multiturn") and not evaluation.get("apply_chat_template", True):
        yield Problem(
            "evaluation.fewshot_as_multiturn",
            "true needs a chat template",
            "set `apply_chat_template: true` too, or leave this out",
        )


def _check_engine(engine: Mapping[str, Any], hardware: Mapping[str, Any]) -> Iterator[Problem]:
    kind = engine.get("kind")
    if kind in {"hf", "fake"} and engine.get("vllm", VLLMSection()) != VLLMSection():
        yield Problem(
            "engine.vllm",
            f"its settings are for the vllm engine, and engine.kind is {kind}",
            "leave them out, or set `engine.kind` to vllm or auto",
        )
    if kind == "vllm" and engine.get("softmax_dtype") == "model":
        yield Problem(
            "engine.softmax_dtype",
            "model is done by hf only: vLLM's log-softmax is float32",
            "leave it out, or set `engine.kind` to hf",
        )
    if engine.get("options") and kind not in {None, "fake"}:
        yield Problem(
            "engine.options",
            f"only the fake engine takes options, and engine.kind is {kind}",
            "leave them out",
        )
    tensor_parallel = hardware.get("tensor_parallel", 1)
    if tensor_parallel > 1 and kind not in {None, "vllm"}:
        yield Problem(
            "hardware.tensor_parallel",
            f"{tensor_parallel} needs the vllm engine, and engine.kind is {kind}; expected 1",
        )
    per_node = hardware.get("gpus_per_node")
    if per_node is not None and tensor_parallel > per_node and tensor_parallel % per_node:
        yield Problem(
            "hardware.gpus_per_node",
            f"{per_node} does not divide tensor_parallel, which is {tensor_parallel}",
            "let each node give the same number of GPUs",
        )
    if hardware.get("gpus") == 0 and hardware.get("accelerator") is not None:
        yield Problem(
            "hardware.accelerator",
            f'"{hardware["accelerator"]}" is asked for, and hardware.gpus is 0',
            "leave one of them out",
        )


def _check_folders(raw: Mapping[str, Any]) -> Iterator[Problem]:
    output, store = raw.get("output"), raw.get("store")
    if (
        isinstance(output, str)
        and isinstance(store, str)
        and store.strip()
        and output.rstrip("/") == store.rstrip("/")
    ):
        yield Problem(
            "store",
            f'"{store}" is the output folder too',
            "leave it out, or name a folder that sweeps can share",
        )


def _items(raw: object) -> list[Any]:
    return raw if isinstance(raw, list) else []


def _entry(
    model: type[_Model], raw: object, *, main_key: str, keys: tuple[str, ...] = ()
) -> _Model | None:
    """Return an entry of a list as far as its main key and some others say; None if they err."""
    if isinstance(raw, str):
        raw = {main_key: raw}
    if not isinstance(raw, dict):
        return None
    try:
        return model.model_validate({key: raw[key] for key in (main_key, *keys) if key in raw})
    except ValidationError:
        return None


def _right_values(model: type[BaseModel], raw: object) -> dict[str, Any]:
    """Return the values of a section, defaults among them, without those that err."""
    if not isinstance(raw, dict):
        return {}
    wrong: set[str] = set()
    try:
        section = model.model_validate(raw)
    except ValidationError as error:
        wrong = {str(detail["loc"][0]) for detail in error.errors()}
        section = model.model_validate({key: raw[key] for key in raw if key not in wrong})
    return {key: getattr(section, key) for key in model.model_fields if key not in wrong}
