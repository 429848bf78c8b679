"""Commands that take a sweep's output: status, report, compare, gate, export."""

import time
from pathlib import Path
from typing import Annotated

import typer

from raypeft import api
from raypeft.api import views as records
from raypeft.api.exporting import ExportFormat
from raypeft.cli.app import (
    EXIT_GATE_NOT_PASSED,
    AsJson,
    Output,
    app,
    console_of,
    print_json,
    print_views,
)
from raypeft.core.status import RunPhase
from raypeft.report import status as standing
from raypeft.report import terminal, views

FOLLOW_SECONDS = 2.0
"""Between two looks at a journal that is followed."""


@app.command()
def status(
    output: Output,
    as_json: AsJson = False,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on showing it until the run ends.")
    ] = False,
    why: Annotated[
        str | None,
        typer.Option(
            "--why", help="Why this cell stands where it stands: SUBJECT/TASK or its key."
        ),
    ] = None,
) -> None:
    """Show where a sweep stands: what is done, what runs, what waits and why."""
    if follow and (as_json or why is not None):
        raise typer.BadParameter("--follow draws; it goes with neither --json nor --why")
    if why is not None:
        found = api.why(output, why)
        print_json(records.why_records(found)) if as_json else print_views(standing.why_view(found))
    elif follow:
        _follow(output)
    else:
        where, now = api.status(output), time.time()
        if as_json:
            print_json(records.status_record(where, now))
        else:
            print_views(standing.status_view(where, title=output, now_seconds=now))


def _follow(output: str) -> None:
    with standing.StatusDisplay(console_of(), output) as display:
        while True:
            where = api.status(output)
            display.show(where, time.time())
            if where.phase not in (RunPhase.PREPARING, RunPhase.RUNNING):
                return
            time.sleep(FOLLOW_SECONDS)


@app.command()
def report(
    output: Output,
    as_json: AsJson = False,
    details: Annotated[
        bool, typer.Option("--all", help="Every metric with interval and p.")
    ] = False,
    html: Annotated[
        bool, typer.Option("--html", help="Write one HTML file in place of printing.")
    ] = False,
    file: Annotated[
        Path | None,
        typer.Argument(help="With --html: the file, by default report.html in the output."),
    ] = None,
) -> None:
    """Show the baselines, the gains and what failed."""
    if file is not None and not html:
        raise typer.BadParameter(f"{file} is the file of --html: give both or none")
    if html:
        written = api.html_report(output, file)
        print_json({"html": written}) if as_json else typer.echo(written)
        return
    morning = api.report(output)
    if as_json:
        print_json(records.report_record(morning))
    else:
        print_views(terminal.render(morning, title=output, details=details))


@app.command()
def compare(
    output: Output,
    left: Annotated[
        str, typer.Argument(help="A subject, or OTHER_OUTPUT::SUBJECT; or another sweep's output.")
    ],
    right: Annotated[
        str | None,
        typer.Argument(help="The subject compared with it; left out where LEFT is a sweep."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare two subjects, or all subjects of two sweeps, document by document."""
    if right is None:
        found, title = api.compare_sweeps(output, left), f"{left} over {output}, each subject alone"
    else:
        found, title = api.compare(output, left, right), f"{right} over {left}"
    gains = records.gain_records(found)
    if as_json:
        print_json(gains)
    else:
        print_views(terminal.details_table(gains, title, ("left", "right")))


@app.command()
def gate(
    output: Output,
    policy: Annotated[Path, typer.Option("--policy", help="The policy file (YAML).")],
    as_json: AsJson = False,
) -> None:
    """Hold a policy against the gains: GO, NO-GO or UNDECIDED for each adapter, and why."""
    found = api.gate(output, policy)
    if as_json:
        print_json(records.gate_record(found))
    else:
        print_views(
            views.records_view("Checks", records.check_records(found)),
            views.records_view("Adapters", records.adapter_records(found)),
        )
        typer.echo("the policy is met" if found.passed else "the policy is not met")
    if not found.passed:
        raise typer.Exit(EXIT_GATE_NOT_PASSED)


@app.command()
def export(
    output: Output,
    out: Annotated[Path, typer.Option("--out", help="Folder to write to.")],
    to: Annotated[ExportFormat, typer.Option("--to", help="The format.")] = "lm-eval",
    subject: Annotated[
        list[str] | None, typer.Option("--subject", help="Only this subject; repeatable.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write results and samples in the files of another tool."""
    exports = api.export(output, out, subjects=tuple(subject or ()), to=to)
    found = [{"subject": one.subject, "results": str(one.results)} for one in exports]
    print_json(found) if as_json else print_views(views.records_view("Exported", found))
