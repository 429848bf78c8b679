"""Events and commands → lines of the journal."""

import re
from collections.abc import Mapping
from dataclasses import fields

from raypeft.core.events import Command, Event
from raypeft.core.records import Failure, Hardware, Json
from raypeft.runtime.ports import UnitAnswered


def line_of(thing: Event | Command | UnitAnswered, seconds: float) -> dict[str, Json]:
    """Return the journal's line for an event or a command.

    Args:
        thing: What happened or is done.
        seconds: When, since the run began.
    """
    name = re.sub(r"(?<!^)(?=[A-Z])", "_", type(thing).__name__).lower()
    line: dict[str, Json] = {"event": name, "at_seconds": round(seconds, 3)}
    for field in fields(thing):
        line.update(_entries(field.name, getattr(thing, field.name)))
    return line


def _entries(name: str, value: object) -> dict[str, Json]:
    match value:
        case Failure():
            # The detail is in the `cells` table; a journal is read line by line.
            return {"kind": str(value.kind), "message": value.message}
        case Hardware():
            return {
                "fingerprint": value.fingerprint,
                "device": value.device,
                "num_devices": value.num_devices,
                "node": value.node,
            }
        case tuple():
            return {name: list(value)}
        case Mapping():
            failed = {cell: value[cell] for cell in value if isinstance(value[cell], Failure)}
            # Only what went wrong: the cells of a unit stand in the line that began it.
            return (
                {"failed": {cell: f"{one.kind}: {one.message}" for cell, one in failed.items()}}
                if failed
                else {}
            )
        case str() | int() | float() | None:
            return {name: value}
        case _:
            return {}
