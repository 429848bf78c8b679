"""A night of known truth: many adapters and tasks, the `fake` engine, and effects that are planted.

Which adapter gains or loses on which task, and how much, is decided here; what a report says of it
is compared with that. Every adapter also knows some questions that others do not, so that those
without an effect differ from the base by chance, in both directions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raypeft.core.spec import Sweep, make_sweep
from tests.support.tasks import json_splits, write_jsonl, write_task

BASE_SKILL = 0.5
LUCK = 0.2
"""Share of questions on which an adapter knows not what others do, but its own."""

CHOICES = ["red", "blue"]
RANKS = (2, 4, 8, 16)
CLEARLY = 1.4
"""An effect of so many times the smallest detectable gain is found in all but 2 of 100 nights."""

Effects = Mapping[tuple[str, str], float]


@dataclass(frozen=True, kw_only=True)
class Night:
    """How large a night is.

    Attributes:
        adapters: Adapters of its one base.
        tasks: Tasks.
        documents: Documents of each task.
        effect: Planted gain or loss, as a share of documents.
    """

    adapters: int = 32
    tasks: int = 12
    documents: int = 200
    effect: float = 0.3

    @property
    def adapter_names(self) -> list[str]:
        """Names of the adapters."""
        return [f"adapter-{number:02d}" for number in range(self.adapters)]

    @property
    def task_names(self) -> list[str]:
        """Names of the tasks."""
        return [f"quiz_{number:02d}" for number in range(self.tasks)]

    def effects(self) -> dict[tuple[str, str], float]:
        """Return what is planted: every third adapter does something, every sixth costs something.

        The last of those that gain does so a tenth as much, which nobody can find.
        """
        found: dict[tuple[str, str], float] = {}
        for number, adapter in enumerate(self.adapter_names):
            if number % 3:
                continue
            target, other, cost = (
                self.task_names[(number + step) % self.tasks] for step in (0, 5, 7)
            )
            found[adapter, target] = found[adapter, other] = self.effect
            if number % 6 == 0:
                found[adapter, cost] = -self.effect
        last = max(adapter for adapter, _ in found)
        return {key: size / 10 if key[0] == last else size for key, size in found.items()}


@dataclass(frozen=True)
class Verdicts:
    """What a sweep's gains say of planted effects.

    Attributes:
        found: Planted effects that were found, with the right sign.
        missed: Effects that are clearly of detectable size, and were not.
        too_small: Effects that were not found and need not be.
        false: Gains and losses where nothing is planted, or of the wrong sign.
    """

    found: list[tuple[str, str]]
    missed: list[tuple[str, str]]
    too_small: list[tuple[str, str]]
    false: list[tuple[str, str]]


def judge(gains: Sequence[Mapping[str, Any]], effects: Effects) -> Verdicts:
    """Hold the rows of a gains table against what is planted."""
    verdicts = Verdicts([], [], [], [])
    for row in gains:
        key, verdict = (row["adapter"], row["task"]), row["verdict"]
        effect = effects.get(key, 0.0)
        right = {True: "gain", False: "loss"}[effect > 0] if effect else None
        if verdict in ("gain", "loss"):
            (verdicts.found if verdict == right else verdicts.false).append(key)
        elif effect:
            clear = abs(effect) >= CLEARLY * row["smallest_detectable_gain"]
            (verdicts.missed if clear else verdicts.too_small).append(key)
    return verdicts


def write_night(folder: Path, night: Night) -> Sweep:
    """Write a base, adapters and tasks, and return the sweep over them."""
    key = _write_tasks(folder / "tasks", night)
    base, adapters = _write_models(folder / "models", night)
    skills: dict[str, dict[str, Any]] = {name: {"luck": LUCK} for name in night.adapter_names}
    for (adapter, task), size in night.effects().items():
        skills[adapter].setdefault("skills", {})[f"{task} "] = BASE_SKILL + size
    options = {"answer_key": key, "skill": BASE_SKILL, "effects": skills}
    return make_sweep(
        {
            "name": "planted",
            "output": str(folder / "run"),
            "store": str(folder / "store"),
            "bases": [{"path": str(base), "adapters": [str(path) for path in adapters]}],
            "tasks": night.task_names,
            "include_path": [str(folder / "tasks")],
            "engine": {"kind": "fake", "options": options},
        }
    )


def _write_tasks(folder: Path, night: Night) -> dict[str, str]:
    """Write the tasks and return which answer is right for each question."""
    folder.mkdir(parents=True)
    key: dict[str, str] = {}
    for name in night.task_names:
        rows = []
        for number in range(night.documents):
            question, label = f"{name} question {number:04d}", (number * 7 + 3) % 2
            key[question] = CHOICES[label]
            rows.append({"question": question, "choices": CHOICES, "label": label})
        write_jsonl(folder / f"{name}_test.jsonl", rows)
        write_task(
            folder,
            {
                "task": name,
                **json_splits(folder, name, train=False),
                "output_type": "multiple_choice",
                "doc_to_text": "{{question}}:",
                "doc_to_choice": "choices",
                "doc_to_target": "label",
                "num_fewshot": 0,
                "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
                "metadata": {"version": 1},
            },
        )
    return key


def _write_models(folder: Path, night: Night) -> tuple[Path, list[Path]]:
    """Write a base and its adapters, whose weights only have to differ: nobody computes them."""
    from safetensors.torch import load_file, save_file

    from tests.support.tiny import tiny_llama, tiny_lora

    base = tiny_llama(folder / "base")
    adapters: list[Path] = []
    for number, name in enumerate(night.adapter_names):
        path = folder / "adapters" / name
        if number < len(RANKS):
            adapters.append(tiny_lora(base, path, seed=number, rank=RANKS[number]))
            continue
        original = adapters[number % len(RANKS)]
        path.mkdir()
        config = (original / "adapter_config.json").read_text()
        (path / "adapter_config.json").write_text(config)
        tensors = load_file(original / "adapter_model.safetensors")
        scaled = {name: tensor * (1 + number / 100) for name, tensor in tensors.items()}
        save_file(scaled, path / "adapter_model.safetensors")
        adapters.append(path)
    return base, adapters
