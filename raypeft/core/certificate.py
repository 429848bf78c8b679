"""The certificate of an adapter: a fast engine's answers beside those of the reference engine.

Decides: what is measured, and when an adapter must go to the reference engine instead. Leaves to
others: which documents both answer (`core.certificate_sets`), and what follows for the plan.

A fast engine can be wrong without a word (an adapter applied in part, another's weights, a stale
cache). Both engines answer a few documents of the sweep itself, for every adapter; where they lie
further apart than rounding explains, the adapter is not evaluated there.

How far two answers lie apart does not show a small effect that is wrong. So the effect itself is
measured: the adapter's answers less the base's, found against reference, request by request. Their
slope is 1 where the adapter is applied, 1/2 where it is applied by half, and about 0 where another
one is.
"""

import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from raypeft.core.records import Answer, Request

TOLERANCE_NATS: Mapping[str, float] = {"float32": 2e-3, "float16": 0.1, "bfloat16": 0.5}
"""How far the log-likelihoods of one request may lie apart, by the dtype of the weights. In 16
bits a logit of 20 is rounded to 0.01 and 0.06, and a continuation adds up its tokens."""

MOST_AT_ONCE = 0.5
"""Largest share of greedy texts that may differ in their first letter. In 16 bits a near tie turns
most texts somewhere, and what follows is another text; a wrong model's begin otherwise."""

MOST_MEAN = 0.5
"""Largest mean of the differences, as a share of the tolerance, from `ENOUGH` log-likelihoods on:
rounding reaches the tolerance once and not everywhere."""

MOST_FLIPS = 0.5
"""Largest share of documents that may choose otherwise, from `ENOUGH` documents on: near ties turn
by rounding, and are not most of a task."""

ENOUGH = 4

ROUNDING_NATS: Mapping[str, float] = {
    dtype: tolerance / 200 for dtype, tolerance in TOLERANCE_NATS.items()
}
"""What two engines differ by at least, as a rule, by dtype: a few equal numbers prove no less."""

SLOPE_TOLERANCE = 0.1
"""How far the slope of an adapter's effect may be from 1, beside what the noise explains. Weights
that are rounded to 16 bits move it by less than 0.01."""

MOST_SLOPE_ERROR = 0.3
"""Largest error of a slope that tells something: with it, half an effect is still refused."""

UNEXPLAINED_TOLERANCE = 0.1
"""Share of the square of an adapter's effect that may be another one, beside what the noise
explains. Of another adapter's effect of the same size it is 2, whatever the slope is by chance."""

_SPREAD = 3.0
"""Standard errors that count as noise, on top of the tolerance."""

_MOST_NOISE = 4.0
"""How much more noise than the base an adapter may have, and few requests by chance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """An adapter's effect under another engine, beside that under the reference engine.

    Attributes:
        slope: Of the one on the other, through the origin: 1 where the adapter is applied.
        slope_error: How far noise alone may move the slope.
        unexplained: The square of their difference, as a share of that of the effect.
        noise: The share that rounding explains.
    """

    slope: float
    slope_error: float
    unexplained: float
    noise: float

    @property
    def is_told(self) -> bool:
        """Whether half of it would be told from all of it."""
        return self.slope_error <= MOST_SLOPE_ERROR


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """How far two engines lie apart on the same requests.

    Attributes:
        num_loglikelihoods: Log-likelihoods compared, of continuations and of whole texts.
        worst_nats: Largest difference; of a whole text its difference per word. NaN where one
            engine gave no number.
        mean_nats: Mean of these differences.
        num_documents: Documents with several continuations to choose from.
        num_flips: Of these, how many prefer another continuation.
        num_greedy_flips: Continuations that only one engine would have generated greedily.
        num_texts: Greedy texts compared.
        num_diverged: Of these, how many differ.
        num_at_once: Of these, how many differ in their first letter.
        first_divergence: Least number of characters after which two of them part; None if none do.
        effect: What was measured of the adapter's effect; None for a base, and where there was
            nothing to measure it by.
    """

    num_loglikelihoods: int = 0
    worst_nats: float = 0.0
    mean_nats: float = 0.0
    num_documents: int = 0
    num_flips: int = 0
    num_greedy_flips: int = 0
    num_texts: int = 0
    num_diverged: int = 0
    num_at_once: int = 0
    first_divergence: int | None = None
    effect: Effect | None = None


def compare(
    requests: Sequence[Request],
    reference: Sequence[Answer],
    found: Sequence[Answer],
    *,
    special: Collection[str] = (),
    may_go_on: Collection[int] = (),
) -> Certificate:
    """Measure how far two engines lie apart.

    Args:
        requests: What both were asked.
        reference: The reference engine's answers, one for each request.
        found: The other engine's.
        special: The tokenizer's special tokens, which one engine may leave in its texts (lm-eval's
            class for vLLM does, and that for hf does not); they are not compared.
        may_go_on: Indices of texts that the other engine was let continue for longer.

    Raises:
        ValueError: If the answers are not those to the requests.
    """
    pairs = _pairs(requests, reference, found)
    differences = [
        _difference(ours, theirs) / _num_words(request)
        for request, ours, theirs in pairs
        if ours.logprob is not None or theirs.logprob is not None
    ]
    scored = [pair for pair in pairs if pair[0].request_type == "loglikelihood"]
    num_documents, num_flips = _flips(scored)
    texts = _texts(pairs, special, may_go_on)
    partings = [_common_length(ours, theirs) for ours, theirs in texts if ours != theirs]
    is_number = all(difference == difference for difference in differences)
    return Certificate(
        num_loglikelihoods=len(differences),
        worst_nats=max(differences, default=0.0) if is_number else float("nan"),
        mean_nats=sum(differences) / max(1, len(differences)),
        num_documents=num_documents,
        num_flips=num_flips,
        num_greedy_flips=sum(ours.is_greedy != theirs.is_greedy for _, ours, theirs in scored),
        num_texts=len(texts),
        num_diverged=len(partings),
        num_at_once=sum(ours.lstrip()[:1] != theirs.lstrip()[:1] for ours, theirs in texts),
        first_divergence=min(partings, default=None),
    )


def why_refused(certificate: Certificate, *, tolerance_nats: float) -> str:
    """Return why an adapter must go to the reference engine; empty if it may stay.

    Args:
        certificate: What was measured.
        tolerance_nats: How far one log-likelihood may lie apart.
    """
    if not certificate.num_loglikelihoods and not certificate.num_texts:
        return "nothing was compared with the reference engine"
    # NaN is beyond every tolerance.
    if not certificate.worst_nats <= tolerance_nats:
        return (
            f"its answers lie up to {certificate.worst_nats:.3g} nats from those of hf, more than "
            f"{tolerance_nats:g}; {certificate.num_flips} of {certificate.num_documents} documents "
            "would choose otherwise"
        )
    return _why_most_refused(certificate, tolerance_nats) or _why_effect_refused(certificate)


def measure_effect(
    requests: Sequence[Request],
    base: tuple[Sequence[Answer], Sequence[Answer]],
    adapter: tuple[Sequence[Answer], Sequence[Answer]],
    *,
    rounding_nats: float,
) -> Effect | None:
    """Measure which part of an adapter's effect another engine shows.

    The noise is that of the base, where both engines have nothing to agree on but rounding: what
    the effect is, and whether it is right, does not enter it.

    Args:
        requests: What was asked.
        base: The reference engine's answers of the base alone, and those of the other engine.
        adapter: The same with the adapter.
        rounding_nats: The least that the engines are taken to differ by; see `ROUNDING_NATS`.

    Returns:
        What was measured; None where there is no effect to measure.
    """
    effects, found, noises = [], [], []
    for (request, *of_base), (_, *of_adapter) in zip(
        _pairs(requests, *base), _pairs(requests, *adapter), strict=True
    ):
        values = [one.logprob for one in (*of_base, *of_adapter)]
        numbers = [value for value in values if value is not None and math.isfinite(value)]
        if len(numbers) < len(values):
            continue
        base_ours, base_theirs, ours, theirs = (one / _num_words(request) for one in numbers)
        effects.append(ours - base_ours)
        found.append(theirs - base_theirs)
        noises.append((base_theirs - base_ours) ** 2)
    power = sum(effect**2 for effect in effects)
    if not power:
        return None
    usual = max(sum(noises) / len(noises), rounding_nats**2)
    slope = sum(x * y for x, y in zip(effects, found, strict=True)) / power
    # Both effects are differences of two answers, so that each noise counts twice.
    spread = math.sqrt(
        sum(x**2 * 2 * max(one, usual) for x, one in zip(effects, noises, strict=True))
    )
    noise = 2 * usual * len(effects) / power
    left = sum((y - x) ** 2 for x, y in zip(effects, found, strict=True))
    return Effect(
        slope=slope,
        # Noise in the reference makes a slope flatter.
        slope_error=_SPREAD * spread / power + noise,
        unexplained=left / power,
        noise=noise,
    )


def _why_most_refused(certificate: Certificate, tolerance_nats: float) -> str:
    """Return why answers are refused of which no single one lies too far away."""
    num_nats, most = certificate.num_loglikelihoods, MOST_MEAN * tolerance_nats
    if num_nats >= ENOUGH and certificate.mean_nats > most:
        return (
            f"its answers lie {certificate.mean_nats:.3g} nats from those of hf in the mean of "
            f"{num_nats}, more than {most:g}"
        )
    num_documents = certificate.num_documents
    if num_documents >= ENOUGH and certificate.num_flips > MOST_FLIPS * num_documents:
        return f"{certificate.num_flips} of {num_documents} documents would choose otherwise"
    if certificate.num_at_once > MOST_AT_ONCE * certificate.num_texts:
        return (
            f"{certificate.num_at_once} of {certificate.num_texts} texts begin otherwise than "
            "those of hf"
        )
    return ""


def _why_effect_refused(certificate: Certificate) -> str:
    effect = certificate.effect
    if effect is None:
        return ""
    if abs(effect.slope - 1) > SLOPE_TOLERANCE + effect.slope_error:
        return (
            f"it has {effect.slope:.2f} times the effect that it has under hf, and rounding "
            f"explains {effect.slope_error:.2g}: it is applied in part, or another one is"
        )
    if effect.unexplained > UNEXPLAINED_TOLERANCE + _MOST_NOISE * effect.noise:
        return (
            f"its effect differs from that under hf by {effect.unexplained:.2g} of its square, and "
            f"rounding explains {effect.noise:.2g}: something else is applied as well, or instead"
        )
    return ""


def _texts(
    pairs: Iterable[tuple[Request, Answer, Answer]],
    special: Collection[str],
    may_go_on: Collection[int],
) -> list[tuple[str, str]]:
    """Return the texts of both engines, as far as they can be compared."""
    # The longest first: one token's text may begin another's.
    names = sorted(filter(None, special), key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, names)) or r"(?!)")
    texts = []
    for request, left, right in pairs:
        if left.text is None and right.text is None:
            continue
        ours, theirs = (pattern.sub("", one.text or "") for one in (left, right))
        if request.index in may_go_on and ours and theirs.startswith(ours):
            theirs = ours
        texts.append((ours, theirs))
    return texts


def _pairs(
    requests: Sequence[Request], reference: Sequence[Answer], found: Sequence[Answer]
) -> list[tuple[Request, Answer, Answer]]:
    ours = {answer.index: answer for answer in reference}
    theirs = {answer.index: answer for answer in found}
    asked = {request.index for request in requests}
    if not asked == ours.keys() == theirs.keys():
        raise ValueError(
            f"{len(asked)} requests, {len(ours)} and {len(theirs)} answers: not the same ones"
        )
    return [(request, ours[request.index], theirs[request.index]) for request in requests]


def _difference(ours: Answer, theirs: Answer) -> float:
    """Return the difference in nats; NaN where only one engine gave a number."""
    if ours.logprob is None or theirs.logprob is None:
        return float("nan")
    return abs(theirs.logprob - ours.logprob)


def _flips(scored: Iterable[tuple[Request, Answer, Answer]]) -> tuple[int, int]:
    """Return how many documents have a choice, and in how many the engines choose otherwise."""
    choices: dict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    for request, ours, theirs in scored:
        if ours.logprob is not None and theirs.logprob is not None:
            choices[request.doc_id, request.repeat].append((ours.logprob, theirs.logprob))
    several = [pairs for pairs in choices.values() if len(pairs) > 1]
    flips = sum(_best(ours for ours, _ in pairs) != _best(t for _, t in pairs) for pairs in several)
    return len(several), flips


def _best(values: Iterable[float]) -> int:
    """Return the first of the largest, as lm-eval takes it."""
    numbers = list(values)
    return max(range(len(numbers)), key=lambda at: (numbers[at], -at))


def _num_words(request: Request) -> int:
    """Return by how many words a log-likelihood is divided: only whole texts are long."""
    if request.request_type != "loglikelihood_rolling":
        return 1
    return max(1, len(str(request.arguments[0]).split()))


def _common_length(left: str, right: str) -> int:
    pairs = zip(left, right, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))
