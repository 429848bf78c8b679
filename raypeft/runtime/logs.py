"""Logs as JSON lines, in the driver and in slots: which unit and which cells each line is about.

Decides the form of a line and where the ids come from. Ordinary logging stays as it is until
somebody asks for this (`raypeft run --log-json`); then it holds for every logger of the process
but those of libraries that print by handlers of their own (transformers, vLLM). Slots learn it
from the environment, and write into the log of their own process, which Ray keeps on their node.
"""

import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, TextIO

from raypeft.core.plan import Unit
from raypeft.core.records import Json, UnitAnswers
from raypeft.errors import SetupError

SWITCH = "RAYPEFT_LOG_JSON"
"""Set to 1 in the environment of slots that are to log so."""

CELLS_LOGGER = "raypeft.cells"
"""What happens to cells and units; the other loggers of raypeft have their module's name."""

STANDARD_ERROR = "-"
"""Stands for it where a file is named."""

_ids: ContextVar[Mapping[str, Json]] = ContextVar("raypeft_log_ids", default={})  # noqa: B039

_logger = logging.getLogger(CELLS_LOGGER)


class JsonLines(logging.Formatter):
    """One JSON object for each record: time, level, logger, message, ids and particulars."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as one line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_ids.get(),
            **getattr(record, "particulars", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


@contextmanager
def about(**ids: Json) -> Iterator[None]:
    """Let every line that is logged inside, by whomever, carry these ids."""
    token = _ids.set({**_ids.get(), **ids})
    try:
        yield
    finally:
        _ids.reset(token)


@contextmanager
def json_logs(stream: TextIO) -> Iterator[None]:
    """Write the logs of this process as JSON lines until the block ends."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    before = _logger.level
    root.addHandler(handler)
    _logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        _logger.setLevel(before)


@contextmanager
def logged_to(target: str | None) -> Iterator[None]:
    """Write the logs of this process, and of the slots it starts, as JSON lines.

    Args:
        target: A file, which is appended to, or `-` for standard error; None changes nothing.

    Raises:
        SetupError: If the file cannot be opened.
    """
    if target is None:
        yield
        return
    before = os.environ.get(SWITCH)
    os.environ[SWITCH] = "1"
    try:
        with _opened(target) as stream, json_logs(stream):
            yield
    finally:
        if before is None:
            del os.environ[SWITCH]
        else:
            os.environ[SWITCH] = before


@contextmanager
def _opened(target: str) -> Iterator[TextIO]:
    if target == STANDARD_ERROR:
        yield sys.stderr
        return
    try:
        stream = open(target, "a", encoding="utf-8")  # noqa: SIM115 - closed below
    except OSError as error:
        raise SetupError(
            f"the log {target} cannot be opened: {error}", "give --log-json another file, or -"
        ) from error
    with stream:
        yield stream


def log_words(text: str) -> None:
    """Log what would else be said to a person."""
    _logger.info("%s", text)


def begin_in_slot(environment: Mapping[str, str]) -> None:
    """Log as JSON lines from now on, if the driver asked for it; asked twice it is done once."""
    root = logging.getLogger()
    has_one = any(isinstance(one.formatter, JsonLines) for one in root.handlers)
    if environment.get(SWITCH) == "1" and not has_one:
        handler = logging.StreamHandler()
        handler.setFormatter(JsonLines())
        root.addHandler(handler)
        _logger.setLevel(logging.INFO)


class CellLog:
    """A watcher (`raypeft.runtime.watched`) that logs what happens to each cell and unit.

    Args:
        sweep: The sweep's name.
    """

    def __init__(self, sweep: str) -> None:
        self._sweep = sweep
        self._cells: dict[str, list[str]] = {}
        """Cells of each unit that runs."""
        self._names: dict[str, str] = {}

    def noted(self, line: Mapping[str, Json]) -> None:
        """Log a line of the journal, with the cells that it is about."""
        event = str(line["event"])
        unit = line.get("unit_id")
        if event in ("run_begins", "run_plans_anew"):
            self._names = {key: f"{subject}/{task}" for key, subject, task, *_ in line["cells"]}
            self._log(event, {"num_cells": len(self._names), "num_lost": len(line["lost"])})
            return
        particulars = {name: value for name, value in line.items() if name != "event"}
        if event == "run_unit":
            self._cells[str(unit)] = list(line["cells"])
        cells = self._cells.get(str(unit), []) if unit is not None else []
        cells = [str(line["cell"])] if "cell" in line else cells
        if cells:
            particulars |= {"cells": cells, "names": [self._names.get(key, "") for key in cells]}
        if event in ("unit_done", "unit_failed", "split_unit"):
            self._cells.pop(str(unit), None)
        self._log(event, particulars)

    def answered(self, unit: Unit, answers: UnitAnswers) -> None:
        """Log that answers are stored."""
        self._log(
            "answers_stored",
            {
                "unit_id": unit.id,
                "cells": list(unit.cells),
                "names": [self._names.get(key, "") for key in unit.cells],
                "tokens": sum(one.tokens for one in answers.subjects),
                "seconds": round(answers.seconds, 3),
                "node": answers.hardware.node,
            },
        )

    def _log(self, event: str, particulars: Mapping[str, Json]) -> None:
        message = event.replace("_", " ")
        _logger.info(
            message, extra={"particulars": {"sweep": self._sweep, "event": event, **particulars}}
        )
