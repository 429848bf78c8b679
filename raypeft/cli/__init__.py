"""The command line: reads arguments, calls `raypeft.api`, chooses the exit code.

The only package that prints. Nothing is decided here. A command stands in the module of what it is
about, and is known to the app once that module is imported.
"""

import sys
from typing import NoReturn

import typer

from raypeft.cli import evaluating, reading, trying
from raypeft.cli.app import (
    EXIT_BAD_SPEC,
    EXIT_FAILED_CELLS,
    EXIT_GATE_NOT_PASSED,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_OUR_FAULT,
    app,
    complain,
)
from raypeft.errors import Interrupted, RaypeftError, SpecError

__all__ = [
    "EXIT_BAD_SPEC",
    "EXIT_FAILED_CELLS",
    "EXIT_GATE_NOT_PASSED",
    "EXIT_INTERRUPTED",
    "EXIT_OK",
    "EXIT_OUR_FAULT",
    "app",
    "evaluating",
    "main",
    "reading",
    "trying",
]


def main() -> NoReturn:
    """Run the command line and leave with its exit code."""
    try:
        # Without standalone mode an `Exit` comes back as its code.
        code = app(standalone_mode=False)
    except Interrupted as error:
        complain(
            f"interrupted by {error.signal_name}; everything finished is stored: start the "
            "same command again to go on"
        )
        sys.exit(EXIT_INTERRUPTED)
    except (KeyboardInterrupt, typer.Abort):
        complain("interrupted")
        sys.exit(EXIT_INTERRUPTED)
    except SpecError as error:
        complain(str(error))
        sys.exit(EXIT_BAD_SPEC)
    except RaypeftError as error:
        complain(str(error))
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
