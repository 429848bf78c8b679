import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import peft
import pytest
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from raypeft.core.spec import parse_sweep
from raypeft.train.artifact import file_digests
from raypeft.train.demo import FOREIGN_NAMES, DemoInputs, DemoSettings, Progress, build_demo
from tests.train.conftest import small_demo

pytestmark = pytest.mark.torch

ADAPTERS = ["lora-r4", "lora-r16", "dora-r8", "ia3", "wrong-labels", "misfit"]
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> DemoInputs:
    return build_demo(tmp_path_factory.mktemp("demo"), settings=small_demo())


@pytest.fixture
def demo(built: DemoInputs) -> DemoInputs:
    """Return the demo for a test that damages it; the next use mends what it broke."""
    return build_demo(built.folder, settings=small_demo())


def parts_made(folder: Path, settings: DemoSettings, *, seed: int = 0) -> list[str]:
    """Build and return the parts that were trained anew."""
    told: list[Progress] = []
    build_demo(folder, seed=seed, settings=settings, on_progress=told.append)
    return [progress.part for progress in told if progress.step == progress.steps]


def test_everything_is_made_where_it_says(built: DemoInputs) -> None:
    assert list(built.adapters) == ADAPTERS
    assert all((path / WEIGHTS).is_file() for path in built.adapters.values())
    assert (built.base / "model.safetensors").is_file()
    assert (built.tasks / "demo_home.yaml").is_file()


def test_the_sweep_file_is_a_sweep_over_what_was_made(built: DemoInputs) -> None:
    sweep = parse_sweep(built.sweep.read_text(), source=str(built.sweep))
    (base,) = sweep.bases
    assert Path(base.path) == built.base
    assert [Path(entry.path) for entry in base.adapters] == list(built.adapters.values())
    assert [entry.table_name for entry in base.adapters] == ADAPTERS
    assert [task.name for task in sweep.tasks] == [
        "demo_trade",
        "demo_meal",
        "demo_story",
        "demo_life",
    ]
    assert Path(sweep.include_path[0]) == built.tasks
    assert base.dtype == "float32"


def test_a_second_call_makes_nothing(demo: DemoInputs) -> None:
    before = file_digests(demo.folder)
    assert parts_made(demo.folder, small_demo()) == []
    assert file_digests(demo.folder) == before


def test_a_second_call_imports_no_torch(demo: DemoInputs) -> None:
    program = (
        "import sys, pathlib\n"
        "from raypeft.train.demo import build_demo\n"
        "from tests.train.conftest import small_demo\n"
        "build_demo(pathlib.Path(sys.argv[1]), settings=small_demo())\n"
        "print(sorted({'torch', 'transformers', 'peft'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(demo.folder)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.strip() == "[]"


def test_a_damaged_adapter_alone_is_made_again(demo: DemoInputs) -> None:
    weights = demo.adapters["ia3"] / WEIGHTS
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    assert parts_made(demo.folder, small_demo()) == ["ia3"]
    assert weights.read_bytes() == whole


def test_adapters_follow_a_base_that_changed(demo: DemoInputs) -> None:
    settings = small_demo()
    trainer = replace(settings.base.trainer, steps=1)
    changed = replace(settings, base=replace(settings.base, trainer=trainer))
    trained = [name for name in ADAPTERS if name != "misfit"]
    assert parts_made(demo.folder, changed) == ["valley", *trained]
    misfit = load_file(demo.adapters["misfit"] / WEIGHTS)
    source = load_file(demo.adapters["lora-r4"] / WEIGHTS)
    assert all(
        (misfit[name.replace(*FOREIGN_NAMES)] == tensor).all() for name, tensor in source.items()
    )


def test_a_removed_task_file_is_written_again(demo: DemoInputs) -> None:
    before = file_digests(demo.tasks)
    (demo.tasks / "demo_life.yaml").unlink()
    build_demo(demo.folder, settings=small_demo())
    assert file_digests(demo.tasks) == before


def test_tasks_that_would_read_otherwise_are_written_again(demo: DemoInputs) -> None:
    more = replace(small_demo(), num_documents=7)
    assert parts_made(demo.folder, more) == []
    assert len((demo.tasks / "demo_pet_test.jsonl").read_text().splitlines()) == 7


def test_a_changed_sweep_file_is_kept(demo: DemoInputs) -> None:
    text = demo.sweep.read_text() + "# mine\n"
    demo.sweep.write_text(text)
    build_demo(demo.folder, settings=small_demo())
    assert demo.sweep.read_text() == text


def test_a_demo_that_moved_finds_its_files_again(demo: DemoInputs, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(demo.folder, moved)
    assert parts_made(moved, small_demo()) == []
    assert str(demo.folder) not in (moved / "demo.yaml").read_text()
    assert str(demo.folder) not in (moved / "tasks" / "demo_home.yaml").read_text()


def test_another_seed_makes_everything_anew(demo: DemoInputs) -> None:
    made = parts_made(demo.folder, small_demo(), seed=1)
    assert made == ["valley", *(name for name in ADAPTERS if name != "misfit")]


def test_not_one_tensor_of_the_misfit_fits(demo: DemoInputs) -> None:
    base = AutoModelForCausalLM.from_pretrained(demo.base)
    model = peft.PeftModel.from_pretrained(base, str(demo.adapters["lora-r4"]), "fitting")
    report = model.load_adapter(str(demo.adapters["misfit"]), "misfit")
    names = load_file(demo.adapters["misfit"] / WEIGHTS)
    assert len(report.unexpected_keys) == len(names) > 0
    missing = [key for key in report.missing_keys if ".misfit." in key]
    assert len(missing) == len(names)
