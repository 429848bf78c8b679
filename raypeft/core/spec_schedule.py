"""The sweep file's section on how the work is spread, in what order, and until when."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from raypeft.core.deadline import DEADLINE_ALLOWED, DEADLINE_PATTERN, check_deadline
from raypeft.core.fair_share import MAX_PRIORITY
from raypeft.core.ordering import Order
from raypeft.core.quantities import duration_seconds
from raypeft.core.spec_fields import Allowed, Count, Duration


def _in_quotes(value: object) -> object:
    # YAML reads 07:00 as 420 where nobody quotes it.
    if not isinstance(value, str | None):
        raise ValueError('is no text; write it in quotes, for instance "07:00"')
    return value


def _checked(text: str) -> str:
    check_deadline(text)
    return text


Deadline = Annotated[
    str,
    BeforeValidator(_in_quotes),
    AfterValidator(_checked),
    Field(json_schema_extra={"pattern": DEADLINE_PATTERN}),
    Allowed(DEADLINE_ALLOWED),
]


class ScheduleSection(BaseModel):
    """How the work is spread and what happens when it fails."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    slots: Count = Field(default=1, description="Slots at work at the same time.")
    attempts: Count = Field(default=3, description="Tries at a unit before it is given up.")
    unit_timeout: Duration = Field(
        default="1h",
        description='Longest time without progress of one unit, for instance "30m": since it began '
        "or, where its slot tells how far it is, since it last got on. It then runs again "
        "elsewhere.",
    )
    shards: Count | Literal["auto"] = Field(
        default="auto", description="Into how many slices a request set is cut; `auto` chooses."
    )
    deadline: Deadline | None = Field(
        default=None,
        description='When the night is over: "07:00" (the next one), "2026-11-25T07:00" (local '
        'time unless it names its own), or "9h" from the start of the run. What is not expected to '
        "be finished by then is not begun; the report says what is missing, and the next run goes "
        "on with it. null is when everything is done.",
    )
    at_deadline: Literal["stop", "drain"] = Field(
        default="stop",
        description="What becomes of units that still run at the deadline: `stop` ends them, "
        "`drain` lets them finish.",
    )
    order: Order | None = Field(
        default=None,
        description="What goes first, baselines aside: `longest` (what takes longest, so that the "
        "night is shortest), `rows` (one adapter after the other, the shortest first, so that as "
        "many as possible are complete at any time), `tasks` (one task after the other, in the "
        "sweep's order, for all adapters), `sweep` (one adapter after the other, in the sweep's "
        "order). null is `rows` with a deadline and `longest` without. It orders one sweep; sweeps "
        "that run at the same time share a cluster by `priority`.",
    )
    priority: int = Field(
        default=1,
        ge=1,
        le=MAX_PRIORITY,
        description="Weight among sweeps that run on one cluster at the same time: while one of "
        "them waits for hardware, one of priority 2 keeps twice as many slots as one of 1.",
    )

    @property
    def unit_timeout_seconds(self) -> float:
        """Longest time without progress of one unit."""
        return duration_seconds(self.unit_timeout)

    @property
    def chosen_order(self) -> Order:
        """What goes first."""
        if self.order is not None:
            return self.order
        return "longest" if self.deadline is None else "rows"
