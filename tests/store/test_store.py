"""What is particular to the store beyond its contract (`tests/contract/store_contract.py`)."""

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from raypeft.core.records import Answer, SubjectAnswers
from raypeft.errors import SetupError, StoreError
from raypeft.store.store import Store
from tests.store.examples import HARDWARE, answers_for, choices, example_frozen, example_scored


def test_the_same_content_gives_the_same_files(tmp_path: Path) -> None:
    files = []
    for name in ("one", "two"):
        store = Store(tmp_path / name)
        store.put_frozen("key", example_frozen([choices()]))
        store.put_answers("cell", 0, 1, answers_for([0, 1]), HARDWARE, 0.5)
        store.put_scored("score", example_scored())
        files.append(
            {
                path.relative_to(tmp_path / name): path.read_bytes()
                for path in sorted((tmp_path / name).rglob("*"))
                if path.is_file()
            }
        )
    assert files[0] == files[1]
    assert len(files[0]) == 4


def test_an_unwritable_place_is_a_setup_error_with_place_and_remedy(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file")
    with pytest.raises(SetupError) as caught:
        Store(tmp_path / "store").check_writable()
    assert str(tmp_path / "store") in str(caught.value)
    assert caught.value.remedy


def test_a_damaged_file_is_kept_aside_for_whoever_wants_to_look(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put_scored("score", example_scored())
    (path,) = tmp_path.rglob("*.parquet")
    path.write_bytes(b"PAR1 and then nothing")
    assert store.get_scored("score") is None
    assert [found.name for found in path.parent.iterdir()] == [f"{path.name}.corrupt"]


def test_a_file_under_another_files_name_is_not_taken_for_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    one, other = choices(), choices(task="other")
    store.put_request_set(one)
    path = tmp_path / "requests" / f"{one.digest}.parquet"
    shutil.copy(path, path.with_name(f"{other.digest}.parquet"))
    assert store.get_request_set(other.digest) is None
    store.put_answers("cell", 0, 2, answers_for([0]), HARDWARE, 0.0)
    (answers,) = (tmp_path / "answers").rglob("*.parquet")
    shutil.copy(answers, answers.with_name(answers.name.replace(".0-of", ".1-of")))
    with pytest.raises(StoreError, match=r"shards \[1\] are missing"):
        store.get_answers("cell", 2)


def test_answers_of_another_cell_are_not_taken(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put_answers("cell-a", 0, 1, answers_for([0]), HARDWARE, 0.0)
    (path,) = (tmp_path / "answers").rglob("*.parquet")
    shutil.copy(path, path.with_name(path.name.replace("cell-a", "cell-b")))
    with pytest.raises(StoreError, match=r"shards \[0\] are missing"):
        store.get_answers("cell-b", 1)


def test_facts_of_lost_answers_are_comparable_with_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put_answers("cell-a", 0, 2, answers_for([0]), HARDWARE, 0.0)
    known, lost = store.shard_facts("cell-a", 2)
    (other,) = store.shard_facts("cell-b", 1)
    assert known.hardware == HARDWARE
    assert len({known.hardware.fingerprint, lost.hardware.fingerprint,
                other.hardware.fingerprint}) == 3  # fmt: skip


def test_a_killed_writer_leaves_nothing_that_counts(tmp_path: Path) -> None:
    script = """
        import os, signal, sys
        from raypeft.store.files import Folder
        with Folder(sys.argv[1]).open_for_write("scores/sc/score.parquet") as stream:
            stream.write(b"PAR1 half")
            stream.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)],
        check=False,
        env=environment,
    )
    assert done.returncode == -9
    store = Store(tmp_path)
    assert store.scored() == set()
    assert store.get_scored("score") is None
    store.put_scored("score", example_scored())
    assert store.scored() == {"score"}
    (left,) = store.remove_leftovers(before_seconds=float("inf"))
    assert left.startswith("scores/sc/.score.parquet.")
    assert store.scored() == {"score"}


def test_empty_answers_and_empty_samples_can_be_stored(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put_answers("cell", 0, 1, SubjectAnswers(subject="s"), HARDWARE, 0.0)
    answers, (facts,) = store.get_answers("cell", 1, num_requests=0)
    assert answers == list[Answer]()
    assert facts.num_answers == 0
