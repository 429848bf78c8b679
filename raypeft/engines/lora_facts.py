"""Which modules an adapter's tensors belong to, and with which ranks, for routing.

Decides: nothing; it reads what `core.vllm_routing` decides on. Leaves to others: whether tensors,
config and base fit together at all (`adapter_checks`).
"""

import re
from pathlib import Path

from raypeft.core.records import Adapter
from raypeft.core.vllm_routing import AdapterFacts, config_rank
from raypeft.engines.adapters import read_adapter_files
from raypeft.engines.bases import read_base_tensors

# As PEFT names them; vLLM reads no other spelling.
_PAIR = re.compile(
    r"base_model\.model\.(?P<module>.+)\.lora_(?:(?P<half>[AB])\.weight|embedding_(?P<row>[AB]))"
)


def read_lora_facts(adapter: Adapter, vocab_size: int | None, base_folder: str) -> AdapterFacts:
    """Return what an adapter is beside its config.

    Args:
        adapter: The adapter, read and checked.
        vocab_size: Tokens to which the base is enlarged for it, if it is.
        base_folder: The base's local folder.

    Raises:
        CellError: If its files or those of the base cannot be read.
    """
    files = read_adapter_files(
        adapter.path,
        what=f"adapter {adapter.name!r}",
        revision=adapter.revision,
        allow_pickle=adapter.allow_pickle,
    )
    ranks: dict[str, int] = {}
    others: list[str] = []
    for name, tensor in (files.tensors or {}).items():
        match = _PAIR.fullmatch(name)
        if match is None or len(tensor.shape) != 2:
            others.append(name)
        else:
            rank = tensor.shape[0 if "A" in (match["half"], match["row"]) else 1]
            ranks[match["module"]] = max(rank, ranks.get(match["module"], 0))
    base = read_base_tensors(Path(base_folder))
    return AdapterFacts(
        ranks=ranks,
        strangers=tuple(name for name in ranks if f"{name}.weight" not in base),
        others=tuple(others),
        is_pickled=files.tensors is None,
        is_merged=adapter.merge,
        has_own_tokenizer=bool(adapter.tokenizer_digest),
        vocab_size=vocab_size,
        config_rank=config_rank(adapter.config),
    )
