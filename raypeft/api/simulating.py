"""What a night will be like: how long it takes, what a deadline leaves out, and how good that is.

Plays a sweep's plan on a virtual clock (`raypeft.core.simulate`), with the durations that the cost
model expects. Nothing is loaded and nothing is answered.
"""

from dataclasses import dataclass, replace
from datetime import datetime
from random import Random

from raypeft.api.planning import Planned
from raypeft.api.policy import policy_of, with_deadline
from raypeft.api.running import Listener, plan_only
from raypeft.core.deadline import seconds_until
from raypeft.core.simulate import Chances, Simulated, lower_bound, simulate
from raypeft.core.spec import Sweep
from raypeft.errors import Problem, SpecError

MAX_UNITS_PLAYED = 20_000
"""Beyond this `raypeft plan` takes the lower bound, which is then within a few per cent."""

CHANCES = ("slot_loss", "unit_failure", "load_failure", "noise")


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """How long what is left of a sweep is expected to take.

    Attributes:
        seconds: Expected.
        low_seconds: One time in ten it is less.
        high_seconds: One time in ten it is more.
        slot_seconds: Slots' time with units, all together.
        num_left_out: Cells that the deadline is expected to leave out; None without a deadline.
        num_unknown: Task entries that are not frozen: their work is unknown, and not counted.
    """

    seconds: float
    low_seconds: float
    high_seconds: float
    slot_seconds: float
    num_left_out: int | None = None
    num_unknown: int = 0


def expect(planned: Planned, now: datetime) -> Expected:
    """Return how long what is left of a sweep is expected to take.

    The interval is that of a unit, since what makes all units longer than expected, a wrong
    assumption about the device for instance, does not average out over a night.

    Args:
        planned: The sweep.
        now: From when, with its zone.
    """
    plan, sweep = planned.plan, planned.resolved.sweep
    policy = replace(policy_of(sweep), scoring=1000)
    units = [(unit.base, unit.seconds) for unit in plan.units]
    work = sum(length for _, length in units)
    unknown = len({job.entry for job in planned.frozen.missing})
    if not work:
        return Expected(
            seconds=0.0, low_seconds=0.0, high_seconds=0.0, slot_seconds=0.0, num_unknown=unknown
        )
    loads = {name: cost.load_seconds for name, cost in plan.costs.items()}
    calm = Chances(noise=0.0)
    is_small = len(units) <= MAX_UNITS_PLAYED
    if is_small:
        seconds = simulate(plan, policy, calm, Random(0)).makespan_seconds
    else:
        seconds = lower_bound(units, loads, policy.slots)
    left_out: int | None = None
    deadline = sweep.schedule.deadline
    if deadline is not None and is_small:
        limited = with_deadline(policy, seconds_until(deadline, now))
        left_out = simulate(plan, limited, calm, Random(0)).num_left_out
    low, high = (
        sum(length * getattr(planned.outlooks[name].expected, end) for name, length in units) / work
        for end in ("low", "high")
    )
    return Expected(
        seconds=seconds,
        low_seconds=seconds * low,
        high_seconds=seconds * high,
        slot_seconds=work,
        num_left_out=left_out,
        num_unknown=unknown,
    )


def simulate_sweep(
    sweep: Sweep,
    *,
    slots: int | None = None,
    chances: Chances | None = None,
    seed: int = 0,
    listener: Listener | None = None,
) -> Simulated:
    """Play what is left of a sweep on a virtual clock.

    Args:
        sweep: The sweep, adapters expanded.
        slots: How many slots; None is as the sweep says.
        chances: What goes wrong.
        seed: Of chance.
        listener: Who is told what goes on while the plan is made.

    Raises:
        SpecError: If nothing of the sweep could run, or nothing is left to simulate.
    """
    if slots is not None:
        schedule = sweep.schedule.model_copy(update={"slots": slots})
        sweep = sweep.model_copy(update={"schedule": schedule})
    planned = plan_only(sweep, listener=listener)
    if not planned.plan.units:
        message = "everything that can be answered is answered: there is nothing to simulate"
        raise SpecError((Problem("", message, "give an empty `store` to simulate it anew"),))
    policy = replace(policy_of(sweep), scoring=1000)
    if sweep.schedule.deadline is not None:
        now = datetime.now().astimezone()
        policy = with_deadline(policy, seconds_until(sweep.schedule.deadline, now))
    return simulate(planned.plan, policy, chances or Chances(), Random(seed))


def parse_chances(text: str) -> Chances:
    """Return the chances that a text such as `slot_loss=0.01,unit_failure=0.02` gives.

    Raises:
        SpecError: If a name or a number is none.
    """
    values: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, number = part.partition("=")
        if name.strip() not in CHANCES:
            raise _bad(f'"{name.strip()}" is no chance, expected {", ".join(CHANCES)}')
        try:
            values[name.strip()] = float(number)
        except ValueError:
            raise _bad(f'"{part}" has no number, expected for instance {CHANCES[0]}=0.01') from None
    try:
        return Chances(**values)
    except ValueError as error:
        raise _bad(str(error)) from error


def _bad(message: str) -> SpecError:
    return SpecError((Problem("--failures", message),))
