"""What `engine: auto` depends on, found out on this machine and remembered beside the results.

Decides: where it is asked, and that a sweep keeps the engine it began with: what was found is
written into its output, so that the tables can be made again on a machine without GPUs or vLLM,
and a second run does not answer everything anew because vLLM was installed meanwhile. The same for
bases that vLLM was found unable to load. Leaves to others: what follows from it
(`core.engine_choice`).
"""

import importlib.util
import json
from collections.abc import Callable, Mapping

from raypeft.core.engine_choice import Surroundings
from raypeft.core.spec import Sweep
from raypeft.store.files import Folder

ENGINE_FILE = "engine.json"
"""In a sweep's output: what `auto` found."""


NOT_LOADED_FILE = "not_loaded.json"
"""In a sweep's output: the bases that vLLM could not load, by digest, and why."""


def vllm_installed() -> bool:
    """Return whether vLLM can be imported; it is not imported, which takes many seconds."""
    return importlib.util.find_spec("vllm") is not None


def find_surroundings(sweep: Sweep, ask_for_gpus: Callable[[], bool]) -> Surroundings:
    """Return what `auto` depends on: as this output has it, or else as it is here and now.

    Args:
        sweep: The sweep.
        ask_for_gpus: Returns whether slots have GPUs; called only where nothing else tells.
    """
    known = recorded_surroundings(sweep)
    if known is not None:
        return known
    installed = vllm_installed()
    if sweep.engine.kind not in ("auto", "vllm") or (sweep.engine.kind == "auto" and not installed):
        return Surroundings(vllm_installed=installed)
    gpus = sweep.hardware.gpus
    return Surroundings(
        vllm_installed=installed, has_gpus=ask_for_gpus() if gpus is None else gpus > 0
    )


def recorded_surroundings(sweep: Sweep) -> Surroundings | None:
    """Return what an earlier run into this output found, if it asked for the same engine."""
    text = Folder(sweep.output).read(ENGINE_FILE)
    if text is None:
        return None
    try:
        value = json.loads(text)
        if value["kind"] != sweep.engine.kind or value["gpus"] != sweep.hardware.gpus:
            return None
        return Surroundings(
            vllm_installed=value["vllm_installed"] is True,
            has_gpus=value["has_gpus"] is True,
            is_recorded=True,
        )
    except (ValueError, KeyError, TypeError):
        return None  # damaged: it is found out again


def record_surroundings(sweep: Sweep, surroundings: Surroundings) -> None:
    """Write down what was found, for later runs and for who makes the tables again."""
    if sweep.engine.kind not in ("auto", "vllm"):
        return
    value = {
        "kind": sweep.engine.kind,
        "gpus": sweep.hardware.gpus,
        "vllm_installed": surroundings.vllm_installed,
        "has_gpus": surroundings.has_gpus,
    }
    Folder(sweep.output).write(ENGINE_FILE, json.dumps(value).encode())


def recorded_not_loaded(sweep: Sweep) -> dict[str, str]:
    """Return why `auto` found that vLLM cannot load bases, by their digests.

    It is of this sweep's settings and hardware, so it lies in the output and not in the store.
    """
    if sweep.engine.kind != "auto":
        return {}
    text = Folder(sweep.output).read(NOT_LOADED_FILE)
    try:
        value = {} if text is None else json.loads(text)
    except ValueError:
        return {}  # damaged: it is tried again
    return value if isinstance(value, dict) else {}


def record_not_loaded(sweep: Sweep, reasons: Mapping[str, str]) -> None:
    """Write down that vLLM could not load bases: their cells keep the engine they then get."""
    value = {**recorded_not_loaded(sweep), **reasons}
    Folder(sweep.output).write(NOT_LOADED_FILE, json.dumps(value).encode())
