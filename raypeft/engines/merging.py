"""Which adapters can be merged into their base, told from the config before anything is loaded.

Decides: what `merge: true` may be said of. Leaves to others: the merging itself and what it costs
(`hf_private`), which also meets what only the loaded model can tell.
"""

from collections.abc import Mapping

from raypeft.core.records import FailureKind, Json, Quantization
from raypeft.errors import CellError

_IN_FRONT = "it puts tokens or keys of its own in front and has no weights to add to the base's"
_OTHER_PATH = "it computes beside the base's layers, in a way that no weight can hold"

UNMERGEABLE: Mapping[str, str] = {
    "ADAPTION_PROMPT": _IN_FRONT,
    "CARTRIDGE": _IN_FRONT,
    "CPT": _IN_FRONT,
    "LILY": _OTHER_PATH,
    "MULTITASK_PROMPT_TUNING": _IN_FRONT,
    "POLY": _OTHER_PATH,
    "PREFIX_TUNING": _IN_FRONT,
    "PROMPT_TUNING": _IN_FRONT,
    "P_TUNING": _IN_FRONT,
    "SHADOW": _OTHER_PATH,
    "XLORA": _OTHER_PATH,
}
"""Adapter types without a merge in PEFT, each with the reason."""

_UNMERGEABLE_SETTINGS: Mapping[str, str] = {
    "alora_invocation_tokens": "it acts only after its invocation tokens",
    "layer_replication": "one weight of the base stands for several of its layers",
}


def check_mergeable(
    config: Mapping[str, Json], *, what: str, quantization: Quantization | None = None
) -> None:
    """Refuse to merge what cannot be merged, as far as the config tells.

    Args:
        config: The adapter's config.
        what: The adapter, for the message.
        quantization: How the base's weights are held.

    Raises:
        CellError: `unsupported`.
    """
    peft_type = str(config.get("peft_type"))
    reasons = [
        f"with {name}={config[name]}: {reason}"
        for name, reason in _UNMERGEABLE_SETTINGS.items()
        if config.get(name)
    ]
    if peft_type in UNMERGEABLE:
        reasons = [f"of type {peft_type}: {UNMERGEABLE[peft_type]}"]
    if reasons:
        raise CellError(
            FailureKind.UNSUPPORTED,
            f"{what}: an adapter {reasons[0]}, so it cannot be merged; leave out `merge: true`",
        )
    if quantization is not None:
        raise CellError(
            FailureKind.UNSUPPORTED,
            f"{what}: it is to be merged into a base quantised to {quantization}, whose weights "
            "would be rounded once more; leave out `merge: true`, or merge into the base without "
            "`quantization`",
        )
