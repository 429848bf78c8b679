"""Fixtures: a tiny model behind lm-eval's HFLM, and the tiny tasks."""

import os
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from tests.support.tasks import TinyTasks, write_tasks
from tests.support.tiny import tiny_llama, tiny_lora


@pytest.fixture(scope="session")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> TinyTasks:
    """Every tiny task."""
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny base."""
    return tiny_llama(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="session")
def adapter(base: Path) -> Path:
    """Folder of an adapter of the tiny base."""
    return tiny_lora(base, base.parent / "adapter")


@pytest.fixture(scope="session")
def lm(base: Path) -> Any:
    """lm-eval's own model around the tiny base."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(base), batch_size=4, device="cpu")
