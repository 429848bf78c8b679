"""The narrow index holds what lm-eval's full index holds for the names that matter."""

import pickle
from pathlib import Path

import pytest
import yaml

from tests.support.tasks import write_task

pytestmark = pytest.mark.torch

HANDFUL = (
    "hellaswag",
    "gsm8k",
    "mmlu",
    "mmlu_anatomy",
    "mmlu_humanities_tasks",
    "ai2_arc",
    "arc_easy",
    "leaderboard",
    "bbh",
    "lambada",
    "wikitext",
    "squadv2",
    "glue",
    "super-glue-lm-eval-v1",
    "mmmlu_hi_in_security_studies",
    "flan_held_in",
)


@pytest.mark.slow
def test_bundled_names_mean_the_same_as_in_the_full_index() -> None:
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._index import Kind

    from raypeft.harness.index import build_index

    full = TaskManager().task_index
    for name in (*HANDFUL, *sorted(full)[::97]):
        for key, entry in build_index(name).items():
            assert (entry.kind, entry.yaml_path) == (full[key].kind, full[key].yaml_path), key
            if entry.kind is Kind.TAG:
                assert entry.tags == full[key].tags, key
            else:
                assert entry.cfg == full[key].cfg, key


FORMS = {
    "plain.yaml": "task: plain\ntag: [one, two]\n",
    "quoted.yaml": '"task": \'quoted\'\n"tag": one\n',
    "spaced.yaml": "task : spaced   # a comment\ntag:\n  - one\n  - 'three four'\n",
    "flow.yaml": "task: flow\ntag: [\n  one,\n  five\n]\n",
    "folded.yaml": "task: >-\n  folded\ntag: one\n",
    "next_line.yaml": "task:\n  next_line\n",
    "windows.yaml": "task: windows\r\ntag:\r\n- one\r\n",
    "document.yaml": "{task: document, tag: one}\n",
    "base_template": "tag: inherited\ndoc_to_text: x\n",
    "child.yaml": "include: base_template\ntask: child\n",
    "grandchild.yaml": "include: [child.yaml]\ntask: grandchild\n",
    "list.yaml": "include:\n  - base_template\ntask: list_include\n",
    "a_first.yaml": "task: twice\nmarker: first\ntag: one\n",
    "b_second.yaml": "task: twice\nmarker: second\ntag: two\n",
    "group.yaml": "group: all\ntask:\n  - plain\n  - one\n  - group: inline\n    task: [child]\n"
    "  - task: windows\n    num_fewshot: 3\n",
    "broken.yaml": "task: [unclosed\n",
    "sub/below.yaml": "task: below\ntag: one\n",
    "__pycache__/ignored.yaml": "task: ignored\n",
}

NAMES = ["plain", "quoted", "spaced", "flow", "folded", "next_line", "windows", "document"]
NAMES += ["child", "grandchild", "list_include", "twice", "below", "all"]
NAMES += ["one", "two", "three four", "five", "inherited"]


@pytest.fixture
def forms(tmp_path: Path) -> Path:
    for name, text in FORMS.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(text.encode())
    return tmp_path


@pytest.mark.parametrize("name", NAMES)
def test_every_yaml_form_is_found_as_by_lm_eval(forms: Path, name: str) -> None:
    from lm_eval.tasks._index import TaskIndex

    from raypeft.harness.index import build_index

    full = TaskIndex.build([forms])
    assert name in full
    for key, entry in build_index(name, [str(forms)]).items():
        assert entry == full[key]


def test_a_group_brings_the_members_of_its_members(forms: Path) -> None:
    from raypeft.harness.index import build_index

    index = build_index("all", [str(forms)])
    assert {"all", "plain", "one", "child", "windows", "twice", "below"} <= index.keys()
    assert "ignored" not in index
    assert "five" not in index


def test_a_later_include_path_overrides_an_earlier_one_and_both_override_lm_eval(
    tmp_path: Path,
) -> None:
    from raypeft.harness.index import build_index

    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
        write_task(folder, {"task": "hellaswag", "description": folder.name})
    only_first = build_index("hellaswag", [str(first)])["hellaswag"]
    both = build_index("hellaswag", [str(first), str(second)])["hellaswag"]
    assert only_first.yaml_path == first / "hellaswag.yaml"
    assert both.yaml_path == second / "hellaswag.yaml"


def test_an_unknown_name_is_refused_with_the_nearest_known_ones(tmp_path: Path) -> None:
    from raypeft.harness.index import UnknownTaskError, build_index

    write_task(tmp_path, {"task": "my_very_own_task"})
    with pytest.raises(UnknownTaskError, match="hellaswag"):
        build_index("helaswag")
    with pytest.raises(UnknownTaskError, match="my_very_own_task") as caught:
        build_index("my_very_own_tsak", [str(tmp_path)])
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_yaml_file_is_an_entry_and_its_group_may_name_bundled_tasks(tmp_path: Path) -> None:
    from raypeft.harness.index import build_index

    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"group": "mine", "task": ["arc_easy", "arc_challenge"]}))
    assert {"arc_easy", "arc_challenge"} <= build_index(str(path)).keys()
