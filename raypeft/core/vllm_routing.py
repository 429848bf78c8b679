"""What vLLM cannot do, or gets wrong without a word: the reasons to answer by `hf` instead.

Decides, from an adapter's config and the names of its tensors, whether vLLM computes what PEFT
does; the same for a base and the settings it is loaded under; and the room that an engine makes
for its adapters. Leaves to others: which engine then answers (`engine_choice`), reading the files
(`engines.lora_facts`), and the engine's own checks, which do not trust this table.

It was made for vLLM 0.26 to 0.32. What is not known to be right is routed to `hf`: an adapter that
vLLM attaches in part, or not at all, gives numbers that look like numbers.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from raypeft.core.peft_settings import is_unset
from raypeft.core.records import Json, LoraRoom

ALLOWED_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as `max_lora_rank`."""

_ALL_LINEAR = frozenset(
    ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
)
LORA_MODULES: Mapping[str, frozenset[str]] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "granite"), _ALL_LINEAR),
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text"), _ALL_LINEAR),
    "phi3": frozenset(("qkv_proj", "o_proj", "gate_up_proj", "down_proj")),
}
"""By model type, the modules that vLLM's own class wraps; embeddings and head left out."""

_NO_LORA = "vLLM's class for it takes no LoRA adapters"
_EXPERTS = "adapters in mixtures of experts were not tried under vLLM"
_BORROWED = "vLLM runs it by transformers' class, where adapters were not tried"
_KNOWN_TYPES: Mapping[str, str] = {
    **dict.fromkeys(("bloom", "falcon", "gpt2", "gpt_neox", "gptj", "mpt", "stablelm"), _NO_LORA),
    **dict.fromkeys(("mamba", "mamba2", "falcon_mamba"), _NO_LORA),
    **dict.fromkeys(("deepseek_v2", "deepseek_v3", "gpt_oss", "granitemoe", "mixtral"), _EXPERTS),
    **dict.fromkeys(("olmoe", "phimoe", "qwen2_moe", "qwen3_moe"), _EXPERTS),
    **dict.fromkeys(("gpt_bigcode", "olmo", "olmo2", "smollm3", "starcoder2"), _BORROWED),
}

OUTER_MODULES = frozenset(("lm_head", "embed_tokens"))
"""Never wrapped: with prompt log-probabilities vLLM puts them on the wrong rows."""

# Where vLLM reads a setting as PEFT does, or where it says nothing about the weights.
_UNDERSTOOD = frozenset(
    (
        *("alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config"),
        *("eva_config", "exclude_modules", "inference_mode", "init_lora_weights"),
        *("layers_pattern", "layers_to_transform", "loftq_config", "lora_alpha", "lora_dropout"),
        *("lora_ga_config", "megatron_core", "peft_type", "peft_version", "qalora_group_size"),
        *("r", "rank_pattern", "revision", "runtime_config", "target_modules", "task_type"),
        "use_rslora",
    )
)
_ORDINARY_INITS = ("", "gaussian", "orthogonal", "eva")
_REQUIRED = ("r", "lora_alpha", "target_modules")
_WHY: Mapping[str, str] = {
    "alora_invocation_tokens": "vLLM does not look for invocation tokens",
    "fan_in_fan_out": "vLLM never reads it",
    "layer_replication": "vLLM does not repeat layers",
    "lora_bias": "vLLM takes no biases in adapters",
    "modules_to_save": "vLLM takes no weights in place of the base's",
    "trainable_token_indices": "vLLM takes no trained tokens",
    "use_bdlora": "vLLM does not know BD-LoRA",
    "use_dora": "vLLM does not know DoRA",
    "use_qalora": "vLLM does not know QALoRA",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFacts:
    """What an adapter is beside its config.

    Attributes:
        ranks: For each module that has a LoRA pair (named as in the base) its rank.
        strangers: Those of these modules that the base lacks.
        others: Tensors that belong to no such pair.
        is_pickled: Whether its weights are a pickled file.
        is_merged: Whether it is to be merged into a copy of the base.
        has_own_tokenizer: Whether it is asked with a tokenizer of its own.
        vocab_size: Tokens to which the base is enlarged for it; None leaves it as it is.
        config_rank: The highest rank that its config speaks of, `r` and `rank_pattern`, whether or
            not a tensor has it: vLLM makes room by that.
    """

    ranks: Mapping[str, int]
    strangers: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    is_pickled: bool = False
    is_merged: bool = False
    has_own_tokenizer: bool = False
    vocab_size: int | None = None
    config_rank: int = 0

    @property
    def highest_rank(self) -> int:
        """The rank that vLLM must have room for."""
        return max(self.config_rank, *self.ranks.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseSettings:
    """What a base is and how it is to be loaded.

    Attributes:
        model_type: As in its config.
        dtype: What it computes in.
        on_gpu: Whether slots have GPUs.
        has_adapters: Whether any are evaluated on it.
        quantization: How its weights are held, if not in `dtype`.
        softmax_dtype: dtype of the log-softmax; None is the model's own.
        attn_implementation: As in transformers; None is the model's default.
        trust_remote_code: Whether Python code of its own may run.
    """

    model_type: str
    dtype: str
    on_gpu: bool
    has_adapters: bool
    quantization: str | None = None
    softmax_dtype: str | None = "float32"
    attn_implementation: str | None = None
    trust_remote_code: bool = False


def why_base_not_vllm(base: BaseSettings) -> str:
    """Return why vLLM cannot answer for a base, whatever its adapters; empty if it can."""
    if base.quantization is not None:
        return f"quantization {base.quantization} is done by hf only"
    if base.softmax_dtype is None:
        return "softmax_dtype `model` is done by hf only: vLLM's log-softmax is float32"
    if base.attn_implementation is not None:
        return (
            f"attn_implementation {base.attn_implementation!r} is one of transformers, and vLLM "
            "has its own"
        )
    if base.trust_remote_code:
        return "trust_remote_code: Python code that comes with a base was not tried under vLLM"
    if base.model_type not in LORA_MODULES:
        known = f"tried are {', '.join(sorted(LORA_MODULES))}"
        reason = _KNOWN_TYPES.get(base.model_type, f"it was not tried under vLLM; {known}")
        return f"model type {base.model_type!r}: {reason}"
    if base.has_adapters and base.on_gpu and base.dtype == "float32":
        return "vLLM's kernels for adapters on a GPU compute in 16 bits only, and dtype is float32"
    return ""


def why_not_vllm(config: Mapping[str, Json], facts: AdapterFacts, model_type: str) -> str:
    """Return why vLLM cannot evaluate an adapter or would get it wrong; empty if it can.

    Args:
        config: Its `adapter_config.json`.
        facts: What it is beside that.
        model_type: That of its base, one of `LORA_MODULES`.
    """
    peft_type = config.get("peft_type")
    if peft_type != "LORA":
        return f"vLLM takes adapters of type LORA only, and it is of type {peft_type}"
    return _why_asked(facts) or _why_config(config) or _why_tensors(facts, model_type)


def lora_room(adapters: Collection[AdapterFacts]) -> LoraRoom | None:
    """Return the room that an engine needs for adapters that it can do; None if there are none."""
    if not adapters:
        return None
    highest = max(adapter.highest_rank for adapter in adapters)
    modules = {_last(module) for adapter in adapters for module in adapter.ranks}
    return LoraRoom(
        max_rank=next(rank for rank in ALLOWED_RANKS if rank >= highest),
        num_adapters=len(adapters),
        target_modules=tuple(sorted(modules - OUTER_MODULES)),
    )


def _why_asked(facts: AdapterFacts) -> str:
    if facts.is_merged:
        return "merge: it is merged into a copy of the base, which hf does"
    if facts.vocab_size is not None:
        return f"it enlarges the base to {facts.vocab_size} tokens, which hf does"
    if facts.has_own_tokenizer:
        return "it brings its own tokenizer, and a vLLM engine has the base's"
    if facts.is_pickled:
        return "its weights are pickled, and vLLM is given safetensors only"
    return ""


def _why_config(config: Mapping[str, Json]) -> str:
    missing = [name for name in _REQUIRED if config.get(name) is None]
    if missing:
        return f"its config lacks {', '.join(missing)}, without which vLLM refuses it"
    if (bias := config.get("bias")) not in (None, False, "none"):
        return f"bias={bias!r}: vLLM takes no biases in adapters"
    init = config.get("init_lora_weights", True)
    name = "" if init is None or isinstance(init, bool) else str(init).lower()
    if name not in _ORDINARY_INITS:
        return f"init_lora_weights={init!r} changes the base's weights, which vLLM does not"
    for setting, value in config.items():
        if setting not in _UNDERSTOOD and not is_unset(value):
            return f"{setting} is set: {_WHY.get(setting, 'vLLM does not know it')}"
    return ""


def _why_tensors(facts: AdapterFacts, model_type: str) -> str:
    if facts.others:
        return f"vLLM would not read its tensors {_shown(facts.others)}"
    if not facts.ranks:
        return "none of its tensors is half of a LoRA pair"
    outer = [module for module in facts.ranks if _last(module) in OUTER_MODULES]
    if outer:
        # Texts alone it would get right; but an engine that wraps them must never be asked for
        # anything else, the certificate's documents among it.
        return (
            f"vLLM gets {_shown(outer)} wrong in log-likelihoods, and an engine is loaded for "
            "requests of all types"
        )
    if facts.strangers:
        return (
            f"vLLM would leave out, without a word, what the base lacks: {_shown(facts.strangers)}"
        )
    wrapped = LORA_MODULES.get(model_type, frozenset())
    unknown = [module for module in facts.ranks if _last(module) not in wrapped]
    if unknown:
        known = ", ".join(sorted(wrapped)) or "none"
        return f"vLLM puts adapters of {model_type!r} on {known}, and not on {_shown(unknown)}"
    module, rank = max(facts.ranks.items(), key=lambda item: item[1])
    if rank > ALLOWED_RANKS[-1]:
        return f"rank {rank} of {module} is above {ALLOWED_RANKS[-1]}, the most that vLLM takes"
    if facts.config_rank > ALLOWED_RANKS[-1]:
        return (
            f"its config speaks of rank {facts.config_rank}, which vLLM makes room for, and which "
            f"is above {ALLOWED_RANKS[-1]}, the most that it takes"
        )
    return ""


def config_rank(config: Mapping[str, Json]) -> int:
    """Return the highest rank that an adapter's config speaks of, as vLLM's own check reads it."""
    pattern = config.get("rank_pattern")
    named = pattern.values() if isinstance(pattern, Mapping) else ()
    return max((rank for rank in (config.get("r"), *named) if isinstance(rank, int)), default=0)


def _last(module: str) -> str:
    return module.rsplit(".", 1)[-1]


def _shown(names: Collection[str]) -> str:
    first = ", ".join(list(names)[:3])
    return first if len(names) <= 3 else f"{first} and {len(names) - 3} more"
