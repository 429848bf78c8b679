"""From an adapter's config to how it may share a loaded base.

Decides: the lane of an adapter (with others of its kind, its type alone, or on a base of its
own), whether contexts may be shared with it attached, and which adapters no engine can evaluate.
Leaves to others: whether its tensors fit (`engines.adapters`), and whether the model it becomes
computes shared contexts exactly (the engine asks the model).

The table covers every type of PEFT 0.21.2 and was checked by attaching and detaching one adapter
of each; a type that is not in it is refused, since nobody knows what it leaves behind. Values
count as much as types: a LoRA that trains biases changes the base under every other adapter,
without a word from PEFT.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from raypeft.core.peft_settings import SETTINGS
from raypeft.core.records import Json


class Lane(StrEnum):
    """How an adapter shares a loaded base with others."""

    SHARED = "shared"
    """Plain LoRA: others of its kind may be held beside it; taken off, it leaves the base clean."""
    ONE_TYPE = "one_type"
    """Nothing else may be held beside it; taken off, it leaves the base clean."""
    ISOLATED = "isolated"
    """It changes the base: the base is loaded afresh after it, whatever it looks like."""


@dataclass(frozen=True, slots=True)
class Route:
    """How an adapter is evaluated.

    Attributes:
        lane: How it shares a loaded base.
        why_plain: Why contexts must not be shared while it is attached; empty if they may be,
            as far as the config tells.
        reason: Why it takes this lane, for a person.
    """

    lane: Lane
    reason: str
    why_plain: str = ""

    @property
    def may_share_context(self) -> bool:
        """Whether requests may share the computation of their context."""
        return not self.why_plain


@dataclass(frozen=True, slots=True)
class NotRoutable:
    """Why no engine can evaluate an adapter, and what to do about it."""

    reason: str


_REFUSED = {
    "LILY": "it weighs its parts by an average over the whole batch, so that what it says to a "
    "request depends on the requests beside it",
    "MULTITASK_PROMPT_TUNING": "it needs a task number with every request, which lm-eval lacks",
    "POLY": "it needs a task number with every request, which lm-eval lacks",
    "XLORA": "it is made of further adapters that its folder only names",
}
_PROMPTS = ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "CARTRIDGE")
_TAKEN_OFF_CLEAN = (
    *("ADALORA", "ADAMSS", "BEFT", "BOFT", "C3A", "DEFT", "DELORA", "FOURIERFT", "FROD", "GLORA"),
    *("GRALORA", "HIRA", "HRA", "IA3", "LN_TUNING", "LOHA", "LOKR", "MISS", "OFT", "OSF"),
    *("PEANUT", "PSOFT", "PVERA", "RANDLORA", "ROAD", "SHADOW", "SHIRA", "SUPERTUNING"),
    *("TINYLORA", "TRAINABLE_TOKENS", "UNILORA", "VBLORA", "VERA", "WAVEFT"),
)
_CHANGING = {"ADAPTION_PROMPT": "ADAPTION_PROMPT rebuilds the attention of the base"}
ROUTED_TYPES = frozenset((*_REFUSED, *_PROMPTS, *_TAKEN_OFF_CLEAN, *_CHANGING, "LORA"))
"""The adapter types that are decided on here."""

# Contexts are shared by rows in which several continuations stand one after the other. These
# types read more of a row than the tokens that attention lets a token see.
_READS_ROWS = {
    **dict.fromkeys(_PROMPTS, "adapters of prompt types own the cache and put tokens in front"),
    "ADAPTION_PROMPT": "ADAPTION_PROMPT has an attention of its own",
    "SHADOW": "SHADOW runs a model of its own beside the base",
}

_ORDINARY_INIT = ("gaussian", "orthogonal", "eva", "mica")
_CHANGING_INIT = ("pissa", "olora", "loftq")
_CONVERT = (
    "save it as an ordinary LoRA where it was trained (save_pretrained with "
    "path_initial_model_for_weight_conversion)"
)
_REFUSED_INIT = {
    "corda": "CorDA takes from the base what only its covariances tell, and the adapter's folder "
    f"lacks them; {_CONVERT}",
    "lora_ga": "LoRA-GA was trained on a base changed by gradients that the adapter's folder "
    f"lacks, and PEFT would attach it to the unchanged one; {_CONVERT}",
    "pissa_niter": "its initialisation is drawn at random again on every load, so that the base "
    f"it was trained on cannot be had back; {_CONVERT}",
}

# Set on an adapter of any type, they change the base for whoever comes next.
_CHANGING_SETTINGS: dict[str, Callable[[Json], bool]] = {
    "bias": lambda value: value not in (None, False, "none"),
    "modules_to_save": bool,
    "layer_replication": bool,
    "kasa_config": bool,
}
# LoRA as well, but PEFT cannot hold others beside it, or answers wrongly when it does.
_ALONE_SETTINGS = (
    "alora_invocation_tokens",
    "ensure_weight_tying",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
    "velora_config",
)
_REFUSED_SETTINGS: dict[str, tuple[Callable[[Json], bool], str]] = {
    "arrow_config": (bool, "it routes between further adapters that its folder only names"),
    "megatron_config": (bool, "its layers are those of Megatron, not of transformers"),
    "sample_at_inference": (bool, "its answers are drawn at random, another time others"),
    "shadow_model": (
        lambda value: value not in (None, "mirror"),
        "it needs a second model that its folder only names",
    ),
}


def route(config: Mapping[str, Json]) -> Route | NotRoutable:
    """Return how an adapter of this config is evaluated, or why it cannot be.

    Args:
        config: Its `adapter_config.json`.
    """
    peft_type = config.get("peft_type")
    if peft_type not in ROUTED_TYPES:
        return NotRoutable(
            f"nothing is known about adapters of type {peft_type!r}; known are "
            f"{', '.join(sorted(ROUTED_TYPES - _REFUSED.keys()))}"
        )
    if refusal := _refusal(str(peft_type), config):
        return NotRoutable(refusal)
    lane, reason = _lane(str(peft_type), config)
    return Route(lane, reason, _why_plain(str(peft_type), config))


def _refusal(peft_type: str, config: Mapping[str, Json]) -> str:
    if peft_type in _REFUSED:
        return f"adapters of type {peft_type} cannot be evaluated: {_REFUSED[peft_type]}"
    for setting, (is_refused, reason) in _REFUSED_SETTINGS.items():
        if setting in SETTINGS[peft_type] and is_refused(config.get(setting)):
            return f"{setting} is set: {reason}"
    if peft_type != "LORA":
        return ""
    init = _init(config)
    if reason := _REFUSED_INIT.get("pissa_niter" if init.startswith("pissa_niter_") else init, ""):
        return f"init_lora_weights={init!r}: {reason}"
    if init not in ("", *_ORDINARY_INIT, *_CHANGING_INIT):
        known = ("true", "false", *_ORDINARY_INIT, *_CHANGING_INIT)
        return f"init_lora_weights={init!r} is unknown; known are {', '.join(known)}"
    return ""


def _lane(peft_type: str, config: Mapping[str, Json]) -> tuple[Lane, str]:
    if peft_type in _CHANGING:
        return Lane.ISOLATED, _CHANGING[peft_type]
    for setting, changes_base in _CHANGING_SETTINGS.items():
        if changes_base(config.get(setting)):
            return Lane.ISOLATED, f"{setting} changes the base's own weights or layers"
    if peft_type != "LORA":
        return Lane.ONE_TYPE, f"{peft_type} is taken off clean, and held alone"
    if (init := _init(config)) in _CHANGING_INIT:
        return Lane.ISOLATED, f"init_lora_weights={init!r} changes the base's own weights"
    for setting in _ALONE_SETTINGS:
        if config.get(setting):
            return Lane.ONE_TYPE, f"LORA with {setting} is taken off clean, and held alone"
    if config.get("use_dora"):
        return Lane.SHARED, "LORA with use_dora, which is held and taken off as plain LORA is"
    return Lane.SHARED, "plain LORA"


def _why_plain(peft_type: str, config: Mapping[str, Json]) -> str:
    if config.get("alora_invocation_tokens"):
        return "an activated LoRA looks for its invocation tokens in the whole row"
    return _READS_ROWS.get(peft_type, "")


def _init(config: Mapping[str, Json]) -> str:
    """Return LoRA's named initialisation in the spelling of the table; empty for yes and no."""
    value = config.get("init_lora_weights", True)
    # PEFT compares some of the names without regard to case.
    return "" if value is None or isinstance(value, bool) else str(value).lower()
