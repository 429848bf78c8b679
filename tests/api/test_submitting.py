from pathlib import Path

import pytest

from raypeft.api import submitting
from raypeft.api.packing import Package
from raypeft.api.submitting import end_message, job_prefix
from raypeft.core.spec import Sweep, make_sweep
from raypeft.errors import SetupError


def sweep(**changes: object) -> Sweep:
    values = {"output": "/data/run", "bases": ["org/base"], "tasks": ["t"], "name": "night"}
    return make_sweep({**values, **changes})


def test_jobs_of_one_output_have_one_prefix_whatever_else_changes() -> None:
    first = job_prefix(sweep())
    assert first == job_prefix(sweep(tasks=["t", "u"]))
    assert first != job_prefix(sweep(output="/data/other"))
    assert first.startswith("raypeft-night-")


@pytest.mark.parametrize("name", ["Nächte, viele!", "…", "x" * 100])
def test_a_prefix_is_fit_for_an_id_whatever_the_sweep_is_called(name: str) -> None:
    prefix = job_prefix(sweep(name=name))
    assert prefix.isascii()
    assert prefix.replace("-", "").replace("_", "").isalnum()
    assert len(prefix) <= 60


@pytest.mark.parametrize(
    ("status", "code", "message", "words"),
    [
        ("SUCCEEDED", 0, "Job finished successfully.", ""),
        ("FAILED", 3, "exit code 3", ""),
        ("FAILED", 2, "exit code 2", ""),
        ("FAILED", 137, "killed", "was killed (exit code 137)"),
        ("FAILED", -9, "killed", "was killed (exit code -9)"),
        ("FAILED", 1, "python: No module named raypeft", "--with-code"),
        ("FAILED", None, "runtime env failed", "did not get to run: runtime env failed"),
        ("FAILED", 127, "python: not found", "exit code 127: python: not found"),
        ("STOPPED", None, "", "stopped"),
    ],
)
def test_an_end_says_what_to_do_unless_the_run_has(
    status: str, code: int | None, message: str, words: str
) -> None:
    said = end_message(status, code, message)
    assert words in said
    assert bool(said) == bool(words)


def test_a_file_that_cannot_be_read_is_said_and_not_thrown(tmp_path: Path) -> None:
    package = Package(sweep(), files={"tasks/gone.yaml": tmp_path / "gone.yaml"})
    with pytest.raises(SetupError, match=r"gone\.yaml"):
        submitting._write(package, tmp_path / "package.zip")
