"""raypeft: every adapter of every base model on every task, overnight on Ray.

Importing this package imports neither Ray nor torch; `raypeft.api` reaches for them when a run
needs them.
"""

__version__ = "0.1.0"
