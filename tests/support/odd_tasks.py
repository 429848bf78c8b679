"""lm-eval tasks that misbehave, for the tests of what freezing and scoring refuse."""

from pathlib import Path
from typing import Any

from tests.support.tasks import function, json_splits, write_jsonl, write_task

BAD_TASKS = (
    "odd_no_data",
    "odd_no_function",
    "odd_bad_template",
    "odd_bad_filter",
    "odd_empty",
    "odd_metric",
)
"""Tasks that lm-eval cannot build."""


def write_odd_tasks(folder: Path) -> Path:
    """Write them all below `folder` and return it."""
    data = folder / "data"
    data.mkdir(parents=True)
    rows = [{"n": i, "q": f"item {i}", "a": f"answer {i}", "l": i % 2} for i in range(6)]
    write_jsonl(data / "odd_test.jsonl", rows)
    (folder / "odd_functions.py").write_text(_FUNCTIONS, encoding="utf-8")
    (folder / "odd_import.py").write_text("raise RuntimeError('was imported')\n")
    for name, config in _configs(data).items():
        write_task(folder, {"task": name, **config})
    write_task(folder, {"group": "odd_group", "task": ["odd_plain", *BAD_TASKS, "odd_choice"]})
    return folder


def _configs(data: Path) -> dict[str, dict[str, Any]]:
    plain: dict[str, Any] = {
        **json_splits(data, "odd", train=False),
        "output_type": "generate_until",
        "doc_to_text": "{{q}}",
        "doc_to_target": "{{a}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4},
        "metric_list": [_metric("exact_match")],
        "metadata": {"version": 1},
    }
    choice = {
        **plain,
        "output_type": "multiple_choice",
        "doc_to_choice": ["yes", "no"],
        "doc_to_target": "{{l}}",
        "generation_kwargs": None,
        "metric_list": [_metric("acc")],
    }
    classes = ("sets", "eager", "same_idx", "no_order", "other_type")
    return {
        "odd_plain": plain,
        "odd_choice": choice,
        **{name: {**plain, **change} for name, change in _unbuildable(data).items()},
        **{name: {**plain, **change} for name, change in _refused().items()},
        **{name: {**plain, **change} for name, change in _scorable().items()},
        **{f"odd_class_{name}": {"class": function(f"odd_functions.{name}")} for name in classes},
    }


def _metric(name: str) -> dict[str, Any]:
    return {"metric": name, "aggregation": "mean", "higher_is_better": True}


def _unbuildable(data: Path) -> dict[str, dict[str, Any]]:
    bad_filter = {"name": "none", "filter": [{"function": "absent_filter"}]}
    return {
        "odd_no_data": json_splits(data, "absent", train=False),
        "odd_no_function": {"process_docs": function("odd_functions.absent")},
        "odd_bad_template": {"doc_to_text": "{{q"},
        "odd_bad_filter": {"filter_list": [bad_filter]},
        "odd_empty": {"process_docs": function("odd_functions.drop_all")},
        "odd_metric": {"metric_list": [_metric("no_such_metric")]},
    }


def _refused() -> dict[str, dict[str, Any]]:
    unsafe = {"unsafe_code": True}
    return {
        "odd_unsafe": {**unsafe, "process_results": function("odd_import.process_results")},
        "odd_unsafe_allowed": unsafe,
        "odd_image": {"doc_to_image": function("odd_import.image")},
        "odd_changing": {"doc_to_text": function("odd_functions.change_doc")},
        "odd_number": {"output_type": "loglikelihood", "doc_to_target": "n"},
    }


def _scorable() -> dict[str, dict[str, Any]]:
    draw, sometimes = function("odd_functions.draw"), function("odd_functions.sometimes")
    return {
        "odd_shuffled": {"process_docs": function("odd_functions.shuffle")},
        "odd_raising": {"process_results": function("odd_functions.fail")},
        "odd_random": {"process_results": draw, "metric_list": [_metric("drawn")]},
        "odd_absent_metric": {
            "process_results": sometimes,
            "metric_list": [_metric("always"), _metric("even")],
        },
    }


_FUNCTIONS = '''"""Functions and classes of the odd tasks."""

import os
import random

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean
from lm_eval.api.task import Task


def drop_all(dataset):
    return dataset.filter(lambda doc: False)


def shuffle(dataset):
    order = list(range(len(dataset)))
    random.shuffle(order)
    return dataset.select(order)


def change_doc(doc):
    doc["q"] = doc["q"] + "!"
    return doc["q"]


def fail(doc, results):
    raise KeyError("no_such_field")


def draw(doc, results):
    return {"drawn": random.random() + np.random.random()}


def sometimes(doc, results):
    found = {"always": 1.0, "bonus": 2.0}
    if doc["n"] % 2 == 0:
        found["even"] = 1.0
    return found


class Plain(Task):
    """A Python task on documents of its own."""

    VERSION = 1
    ORDER = (("generate_until", 0), ("loglikelihood", 0))

    def __init__(self, config=None):
        super().__init__(config=None)

    def download(self, data_dir=None, cache_dir=None, download_mode=None):
        if os.environ.get("ODD_DATA_GONE"):
            raise FileNotFoundError("the data is gone")
        self.dataset = [self.row(i) for i in range(4)]

    def row(self, i):
        return {"n": i}

    def has_training_docs(self):
        return False

    def has_validation_docs(self):
        return False

    def has_test_docs(self):
        return True

    def test_docs(self):
        return self.dataset

    def doc_to_text(self, doc):
        return f"number {doc['n']}"

    def doc_to_target(self, doc):
        return " x"

    def fewshot_context(self, doc, num_fewshot, **kwargs):
        return self.doc_to_text(doc)

    def construct_requests(self, doc, ctx, metadata, **kwargs):
        arguments = {"generate_until": (ctx, {"until": ["."]}), "loglikelihood": (ctx, " x")}
        return [
            Instance(kind, doc, arguments.get(kind, (ctx,)), idx=idx, metadata=metadata)
            for kind, idx in self.ORDER
        ]

    def process_results(self, doc, results):
        return {"first_is_text": float(isinstance(results[0], str)), "n": doc["n"]}

    def aggregation(self):
        return {"first_is_text": mean, "n": mean}

    def higher_is_better(self):
        return {"first_is_text": True, "n": True}


class sets(Plain):
    def row(self, i):
        return {"n": i, "labels": {i, i + 1}}


class eager(Plain):
    def __init__(self, config=None):
        super().__init__()
        self.longest = max(len(self.doc_to_text(doc)) for doc in self.dataset)


class same_idx(Plain):
    pass


class no_order(Plain):
    ORDER = (("loglikelihood", 1), ("generate_until", 0))


class other_type(Plain):
    ORDER = (("multiple_choice", 0),)
'''
