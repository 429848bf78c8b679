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


def _check_margins(margins: dict[str, Any]) -> dict[str, Any]:
    for metric, value in margins.items():
        try:
            parse_margin(value)
        except ValueError as error:
            raise ValueError(f"is not allowed: that of {metric} {error}") from error
    return margins


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
        description="Whether each base answers everything twice: gains that are no larger than "
        "what it differs from itself are not claimed.",
    )

    @property
    def margins(self) -> dict[str, Margin]:
        """The margins by metric."""
        return {metric: parse_margin(value) for metric, value in self.margin.items()}
