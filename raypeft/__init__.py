"""raypeft: every adapter of every base model on every task, overnight on Ray.

    import raypeft

    gains = raypeft.open("runs/overnight").gains  # a pyarrow.Table

Importing this package imports neither Ray nor torch, nor anything else of it; `raypeft.api` has
the public functions and reaches for the heavy packages when a run needs them.
"""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "open":
        from raypeft.api import open as open_output

        return open_output
    raise AttributeError(f"module 'raypeft' has no attribute {name!r}")
