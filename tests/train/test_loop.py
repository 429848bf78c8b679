import random

import pytest
import torch
import transformers

from raypeft.train.loop import IGNORED_LABEL, collate, quiet, reproducible, shuffled_forever
from raypeft.train.recipes import TrainerSettings

pytestmark = pytest.mark.torch


def test_padding_is_neither_read_nor_learned() -> None:
    batch = collate([([5, 6, 7], [IGNORED_LABEL, 6, 7]), ([8], [8])], pad_token_id=0)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [8, -100, -100]]
    assert batch["input_ids"].dtype == torch.int64


def test_every_round_holds_each_row_once_in_a_new_order() -> None:
    rows = [([i], [i]) for i in range(20)]
    stream = shuffled_forever(rows, random.Random(0))
    rounds = [[next(stream) for _ in rows] for _ in range(2)]
    assert rounds[0] != rounds[1]
    assert sorted(rounds[0]) == sorted(rounds[1]) == rows


def test_progress_bars_come_back_after_the_block() -> None:
    logging = transformers.utils.logging
    assert logging.is_progress_bar_enabled()
    with quiet():
        assert not logging.is_progress_bar_enabled()
    assert logging.is_progress_bar_enabled()


def test_the_callers_random_state_and_threads_come_back_after_the_block() -> None:
    settings = TrainerSettings(steps=1, batch_size=1, learning_rate=1.0, seed=3, threads=1)
    threads = torch.get_num_threads()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    with reproducible(settings):
        first = torch.rand(1)
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.rand(1), expected)
    with reproducible(settings):
        assert torch.equal(torch.rand(1), first)
