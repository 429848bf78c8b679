"""Commands about raypeft and this machine: schema, lm-eval, doctor, demo, version."""

import time
from pathlib import Path
from typing import Annotated

import typer

from raypeft import __version__, api
from raypeft.api.html_report import html_report_line
from raypeft.cli.app import (
    EXIT_OUR_FAULT,
    AsJson,
    PoolName,
    app,
    console_of,
    print_json,
    print_views,
)
from raypeft.report import terminal, views
from raypeft.report.progress import ProgressDisplay, duration_text


@app.command()
def schema() -> None:
    """Print the JSON Schema of the sweep file, for editors."""
    print_json(api.schema())


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
    print_json(checks) if as_json else print_views(views.records_view("Doctor", checks))
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
    with ProgressDisplay(console_of(stderr=True), time.monotonic) as display:
        listener = api.Listener(say=display.say, progress=display.show)
        found = api.demo(folder, pool=pool, listener=listener)
    output = found.run.output
    print_views(terminal.render(api.report(output), title="demo"))
    typer.echo(html_report_line(output))
    print_views(
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
