"""The training loop: batches in, moved weights and their losses out.

Decides the optimizer, the order of random numbers and which tokens count. What the batches hold
and what is saved is left to `raypeft.train.base` and `raypeft.train.fine_tune`.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
import transformers

from raypeft.core.records import FailureKind
from raypeft.errors import CellError
from raypeft.train.recipes import TrainerSettings

IGNORED_LABEL = -100
"""What torch's cross-entropy leaves out."""

OnStep: TypeAlias = Callable[[int, float], None]
"""Called after each step with its number, counted from 1, and its loss."""

Row: TypeAlias = tuple[Sequence[int], Sequence[int]]
"""Token ids, and for each the label: the id itself, or `IGNORED_LABEL`."""


@contextmanager
def reproducible(settings: TrainerSettings) -> Iterator[None]:
    """Seed torch and set its threads inside the block; put both back afterwards."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        torch.set_num_threads(settings.threads or threads)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the progress bars of transformers inside the block: the caller shows progress."""
    logging = transformers.utils.logging
    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()


def shuffled_forever(rows: Sequence[Row], rng: random.Random) -> Iterator[Row]:
    """Yield all rows in a new random order, again and again."""
    while True:
        yield from rng.sample(rows, len(rows))


def fit(
    model: Any,
    rows: Iterator[Row],
    settings: TrainerSettings,
    *,
    pad_token_id: int,
    on_step: OnStep | None = None,
) -> list[float]:
    """Train the model's trainable weights in place and return the loss of each step.

    Inside `reproducible`, the same weights, rows and settings give the same weights bit for bit
    on one kind of CPU and with one number of threads.

    Raises:
        CellError: If the loss is no longer finite; nothing useful can follow.
    """
    device = next(model.parameters()).device
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(
        weights, lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=settings.weight_decay
    )
    losses: list[float] = []
    model.train()
    for step in range(settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate_at(step)
        batch = collate([next(rows) for _ in range(settings.batch_size)], pad_token_id)
        loss = model(**{name: tensor.to(device) for name, tensor in batch.items()}).loss
        losses.append(loss.item())
        if not torch.isfinite(loss):
            raise CellError(
                FailureKind.NOT_FINITE,
                f"the loss is {losses[-1]} in step {step + 1} of {settings.steps}; "
                f"lower the learning rate ({settings.learning_rate})",
            )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, settings.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        if on_step is not None:
            on_step(step + 1, losses[-1])
    model.eval()
    return losses


def collate(rows: Sequence[Row], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Return rows as one batch, padded on the right; padding is neither read nor learned."""
    longest = max(len(ids) for ids, _ in rows)

    def padded(values: Sequence[int], fill: int) -> list[int]:
        return [*values, *[fill] * (longest - len(values))]

    return {
        "input_ids": torch.tensor([padded(ids, pad_token_id) for ids, _ in rows]),
        "attention_mask": torch.tensor([padded([1] * len(ids), 0) for ids, _ in rows]),
        "labels": torch.tensor([padded(labels, IGNORED_LABEL) for _, labels in rows]),
    }
