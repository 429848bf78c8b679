"""The command line's frame: the app, its exit codes, arguments that commands share, printing."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console, RenderableType

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


def complain(text: str) -> None:
    """Say something that is not the result, on standard error."""
    typer.echo(f"raypeft: {text}", err=True)


def console_of(*, stderr: bool = False) -> Console:
    """Return where to print; wide enough where there is no terminal."""
    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal:
        console = Console(stderr=stderr, highlight=False, width=MIN_PIPE_COLUMNS)
    return console


def print_json(value: Any) -> None:
    """Print a value for programs."""
    typer.echo(json.dumps(value, indent=2, allow_nan=False, default=str))


def print_views(*things: RenderableType) -> None:
    """Print things for people."""
    console = console_of()
    for thing in things:
        console.print(thing)
