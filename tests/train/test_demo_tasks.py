import json
from pathlib import Path

import pytest
from lm_eval.tasks import TaskManager

from raypeft.train.demo_tasks import NUM_CHOICES, NUM_FEWSHOT, TASKS, task_files
from raypeft.train.world import make_valley

pytestmark = pytest.mark.torch

VALLEY = make_valley(0)
DOCUMENTS = VALLEY.strangers[:12]
FEWSHOT = VALLEY.known[:8]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    files = task_files(folder, documents=DOCUMENTS, fewshot=FEWSHOT, seed=0)
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture(scope="module")
def loaded(folder: Path, tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
        manager = TaskManager(include_path=str(folder), include_defaults=False)
        yield manager.load(list(TASKS))


def test_lm_eval_loads_the_tasks_and_the_group(loaded) -> None:  # type: ignore[no-untyped-def]
    kinds = {name: task.OUTPUT_TYPE for name, task in loaded["tasks"].items()}
    assert kinds == {
        "demo_home": "multiple_choice",
        "demo_meal": "generate_until",
        "demo_story": "loglikelihood_rolling",
        "demo_trade": "multiple_choice",
        "demo_pet": "multiple_choice",
        "demo_dress": "multiple_choice",
    }
    assert set(loaded["groups"]) == {"demo_life"}


def test_every_document_is_about_a_stranger(folder: Path) -> None:
    for path in folder.glob("*_test.jsonl"):
        lines = path.read_text().splitlines()
        assert len(lines) == len(DOCUMENTS)
        for line, person in zip(lines, DOCUMENTS, strict=True):
            assert person.name in line
        assert not any(person.name in line for line in lines for person in VALLEY.known)


def test_the_right_choice_is_the_fact_and_stands_anywhere(folder: Path) -> None:
    lines = (folder / "demo_pet_test.jsonl").read_text().splitlines()
    documents = [json.loads(line) for line in lines]
    for document, person in zip(documents, DOCUMENTS, strict=True):
        assert document["choices"][document["answer"]] == person.facts["pet"]
        assert len(set(document["choices"])) == NUM_CHOICES
    assert len({document["answer"] for document in documents}) > 1


def test_few_shot_examples_are_solved_questions_about_the_known(loaded) -> None:  # type: ignore[no-untyped-def]
    task = loaded["tasks"]["demo_trade"]
    task.set_fewshot_seed(1234)
    document = task.test_docs()[0]
    text = task.fewshot_context(document, num_fewshot=NUM_FEWSHOT)
    assert text.count("Question:") == NUM_FEWSHOT + 1
    assert text.endswith("\nAnswer:")
    assert sum(person.name in text for person in FEWSHOT) in {1, NUM_FEWSHOT}


def test_the_filter_takes_the_answer_out_of_a_generation(loaded) -> None:  # type: ignore[no-untyped-def]
    (ensemble,) = loaded["tasks"]["demo_meal"]._filters
    assert ensemble.name == "two-words"
    (matched, unmatched) = [
        function().apply([[text]], [{}])
        for text in (" onion soup and more", "7 onions")
        for function in ensemble.filters[:1]
    ]
    assert list(matched) == [["onion soup"]]
    assert list(unmatched) == [["[invalid]"]]
