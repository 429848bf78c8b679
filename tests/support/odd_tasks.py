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
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1},
    }
    metric = {"aggregation": "mean", "higher_is_better": True}
    return {
        "odd_plain": plain,
        "odd_choice": {
            **plain,
            "output_type": "multiple_choice",
            "doc_to_choice": ["yes", "no"],
            "doc_to_target": "{{l}}",
            "generation_kwargs": None,
            "metric_list": [{"metric": "acc", **metric}],
        },
        "odd_no_data": {**plain, **json_splits(data, "absent", train=False)},
        "odd_no_function": {**plain, "process_docs": function("odd_functions.absent")},
        "odd_bad_template": {**plain, "doc_to_text": "{{q"},
        "odd_bad_filter": {
            **plain,
            "filter_list": [{"name": "none", "filter": [{"function": "absent_filter"}]}],
        },
        "odd_empty": {**plain, "process_docs": function("odd_functions.drop_all")},
        "odd_metric": {**plain, "metric_list": [{"metric": "no_such_metric", **metric}]},
        "odd_unsafe": {
            **plain,
            "unsafe_code": True,
            "process_results": function("odd_import.process_results"),
        },
        "odd_unsafe_allowed": {**plain, "unsafe_code": True},
        "odd_image": {**plain, "doc_to_image": function("odd_import.image")},
        "odd_shuffled": {**plain, "process_docs": function("odd_functions.shuffle")},
        "odd_changing": {**plain, "doc_to_text": function("odd_functions.change_doc")},
        "odd_number": {**plain, "output_type": "loglikelihood", "doc_to_target": "n"},
        "odd_raising": {**plain, "process_results": function("odd_functions.fail")},
        "odd_random": {
            **plain,
            "process_results": function("odd_functions.draw"),
            "metric_list": [{"metric": "drawn", **metric}],
        },
        "odd_absent_metric": {
            **plain,
            "process_results": function("odd_functions.sometimes"),
            "metric_list": [
                {"metric": "always", **metric},
                {"metric": "even", **metric},
            ],
        },
        "odd_class_sets": {"class": function("odd_functions.Sets")},
        "odd_class_eager": {"class": function("odd_functions.Eager")},
        "odd_class_same_idx": {"class": function("odd_functions.SameIdx")},
        "odd_class_no_order": {"class": function("odd_functions.NoOrder")},
        "odd_class_type": {"class": function("odd_functions.OtherType")},
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


class Sets(Plain):
    def row(self, i):
        return {"n": i, "labels": {i, i + 1}}


class Eager(Plain):
    def __init__(self, config=None):
        super().__init__()
        self.longest = max(len(self.doc_to_text(doc)) for doc in self.dataset)


class SameIdx(Plain):
    pass


class NoOrder(Plain):
    ORDER = (("loglikelihood", 1), ("generate_until", 0))


class OtherType(Plain):
    ORDER = (("multiple_choice", 0),)
'''
