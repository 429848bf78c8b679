"""The sweep file's section on who is told when the night is over."""

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict

from raypeft.core.spec_fields import Allowed, Line

_URL = re.compile(r"https?://\S+|env:[A-Za-z_][A-Za-z0-9_]*")


def _check_url(text: str) -> str:
    if not _URL.fullmatch(text):
        raise ValueError("is no http or https URL, nor `env:` and the name of a variable")
    return text


class NotifySection(BaseModel):
    """Who is told, as JSON, how a run ended; a failure to tell fails nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    command: Annotated[
        tuple[Line, ...], Strict(False), Allowed("a list: a program and its arguments")
    ] = Field(
        default=(),
        description="Program and arguments, run where the driver runs and without a shell; the "
        "message comes on its standard input.",
    )
    webhook: (
        Annotated[Line, AfterValidator(_check_url), Allowed("an http or https URL, or env:NAME")]
        | None
    ) = Field(
        default=None,
        description="URL to which the message is posted, or `env:NAME`, the variable that holds "
        "it: a URL that is a secret does not belong in a file.",
    )
