"""The sweep file: reading it, with every problem at once; writing it; its JSON Schema.

The rest of raypeft imports the sweep's models from here. Relative paths in a sweep file start at
the working directory, as they do for every command line and for lm-eval, and are kept as given.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from raypeft.core.spec_checks import check_between
from raypeft.core.spec_expand import AdapterFolders, expand
from raypeft.core.spec_models import (
    AdapterEntry,
    Base,
    EngineSection,
    Evaluation,
    HardwareSection,
    ScheduleSection,
    Sweep,
    TaskEntry,
)
from raypeft.core.spec_problems import plain_value, problems_of, shown
from raypeft.core.spec_statistics import StatisticsSection
from raypeft.core.yaml_text import read_yaml, write_yaml
from raypeft.errors import Problem, SpecError

__all__ = [
    "AdapterEntry",
    "AdapterFolders",
    "Base",
    "EngineSection",
    "Evaluation",
    "HardwareSection",
    "ScheduleSection",
    "StatisticsSection",
    "Sweep",
    "TaskEntry",
    "dump_sweep",
    "expand",
    "make_sweep",
    "parse_sweep",
    "sweep_schema",
]

_SMALLEST = "the smallest sweep is `{output: runs/first, bases: [gpt2], tasks: [arc_easy]}`"


def parse_sweep(text: str, *, source: str, name: str = "sweep") -> Sweep:
    """Return the sweep that a YAML text describes, adapters not yet expanded.

    Args:
        text: The text of the sweep file.
        source: The file, for messages.
        name: The sweep's name where the text gives none: the file's name without its ending.

    Raises:
        SpecError: With every problem of the text.
    """
    return make_sweep(read_yaml(text, source=source), source=source, name=name)


def make_sweep(values: object, *, source: str = "", name: str = "sweep") -> Sweep:
    """Return the sweep that plain values describe: `parse_sweep` for what is read already.

    Args:
        values: A mapping with the keys of a sweep file.
        source: Where it is from, for messages.
        name: The sweep's name where the mapping gives none.

    Raises:
        SpecError: With every problem of the values.
    """
    if values is None:
        raise SpecError((Problem("", "is empty", _SMALLEST),), source)
    if not isinstance(values, Mapping):
        message = f"is {shown(values)}, expected a mapping with the keys of a sweep"
        raise SpecError((Problem("", message, _SMALLEST),), source)
    plain, problems = plain_value(dict(values))
    raw = {"name": name, **plain}
    sweep: Sweep | None = None
    try:
        sweep = Sweep.model_validate(raw)
    except ValidationError as error:
        problems += problems_of(error, Sweep, raw)
    problems += check_between(raw)
    if sweep is None or problems:
        # What is no plain value was left out, and may have been reported as missing once more.
        unique = {problem.place: problem for problem in reversed(problems)}
        raise SpecError(tuple(reversed(unique.values())), source)
    return sweep


def dump_sweep(sweep: Sweep) -> str:
    """Return a sweep as YAML with every default written out; `parse_sweep` gives it back."""
    return write_yaml(sweep.model_dump(mode="json"))


def sweep_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a sweep file, for editors.

    What it refuses, `parse_sweep` refuses; relations between fields it cannot express.
    """
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Sweep.model_json_schema()}
