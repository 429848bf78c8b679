"""lm-eval's own command line, with raypeft's models known to it."""

from collections.abc import Sequence


def lm_eval_command(arguments: Sequence[str]) -> None:
    """Run lm-eval with its own arguments; `raypeft-hf` is one of its models.

    Args:
        arguments: Those of `lm-eval`, for instance `run --model raypeft-hf …`.

    Raises:
        SystemExit: If lm-eval ends with an exit code.
        RaypeftError: If a model of raypeft refuses what it was given.
    """
    from raypeft.engines.lm_eval_model import run_command_line

    run_command_line(arguments)
