"""A sweep file → a job on a Ray cluster, followed to its end.

The job runs `raypeft run` on the sweep as `raypeft.api.packing` made it up. What is submitted
again goes on where the last job stopped: the store knows what is done.
"""

import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import raypeft
from raypeft.api.packing import OWN_FOLDER, Package, pack
from raypeft.api.sweeps import read_sweep
from raypeft.core.identity import digest
from raypeft.core.spec import Sweep, dump_sweep
from raypeft.errors import SetupError
from raypeft.runtime.package import write_package

SWEEP_IN_PACKAGE = f"{OWN_FOLDER}/sweep.yaml"
"""Not beside the files of the user: of two files of one name the second would be run."""

ENTRYPOINT = f"python -m raypeft run {SWEEP_IN_PACKAGE}"

VARIABLES = {
    # Without it what the run prints arrives when it ends.
    "PYTHONUNBUFFERED": "1",
    # `ray job stop` gives three seconds by default, too few to store what slots have just answered.
    "RAY_JOB_STOP_WAIT_TIME_S": "60",
}

KILLED = (9, 137)
"""What a command's exit code is after SIGKILL, signs aside: Python counts otherwise than a shell.
"""

TOLD = (0, 1, 2, 3, 130)
"""Exit codes of `raypeft run`, which has said why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """A sweep that was handed over.

    Attributes:
        job: The job's id on the cluster.
        address: The cluster's.
        output: Where the results go.
        follow: How the job is followed and stopped, in words.
        status: How it ended, in Ray's words; empty if that was not waited for.
        exit_code: Of `raypeft run` there; None if it did not get to one.
        message: What is to be known about its end, and done about it.
    """

    job: str
    address: str
    output: str
    follow: str
    status: str = ""
    exit_code: int | None = None
    message: str = ""


def submit_sweep(
    sweep_file: str | Path,
    *,
    address: str | None = None,
    shared_files: bool = False,
    with_code: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Submitted:
    """Submit a sweep to a Ray cluster; `follow_job` waits for its end.

    Args:
        sweep_file: The YAML file; relative paths start at the working directory.
        address: The cluster's job server, for instance `http://127.0.0.1:8265`; None takes
            RAY_API_SERVER_ADDRESS.
        shared_files: Whether the cluster sees this machine's files under the same paths; then
            nothing travels but the sweep.
        with_code: Whether this raypeft travels too, for a cluster that has none or another.
        say: Told in words what goes on here.

    Raises:
        SpecError: If the sweep cannot run there as it is.
        SetupError: If the cluster cannot be reached, refuses, or has a job of this output.
    """
    from raypeft.runtime.submit import (  # Ray, which reading a sweep must not need
        Handover,
        JobServer,
        find_address,
        find_token,
        follow_hint,
        token_warning,
    )

    package = pack(read_sweep(sweep_file), shared_files=shared_files, source=str(sweep_file))
    found, token = find_address(address), find_token()
    for note in filter(None, (*package.notes, token_warning(found, token))):
        say(note)
    server = JobServer(found, token)
    with tempfile.TemporaryDirectory(prefix="raypeft-submit-") as scratch:
        archive = Path(scratch) / "package.zip"
        _write(package, archive)
        handover = Handover(
            entrypoint=ENTRYPOINT,
            package=archive,
            modules=(Path(raypeft.__file__).parent,) if with_code else (),
            variables=VARIABLES,
            metadata=_metadata(package.sweep),
        )
        job = server.submit(job_prefix(package.sweep), handover)
    hint = follow_hint(job, found)
    return Submitted(job=job, address=found, output=package.sweep.output, follow=hint)


def follow_job(submitted: Submitted, log: Callable[[str], None] = lambda text: None) -> Submitted:
    """Wait until a job ends, and return what became of it.

    Args:
        submitted: The job, from `submit_sweep`.
        log: Given its log part by part, newlines included.

    Raises:
        SetupError: If the log cannot be had any more; the job goes on.
    """
    from raypeft.runtime.submit import JobServer, find_token

    end = JobServer(submitted.address, find_token()).follow(submitted.job, log)
    return replace(
        submitted,
        status=end.status,
        exit_code=0 if end.status == "SUCCEEDED" else end.exit_code,
        message=end_message(end.status, end.exit_code, end.message),
    )


def job_prefix(sweep: Sweep) -> str:
    """Return what the ids of a sweep's jobs begin with.

    It depends on the output alone: a sweep that was changed and goes to the same place is the
    same work, of which two must not be under way.
    """
    name = re.sub(r"[^A-Za-z0-9_]+", "-", sweep.name).strip("-")[:40] or "sweep"
    return f"raypeft-{name}-{digest('job', 1, [sweep.output])[:8]}"


def end_message(status: str, exit_code: int | None, message: str) -> str:
    """Return what is to be known about a job's end; empty where its log has said everything."""
    again = "submit it again: it goes on where it stopped"
    if status == "STOPPED":
        return f"the job was stopped; {again}"
    if "No module named raypeft" in message:
        return "raypeft is not installed there: install it, or bring this one with --with-code"
    if status == "SUCCEEDED" or exit_code in TOLD:
        return ""
    if exit_code is None:
        return f"the job did not get to run: {message or 'Ray gives no reason'}"
    if abs(exit_code) in KILLED:
        return f"its driver was killed (exit code {exit_code}), often for want of memory; {again}"
    return f"its driver ended with exit code {exit_code}: {message}; {again}"


def _write(package: Package, archive: Path) -> None:
    try:
        write_package(
            archive,
            files=package.files,
            texts={SWEEP_IN_PACKAGE: dump_sweep(package.sweep)},
            folders=package.folders,
        )
    except OSError as error:
        remedy = "make it readable, or make room in the folder for temporary files (TMPDIR)"
        raise SetupError(f"the package could not be written: {error}", remedy) from error


def _metadata(sweep: Sweep) -> dict[str, str]:
    """Return what `ray job list` shows of a sweep; anybody who reaches the cluster reads it."""
    values: dict[str, Any] = {
        "raypeft.sweep": sweep.name,
        "raypeft.output": sweep.output,
        "raypeft.plan": digest("submitted", 1, [dump_sweep(sweep)])[:16],
        "raypeft.version": raypeft.__version__,
    }
    return {name: str(value) for name, value in values.items()}
