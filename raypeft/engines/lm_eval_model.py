"""`raypeft-hf`: the hf engine as a model of lm-eval, with or without Ray.

Importing this module registers the name; releases of lm-eval that look up entry points find it by
themselves, the others through `raypeft lm-eval`. Nothing heavy is imported before a model is
made, since lm-eval resolves names for its help as well.

Decides: which arguments the model takes, and what they mean. Leaves to others: loading and
answering (`hf`, as `lm_eval_hf`), everything else (lm-eval).
"""

import dataclasses
import difflib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import lm_eval.models  # noqa: F401 - lm-eval's own names, which it looks up only in an empty registry
from lm_eval.api.model import LM
from lm_eval.api.registry import model_registry, register_model

from raypeft.errors import Problem, SpecError

NAME = "raypeft-hf"


@dataclass(frozen=True, slots=True, kw_only=True)
class Arguments:
    """The arguments of `raypeft-hf`; those that lm-eval's `hf` has too are called as there.

    Attributes:
        pretrained: Folder or hub id of the base.
        adapter: Folder or hub id of a PEFT adapter; None is the base alone.
        revision: Hub revision of the base.
        adapter_revision: Hub revision of the adapter.
        allow_pickle: Whether the adapter's weights may be pickled (`.bin`).
        any_base: Whether the adapter may have been trained on another base than this one.
        tokenizer: Folder or hub id of another tokenizer.
        dtype: `auto`, `float32`, `bfloat16` or `float16`.
        device: As in torch; None takes a GPU if there is one.
        batch_size: Rows per forward pass where nothing is shared.
        sharing: Whether requests that share a context compute it once.
        batch_tokens: Tokens per forward pass where they do; None chooses.
        softmax_dtype: dtype of the log-softmax; None is the model's own, as for `hf`.
        attn_implementation: As in transformers.
        max_length: Longest row in tokens.
        add_bos_token: As for `hf`.
        trust_remote_code: Whether the base's own code may run.
    """

    pretrained: str
    adapter: str | None = None
    revision: str | None = None
    adapter_revision: str | None = None
    allow_pickle: bool = False
    any_base: bool = False
    tokenizer: str | None = None
    dtype: str = "auto"
    device: str | None = None
    batch_size: int = 1
    sharing: bool = False
    batch_tokens: int | None = None
    softmax_dtype: str | None = None
    attn_implementation: str | None = None
    max_length: int | None = None
    add_bos_token: bool | None = None
    trust_remote_code: bool = False


class RaypeftHF(LM):  # type: ignore[misc]  # lm-eval is untyped
    """What lm-eval finds under `raypeft-hf`; making one gives the model itself.

    Keyword arguments are those of `Arguments`. `peft` may be said for `adapter`, so that the
    arguments of `--model hf` can be kept. Other than there, the vocabulary stays the base's: an
    adapter with a larger one is refused.
    """

    def __new__(cls, **arguments: Any) -> Any:
        """Load the base, attach the adapter and prove that it is applied.

        Raises:
            SpecError: If an argument is unknown or has an impossible value.
            CellError: If the base cannot be loaded or the adapter not be applied.
        """
        from raypeft.engines.lm_eval_hf import LmEvalModel

        return LmEvalModel(read_arguments(arguments))


# An entry point under this name is resolved by the registry itself, with what it finds here.
if NAME not in model_registry:
    register_model(NAME)(RaypeftHF)


def read_arguments(given: dict[str, Any]) -> Arguments:
    """Return lm-eval's arguments of a model, checked.

    Raises:
        SpecError: Every problem at once.
    """
    values = {key: value for key, value in given.items() if value is not None}
    problems = []
    if "peft" in values:
        peft = values.pop("peft")
        if values.setdefault("adapter", peft) != peft:
            problems.append(Problem("peft", f"is {peft!r}, and adapter is {values['adapter']!r}"))
    if values.pop("max_batch_size", None) is not None and "batch_size" not in values:
        problems.append(Problem("max_batch_size", "has a meaning only with batch_size=auto"))
    size = str(values.get("batch_size", 1))
    if not size.isdecimal() or int(size) < 1:
        problems.append(
            Problem(
                "batch_size",
                f"is {size!r}; allowed is a number of rows",
                "log-likelihoods are batched by tokens whatever it says (batch_tokens)",
            )
        )
        size = "1"
    values["batch_size"] = int(size)
    known = [field.name for field in dataclasses.fields(Arguments)]
    for key in values.keys() - set(known):
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
        problems.append(Problem(key, f"is no argument of {NAME}", hint))
    for key in ("sharing", "trust_remote_code", "allow_pickle", "any_base", "add_bos_token"):
        if not isinstance(values.get(key, False), bool):
            problems.append(Problem(key, f"is {values[key]!r}; allowed are true and false"))
    if "pretrained" not in values:
        problems.append(Problem("pretrained", "is missing", "give a folder or hub id of the base"))
    if problems:
        raise SpecError(tuple(sorted(problems, key=str)), f"the arguments of {NAME}")
    return Arguments(**values)


def run_command_line(arguments: Sequence[str]) -> None:
    """Run lm-eval's command line, which knows `raypeft-hf` and `raypeft-vllm` now.

    Args:
        arguments: Those of `lm-eval`, without its name.

    Raises:
        SystemExit: If lm-eval ends with an exit code.
    """
    from lm_eval.__main__ import cli_evaluate

    import raypeft.engines.vllm_plugin  # noqa: F401 - registers its name

    before = sys.argv
    sys.argv = ["lm-eval", *arguments]
    try:
        cli_evaluate()
    finally:
        sys.argv = before
