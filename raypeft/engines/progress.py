"""How far the engine of this process is: a number that grows whenever it gets on.

Decides what counts as getting on: a forward pass, a step of vLLM, an answer. That tells a slow
engine from one that hangs, which no duration can. Read from another thread while `answer` runs.
A process has one engine, so one count does; in a process with several, they share it.
"""

_passes = [0]


def got_on() -> None:
    """Note that something got done."""
    _passes[0] += 1


def so_far() -> int:
    """Return how much got done since the process began."""
    return _passes[0]
