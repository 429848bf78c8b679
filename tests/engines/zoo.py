"""Real PEFT adapters of many types, for a tiny base, and what a plain HFLM answers with each."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import peft
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoConfig, AutoModelForCausalLM

from raypeft.core.records import Answer, RequestSet, RequestType
from raypeft.core.routing import Lane
from tests.support.tiny import tiny_tokenizer

CLEAN: dict[str, Callable[[], Any]] = {
    "lora_r4": lambda: peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"]),
    "lora_r8_all_linear": lambda: peft.LoraConfig(r=8, target_modules="all-linear"),
    "rslora": lambda: peft.LoraConfig(r=8, use_rslora=True, target_modules=["q_proj"]),
    "lora_rank_pattern": lambda: peft.LoraConfig(
        r=4, target_modules=["q_proj", "v_proj"], rank_pattern={"layers.1.self_attn.q_proj": 2}
    ),
    "lora_embedding": lambda: peft.LoraConfig(r=4, target_modules=["embed_tokens", "q_proj"]),
    "dora": lambda: peft.LoraConfig(r=4, use_dora=True, target_modules=["q_proj", "v_proj"]),
    "ia3": lambda: peft.IA3Config(
        target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]
    ),
    "loha": lambda: peft.LoHaConfig(r=2, target_modules=["q_proj"]),
    "lokr": lambda: peft.LoKrConfig(r=2, target_modules=["q_proj"]),
    "vera": lambda: peft.VeraConfig(r=4, target_modules=["q_proj", "o_proj"]),
    "oft": lambda: peft.OFTConfig(oft_block_size=8, target_modules=["q_proj"]),
    "ln_tuning": lambda: peft.LNTuningConfig(target_modules=["input_layernorm"]),
    "prompt_tuning": lambda: peft.PromptTuningConfig(num_virtual_tokens=3),
    "prefix_tuning": lambda: peft.PrefixTuningConfig(num_virtual_tokens=3),
    "p_tuning": lambda: peft.PromptEncoderConfig(num_virtual_tokens=3, encoder_hidden_size=16),
    "trainable_tokens": lambda: peft.TrainableTokensConfig(token_indices=[300, 301]),
    "lora_alpha_pattern": lambda: peft.LoraConfig(
        r=4, target_modules=["q_proj", "v_proj"], alpha_pattern={"layers.0.self_attn.q_proj": 32}
    ),
    "lora_lm_head": lambda: peft.LoraConfig(r=4, target_modules=["lm_head"]),
    "lora_own_bias": lambda: peft.LoraConfig(r=4, lora_bias=True, target_modules=["q_proj"]),
    "lora_one_layer": lambda: peft.LoraConfig(
        r=4, target_modules=["q_proj"], layers_to_transform=[1]
    ),
    "lora_mica": lambda: peft.LoraConfig(r=4, init_lora_weights="mica", target_modules=["q_proj"]),
    "lora_tokens": lambda: peft.LoraConfig(
        r=4, target_modules=["q_proj"], trainable_token_indices=[300, 301]
    ),
    "lora_parameters": lambda: peft.LoraConfig(
        r=4, target_modules=[], target_parameters=["self_attn.q_proj.weight"]
    ),
    "activated_lora": lambda: peft.LoraConfig(
        r=4, target_modules=["q_proj", "v_proj"], alora_invocation_tokens=[203, 37]
    ),
    "adalora": lambda: peft.AdaLoraConfig(
        target_r=2, init_r=4, total_step=10, target_modules=["q_proj"]
    ),
    "adamss": lambda: peft.AdamssConfig(r=8, num_subspaces=2, target_modules=["q_proj"]),
    "beft": lambda: peft.BeftConfig(target_modules=["v_proj"]),
    "boft": lambda: peft.BOFTConfig(boft_block_size=4, target_modules=["q_proj"]),
    "c3a": lambda: peft.C3AConfig(block_size=16, target_modules=["q_proj"]),
    "cartridge": lambda: peft.CartridgeConfig(num_virtual_tokens=4),
    "cpt": lambda: peft.CPTConfig(
        task_type="CAUSAL_LM",
        cpt_token_ids=[5, 6, 7],
        cpt_mask=[1, 1, 1],
        cpt_tokens_type_mask=[1, 2, 3],
    ),
    "deft": lambda: peft.DeftConfig(r=4, target_modules=["q_proj"]),
    "delora": lambda: peft.DeloraConfig(r=4, target_modules=["q_proj"]),
    "fourierft": lambda: peft.FourierFTConfig(n_frequency=50, target_modules=["q_proj"]),
    "frod": lambda: peft.FrodConfig(target_modules=["q_proj"], progressbar=False),
    "glora": lambda: peft.GloraConfig(r=4, target_modules=["q_proj"]),
    "gralora": lambda: peft.GraloraConfig(r=4, alpha=8, target_modules=["q_proj"]),
    "hira": lambda: peft.HiraConfig(r=4, target_modules=["q_proj"]),
    "hra": lambda: peft.HRAConfig(r=4, target_modules=["q_proj"]),
    "miss": lambda: peft.MissConfig(r=4, target_modules=["q_proj"]),
    "osf": lambda: peft.OSFConfig(effective_rank=8, target_modules=["q_proj"]),
    "peanut": lambda: peft.PeanutConfig(r=4, target_modules=["q_proj"]),
    "psoft": lambda: peft.PsoftConfig(r=4, target_modules=["q_proj"]),
    "pvera": lambda: peft.PveraConfig(r=4, target_modules=["q_proj"]),
    "randlora": lambda: peft.RandLoraConfig(r=4, target_modules=["q_proj"]),
    "road": lambda: peft.RoadConfig(group_size=16, target_modules=["q_proj"]),
    "shadow": lambda: peft.ShadowConfig(r=4),
    "shira": lambda: peft.ShiraConfig(r=4, random_seed=3, target_modules=["q_proj"]),
    "supertuning": lambda: peft.SupertuningConfig(sparsity=0.9, target_modules=["q_proj"]),
    "tinylora": lambda: peft.TinyLoraConfig(r=2, u=8, target_modules=["q_proj"]),
    "unilora": lambda: peft.UniLoraConfig(r=4, target_modules=["q_proj"]),
    "vblora": lambda: peft.VBLoRAConfig(
        r=4, num_vectors=8, vector_length=16, target_modules=["q_proj"]
    ),
    "waveft": lambda: peft.WaveFTConfig(n_frequency=64, target_modules=["q_proj"]),
}
"""Types after which the base needs no reload."""

MUTATING: dict[str, Callable[[], Any]] = {
    "bias_all": lambda: peft.LoraConfig(r=4, bias="all", target_modules=["q_proj"]),
    "pissa": lambda: peft.LoraConfig(r=4, init_lora_weights="pissa", target_modules=["q_proj"]),
    "saved_lm_head": lambda: peft.LoraConfig(
        r=4, target_modules=["q_proj"], modules_to_save=["lm_head"]
    ),
    "layer_replication": lambda: peft.LoraConfig(
        r=4, target_modules=["q_proj"], layer_replication=[[0, 2], [1, 2]]
    ),
    "adaption_prompt": lambda: peft.AdaptionPromptConfig(adapter_len=4, adapter_layers=1),
    "olora": lambda: peft.LoraConfig(r=4, init_lora_weights="olora", target_modules=["q_proj"]),
    "saved_norms": lambda: peft.LoraConfig(
        r=4, target_modules=["q_proj"], modules_to_save=["norm"]
    ),
    "bias_lora_only": lambda: peft.LoraConfig(r=4, bias="lora_only", target_modules=["q_proj"]),
    "kasa": lambda: peft.LoraConfig(r=4, kasa_config=peft.KasaConfig(), target_modules=["q_proj"]),
    "boft_bias": lambda: peft.BOFTConfig(boft_block_size=4, bias="all", target_modules=["q_proj"]),
}
"""Types that leave the base changed."""

ZOO = CLEAN | MUTATING

LANES = dict.fromkeys(
    (
        *("lora_r4", "lora_r8_all_linear", "rslora", "lora_rank_pattern", "lora_alpha_pattern"),
        *("lora_embedding", "lora_lm_head", "lora_own_bias", "lora_one_layer", "lora_mica", "dora"),
    ),
    Lane.SHARED,
)
"""What is plain LoRA; the other clean ones are `one_type`."""

_SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_GROUPED = _SMALL | {"intermediate_size": 64, "num_key_value_heads": 2}
_BLOOM = {"hidden_size": 32, "n_layer": 2, "n_head": 4}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "gpt_neox": _SMALL | {"intermediate_size": 64},
    "qwen3": _GROUPED | {"head_dim": 8, "tie_word_embeddings": True},
    "gemma2": _GROUPED | {"head_dim": 8, "sliding_window": 16},
    "mixtral": _GROUPED | {"num_local_experts": 4},
}
"""Settings of tiny bases: transposed weights, fused projections, ties, windows, experts."""

MORE_ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": _GROUPED,
    "qwen2": _GROUPED | {"tie_word_embeddings": True},
    "mistral": _GROUPED | {"sliding_window": 16},
    "gemma3_text": _GROUPED
    | {
        "head_dim": 8,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "phi": _SMALL | {"intermediate_size": 64},
    "opt": _SMALL | {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "gpt_neo": {
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
    },
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2},
    "bloom": _BLOOM,
    "falcon": _SMALL | {"alibi": True},
    "recurrent_gemma": _SMALL
    | {
        "num_hidden_layers": 3,
        "intermediate_size": 64,
        "num_key_value_heads": 1,
        "attention_window_size": 16,
        "lru_width": 32,
    },
}
"""Windows shorter than the prompts, biases, and kinds that cannot share a context."""


def make_base(folder: Path, name: str, **changes: Any) -> Path:
    """Save a random tiny base of an architecture with its tokenizer and return its folder."""
    tiny_tokenizer(folder)
    common = {"vocab_size": 400, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    limits = {} if name == "gpt2" else {"max_position_embeddings": 128}
    settings = (ARCHITECTURES | MORE_ARCHITECTURES)[name]
    config = AutoConfig.for_model(name, **(common | limits | settings | changes))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(str(folder))
    return folder


def make_adapter(
    base: Path, folder: Path, name: str, *, seed: int = 5, with_embeddings: bool = False
) -> Path:
    """Save an adapter of the zoo with random weights and return its folder."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's advice on training does not matter here
        config = ZOO[name]()
        config.task_type = "CAUSAL_LM"
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_pretrained(str(base))
        adapted = peft.get_peft_model(model, config)
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        adapted.save_pretrained(str(folder), save_embedding_layers=with_embeddings)
    return folder


def reference(base: Path, adapter: Path | None, *, batch_size: int, **settings: Any) -> HFLM:
    """Return lm-eval's own model, freshly loaded, with PEFT's own loading of an adapter."""
    defaults = {"device": "cpu", "dtype": "float32", "softmax_dtype": "float32"}
    model = HFLM(pretrained=str(base), batch_size=batch_size, **(defaults | settings))
    if adapter is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model._model = peft.PeftModel.from_pretrained(model._model, str(adapter)).eval()
    return model


def reference_answers(model: HFLM, requests: RequestSet) -> tuple[Answer, ...]:
    """Return what lm-eval's public methods say to a request set, one call for each type."""
    answers: list[Answer] = []
    kinds: Sequence[RequestType] = ("loglikelihood", "loglikelihood_rolling", "generate_until")
    for kind in kinds:
        own = [request for request in requests.requests if request.request_type == kind]
        instances = [
            Instance(request_type=kind, doc={}, arguments=request.arguments, idx=0)
            for request in own
        ]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Position ids are not supported")
            warnings.filterwarnings("ignore", message="Sparse invariant checks")  # FROD
            results = getattr(model, kind)(instances, disable_tqdm=True) if own else []
        for request, result in zip(own, results, strict=True):
            if kind == "loglikelihood":
                answers.append(Answer(request.index, logprob=result[0], is_greedy=result[1]))
            elif kind == "loglikelihood_rolling":
                answers.append(Answer(request.index, logprob=float(result)))
            else:
                answers.append(Answer(request.index, text=result))
    return tuple(sorted(answers, key=lambda answer: answer.index))
