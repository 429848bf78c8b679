"""The types of a sweep file's fields: what each accepts, in code, in words and in JSON Schema.

Every type that is not plain says in words what it allows (`Allowed`); `spec_problems` makes the
messages from these words, so that a person never reads the validator's own jargon.
"""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, GetCoreSchemaHandler, JsonValue, Strict
from pydantic.annotated_handlers import GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

from raypeft.core.quantities import (
    DURATION_ALLOWED,
    DURATION_PATTERN,
    SIZE_ALLOWED,
    SIZE_PATTERN,
    duration_seconds,
    size_bytes,
)

MAX_NAME_CHARS = 200
"""Names stand in tables and messages; hub ids end at 96 characters, so nobody meets this."""

MAX_SEED = 2**32 - 1
"""The largest seed that numpy's global generator takes."""

# Control characters, lone surrogates (not writable as UTF-8), line and paragraph separators.
_BREAKS_LINES = frozenset({"Cc", "Cs", "Zl", "Zp"})


@dataclass(frozen=True, slots=True)
class Allowed:
    """What a field allows, in words that go on from "expected".

    Attributes:
        text: The words.
    """

    text: str


@dataclass(frozen=True, slots=True)
class OrString:
    """Lets a mapping be written as the text of its main key: `gsm8k` for `{name: gsm8k}`.

    Attributes:
        key: The main key.
        description: What the text means, for the JSON Schema.
    """

    key: str
    description: str

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Accept text in front of the mapping's own validation."""
        return core_schema.no_info_before_validator_function(self._as_mapping, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Describe both forms."""
        text = {"type": "string", "minLength": 1, "description": self.description}
        return {"anyOf": [text, handler(schema)]}

    def _as_mapping(self, value: object) -> object:
        return {self.key: value} if isinstance(value, str) else value


def check_name(name: str) -> str:
    """Return a name unchanged if it can stand in a table, an id and a file name.

    Raises:
        ValueError: Saying what is wrong with it, to go on from the quoted name.
    """
    if not name or name in {".", ".."}:
        raise ValueError(f"cannot be a name, expected {NAME_ALLOWED}")
    if "/" in name or "\\" in name:
        raise ValueError('holds a "/" or "\\", which separate base and adapter or folders')
    if not name.isprintable():
        raise ValueError("holds a character that cannot be printed")
    if name != name.strip():
        raise ValueError("begins or ends with a space")
    if len(name) > MAX_NAME_CHARS:
        raise ValueError(f"has {len(name)} characters, at most {MAX_NAME_CHARS} are allowed")
    return name


def last_component(path: str) -> str:
    """Return what a path or hub id is called by default: what stands after its last `/`."""
    return path.rstrip("/").rsplit("/", 1)[-1]


def _check_line(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty")
    if any(unicodedata.category(char) in _BREAKS_LINES for char in text):
        raise ValueError("holds a control character")
    return text


def _with_unit(convert: Callable[[str], float], unit: str) -> Callable[[object], object]:
    """Return a validator that keeps a quantity's text and shows the right form of a bare number."""

    def check(value: object) -> object:
        if isinstance(value, int | float) and not isinstance(value, bool):
            raise ValueError(f'has no unit; write for instance "{value}{unit}"')
        if isinstance(value, str):
            convert(value)
        return value

    return check


def _check_labels(labels: dict[str, str]) -> dict[str, str]:
    for name, value in labels.items():
        if not (_LABEL_KEY.fullmatch(name) and _LABEL_VALUE.fullmatch(value)):
            raise ValueError(
                f'holds "{name}: {value}", which Ray takes for no label; letters, digits, "_", "." '
                'and "-" are allowed, and one "/" in a name'
            )
    return labels


_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]*[A-Za-z0-9])?"
_LABEL_KEY = re.compile(rf"(?:{_LABEL}/)?{_LABEL}")
_LABEL_VALUE = re.compile(rf"!?{_LABEL}|!?in\({_LABEL}(?:,{_LABEL})*\)")

NAME_ALLOWED = 'a name: printable text without "/" and "\\"'
_SEED_ALLOWED = f"a whole number from 0 to {MAX_SEED}"

Name = Annotated[
    str,
    AfterValidator(check_name),
    Field(json_schema_extra={"minLength": 1, "pattern": r"^[^/\\\u0000-\u001f]+$"}),
    Allowed(NAME_ALLOWED),
]
Line = Annotated[
    str,
    AfterValidator(_check_line),
    Field(json_schema_extra={"minLength": 1, "pattern": r"^[^\u0000-\u001f]+$"}),
    Allowed("text on one line"),
]
Whole = Annotated[int, Field(ge=0), Allowed("a whole number of 0 or more")]
Count = Annotated[int, Field(ge=1), Allowed("a whole number of 1 or more")]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED), Allowed(_SEED_ALLOWED)]
FourSeeds = Annotated[
    tuple[Seed, ...],
    Strict(False),
    Field(min_length=4, max_length=4),
    Allowed("a list of four (python, numpy, torch, few-shot)"),
]
Share = Annotated[float, Field(gt=0, lt=1), Allowed("a share above 0 and below 1")]
Tolerance = Annotated[float, Field(gt=0), Allowed("a number above 0")]
# lm-eval would take a limit of 1.0 as one document, a reader as everything: neither type has it.
Limit = Annotated[
    Count | Share,
    Allowed("a number of documents (whole, 1 or more) or a share of them (above 0 and below 1)"),
]
Gpus = Annotated[Whole | Share, Allowed("a whole number of GPUs, or a share of one below 1")]
Cpus = Annotated[Count | Annotated[float, Field(gt=0)], Allowed("a number above 0")]
Duration = Annotated[
    str,
    BeforeValidator(_with_unit(duration_seconds, "m")),
    Field(json_schema_extra={"pattern": DURATION_PATTERN}),
    Allowed(DURATION_ALLOWED),
]
Size = Annotated[
    str,
    BeforeValidator(_with_unit(size_bytes, "GiB")),
    Field(json_schema_extra={"pattern": SIZE_PATTERN}),
    Allowed(SIZE_ALLOWED),
]
Labels = Annotated[
    dict[str, str],
    AfterValidator(_check_labels),
    Allowed("a mapping of Ray's node labels to values, for instance {raypeft/hw: a100-80}"),
]
Settings = Annotated[dict[str, JsonValue], Allowed("a mapping of names to plain values")]
