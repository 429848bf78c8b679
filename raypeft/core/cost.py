"""How long a request set keeps a slot busy, before it was measured and after.

Decides: how much work requests are, what is expected of a device that nobody has measured, how
measurements correct it and how sure that is, and into how many pieces work is cut. What was
measured is passed in; where it is kept is `raypeft.api.costing`'s business.

Estimates order and cut work and say when a night will end; no score depends on them. Counting real
tokens would need a tokenizer, which planning must not load.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from raypeft.core.accelerators import Machine
from raypeft.core.records import EngineKind, Request, RequestSet

CHARS_PER_TOKEN = 4
"""English prose and code lie between 3 and 5 with the usual vocabularies."""

DEFAULT_GENERATED_TOKENS = 256
"""lm-eval's `max_gen_toks` where a task says nothing."""

MIN_SHARD_TOKENS = 20_000
"""Below this a shard is done sooner than it is handed out, stored and joined again."""

MIN_UNIT_SECONDS = 60.0
"""A unit shorter than this spends too large a part of its time on being handed out and stored."""

MAX_UNIT_SECONDS = 1200.0
"""What a failure costs at most, where requests can be cut so small."""

UNITS_PER_SLOT = 20
"""Units that a slot should have in a night, so that all slots end at nearly the same time."""

REQUEST_SECONDS = 2e-4
"""What a request costs beside the model: encoding, packing, storing."""

EFFICIENCY = {"hf": 0.3, "vllm": 0.45, "fake": 0.3}
"""Share of a device's operations a second that an engine reaches."""

ROWS_AT_ONCE = {"hf": 8, "vllm": 128, "fake": 8}
"""Texts that are written side by side: the weights are read once for all of them."""

READY_SECONDS = {"hf": 15.0, "vllm": 75.0, "fake": 0.0}
"""What a slot needs beside reading the weights: imports, and for vLLM compiling and graphs."""

UNMEASURED_FACTOR = 4.0
"""How many times shorter or longer than expected things may well take before anything was
measured: engines reach between a tenth and all of what the model assumes."""

MIN_SPREAD = 0.05
"""Standard deviation of the logarithm that is assumed at least: few units may agree by chance."""

MIN_RECORDS = 3
"""Units measured from which on they count."""

QUANTILE_80 = 1.2816
"""Standard deviations between the middle of a normal distribution and the ends of its middle
80 %."""

_GENERATION_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """How much a request set is for one subject.

    Attributes:
        tokens: Tokens that are read, each context counted as often as it is asked about.
        shared_tokens: The same with the context that requests of a document share counted once.
        generated_tokens: Tokens that may be written.
        num_requests: Requests.
    """

    tokens: int = 0
    shared_tokens: int = 0
    generated_tokens: int = 0
    num_requests: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseSize:
    """How large a base is in a slot.

    Attributes:
        num_parameters: Its values.
        weight_bytes: What they take in the slot's memory.
        is_float32: Whether it computes in 32 bits.
    """

    num_parameters: int
    weight_bytes: int
    is_float32: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One thing that was measured: a unit, or the loading of a base.

    Attributes:
        kind: The engine's.
        base_digest: The base's.
        device: Name of the device.
        reference_seconds: What it would be expected to take on `accelerators.REFERENCE`.
        seconds: What it took.
    """

    kind: EngineKind
    base_digest: str
    device: str
    reference_seconds: float
    seconds: float

    @property
    def is_usable(self) -> bool:
        """Whether it says anything about pace."""
        return self.reference_seconds > 0 and self.seconds > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """What is known of an engine's pace.

    Attributes:
        factor: Expected seconds for each second on `accelerators.REFERENCE`.
        low: The least that may well come of each expected second (one time in ten less).
        high: The most that may well come of each (one time in ten more).
        basis: What it rests on, in words.
    """

    factor: float
    low: float
    high: float
    basis: str


def work_of(request_set: RequestSet) -> Work:
    """Return how much work a request set is for one subject."""
    tokens = shared = generated = 0
    seen: set[tuple[int, str]] = set()
    for request in request_set.requests:
        texts = [argument for argument in request.arguments if isinstance(argument, str)]
        read = sum(len(text) for text in texts) // CHARS_PER_TOKEN + 1
        tokens += read
        context = (request.doc_id, texts[0]) if len(texts) > 1 else None
        if context in seen:
            read = sum(len(text) for text in texts[1:]) // CHARS_PER_TOKEN + 1
        elif context is not None:
            seen.add(context)
        shared += read
        if request.request_type == "generate_until":
            generated += _generated_tokens(request)
    return Work(
        tokens=tokens,
        shared_tokens=shared,
        generated_tokens=generated,
        num_requests=len(request_set.requests),
    )


def expected_seconds(
    work: Work, size: BaseSize, machine: Machine, kind: EngineKind, *, sharing: bool = True
) -> float:
    """Return what one subject's answers are expected to take by what is known of a device.

    Reading is bound by arithmetic (two operations for each value and token), writing by reading
    the weights once for all texts that are written side by side, or by arithmetic if that is more.
    """
    flops = machine.tflops_float32 if size.is_float32 else machine.tflops
    token_seconds = 2 * size.num_parameters / (flops * 1e12 * EFFICIENCY[kind])
    step_seconds = size.weight_bytes / (machine.gb_per_second * 1e9)
    written = max(token_seconds, step_seconds / ROWS_AT_ONCE[kind])
    read = work.shared_tokens if sharing or kind == "vllm" else work.tokens
    return (
        read * token_seconds + work.generated_tokens * written + work.num_requests * REQUEST_SECONDS
    )


def expected_load_seconds(size: BaseSize, kind: EngineKind) -> float:
    """Return what loading a base is expected to take: reading it at 1 GB/s, and getting ready."""
    return READY_SECONDS[kind] + size.weight_bytes / 1e9


def expectation(
    records: Sequence[Measured], *, kind: EngineKind, base_digest: str, device: str
) -> Expectation | None:
    """Return an engine's pace on a device by what was measured of it there.

    The median of measured over expected, of this base if there is enough of it, else of all bases
    on this device; the interval comes from their median absolute deviation and holds for one unit,
    so that it is rather too wide for a night.

    Args:
        records: What was measured.
        kind: The engine's.
        base_digest: The base's.
        device: Name of the device, as measured.

    Returns:
        The pace; None where too little was measured.
    """
    near = [r for r in records if r.kind == kind and r.device == device and r.is_usable]
    own = [record for record in near if record.base_digest == base_digest]
    for found, whose, widening in ((own, "this base", 1.0), (near, "other bases", 1.5)):
        ratios = [math.log(record.seconds / record.reference_seconds) for record in found]
        if len(ratios) >= MIN_RECORDS:
            middle = statistics.median(ratios)
            spread = 1.4826 * statistics.median(abs(ratio - middle) for ratio in ratios)
            spread = max(spread, MIN_SPREAD) * widening * math.sqrt(1 + 1 / len(ratios))
            wide = math.exp(QUANTILE_80 * spread)
            return Expectation(
                factor=math.exp(middle),
                low=1 / wide,
                high=wide,
                basis=f"{len(ratios)} units of {whose} on {device}",
            )
    return None


def measured_load(records: Iterable[Measured], base_digest: str, device: str) -> float | None:
    """Return the median of the loads of a base on a device; None if there was none."""
    found = [r.seconds for r in records if (r.base_digest, r.device) == (base_digest, device)]
    return statistics.median(found) if found else None


def unit_seconds(total_seconds: float, slots: int) -> float:
    """Return how long a unit should be: minutes, and short against the whole night.

    Args:
        total_seconds: Expected seconds of everything there is to answer, one slot alone.
        slots: Slots there are to answer it.
    """
    share = total_seconds / (slots * UNITS_PER_SLOT)
    return min(max(share, MIN_UNIT_SECONDS), MAX_UNIT_SECONDS)


def shard_count(tokens: int, seconds: float, most_seconds: float) -> int:
    """Return into how many shards a cell's request set is cut when the sweep says `auto`.

    Args:
        tokens: Estimated tokens of the cell; no shard is smaller than `MIN_SHARD_TOKENS`.
        seconds: Expected seconds of the cell.
        most_seconds: How long a unit should be at most, see `unit_seconds`.
    """
    wanted = math.ceil(seconds / most_seconds)
    return max(1, min(wanted, tokens // MIN_SHARD_TOKENS))


def estimate_tokens(request_set: RequestSet) -> int:
    """Return about how many tokens go through the model for one subject."""
    work = work_of(request_set)
    return work.tokens + work.generated_tokens


def _generated_tokens(request: Request) -> int:
    settings = request.arguments[-1]
    if isinstance(settings, dict):
        for name in _GENERATION_LIMITS:
            limit = settings.get(name)
            if isinstance(limit, int):
                return limit
    return DEFAULT_GENERATED_TOKENS


def asks_for_sampling(request: Request) -> bool:
    """Whether a request may draw at random, so that the seed belongs to its answer's identity.

    On the safe side: what is greedy after all in the end only has the seed in its identity too.
    """
    settings = request.arguments[-1] if request.request_type == "generate_until" else None
    if not isinstance(settings, dict):
        return False
    return bool(settings.get("do_sample")) or (settings.get("temperature") or 0.0) > 0.0
