"""Tiny models, tokenizers and adapters, made from a seed in a second, without the network.

They are random: good for parity and plumbing, meaningless as language models. Everything is
written to the folder given, so that it can be loaded by path like any model or adapter.
"""

import string
from pathlib import Path
from typing import Any

CONTEXT_TOKENS = 256
"""Context length of the tiny models: short, so that a test can exceed it cheaply."""

EOS = "<|end|>"
PAD = "<|pad|>"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

_TRAINING_TEXT = (
    "Question: which of these is a color?\nAnswer: red\n\n",
    "Question: what is two plus three?\nAnswer: five\n\n",
    "The quick brown fox jumps over the lazy dog while the small cat sleeps.\n",
    "A B C D apple banana cherry green blue yellow house river mountain tree.\n",
    "Größe, naïve, 日本語, emoji 🙂 and so on.\n",
    string.ascii_letters + string.digits + string.punctuation,
)


def tiny_tokenizer(path: Path | str, *, vocab_size: int = 400) -> Path:
    """Train a byte-level BPE tokenizer with a chat template and save it at `path`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS, PAD, "<|system|>", "<|user|>", "<|assistant|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TRAINING_TEXT * 4, trainer=trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(str(path))
    return Path(path)


def tiny_llama(
    path: Path | str,
    *,
    seed: int = 0,
    layers: int = 2,
    hidden: int = 64,
    tie_word_embeddings: bool = False,
    **config: Any,
) -> Path:
    """Save a random Llama with its tokenizer at `path` and return the path.

    Args:
        path: Folder to write.
        seed: Seed of the weights.
        layers: Decoder layers.
        hidden: Hidden size; four heads.
        tie_word_embeddings: Whether input and output embeddings are one tensor.
        **config: Further fields of `LlamaConfig`.
    """
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tiny_tokenizer(path)
    tokenizer = AutoTokenizer.from_pretrained(str(path))
    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT_TOKENS,
        "tie_word_embeddings": tie_word_embeddings,
        # Far above the usual 0.02: a random model whose answers differ visibly between prompts.
        "initializer_range": 0.2,
        "bos_token_id": tokenizer.eos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**{**settings, **config}))
    model.save_pretrained(str(path))
    return Path(path)


def tiny_lora(
    base_path: Path | str,
    out_path: Path | str,
    *,
    seed: int = 1,
    rank: int = 4,
    scale: float = 0.1,
    target_modules: tuple[str, ...] = ("q_proj", "v_proj"),
    **config: Any,
) -> Path:
    """Save a LoRA adapter of the base at `base_path` and return its folder.

    Args:
        base_path: Folder of the base.
        out_path: Folder to write.
        seed: Seed of the weights.
        rank: LoRA rank.
        scale: Standard deviation of the B matrices; 0 makes an adapter that changes nothing.
        target_modules: Modules it is attached to.
        **config: Further fields of `LoraConfig` (`use_dora`, `bias`, `modules_to_save`, …).
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(base_path))
    settings: dict[str, Any] = {
        "r": rank,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.0,
        "target_modules": list(target_modules),
        "task_type": "CAUSAL_LM",
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapted = get_peft_model(model, LoraConfig(**{**settings, **config}))
        with torch.no_grad():
            for name, tensor in adapted.named_parameters():
                if "lora_B" in name:
                    tensor.normal_(std=scale) if scale else tensor.zero_()
    adapted.save_pretrained(str(out_path))
    return Path(out_path)


def grown_lora(base_path: Path | str, out_path: Path | str, tokens: int, **config: Any) -> Path:
    """Save a LoRA made on a base after tokens were added, with its embeddings; return its folder.

    Args:
        base_path: Folder of the base.
        out_path: Folder to write; the enlarged base goes beside it.
        tokens: How many tokens the enlarged base has.
        **config: Further fields of `LoraConfig`; the embeddings are saved whole by default.
    """
    import json

    from transformers import AutoModelForCausalLM

    grown = Path(out_path).parent / f"grown{tokens}"
    model = AutoModelForCausalLM.from_pretrained(str(base_path))
    model.resize_token_embeddings(tokens, mean_resizing=False)
    model.save_pretrained(str(grown))
    settings = {"modules_to_save": ["embed_tokens", "lm_head"]} | config
    saved = tiny_lora(grown, out_path, scale=0.3, **settings)
    file = saved / "adapter_config.json"
    values = json.loads(file.read_text()) | {"base_model_name_or_path": str(base_path)}
    file.write_text(json.dumps(values))
    return saved


def more_words(base_path: Path | str, out_path: Path | str, words: tuple[str, ...]) -> Path:
    """Save the base's tokenizer with words added, in a folder that may exist; return the folder."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(base_path))
    tokenizer.add_tokens(list(words))
    tokenizer.save_pretrained(str(out_path))
    return Path(out_path)


def pickled(adapter: Path, out_path: Path) -> Path:
    """Save an adapter again with pickled weights and return its folder."""
    import shutil

    import torch
    from safetensors.torch import load_file

    shutil.copytree(adapter, out_path)
    weights = out_path / "adapter_model.safetensors"
    torch.save(load_file(str(weights)), out_path / "adapter_model.bin")
    weights.unlink()
    return out_path
