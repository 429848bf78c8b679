"""What tests that break things share: a cluster, an undisturbed run, and seeds.

`--chaos-seeds N` runs every test with N seeds, `--chaos-seed S` with this one alone. A failing
seed stands in the test's name and in its report.
"""

import shutil
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from raypeft import api
from raypeft.core.spec import Sweep, make_sweep
from tests.chaos.hosts import Hosts, started_hosts
from tests.chaos.night import Night, copy_frozen
from tests.support.lab import Lab

PLAIN: dict[str, Any] = {}
SCRIPT = {"waits": True, "seconds": 0.3}
"""Each unit takes long enough to be hit, and all of them some seconds."""

StartNight = Callable[..., Night]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--chaos-seed", type=int, help="the one seed to run with")
    parser.addoption("--chaos-seeds", type=int, default=1, help="how many seeds to run with")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed" in metafunc.fixturenames:
        one = metafunc.config.getoption("--chaos-seed", None)
        many = range(metafunc.config.getoption("--chaos-seeds", 1))
        metafunc.parametrize("seed", many if one is None else [one], ids=lambda n: f"seed{n}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    callspec = getattr(item, "callspec", None)
    if report.failed and callspec is not None and "seed" in callspec.params:
        seed = callspec.params["seed"]
        again = f"pytest {item.nodeid.split('[')[0]} --chaos-seed {seed}"
        report.sections.append(("seed", f"{seed}; again: {again}"))
    return report


@pytest.fixture(scope="session")
def cluster() -> Iterator[Hosts]:
    with started_hosts() as hosts:
        yield hosts


@pytest.fixture
def hosts(cluster: Hosts) -> Hosts:
    """The cluster with all its workers, whatever was done to it before."""
    cluster.have(PLAIN, PLAIN)
    return cluster


def lab_values(lab: Lab, folder: Path, **changes: Any) -> dict[str, Any]:
    adapters = [str(path) for path in lab.adapters.values()]
    return {
        "output": str(folder / "run"),
        "store": str(folder / "store"),
        "bases": [{"path": str(lab.base), "adapters": adapters}],
        "tasks": ["tiny_letters", "tiny_gen", "tiny_rolling"],
        "include_path": [str(lab.tasks.folder)],
        "engine": {"kind": "fake"},
        **changes,
    }


@pytest.fixture(scope="session")
def calm(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """A run that nobody disturbed."""
    sweep = make_sweep(lab_values(lab, tmp_path_factory.mktemp("calm")))
    assert api.run(sweep, pool="local").failed == {}
    return sweep


@pytest.fixture
def start_night(lab: Lab, calm: Sweep, cluster: Hosts, tmp_path: Path) -> Iterator[StartNight]:
    """Return a function that starts a driver on a sweep like the calm one.

    Its keywords are `events` and `script` for the fake engine, `environment` for the driver, and
    sections of the sweep.
    """
    nights: list[Night] = []

    def start(
        *,
        events: Any = (),
        script: Any = SCRIPT,
        environment: Any = None,
        starts: bool = True,
        **changes: Any,
    ) -> Night:
        options = {"script": {**script, "events": list(events)}}
        values = lab_values(
            lab,
            tmp_path,
            **{
                "engine": {"kind": "fake", "options": options},
                "schedule": {"slots": 3, "shards": 5},
                "hardware": {"gpus": 1, "cpus": 1},
                **changes,
            },
        )
        night = Night(make_sweep(values), cluster, tmp_path / "night", environment or {})
        copy_frozen(calm, night.sweep.store)
        nights.append(night)
        if starts:
            night.start()
        return night

    yield start
    for night in nights:
        night.close()
    shutil.rmtree(tmp_path, ignore_errors=True)
