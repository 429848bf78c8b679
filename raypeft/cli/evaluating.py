"""Commands that take a sweep file: plan, freeze, run, submit, simulate."""

import time
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from raypeft import api
from raypeft.api import views as records
from raypeft.api.html_report import html_report_line
from raypeft.api.pools import PoolKind
from raypeft.cli.app import (
    EXIT_BAD_SPEC,
    EXIT_FAILED_CELLS,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_OUR_FAULT,
    Address,
    AsJson,
    PoolName,
    SweepFile,
    app,
    complain,
    console_of,
    print_json,
    print_views,
)
from raypeft.errors import SetupError
from raypeft.report import terminal, views
from raypeft.report.progress import ProgressDisplay, duration_text
from raypeft.report.text import excerpt
from raypeft.report.timeline import timeline_svg, timeline_text
from raypeft.runtime.logs import STANDARD_ERROR, CellLog, log_words, logged_to


@app.command()
def plan(
    sweep_file: SweepFile,
    as_json: AsJson = False,
    freeze: Annotated[
        bool, typer.Option(help="Let lm-eval build request sets that are not stored yet.")
    ] = True,
) -> None:
    """Show what a run would do: cells, what is done, engines, what cannot work."""
    with ProgressDisplay(console_of(stderr=True), time.monotonic) as display:
        planned = api.plan(
            api.load_sweep(sweep_file), freeze=freeze, listener=api.Listener(say=display.say)
        )
    now = datetime.now().astimezone()
    expected = api.expect(planned, now)
    summary, cells = records.plan_summary(planned, expected), records.plan_records(planned)
    bases = records.base_records(planned)
    if as_json:
        print_json({"summary": summary, "bases": bases, "cells": cells})
    else:
        print_views(views.records_view("Bases", bases), views.records_view("Cells", cells))
        print_views(views.records_view("Summary", [summary]), records.expected_line(expected, now))
    if summary["failed"]:
        raise typer.Exit(EXIT_FAILED_CELLS)


@app.command()
def freeze(sweep_file: SweepFile, as_json: AsJson = False) -> None:
    """Build and store the request sets; afterwards only scoring needs the task files."""
    with ProgressDisplay(console_of(stderr=True), time.monotonic) as display:
        frozen = api.freeze(api.load_sweep(sweep_file), listener=api.Listener(say=display.say))
    tasks = [
        {
            "base": base,
            "entry": task.entry,
            "task": task.name,
            "request_set": task.digest or None,
            "requests": task.num_requests,
            "tokens": task.tokens,
            "failure": None if task.failure is None else task.failure.message,
        }
        for base, members in frozen.by_base.items()
        for task in members
    ]
    print_json(tasks) if as_json else print_views(views.records_view("Request sets", tasks))
    if any(task["failure"] for task in tasks):
        raise typer.Exit(EXIT_FAILED_CELLS)


@app.command()
def run(
    sweep_file: SweepFile,
    pool: PoolName = "ray",
    address: Address = None,
    as_json: AsJson = False,
    log_json: Annotated[
        str | None,
        typer.Option(
            "--log-json",
            help="Append logs as JSON lines to this file, or with - to standard error, in place "
            "of the progress there; slots log so too, in Ray's own log files.",
        ),
    ] = None,
) -> None:
    """Run a sweep to its end, or go on where the last run stopped."""
    sweep = api.load_sweep(sweep_file)
    report = _run(sweep, pool, address, log_json)
    _show_run(report, sweep.name, as_json)


def _run(
    sweep: api.Sweep, pool: PoolKind, address: str | None, log_json: str | None
) -> api.RunReport:
    watchers = () if log_json is None else (CellLog(sweep.name),)
    with logged_to(log_json):
        if log_json == STANDARD_ERROR:
            listener = api.Listener(say=log_words, watchers=watchers)
            return api.run(sweep, pool=pool, address=address, listener=listener)
        with ProgressDisplay(console_of(stderr=True), time.monotonic) as display:
            listener = api.Listener(say=display.say, progress=display.show, watchers=watchers)
            return api.run(sweep, pool=pool, address=address, listener=listener)


def _show_run(report: api.RunReport, title: str, as_json: bool) -> None:
    if as_json:
        print_json(records.run_record(report))
    else:
        print_views(terminal.render(api.report(report.output), title=title))
        print_views(
            f"{report.num_done} cells scored, {report.num_reused} of them before this run, in "
            f"{duration_text(report.seconds)}; tables: {report.output}/tables"
        )
        typer.echo(html_report_line(report.output))
    if report.failed or report.left_out:
        raise typer.Exit(EXIT_FAILED_CELLS)


@app.command()
def submit(
    sweep_file: SweepFile,
    address: Annotated[
        str | None,
        typer.Option(
            "--address",
            help="The cluster's dashboard, for instance http://127.0.0.1:8265; by default "
            "RAY_API_SERVER_ADDRESS. The token is taken from RAY_AUTH_TOKEN or "
            "RAY_AUTH_TOKEN_PATH.",
        ),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Follow the log until the job ends.")
    ] = True,
    shared_files: Annotated[
        bool,
        typer.Option(
            "--shared-files", help="The cluster sees this machine's files: nothing travels."
        ),
    ] = False,
    with_code: Annotated[
        bool, typer.Option("--with-code", help="Bring this raypeft along.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run a sweep as a job of a Ray cluster; submitted again it goes on where it stopped."""
    submitted = api.submit(
        sweep_file,
        address=address,
        shared_files=shared_files,
        with_code=with_code,
        say=complain,
    )
    complain(f"submitted as {submitted.job}; {submitted.follow}")
    if wait:
        submitted = _follow_job(submitted, as_json)
    if as_json:
        print_json(records.submitted_record(submitted))
    if submitted.message:
        complain(submitted.message)
    if submitted.status:
        raise typer.Exit(_code_of_job(submitted))


def _follow_job(submitted: api.Submitted, as_json: bool) -> api.Submitted:
    def log(part: str) -> None:
        typer.echo(excerpt(part, len(part)).text, nl=False, err=as_json)

    try:
        return api.follow(submitted, log)
    except KeyboardInterrupt:
        complain(f"no longer followed; {submitted.job} goes on: {submitted.follow}")
        raise typer.Exit(EXIT_INTERRUPTED) from None


def _code_of_job(submitted: api.Submitted) -> int:
    """Return what `raypeft run` left with there, as far as it got to leave."""
    if submitted.status == "STOPPED":
        return EXIT_INTERRUPTED
    code = submitted.exit_code
    own = (EXIT_OK, EXIT_OUR_FAULT, EXIT_BAD_SPEC, EXIT_FAILED_CELLS, EXIT_INTERRUPTED)
    return code if code in own else EXIT_OUR_FAULT


@app.command()
def simulate(
    sweep_file: SweepFile,
    slots: Annotated[int | None, typer.Option(min=1, help="Slots; by default the sweep's.")] = None,
    failures: Annotated[
        str, typer.Option(help="For instance slot_loss=0.01,unit_failure=0.02,noise=0.2")
    ] = "",
    seed: Annotated[int, typer.Option(help="Seed of chance.")] = 0,
    timeline: Annotated[Path | None, typer.Option(help="SVG file for a picture.")] = None,
    as_json: AsJson = False,
) -> None:
    """Play what is left of a sweep on a virtual clock: how long, how many loads, how good."""
    chances, sweep = api.parse_chances(failures), api.load_sweep(sweep_file)
    night = api.simulate(sweep, slots=slots, chances=chances, seed=seed)
    found = records.simulated_record(night)
    if timeline is not None:
        try:
            timeline.write_text(timeline_svg(night), encoding="utf-8")
        except OSError as error:
            message, remedy = f"{timeline} cannot be written: {error}", "name a file that can"
            raise SetupError(message, remedy) from error
    print_json(found) if as_json else print_views(
        views.table("Simulated night", ("", "value"), list(found.items())),
        f"slots answering, begin to end: {timeline_text(night)}",
    )
