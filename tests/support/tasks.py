"""Small lm-eval tasks, written as YAML, JSON and Python files: every output type and oddity.

`write_tasks(folder)` writes them all; `include_path=[folder]` makes them known to lm-eval.
The data are made from a fixed seed, and `data_files` are absolute, so that the folder works from
any working directory.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

_TEXT = (
    "red blue green apple banana cherry house river mountain tree fox dog cat Größe naïve 日本語 🙂"
)
_WORDS = tuple(_TEXT.split(" "))


class _Function(str):
    """Becomes `!function <text>` in a YAML file."""


yaml.SafeDumper.add_representer(
    _Function, lambda dumper, value: dumper.represent_scalar("!function", str(value))
)


@dataclass(frozen=True)
class TinyTasks:
    """What `write_tasks` wrote.

    Attributes:
        folder: The include path.
        data: Folder of the JSON data files.
        tasks: Names of all leaf tasks that build and score.
        groups: Names of the groups.
        tags: Names of the tags.
    """

    folder: Path
    data: Path
    tasks: tuple[str, ...]
    groups: tuple[str, ...]
    tags: tuple[str, ...]


def write_tasks(folder: Path | str, *, docs: int = 12) -> TinyTasks:
    """Write every tiny task below `folder`.

    Args:
        folder: Where to write; made if missing.
        docs: Documents in each test split.
    """
    root = Path(folder).resolve()
    data = root / "data"
    data.mkdir(parents=True, exist_ok=True)
    _write_data(data, docs)
    (root / "tiny_functions.py").write_text(_FUNCTIONS, encoding="utf-8")
    configs = _task_configs(data)
    for name, config in configs.items():
        write_task(root, config | {"task": name})
    _write_groups(root)
    return TinyTasks(
        folder=root,
        data=data,
        tasks=tuple(configs),
        groups=("tiny_group", "tiny_nested"),
        tags=("tiny_tag",),
    )


def write_task(folder: Path, config: dict[str, Any]) -> Path:
    """Write one task or group as YAML, under its name."""
    name = config.get("task") if isinstance(config.get("task"), str) else config["group"]
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=1000)
    path = folder / f"{name}.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def function(name: str) -> str:
    """Return what `write_task` writes as `!function <name>`."""
    return _Function(name)


def json_splits(data: Path, name: str, *, train: bool = True) -> dict[str, Any]:
    """Return the dataset part of a task that reads `data/<name>_{train,test}.jsonl`."""
    files = {"test": str(data / f"{name}_test.jsonl")}
    if train:
        files["train"] = str(data / f"{name}_train.jsonl")
    return {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": files},
        "test_split": "test",
        **({"training_split": "train", "fewshot_split": "train"} if train else {}),
    }


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as JSON lines."""
    lines = (json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _task_configs(data: Path) -> dict[str, dict[str, Any]]:
    mc = _multiple_choice(data)
    acc, mutual = mc["metric_list"][0], {**mc["metric_list"][0], "metric": "acc_mutual_info"}
    letters = {
        **mc,
        "doc_to_text": "{{question}}\nA. {{choices[0]}}\nB. {{choices[1]}}\nC. {{choices[2]}}\n",
        "doc_to_choice": ["A", "B", "C", "D"],
        "num_fewshot": 0,
        "metric_list": [acc],
    }
    return {
        "tiny_mc": {**mc, "tag": "tiny_tag"},
        "tiny_mc_first_n": {**mc, "fewshot_config": {"sampler": "first_n"}, "tag": ["tiny_tag"]},
        "tiny_letters": letters,
        "tiny_mutual": {**mc, "num_fewshot": None, "metric_list": [acc, mutual]},
        "tiny_vectors": _vectors(mc),
        "tiny_gen": _gen(data),
        "tiny_lambada": _lambada(data),
        "tiny_rolling": _rolling(data),
        "tiny_function": _function(data),
        "tiny_empty_context": {**mc, "doc_to_text": "", "num_fewshot": 0},
        "tiny_class": {"class": function("tiny_functions.TinyClass")},
    }


def _multiple_choice(data: Path) -> dict[str, Any]:
    mean = {"aggregation": "mean", "higher_is_better": True}
    return {
        **json_splits(data, "mc"),
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "choices",
        "doc_to_target": "label",
        "num_fewshot": 2,
        "metric_list": [{"metric": "acc", **mean}, {"metric": "acc_norm", **mean}],
        "metadata": {"version": 1.0},
    }


def _rolling(data: Path) -> dict[str, Any]:
    kinds = {
        "word_perplexity": "weighted_perplexity",
        "byte_perplexity": "weighted_perplexity",
        "bits_per_byte": "bits_per_byte",
    }
    return {
        **json_splits(data, "rolling", train=False),
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [
            {"metric": metric, "aggregation": kind, "higher_is_better": False}
            for metric, kind in kinds.items()
        ],
        "metadata": {"version": 2},
    }


def _vectors(mc: dict[str, Any]) -> dict[str, Any]:
    """Metrics whose values per document are pairs and vectors."""
    return {
        **mc,
        "metric_list": [
            {"metric": "brier_score", "aggregation": "brier_score", "higher_is_better": False},
            {"metric": "mcc", "aggregation": "matthews_corrcoef", "higher_is_better": True},
            {"metric": "likelihood", "aggregation": "bypass", "higher_is_better": True},
        ],
    }


def _gen(data: Path) -> dict[str, Any]:
    return {
        **json_splits(data, "gen"),
        "output_type": "generate_until",
        "doc_to_text": "Q: {{question}}\nA:",
        "doc_to_target": "{{answer}}",
        "num_fewshot": 1,
        "repeats": 2,
        "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 8, "do_sample": False},
        "filter_list": [
            {
                "name": "strict",
                "filter": [
                    {"function": "regex", "regex_pattern": "([a-z]+)"},
                    {"function": "take_first"},
                ],
            },
            {
                "name": "vote",
                "filter": [
                    {"function": "regex", "regex_pattern": "(\\S)", "group_select": -1},
                    {"function": "majority_vote"},
                    {"function": "take_first"},
                ],
            },
        ],
        "metric_list": [
            {
                "metric": "exact_match",
                "aggregation": "mean",
                "higher_is_better": True,
                "ignore_case": True,
                "ignore_punctuation": False,
            }
        ],
        "metadata": {"version": 3.0},
    }


def _lambada(data: Path) -> dict[str, Any]:
    """Plain loglikelihood with perplexity; one context ends in spaces, one exceeds the model."""
    return {
        **json_splits(data, "lambada", train=False),
        "output_type": "loglikelihood",
        "doc_to_text": "{{context}}",
        "doc_to_target": "{{word}}",
        "metric_list": [
            {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
            {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
        ],
        "metadata": {"version": 1.0},
    }


def _function(data: Path) -> dict[str, Any]:
    """Own Python: docs, results with a metric of its own, an aggregation of its own."""
    return {
        **json_splits(data, "gen"),
        "output_type": "generate_until",
        "process_docs": function("tiny_functions.process_docs"),
        "doc_to_text": function("tiny_functions.doc_to_text"),
        "doc_to_target": "{{upper}}",
        "process_results": function("tiny_functions.process_results"),
        "generation_kwargs": {"until": ["."], "max_gen_toks": 6},
        "metric_list": [
            {
                "metric": "letters",
                "aggregation": function("tiny_functions.longest"),
                "higher_is_better": True,
            },
            {"metric": "flags", "aggregation": "bypass", "higher_is_better": True},
        ],
        "metadata": {"version": 0.5},
    }


def _write_groups(root: Path) -> None:
    write_task(
        root,
        {
            "group": "tiny_group",
            "group_alias": "Tiny group",
            "task": ["tiny_letters", "tiny_mutual"],
            "aggregate_metric_list": [
                {"metric": "acc", "aggregation": "mean", "weight_by_size": False}
            ],
            "metadata": {"version": 7},
        },
    )
    write_task(
        root,
        {
            "group": "tiny_nested",
            "task": ["tiny_group", "tiny_tag", {"task": "tiny_gen", "task_alias": "generation"}],
            "aggregate_metric_list": [
                {"metric": "acc", "aggregation": "mean", "weight_by_size": True},
                {"metric": "exact_match", "aggregation": "mean", "filter_list": ["strict"]},
            ],
        },
    )


def _write_data(data: Path, docs: int) -> None:
    rng = random.Random(7)

    def words(low: int, high: int) -> str:
        return " ".join(rng.choice(_WORDS) for _ in range(rng.randint(low, high)))

    def choice_row(i: int) -> dict[str, Any]:
        choices = [words(1, 3) for _ in range(4)]
        return {"id": i, "question": words(3, 6), "choices": choices, "label": rng.randrange(4)}

    def gen_row(i: int) -> dict[str, Any]:
        return {"id": i, "question": words(3, 5), "answer": words(1, 1)}

    for split, count in (("train", 8), ("test", docs)):
        write_jsonl(data / f"mc_{split}.jsonl", [choice_row(i) for i in range(count)])
        write_jsonl(data / f"gen_{split}.jsonl", [gen_row(i) for i in range(count)])
    lambada = [{"context": words(4, 9), "word": " " + words(1, 2)} for _ in range(docs)]
    lambada[0]["context"] = words(400, 400)  # longer than the model's context
    lambada[1]["context"] = lambada[1]["context"] + "  "  # trailing spaces move to the answer
    write_jsonl(data / "lambada_test.jsonl", lambada)
    texts = [{"text": words(5, 30)} for _ in range(docs - 1)] + [{"text": words(300, 300)}]
    write_jsonl(data / "rolling_test.jsonl", texts)


_FUNCTIONS = '''"""Functions of the tiny tasks; loaded by lm-eval from its YAML files."""

import datasets
from lm_eval.api.instance import Instance
from lm_eval.api.task import Task


def process_docs(dataset):
    return dataset.map(lambda doc: {"upper": doc["answer"].upper()})


def doc_to_text(doc):
    return f"Say {doc['upper']} about {doc['question']}:"


def process_results(doc, results):
    text = results[0]
    hits = [letter.lower() in text.lower() for letter in doc["upper"]]
    return {"letters": len(text) + 0.25 * sum(hits), "flags": hits}


def longest(values):
    return max(values)


class TinyClass(Task):
    """A Python task of the old kind: loads its own data and builds its own requests."""

    VERSION = 4
    DATASET_PATH = "tiny_class"

    def __init__(self, config=None):
        super().__init__(config=None)
        self.config.task = "tiny_class"

    def download(self, data_dir=None, cache_dir=None, download_mode=None):
        rows = [{"a": i, "b": 2 * i, "sum": 3 * i} for i in range(9)]
        self.dataset = {"test": datasets.Dataset.from_list(rows)}

    def has_training_docs(self):
        return False

    def has_validation_docs(self):
        return False

    def has_test_docs(self):
        return True

    def test_docs(self):
        return self.dataset["test"]

    def doc_to_text(self, doc):
        return f"{doc['a']} plus {doc['b']} is"

    def doc_to_target(self, doc):
        return f" {doc['sum']}"

    def fewshot_context(self, doc, num_fewshot, **kwargs):
        return self.doc_to_text(doc)

    def construct_requests(self, doc, ctx, **kwargs):
        kwargs.pop("apply_chat_template", None)
        kwargs.pop("chat_template", None)
        return [
            Instance("loglikelihood", doc, (ctx, self.doc_to_target(doc)), idx=0, **kwargs),
            Instance(
                "generate_until", doc, (ctx, {"until": ["."], "max_gen_toks": 4}), idx=1, **kwargs
            ),
        ]

    def process_results(self, doc, results):
        (logprob, greedy), text = results
        return {"acc": float(greedy), "pair": (logprob, len(text))}

    def aggregation(self):
        from lm_eval.api.metrics import mean, weighted_perplexity

        return {"acc": mean, "pair": weighted_perplexity}

    def higher_is_better(self):
        return {"acc": True, "pair": False}
'''
