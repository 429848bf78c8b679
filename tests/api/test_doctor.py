"""What `raypeft doctor` says about vLLM, whether it is installed or not."""

from pathlib import Path

import pytest

from raypeft.api.doctor import CheckStatus, doctor
from raypeft.api.surroundings import vllm_installed
from raypeft.core.spec import make_sweep

pytestmark = pytest.mark.torch  # it looks for torch, in a process of its own


@pytest.mark.parametrize("kind", ["auto", "vllm"])
def test_vllm_is_missed_only_where_it_is_asked_for_by_name(kind: str, tmp_path: Path) -> None:
    sweep = make_sweep(
        {
            "output": str(tmp_path / "run"),
            "bases": ["a/b"],
            "tasks": ["t"],
            "engine": {"kind": kind},
        }
    )
    (check,) = [check for check in doctor(sweep, environ={}) if check.name == "vllm"]
    is_missed = kind == "vllm" and not vllm_installed()
    assert check.status is (CheckStatus.PROBLEM if is_missed else CheckStatus.OK)
    assert ("not installed" in check.found) is not vllm_installed()
