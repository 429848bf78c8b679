"""Which engine answers a subject, and why: `engine.kind` of the sweep, decided.

Decides: what `auto` means on a machine, that a base and an adapter that are compared are answered
by engines of the same kind, and therefore when a base needs a second baseline. Leaves to others:
what vLLM can do (`vllm_routing`), and finding out what is installed (`api.surroundings`).
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from raypeft.core.records import EngineKind

AskedKind: TypeAlias = Literal["auto", "hf", "vllm", "fake"]

HF_SUFFIX = "@hf"
"""Ends the name of a base's second engine and second baseline, those of `hf` beside vLLM."""

AGAIN_SUFFIX = "@again"
"""Ends the name of a baseline that is answered a second time, for the noise floor."""

ZERO_SUFFIX = "@zero"
"""Ends the name of a baseline that is answered through an adapter of zero effect, for the same."""

SECOND_SUFFIXES = (AGAIN_SUFFIX, ZERO_SUFFIX)
"""End the names of second answers, which only the noise floor reads."""

AS_ASKED = "as the sweep file says"


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What `auto` depends on.

    Attributes:
        vllm_installed: Whether vLLM is installed.
        has_gpus: Whether slots have GPUs.
        is_recorded: Whether an earlier run found this, and not this one.
    """

    vllm_installed: bool = False
    has_gpus: bool = False
    is_recorded: bool = False


@dataclass(frozen=True, slots=True)
class EngineRoute:
    """Which engine answers a subject.

    Attributes:
        kind: The engine's kind.
        reason: Why, for a person.
        why_not_vllm: What keeps this subject from vLLM, where `auto` would have taken that.
        certificate: How far vLLM's answers were found to lie from those of hf, for a person.
    """

    kind: EngineKind
    reason: str
    why_not_vllm: str = ""
    certificate: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """The engines of one base and its adapters.

    Attributes:
        baseline: What answers the base alone.
        adapters: What answers each adapter, by subject id.
        refused: Why an adapter cannot be answered as the sweep file says, by subject id.
        base_refused: Why the base cannot, and then none of its adapters; empty if it can.
    """

    baseline: EngineRoute
    adapters: Mapping[str, EngineRoute]
    refused: Mapping[str, str] = field(default_factory=dict)
    base_refused: str = ""


def may_be_vllm(asked: AskedKind, surroundings: Surroundings) -> bool:
    """Return whether vLLM is to answer whatever it can."""
    return asked == "vllm" or (
        asked == "auto" and surroundings.vllm_installed and surroundings.has_gpus
    )


def assign_engines(
    asked: AskedKind,
    surroundings: Surroundings,
    *,
    why_base_not: str,
    why_adapters_not: Mapping[str, str],
) -> Assignment:
    """Return which engines answer a base and its adapters.

    Args:
        asked: The sweep's `engine.kind`.
        surroundings: What `auto` depends on.
        why_base_not: Why vLLM cannot do the base; empty if it can.
        why_adapters_not: For each adapter's subject id why vLLM cannot do it; empty if it can.
    """
    if asked == "auto":
        return _choose(surroundings, why_base_not, why_adapters_not)
    route = EngineRoute(asked, AS_ASKED)
    refused: dict[str, str] = {}
    if asked == "vllm":
        refused = {name: reason for name, reason in why_adapters_not.items() if reason}
    return Assignment(
        baseline=route,
        adapters=dict.fromkeys(why_adapters_not, route),
        refused={name: _refusal(reason) for name, reason in refused.items()},
        base_refused=_refusal(why_base_not) if asked == "vllm" and why_base_not else "",
    )


def _choose(
    surroundings: Surroundings, why_base_not: str, why_adapters_not: Mapping[str, str]
) -> Assignment:
    if not may_be_vllm("auto", surroundings):
        return _all_hf(f"auto: hf, since {_why_nowhere(surroundings)}", "", why_adapters_not)
    if why_base_not:
        return _all_hf(f"auto: hf, since {why_base_not}", why_base_not, why_adapters_not)
    if why_adapters_not and all(why_adapters_not.values()):
        # Nothing would be compared with a baseline of vLLM's.
        baseline = EngineRoute("hf", "auto: hf, since vllm can do none of its adapters")
    else:
        baseline = EngineRoute("vllm", "auto: vllm, which is installed and has a GPU")
    return Assignment(
        baseline=baseline,
        adapters={
            name: EngineRoute("hf", f"auto: hf, since {why}", why) if why else baseline
            for name, why in why_adapters_not.items()
        },
    )


_TYPE_OF_TASK: Mapping[str, str] = {
    "loglikelihood": "log-likelihoods",
    "multiple_choice": "log-likelihoods",
    "loglikelihood_rolling": "log-likelihoods of whole texts",
    "generate_until": "texts",
}
_ONE_BY_ONE = "log-likelihoods of whole texts"
"""Each is a text of its own: there is no prefix to reuse, only adapters to answer in one batch."""


def with_request_types(route: EngineRoute, output_types: Collection[str]) -> EngineRoute:
    """Return a route whose reason names what is asked for.

    It changes no choice: vLLM answers requests of every type, and an engine that depended on the
    tasks would give a cell another identity as soon as a task is added to its sweep.

    Args:
        route: As it was chosen, before the tasks were known.
        output_types: lm-eval's output types of the tasks; none if they are not known yet.
    """
    is_about_vllm = route.kind == "vllm" or bool(route.why_not_vllm)
    if route.reason == AS_ASKED or not is_about_vllm or not output_types:
        return route
    asked = sorted({_TYPE_OF_TASK.get(name, name) for name in output_types})
    told = f"the tasks ask for {' and '.join(asked)}"
    if route.kind == "vllm" and asked == [_ONE_BY_ONE]:
        told += ", which share no prefix: vllm gains by answering adapters together alone"
    return replace(route, reason=f"{route.reason}; {told}")


def _why_nowhere(surroundings: Surroundings) -> str:
    reason = "vllm is not installed"
    if surroundings.vllm_installed:
        reason = "there is no GPU (on CPUs vllm answers where the sweep file names it)"
    if surroundings.is_recorded:
        reason += ", as found when this sweep began (engine.json in its output)"
    return reason


def _all_hf(reason: str, why: str, adapters: Mapping[str, str]) -> Assignment:
    route = EngineRoute("hf", reason, why)
    return Assignment(baseline=route, adapters=dict.fromkeys(adapters, route))


def _refusal(reason: str) -> str:
    return (
        f"engine.kind is vllm, and {reason}; say `engine: {{kind: hf}}`, or `auto`, which answers "
        "by hf what vllm cannot do"
    )
