"""The import rule, the one-home rule, the purity of core and the size limits, read from source.

Each rule is also shown to catch breaches planted in small sources: a rule that finds nothing could
as well be one that looks at nothing.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from tests.architecture.rules import (
    core_breaches,
    docstring_breaches,
    form_breaches,
    home_breaches,
    layer_breaches,
    size_breaches,
)
from tests.architecture.source import ROOT, Source, sources

Rule = Callable[[Source], Iterator[str]]

RULES: tuple[Rule, ...] = (
    layer_breaches,
    home_breaches,
    form_breaches,
    core_breaches,
    size_breaches,
    docstring_breaches,
)

PACKAGE = sources("raypeft")


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_package_keeps_the_rule(rule: Rule) -> None:
    assert [breach for source in PACKAGE for breach in rule(source)] == []


@pytest.mark.parametrize("folder", ["tests", "benchmarks"])
def test_tests_and_benchmarks_keep_the_size_limits(folder: str) -> None:
    assert [breach for source in sources(folder) for breach in size_breaches(source)] == []


def test_every_layer_of_the_package_is_read() -> None:
    read = {source.path.removeprefix("raypeft/").split("/")[0] for source in PACKAGE}
    assert read >= {"errors.py", "core", "harness", "engines", "store", "train", "__init__.py"}


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("raypeft/core/plan.py", "import raypeft.store.tables"),
        ("raypeft/core/plan.py", "from raypeft import store"),
        ("raypeft/errors.py", "from raypeft.core.records import Json"),
        ("raypeft/engines/hf.py", "from raypeft.harness.freeze import freeze"),
        ("raypeft/train/demo.py", "def late():\n    from raypeft.engines import hf"),
        ("raypeft/store/store.py", "import importlib\nimportlib.import_module('raypeft.runtime')"),
        (
            "raypeft/runtime/driver.py",
            "__import__('raypeft.api')",
        ),
        ("raypeft/report/terminal.py", "class Table:\n    from raypeft.cli import main"),
        ("raypeft/api/running.py", "import raypeft.cli"),
        ("raypeft/core/plan.py", "from raypeft.unheard_of import thing"),
        ("raypeft/__init__.py", "from raypeft.api import open_run"),
        ("raypeft/__init__.py", "def late():\n    import raypeft.cli"),
    ],
)
def test_an_import_against_the_layers_is_caught(path: str, text: str) -> None:
    assert len(list(layer_breaches(Source.of(path, text)))) == 1


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("raypeft/runtime/driver.py", "from raypeft import __version__\nimport raypeft"),
        ("raypeft/runtime/driver.py", "from raypeft.runtime.options import actor_options"),
        (
            "raypeft/cli/plan.py",
            "import raypeft.api\nimport raypeft.errors",
        ),
        ("raypeft/__init__.py", "def late():\n    from raypeft.api import open_run"),
        ("raypeft/core/plan.py", "import json\nfrom raypeftish.api import thing"),
    ],
)
def test_an_import_along_the_layers_is_allowed(path: str, text: str) -> None:
    assert list(layer_breaches(Source.of(path, text))) == []


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("raypeft/runtime/driver.py", "import ray"),
        ("raypeft/runtime/options.py", "from ray.util import state"),
        ("raypeft/harness/score.py", "def late():\n    import torch.nn"),
        ("raypeft/store/store.py", "from transformers import AutoModel"),
        ("raypeft/runtime/slot.py", "import importlib\nimportlib.import_module('peft')"),
        ("raypeft/train/demo.py", "from lm_eval import simple_evaluate"),
        ("raypeft/engines/hf.py", "import vllm"),
        ("raypeft/core/plan.py", "import pyarrow.parquet as pq"),
        ("raypeft/api/running.py", "import typer"),
        ("raypeft/runtime/driver.py", "from rich.table import Table"),
        ("raypeft/core/plan.py", "import numpy as np"),
        ("raypeft/store/store.py", "from scipy import stats"),
        ("raypeft/engines/hf.py", "import datasets"),
    ],
)
def test_a_heavy_package_away_from_home_is_caught(path: str, text: str) -> None:
    assert len(list(home_breaches(Source.of(path, text)))) == 1


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("raypeft/runtime/pool.py", "import ray"),
        ("raypeft/runtime/pool/actors.py", "import ray"),
        ("raypeft/engines/hf.py", "import torch, peft, lm_eval"),
        ("raypeft/engines/vllm_requests.py", "import vllm"),
        ("raypeft/core/stats.py", "import numpy\nfrom scipy import stats"),
        ("raypeft/runtime/driver.py", "import raypeft.runtime.options"),
    ],
)
def test_a_heavy_package_at_home_is_allowed(path: str, text: str) -> None:
    assert list(home_breaches(Source.of(path, text))) == []


@pytest.mark.parametrize(
    "text",
    [
        "from . import records",
        "from .records import Json",
        "def late():\n    from ..errors import SpecError",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import json",
        "import typing\nif typing.TYPE_CHECKING:\n    import json",
        "import importlib\nimportlib.import_module('ra' + 'y')",
    ],
)
def test_an_import_in_a_hiding_form_is_caught(text: str) -> None:
    assert len(list(form_breaches(Source.of("raypeft/core/plan.py", text)))) == 1


@pytest.mark.parametrize(
    "text",
    [
        "import time",
        "from os import environ",
        "def late():\n    import pathlib",
        "def read(path):\n    return open(path)",
        "import datetime\nnow = datetime.datetime.now()",
        "from datetime import date\nday = date.today()",
        "import random\nx = random.random()",
        "from random import shuffle",
        "import random\nrng = random.Random()",
        "import numpy as np\nrng = np.random.default_rng()",
    ],
)
def test_clock_disk_and_chance_in_core_are_caught(text: str) -> None:
    assert len(list(core_breaches(Source.of("raypeft/core/plan.py", text)))) == 1
    assert list(core_breaches(Source.of("raypeft/runtime/driver.py", text))) == []


def test_seeded_chance_and_given_times_are_allowed_in_core() -> None:
    text = (
        "import random\nfrom datetime import timedelta\nimport numpy as np\n"
        "def draw(seed: int) -> float:\n"
        "    np.random.default_rng(seed)\n"
        "    return random.Random(seed).random()\n"
    )
    assert list(core_breaches(Source.of("raypeft/core/resampling.py", text))) == []


def test_a_function_one_line_too_long_is_caught() -> None:
    def function(lines: int) -> Source:
        return Source.of("raypeft/core/plan.py", "def f():\n" + "    x = 1\n" * (lines - 1))

    assert list(size_breaches(function(60))) == []
    assert len(list(size_breaches(function(61)))) == 1


def test_a_method_that_is_too_long_is_caught() -> None:
    text = "class A:\n    async def f(self):\n" + "        x = 1\n" * 60
    assert len(list(size_breaches(Source.of("raypeft/core/plan.py", text)))) == 1


def test_a_module_one_line_too_long_is_caught() -> None:
    assert list(size_breaches(Source.of("raypeft/core/plan.py", "x = 1\n" * 500))) == []
    assert len(list(size_breaches(Source.of("raypeft/core/plan.py", "x = 1\n" * 501)))) == 1


@pytest.mark.parametrize("text", ["", "# a comment\nx = 1\n", '""""""\n'])
def test_a_module_without_a_docstring_is_caught(text: str) -> None:
    assert len(list(docstring_breaches(Source.of("raypeft/core/plan.py", text)))) == 1


BLOCKED = ("ray", "torch", "transformers", "peft", "lm_eval", "vllm", "datasets")

IMPORT_WITHOUT = """
import sys


class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"{name} is blocked")


BLOCKED = set(sys.argv[1].split(","))
sys.meta_path.insert(0, Blocker())
for module in sys.argv[2].split(","):
    __import__(module)
"""


def import_without_heavy_packages(modules: list[str]) -> subprocess.CompletedProcess[str]:
    """Import modules in a process of their own in which no heavy package can be imported."""
    return subprocess.run(
        [sys.executable, "-c", IMPORT_WITHOUT, ",".join(BLOCKED), ",".join(modules)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def below(prefix: str) -> list[str]:
    """Return the modules of the package whose dotted name begins so."""
    names = [source.module for source in PACKAGE]
    return [name for name in names if name == prefix or name.startswith(f"{prefix}.")]


@pytest.mark.parametrize(
    "prefix", ["raypeft.errors", "raypeft.core", "raypeft.store", "raypeft.report", "raypeft.cli"]
)
def test_planning_and_reporting_import_without_ray_and_torch(prefix: str) -> None:
    modules = ["raypeft", *below(prefix)]
    assert len(modules) > 1
    done = import_without_heavy_packages(modules)
    assert done.returncode == 0, done.stderr


def test_an_import_of_torch_is_caught_in_the_process_without_it() -> None:
    done = import_without_heavy_packages(["raypeft.train.loop"])
    assert done.returncode != 0
    assert "torch is blocked" in done.stderr
