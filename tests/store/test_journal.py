import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from raypeft.errors import SetupError, StoreError
from raypeft.store import journal as journal_module
from raypeft.store.files import Folder
from raypeft.store.journal import Journal, read_journal


def write(place: Path, *steps: int) -> Path:
    with Journal(place) as journal:
        for step in steps:
            journal.append("step", {"step": step}, at_seconds=float(step))
    return sorted((place / "journal").iterdir())[-1]


def steps(place: Path) -> list[int]:
    return [entry.fields["step"] for entry in read_journal(place)]


def test_a_line_is_on_disk_when_append_returns(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.append("step", {"step": 1}, at_seconds=0.5)
        (entry,) = read_journal(tmp_path)
    assert (entry.at_seconds, entry.kind, entry.fields) == (0.5, "step", {"step": 1})


def test_a_torn_last_line_is_left_out_and_the_next_run_goes_on(tmp_path: Path) -> None:
    path = write(tmp_path, 1, 2)
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        assert steps(tmp_path) == [1, 2][: max(0, whole[:cut].count(b"\n") - 1)]
    path.write_bytes(whole[:-3])
    write(tmp_path, 3)
    assert steps(tmp_path) == [1, 3]


def test_a_last_line_of_zeros_is_a_torn_line(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    path.write_bytes(path.read_bytes() + b"\0" * 20 + b"\n")
    assert steps(tmp_path) == [1]


def test_a_damaged_line_before_the_last_is_an_error_with_its_place(tmp_path: Path) -> None:
    path = write(tmp_path, 1, 2)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"{\n" + lines[2])
    with pytest.raises(StoreError, match=r"000001\.jsonl: line 2 is no JSON"):
        steps(tmp_path)


def test_a_line_that_is_none_of_a_journal_is_an_error_with_its_place(tmp_path: Path) -> None:
    path = write(tmp_path, 1, 2)
    path.write_bytes(path.read_bytes() + b'{"step": 3}\n')
    with pytest.raises(StoreError, match="line 4 is no line of a journal"):
        steps(tmp_path)


def test_a_segment_that_could_not_be_begun_can_be_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(folder: Path) -> None:
        raise OSError(5, "Input/output error")

    with Journal(tmp_path) as journal:
        with monkeypatch.context() as patch:
            patch.setattr(journal_module, "sync_folder", fail)
            with pytest.raises(SetupError, match="Input/output error"):
                journal.append("step", {"step": 1}, at_seconds=0.0)
        journal.append("step", {"step": 1}, at_seconds=0.0)
    assert steps(tmp_path) == [1]


def test_another_version_is_refused_with_both_numbers(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    path.write_bytes(path.read_bytes().replace(b'journal": 1', b'journal": 9'))
    with pytest.raises(StoreError, match="version 9 of the journal; this raypeft reads 1"):
        steps(tmp_path)


def test_a_run_without_events_leaves_no_segment(tmp_path: Path) -> None:
    with Journal(tmp_path):
        pass
    assert list(read_journal(tmp_path)) == []
    assert list(tmp_path.iterdir()) == []


def test_two_journals_at_once_do_not_mix_their_lines(tmp_path: Path) -> None:
    with Journal(tmp_path) as one, Journal(tmp_path) as other:
        one.append("step", {"step": 1}, at_seconds=0.0)
        with pytest.raises(SetupError, match="File exists"):
            other.append("step", {"step": 2}, at_seconds=0.0)
    assert steps(tmp_path) == [1]


def test_a_place_that_cannot_be_written_is_a_setup_error(tmp_path: Path) -> None:
    (tmp_path / "output").write_text("a file")
    with (
        pytest.raises(SetupError, match=r"000001\.jsonl cannot be written"),
        Journal(tmp_path / "output") as journal,
    ):
        journal.append("step", {}, at_seconds=0.0)


def test_after_a_full_disk_the_journal_goes_on_in_a_new_segment(tmp_path: Path) -> None:
    """The limit on file sizes stands in for a full disk: the same write fails the same way."""
    script = """
        import resource, signal, sys
        from raypeft.errors import SetupError
        from raypeft.store.journal import Journal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with Journal(sys.argv[1]) as journal:
            journal.append("step", {"step": 1}, at_seconds=0.0)
            limits = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (120, limits[1]))
            try:
                journal.append("step", {"step": "x" * 200}, at_seconds=0.0)
            except SetupError as error:
                assert "000001.jsonl cannot be written" in error.message, error
            else:
                raise SystemExit("no error")
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            journal.append("step", {"step": 3}, at_seconds=0.0)
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    subprocess.run(command, check=True, env=environment)
    first, second = sorted((tmp_path / "journal").iterdir())
    assert len(first.read_bytes()) == 120
    assert steps(tmp_path) == [1, 3]
    assert second.name == "000002.jsonl"


def test_segments_on_an_object_store_stay_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "LINES_PER_OBJECT", 3)
    bucket = pafs._MockFileSystem()
    with Journal(bucket) as journal:
        for step in range(8):
            journal.append("step", {"step": step}, at_seconds=0.0)
            assert len(list(read_journal(bucket))) == step + 1
    assert [entry.name for entry in Folder(bucket).entries("journal")] == [
        f"journal/00000{number}.jsonl" for number in (1, 2, 3)
    ]
