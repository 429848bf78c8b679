"""Journals of made-up runs, line by line."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Line:
    """A line of a journal."""

    at_seconds: float
    kind: str
    fields: Mapping[str, Any] = field(default_factory=dict)


def line(at: float, event: str, /, **fields: Any) -> Line:
    return Line(at, event, fields)


def begins(at: float = 0.0, **changes: Any) -> Line:
    """A run of four cells: of `base` and `base/a` on `t`, of `base/b` on `t` and `u`.

    `base/b` on `t` is cut in two units, one of which it shares with `base/a`.
    """
    keys = ["c0c0c0c0", "c1c1c1c1", "c2c2c2c2", "c3c3c3c3"]
    names = [("base", "t"), ("base/a", "t"), ("base/b", "t"), ("base/b", "u")]
    fields = {
        "cells": [[key, *name, False] for key, name in zip(keys, names, strict=True)],
        "lost": [["base/bad", "t", "does_not_fit", "42 tensors are missing"]],
        "units": [
            ["u0", 1000, 10.0, [0]],
            ["u1", 2000, 40.0, [1, 2]],
            ["u2", 1000, 20.0, [2]],
            ["u3", 1000, 30.0, [3]],
        ],
        **changes,
    }
    return Line(at, "run_begins", fields)


def runs(at: float, unit: str, *cells: str, slot: str = "slot-1", attempt: int = 1) -> Line:
    return line(
        at,
        "run_unit",
        slot=slot,
        unit_id=unit,
        attempt=attempt,
        cells=list(cells),
        reason="the longest that waits",
    )


def starts(at: float, slot: str = "slot-1") -> list[Line]:
    """A slot that is there at once."""
    return [
        line(at, "start_slot", slot=slot, base="base", reason="units wait"),
        line(at, "slot_placed", slot=slot),
        line(at, "slot_ready", slot=slot, node="node-7", device="H100", num_devices=1),
    ]
