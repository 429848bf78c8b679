"""The float32 copy of a model's structure keeps what packing could get wrong, and stays small."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from raypeft.engines import structure_copy
from raypeft.engines.sharing_check import TESTED_TYPES, tolerance
from raypeft.engines.tree_masks import attention_windows

pytestmark = pytest.mark.torch

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", sorted(TESTED_TYPES))
def test_a_copy_of_a_model_of_full_size_is_small_and_has_each_kind_of_layer(name: str) -> None:
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(AutoConfig.for_model(name), dtype=torch.bfloat16)
    made = structure_copy.structure_copy(base, CPU)
    assert type(made) is type(base)
    assert made.dtype is torch.float32
    assert sum(p.numel() for p in made.parameters()) <= structure_copy.MOST_PARAMETERS
    assert 2 <= made.config.num_hidden_layers <= 4
    assert attention_windows(made.config) == attention_windows(base.config)
    for setting in ("rope_parameters", "_attn_implementation", "max_position_embeddings"):
        assert getattr(made.config, setting, None) == getattr(base.config, setting, None)
    assert bool(made(torch.arange(9).unsqueeze(0)).logits.isfinite().all())


def test_making_a_copy_draws_nothing_from_the_global_random_numbers() -> None:
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2"))
    before = torch.random.get_rng_state()
    structure_copy.structure_copy(base, CPU)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_model_that_cannot_be_made_small_enough_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(structure_copy, "MOST_PARAMETERS", 1000)
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2"))
    with pytest.raises(ValueError, match="more than 1,000"):
        structure_copy.structure_copy(base, CPU)


def test_float32_is_held_to_what_is_promised_and_16_bits_to_their_rounding() -> None:
    assert tolerance(torch.float32, 20.0, 3) == 1e-4
    assert tolerance(torch.bfloat16, 0.1, 1) == 2e-2
    # The last place of a bfloat16 number near 20 is an eighth.
    assert tolerance(torch.bfloat16, 20.0, 4) == pytest.approx(2 * 4 * 20 / 128)
    # A logit of -1e9 stands for a token that is never to be said, and excuses nothing.
    assert tolerance(torch.float32, 1e9, 3) == 0.05
