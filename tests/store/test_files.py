import errno
import fcntl
import os
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pyarrow.fs as pafs
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from raypeft.errors import SetupError
from raypeft.store import files
from raypeft.store.files import Folder


def test_a_file_is_written_whole_and_read_back(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "new" / "place")
    folder.write("a/b.bin", b"123")
    assert folder.read("a/b.bin") == b"123"
    assert folder.exists("a/b.bin")
    assert [(e.name, e.size_bytes) for e in folder.entries()] == [("a/b.bin", 3)]
    folder.write("a/b.bin", b"")
    assert folder.read("a/b.bin") == b""


def test_what_is_not_there_is_none_and_not_an_error(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "nowhere")
    assert folder.read("x") is None
    assert folder.open_random_access("x") is None
    assert not folder.exists("x")
    assert folder.entries("x") == []


def test_an_exception_while_writing_leaves_nothing(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.write("a", b"old")
    with pytest.raises(KeyboardInterrupt), folder.open_for_write("a") as stream:  # noqa: PT012
        stream.write(b"half of the ne")
        raise KeyboardInterrupt
    assert folder.read("a") == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_a_new_file_has_the_permissions_of_the_users_other_files(tmp_path: Path) -> None:
    Folder(tmp_path).write("ours", b"")
    (tmp_path / "theirs").write_bytes(b"")
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE(
        (tmp_path / "theirs").stat().st_mode
    )


def test_leftovers_of_killed_processes_are_ignored_and_removed_when_old(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.write("sub/kept", b"1")
    for name, age in ((".kept.abc.tmp", 100.0), (".young.abc.tmp", 900.0)):
        (tmp_path / "sub" / name).write_bytes(b"half")
        os.utime(tmp_path / "sub" / name, (age, age))
    assert [entry.name for entry in folder.entries()] == ["sub/kept"]
    assert folder.remove_leftovers(500.0) == ["sub/.kept.abc.tmp"]
    assert sorted(os.listdir(tmp_path / "sub")) == [".young.abc.tmp", "kept"]


def test_a_file_in_the_way_of_a_folder_is_a_setup_error_with_place_and_remedy(
    tmp_path: Path,
) -> None:
    (tmp_path / "store").write_text("not a folder")
    with pytest.raises(SetupError) as caught:
        Folder(tmp_path / "store").check_writable()
    assert str(tmp_path / "store") in caught.value.message
    assert "choose another place" in caught.value.remedy


def test_an_unknown_kind_of_place_is_a_setup_error() -> None:
    with pytest.raises(SetupError, match="foo://bucket"):
        Folder("foo://bucket/x")


def test_a_check_leaves_nothing_behind(tmp_path: Path) -> None:
    Folder(tmp_path).check_writable()
    assert os.listdir(tmp_path) == []


def test_a_file_that_the_disk_refuses_half_way_leaves_no_trace(tmp_path: Path) -> None:
    """The limit on file sizes stands in for a full disk: the same write fails the same way."""
    script = """
        import resource, signal, sys
        from raypeft.errors import SetupError
        from raypeft.store.files import Folder
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        folder = Folder(sys.argv[1])
        folder.write("small", b"1" * 1000)
        try:
            folder.write("large", b"1" * 1001)
        except SetupError as error:
            assert "large cannot be written" in error.message, error
            assert "choose another place" in error.remedy, error
        else:
            raise SystemExit("no error")
    """
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)],
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert os.listdir(tmp_path) == ["small"]


class FullFilesystem(pafs.FSSpecHandler):  # type: ignore[misc]
    """A filesystem without space, as an object store or a network share may be."""

    def open_output_stream(self, path: str, metadata: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


def test_a_full_remote_filesystem_is_a_setup_error_with_place_and_remedy() -> None:
    folder = Folder(pafs.PyFileSystem(FullFilesystem(MemoryFileSystem())))
    with pytest.raises(SetupError) as caught:
        folder.write("a/b", b"1")
    assert "a/b" in caught.value.message
    assert "No space left" in caught.value.message
    assert "free space" in caught.value.remedy


def test_a_stream_to_a_filesystem_that_cannot_rename_is_put_at_once() -> None:
    folder = Folder(pafs._MockFileSystem())
    with pytest.raises(RuntimeError), folder.open_for_write("t/x") as stream:  # noqa: PT012
        stream.write(b"half")
        raise RuntimeError
    assert folder.read("t/x") is None
    with folder.open_for_write("t/x") as stream:
        stream.write(b"who")
        stream.write(b"le")
    with folder.open_for_write("t/empty") as stream:
        pass
    assert (folder.read("t/x"), folder.read("t/empty")) == (b"whole", b"")


def test_of_two_that_lock_a_file_one_has_it_until_its_block_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "LOCK_SECONDS", 0.0)
    first, second = Folder(tmp_path / "new"), Folder(tmp_path / "new")
    with first.locked("lock"):
        with pytest.raises(SetupError, match="another process has held it"), second.locked("lock"):
            pytest.fail("both have it")
        with second.locked("another"):
            pass
    with second.locked("lock"):
        pass


def test_where_nothing_can_be_locked_nobody_is_kept_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(handle: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unknown)
    done = []
    with Folder(tmp_path).locked("lock"), Folder(tmp_path).locked("lock"):
        done.append(True)
    assert done


def test_a_lock_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SetupError, match="cannot be locked"), Folder(tmp_path / "file").locked("x"):
        pytest.fail("it was made")
