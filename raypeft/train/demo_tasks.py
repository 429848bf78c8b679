"""The demo's own lm-eval tasks: YAML files and the JSON lines that they read.

Decides what is asked of which people, and how lm-eval is told to ask it. All documents speak of
people that no training text names.
"""

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from raypeft.core.records import Json
from raypeft.core.yaml_text import write_yaml
from raypeft.train.world import (
    DRESS,
    HOME,
    MEAL,
    PET,
    TRADE,
    Person,
    Relation,
    quiz,
    story,
)

TASKS = ("demo_trade", "demo_meal", "demo_story", "demo_life")
"""What the demo's sweep names: multiple choice, generation, perplexity and a group."""

NUM_CHOICES = 4
NUM_FEWSHOT = 2


def task_files(
    location: Path, *, documents: Sequence[Person], fewshot: Sequence[Person], seed: int
) -> dict[str, str]:
    """Return the text of every file of the tasks, by its name.

    Args:
        location: The folder where the files will stand, in full: `data_files` are not looked for
            beside the YAML file.
        documents: One document of each task is about each of them.
        fewshot: Whom the few-shot examples are about.
        seed: Decides wordings and choices.
    """
    files = _Files(location)
    rng = random.Random(f"tasks-{seed}")
    files.add_task(
        {**_multiple_choice(TRADE), "fewshot_split": "train", "num_fewshot": NUM_FEWSHOT},
        test=[_choice_document(person, TRADE, rng) for person in documents],
        train=[_choice_document(person, TRADE, rng) for person in fewshot],
    )
    files.add_task(_generation(), test=[_answer_document(person, rng) for person in documents])
    files.add_task(_perplexity(), test=[{"text": story(person, rng)} for person in documents])
    members = (HOME, PET, DRESS)
    for relation in members:
        files.add_task(
            {**_multiple_choice(relation), "num_fewshot": 0},
            test=[_choice_document(person, relation, rng) for person in documents],
        )
    files.add_yaml("demo_life", _group("demo_life", members))
    return files.texts


class _Files:
    """Collects one task at a time: its data beside its YAML."""

    def __init__(self, location: Path) -> None:
        self.location = location
        self.texts: dict[str, str] = {}

    def add_task(self, task: Mapping[str, Json], **splits: Iterable[Json]) -> None:
        """Add a task and the documents of its splits."""
        name = task["task"]
        data_files = {}
        for split, documents in splits.items():
            file = f"{name}_{split}.jsonl"
            self.texts[file] = "".join(json.dumps(document) + "\n" for document in documents)
            data_files[split] = str(self.location / file)
        source = {
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": data_files},
            "test_split": "test",
        }
        self.add_yaml(name, {**task, **source, "metadata": {"version": 1.0}})

    def add_yaml(self, name: str, value: Json) -> None:
        """Add a YAML file of lm-eval."""
        self.texts[f"{name}.yaml"] = write_yaml(value)


def _multiple_choice(relation: Relation) -> dict[str, Json]:
    return {
        "task": f"demo_{relation.name}",
        "output_type": "multiple_choice",
        "doc_to_text": "{{prompt}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "metric_list": [_mean("acc"), _mean("acc_norm")],
    }


def _generation() -> dict[str, Json]:
    two_words = [
        {"function": "regex", "regex_pattern": "^\\s*([a-z]+ [a-z]+)"},
        {"function": "take_first"},
    ]
    return {
        "task": f"demo_{MEAL.name}",
        "output_type": "generate_until",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{answer}}",
        "num_fewshot": 0,
        "generation_kwargs": {"until": ["\n"], "do_sample": False, "max_gen_toks": 8},
        "filter_list": [{"name": "two-words", "filter": two_words}],
        "metric_list": [_mean("exact_match")],
    }


def _perplexity() -> dict[str, Json]:
    return {
        "task": "demo_story",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "num_fewshot": 0,
        "metric_list": [
            {"metric": "word_perplexity"},
            {"metric": "byte_perplexity"},
            {"metric": "bits_per_byte"},
        ],
    }


def _group(name: str, members: Sequence[Relation]) -> dict[str, Json]:
    return {
        "group": name,
        "task": [f"demo_{relation.name}" for relation in members],
        "aggregate_metric_list": [
            {"metric": metric, "aggregation": "mean", "weight_by_size": True}
            for metric in ("acc", "acc_norm")
        ],
        "metadata": {"version": 1.0},
    }


def _mean(metric: str) -> dict[str, Json]:
    return {"metric": metric, "aggregation": "mean", "higher_is_better": True}


def _choice_document(person: Person, relation: Relation, rng: random.Random) -> dict[str, Json]:
    right = person.facts[relation.name]
    others = [value for value in relation.values if value != right]
    choices = [right, *rng.sample(others, NUM_CHOICES - 1)]
    rng.shuffle(choices)
    asked = quiz(person, relation, rng.randrange(len(relation.questions)))
    return {"prompt": asked.prompt, "choices": choices, "answer": choices.index(right)}


def _answer_document(person: Person, rng: random.Random) -> dict[str, Json]:
    asked = quiz(person, MEAL, rng.randrange(len(MEAL.questions)))
    return {"prompt": asked.prompt, "answer": asked.answer.strip()}
