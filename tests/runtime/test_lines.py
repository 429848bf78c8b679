import json

import pytest

from raypeft.core.events import (
    Command,
    Event,
    GiveUp,
    RunUnit,
    SlotReady,
    UnitDone,
)
from raypeft.core.records import Failure, FailureKind, Json
from raypeft.runtime.lines import line_of
from tests.support.plans import HARDWARE


@pytest.mark.parametrize(
    ("thing", "line"),
    [
        (
            RunUnit("slot-1", "u", 2, ("c", "d"), "again"),
            {
                "event": "run_unit",
                "slot": "slot-1",
                "unit_id": "u",
                "attempt": 2,
                "cells": ["c", "d"],
                "reason": "again",
            },
        ),
        (
            GiveUp("c", Failure(FailureKind.TIMED_OUT, "slow", True, "long"), 3, "enough"),
            {
                "event": "give_up",
                "cell": "c",
                "kind": "timed_out",
                "message": "slow",
                "attempts": 3,
                "reason": "enough",
            },
        ),
        (
            SlotReady("slot-1", HARDWARE),
            {
                "event": "slot_ready",
                "slot": "slot-1",
                "fingerprint": HARDWARE.fingerprint,
                "device": HARDWARE.device,
                "num_devices": 0,
                "node": "",
            },
        ),
        (
            UnitDone("slot-1", "u", 1, {"c": None}),
            {"event": "unit_done", "slot": "slot-1", "unit_id": "u", "attempt": 1},
        ),
    ],
)
def test_a_line_holds_ids_and_the_reason(thing: Event | Command, line: dict[str, Json]) -> None:
    made = line_of(thing, 1.23456)
    assert made == {**line, "at_seconds": 1.235}
    assert json.loads(json.dumps(made)) == made
