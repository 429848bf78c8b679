"""The policy file of a gate: which tasks must gain, and which must not lose more than a margin.

Decides its keys and their meaning; what the gains say about it is decided by `gate`.
"""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    Strict,
    ValidationError,
)

from raypeft.core.equivalence import MARGIN_ALLOWED, Margin, parse_margin
from raypeft.core.spec_fields import Allowed, Line, OrString, Share
from raypeft.core.spec_problems import plain_value, problems_of, shown
from raypeft.core.yaml_text import read_yaml
from raypeft.errors import Problem, SpecError

EVERYTHING = "*"
"""As a guard's task: every task and group that the sweep names, but for the targets."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def _check_margin(value: JsonValue) -> JsonValue:
    parse_margin(value)
    return value


class Target(_Section):
    """A task that must gain."""

    task: Line = Field(description="Task or group.")
    metric: Line | None = Field(
        default=None, description="lm-eval's metric; null is the first one of the task."
    )
    filter: Line | None = Field(
        default=None, description="lm-eval's filter; null is the first one of the metric."
    )
    min_gain: Annotated[float, Field(ge=0), Strict(False), Allowed("a number of 0 or more")] = (
        Field(
            default=0.0,
            description="The gain that must be shown, in the metric's unit, better being more; 0 "
            "takes any gain.",
        )
    )


class Guard(_Section):
    """A task that must not lose."""

    task: Line = Field(description=f'Task or group; "{EVERYTHING}" is all but the targets.')
    metric: Line | None = Field(
        default=None, description="lm-eval's metric; null is the first one of the task."
    )
    filter: Line | None = Field(
        default=None, description="lm-eval's filter; null is the first one of the metric."
    )
    margin: Annotated[JsonValue, AfterValidator(_check_margin), Allowed(MARGIN_ALLOWED)] = Field(
        description="The largest loss that is allowed: a number in the metric's unit, or a share "
        'of the baseline\'s value such as "2%".'
    )

    @property
    def largest_loss(self) -> Margin:
        """The margin."""
        return parse_margin(self.margin)


class Policy(_Section):
    """When adapters are good enough."""

    alpha: Share | None = Field(
        default=None,
        description="Level of the bounds, divided by the number of targets or guards; null is the "
        "sweep's. What counts as a gain is always as the sweep has it.",
    )
    require: Literal["any", "all"] = Field(
        default="any", description="Whether one adapter that passes is enough."
    )
    adapters: Annotated[
        tuple[Line, ...], Strict(False), Allowed("a list of adapters' names or patterns")
    ] = Field(default=("*",), description="Names or patterns of the adapters that are judged.")
    targets: Annotated[
        tuple[Annotated[Target, OrString("task", "A task or group that must gain.")], ...],
        Strict(False),
        Allowed("a list of tasks, or of mappings with the key `task`"),
    ] = Field(default=(), description="What must gain; all of them.")
    guards: Annotated[
        tuple[Guard, ...],
        Strict(False),
        Allowed("a list of mappings with the keys `task` and `margin`"),
    ] = Field(default=(), description="What must not lose more than a margin; all of them.")


def parse_policy(text: str, *, source: str) -> Policy:
    """Return the policy that a YAML text describes.

    Raises:
        SpecError: With every problem of the text.
    """
    values: Any = read_yaml(text, source=source)
    remedy = "the smallest policy is `{targets: [gsm8k]}`"
    if not isinstance(values, dict):
        message = f"is {shown(values)}, expected a mapping with the keys of a policy"
        raise SpecError((Problem("", message, remedy),), source)
    raw, problems = plain_value(values)
    policy: Policy | None = None
    try:
        policy = Policy.model_validate(raw)
    except ValidationError as error:
        problems += problems_of(error, Policy, raw)
    if policy is not None and not policy.targets and not policy.guards:
        message = "has neither targets nor guards, so that everything would pass"
        problems.append(Problem("", message, remedy))
    if policy is None or problems:
        raise SpecError(tuple({problem.place: problem for problem in problems}.values()), source)
    return policy
