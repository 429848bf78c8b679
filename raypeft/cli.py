"""The command line: reads arguments, calls `raypeft.api`, chooses the exit code.

The only module that prints. Nothing is decided here.
"""

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer
from rich.console import Console, RenderableType

from raypeft import __version__, api
from raypeft.api import views as records
from raypeft.api.pools import PoolKind
from raypeft.errors import Interrupted, RaypeftError, SpecError
from raypeft.report import terminal, views
from raypeft.report.progress import ProgressDisplay, duration_text

EXIT_OK = 0
EXIT_OUR_FAULT = 1
EXIT_BAD_SPEC = 2
EXIT_FAILED_CELLS = 3
EXIT_GATE_NOT_PASSED = 4
EXIT_INTERRUPTED = 130

MIN_PIPE_COLUMNS = 160
"""Width of tables where there is no terminal: a log should not fold them at 80."""

app = typer.Typer(
    name="raypeft",
    help="Every adapter of every base on every lm-eval task, overnight on Ray; gains that are "
    "facts.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
)

SweepFile = Annotated[Path, typer.Argument(help="The sweep file (YAML).", show_default=False)]
Output = Annotated[str, typer.Argument(help="A sweep's output folder or URI.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
PoolName = Annotated[
    Literal["ray", "local"],
    typer.Option("--pool", help="Run on Ray, or one thing at a time in this process."),
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address", help="The Ray cluster; by default RAY_ADDRESS, else a Ray started here."
    ),
]


def main() -> NoReturn:
    """Run the command line and leave with its exit code."""
    try:
        # Without standalone mode an `Exit` comes back as its code.
        code = app(standalone_mode=False)
    except Interrupted as error:
        _complain(
            f"interrupted by {error.signal_name}; everything finished is stored: start the "
            "same command again to go on"
        )
        sys.exit(EXIT_INTERRUPTED)
    except (KeyboardInterrupt, typer.Abort):
        _complain("interrupted")
        sys.exit(EXIT_INTERRUPTED)
    except SpecError as error:
        _complain(str(error))
        sys.exit(EXIT_BAD_SPEC)
    except RaypeftError as error:
        _complain(str(error))
        sys.exit(EXIT_OUR_FAULT)
    except Exception as error:  # noqa: BLE001 - typer's own usage errors, else a traceback
        _leave_with(error)
    sys.exit(code if isinstance(code, int) else EXIT_OK)


def _leave_with(error: Exception) -> NoReturn:
    show = getattr(error, "show", None)
    if callable(show):  # click's usage errors print themselves
        show()
        sys.exit(EXIT_BAD_SPEC)
    raise error


def _complain(text: str) -> None:
    typer.echo(f"raypeft: {text}", err=True)


def _console(*, stderr: bool = False) -> Console:
    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal:
        console = Console(stderr=stderr, highlight=False, width=MIN_PIPE_COLUMNS)
    return console


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, allow_nan=False, default=str))


def _print(*things: RenderableType) -> None:
    console = _console()
    for thing in things:
        console.print(thing)


@app.command()
def plan(
    sweep_file: SweepFile,
    as_json: AsJson = False,
    freeze: Annotated[
        bool, typer.Option(help="Let lm-eval build request sets that are not stored yet.")
    ] = True,
) -> None:
    """Show what a run would do: cells, what is done, engines, what cannot work."""
    with ProgressDisplay(_console(stderr=True), time.monotonic) as display:
        planned = api.plan(
            api.load_sweep(sweep_file), freeze=freeze, listener=api.Listener(say=display.say)
        )
    summary, cells = records.plan_summary(planned), records.plan_records(planned)
    bases = records.base_records(planned)
    if as_json:
        _print_json({"summary": summary, "bases": bases, "cells": cells})
    else:
        _print(views.records_view("Bases", bases), views.records_view("Cells", cells))
        _print(views.records_view("Summary", [summary]))
    if summary["failed"]:
        raise typer.Exit(EXIT_FAILED_CELLS)


@app.command()
def freeze(sweep_file: SweepFile, as_json: AsJson = False) -> None:
    """Build and store the request sets; afterwards only scoring needs the task files."""
    with ProgressDisplay(_console(stderr=True), time.monotonic) as display:
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
    _print_json(tasks) if as_json else _print(views.records_view("Request sets", tasks))
    if any(task["failure"] for task in tasks):
        raise typer.Exit(EXIT_FAILED_CELLS)


@app.command()
def run(
    sweep_file: SweepFile,
    pool: PoolName = "ray",
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Run a sweep to its end, or go on where the last run stopped."""
    sweep = api.load_sweep(sweep_file)
    report = _run(sweep, pool, address)
    _show_run(report, sweep.name, as_json)


def _run(sweep: api.Sweep, pool: PoolKind, address: str | None) -> api.RunReport:
    with ProgressDisplay(_console(stderr=True), time.monotonic) as display:
        listener = api.Listener(say=display.say, progress=display.show)
        return api.run(sweep, pool=pool, address=address, listener=listener)


def _show_run(report: api.RunReport, title: str, as_json: bool) -> None:
    if as_json:
        _print_json(records.run_record(report))
    else:
        _print(terminal.render(api.report(report.output), title=title))
        _print(
            f"{report.num_done} cells scored, {report.num_reused} of them before this run, in "
            f"{duration_text(report.seconds)}; tables: {report.output}/tables"
        )
    if report.failed:
        raise typer.Exit(EXIT_FAILED_CELLS)


@app.command()
def status(output: Output, as_json: AsJson = False) -> None:
    """Show where a sweep stands: what is done, what runs, what waits and why."""
    found = api.status(output)
    if as_json:
        _print_json(records.status_record(found))
    else:
        _print(views.status_view(found, title=output, now_seconds=time.time()))


@app.command()
def report(
    output: Output,
    as_json: AsJson = False,
    details: Annotated[
        bool, typer.Option("--all", help="Every metric with interval and p.")
    ] = False,
) -> None:
    """Show the baselines, the gains and what failed."""
    morning = api.report(output)
    if as_json:
        _print_json(records.report_record(morning))
    else:
        _print(terminal.render(morning, title=output, details=details))


@app.command()
def compare(
    output: Output,
    left: Annotated[str, typer.Argument(help="A subject, or OTHER_OUTPUT::SUBJECT.")],
    right: Annotated[str, typer.Argument(help="What is compared with it.")],
    as_json: AsJson = False,
) -> None:
    """Compare any two subjects, document by document; refused where that would mislead."""
    gains = records.gain_records(api.compare(output, left, right))
    if as_json:
        _print_json(gains)
    else:
        _print(terminal.details_table(gains, title=f"{right} over {left}"))


@app.command()
def export(
    output: Output,
    out: Annotated[Path, typer.Option("--out", help="Folder to write to.")],
    to: Annotated[Literal["lm-eval"], typer.Option("--to", help="The format.")] = "lm-eval",
    subject: Annotated[
        list[str] | None, typer.Option("--subject", help="Only this subject; repeatable.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write results and samples in the files of another tool."""
    exports = api.export(output, out, subjects=tuple(subject or ()), to=to)
    found = [{"subject": one.subject, "results": str(one.results)} for one in exports]
    _print_json(found) if as_json else _print(views.records_view("Exported", found))


@app.command()
def schema() -> None:
    """Print the JSON Schema of the sweep file, for editors."""
    _print_json(api.schema())


@app.command(
    "lm-eval",
    add_help_option=False,
    context_settings={
        "allow_extra_args": True,
        "allow_interspersed_args": False,
        "ignore_unknown_options": True,
    },
)
def lm_eval(context: typer.Context) -> None:
    """Run lm-eval itself, with its own arguments; `--model raypeft-hf` is known to it."""
    api.lm_eval(context.args)


@app.command()
def doctor(
    sweep_file: Annotated[
        Path | None, typer.Argument(help="Also try this sweep's output and store.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what is wrong with this machine and how to mend it."""
    sweep = None if sweep_file is None else api.load_sweep(sweep_file)
    checks = [
        {"check": c.name, "status": str(c.status), "found": c.found, "remedy": c.remedy}
        for c in api.doctor(sweep)
    ]
    _print_json(checks) if as_json else _print(views.records_view("Doctor", checks))
    if any(check["status"] == api.CheckStatus.PROBLEM for check in checks):
        raise typer.Exit(EXIT_OUR_FAULT)


@app.command()
def demo(
    folder: Annotated[Path, typer.Option("--folder", help="Where everything goes.")] = Path(
        "demo-run"
    ),
    pool: PoolName = "ray",
) -> None:
    """Train a tiny base and adapters, evaluate them, and show the morning table."""
    with ProgressDisplay(_console(stderr=True), time.monotonic) as display:
        listener = api.Listener(say=display.say, progress=display.show)
        found = api.demo(folder, pool=pool, listener=listener)
    output = found.run.output
    _print(terminal.render(api.report(output), title="demo"))
    _print(
        f"\n{found.run.num_done} cells scored in {duration_text(found.run.seconds)}, "
        f"{found.run.num_reused} of them before. The tables lie in {output}/tables.\n"
        "Type next:\n"
        f"  raypeft report {output} --all        every metric with its interval\n"
        f"  raypeft run {found.sweep}       again: nothing is left to do\n"
        f"  raypeft compare {output} SUBJECT SUBJECT\n"
        f"  raypeft export {output} --out exported"
    )


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)
