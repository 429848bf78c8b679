"""The sweep file's section on statistics: how certain a verdict must be, and of what.

What the numbers are used for is decided by `gains` and its neighbours.
"""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue

from raypeft.core.equivalence import MARGIN_ALLOWED, Margin, parse_margin
from raypeft.core.spec_fields import Allowed, Share

FEWEST_RESAMPLES = 999
"""Below, the luck of the draws shows in the second digit of p-values about 0.05."""

MOST_RESAMPLES = 1_000_000


FEWEST_LOOKS = 2


def _check_margins(margins: dict[str, Any]) -> dict[str, Any]:
    for metric, value in margins.items():
        try:
            parse_margin(value)
        except ValueError as error:
            raise ValueError(f"is not allowed: that of {metric} {error}") from error
    return margins


class EarlyStoppingSection(BaseModel):
    """When an adapter's cell is hopeless and need not be answered to its end.

    Looks never cost certainty: the bound holds at all times at once, however often one looks. A
    cell that is stopped has no score and no gain.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    metric: Annotated[
        str, Field(pattern=r"^([^,]+(,[^,]+)?)?$"), Allowed('"acc", or "acc,none" with its filter')
    ] = Field(
        default="",
        description='Which metric is looked at: "acc", or "exact_match,strict-match" with its '
        "filter. It must be a mean of values from 0 to 1. Empty is the first of acc_norm, acc, "
        "exact_match, em and f1 that a task has. Tasks without it are answered whole.",
    )
    least_gain: Annotated[float, Field(gt=-1, lt=1), Allowed("a number above -1 and below 1")] = (
        Field(
            default=0.0,
            description="The smallest gain worth waiting for. A cell is stopped once a gain of "
            "that size is ruled out: 0 stops what is worse than the base.",
        )
    )
    alpha: Share = Field(
        default=0.05,
        description="Chance of stopping any cell at all whose gain is as large as `least_gain`.",
    )
    looks: Annotated[
        int, Field(ge=FEWEST_LOOKS), Allowed(f"a whole number, {FEWEST_LOOKS} or more")
    ] = Field(
        default=8,
        description="Into how many shards of random documents a cell is cut, at least; after each "
        "there is a look. More can stop earlier and leave the engines smaller batches.",
    )


class StatisticsSection(BaseModel):
    """How gains are judged; the same for the whole sweep."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    alpha: Share = Field(
        default=0.05,
        description="Chance of any false gain or loss among all adapters and tasks of a base on "
        "one metric.",
    )
    power: Share = Field(
        default=0.8,
        description="Chance with which the smallest detectable gain would be found.",
    )
    resamples: Annotated[
        int,
        Field(ge=FEWEST_RESAMPLES, le=MOST_RESAMPLES),
        Allowed(f"a whole number from {FEWEST_RESAMPLES} to {MOST_RESAMPLES}"),
    ] = Field(default=9_999, description="Random draws behind each interval and p-value.")
    margin: Annotated[
        dict[str, JsonValue],
        AfterValidator(_check_margins),
        Allowed(f"a mapping of metrics to margins, each {MARGIN_ALLOWED}"),
    ] = Field(
        default_factory=dict,
        description="By metric, differences that are of no interest, for instance "
        '`{acc: 0.01, word_perplexity: "2%"}`. With a margin, adapters shown to differ by less '
        "are called equivalent; without one, none is.",
    )
    noise_floor: bool = Field(
        default=False,
        description="Whether each base answers everything twice more, alone and through an adapter "
        "of zero effect: gains up to what it differs from itself are not claimed.",
    )

    early_stopping: EarlyStoppingSection | None = Field(
        default=None,
        description="Whether cells are given up as hopeless while they are answered; null (the "
        "default) answers everything, `{}` stops what is worse than the base. Tasks that sample "
        "their texts, that name a `cluster` or have few documents are answered whole.",
    )

    @property
    def margins(self) -> dict[str, Margin]:
        """The margins by metric."""
        return {metric: parse_margin(value) for metric, value in self.margin.items()}
