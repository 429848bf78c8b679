"""What an adapter's config says about how it was trained, in a few words.

Decides which fields of PEFT's many configs a reader compares adapters by.
"""

import math
from collections.abc import Mapping, Sequence

from raypeft.core.records import Json

MOST = 10**12
"""Whole numbers beyond are texts here: no picture holds them."""

_RENAMED = {
    "r": "rank",
    "lora_alpha": "alpha",
    "alpha": "alpha",
    "lora_dropout": "dropout",
    "module_dropout": "dropout",
    "rank_dropout": "dropout",
    "num_virtual_tokens": "virtual tokens",
    "task_type": "task type",
}
_SWITCHES = ("use_dora", "use_rslora", "use_qalora", "use_bdlora")
_LISTS = {
    "target_modules": "target modules",
    "modules_to_save": "whole modules",
    "layers_to_transform": "layers",
}


def recipe_of(config: Mapping[str, Json]) -> dict[str, Json]:
    """Return the fields of an adapter's config that a reader compares adapters by.

    Args:
        config: Its `adapter_config.json`; empty where it could not be read.
    """
    if not config:
        return {}
    switches = [name.removeprefix("use_") for name in _SWITCHES if config.get(name)]
    found: dict[str, Json] = {"method": " + ".join([str(config.get("peft_type", "?")), *switches])}
    for name, shown in _RENAMED.items():
        value = config.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            # The file is somebody else's: 1e999 and a number of 400 digits are numbers to JSON.
            is_sane = math.isfinite(value) if isinstance(value, float) else abs(value) < MOST
            found.setdefault(shown, value if is_sane else str(value))
    for name, shown in _LISTS.items():
        if value := config.get(name):
            found[shown] = (
                ", ".join(sorted(map(str, value))) if isinstance(value, list) else str(value)
            )
    if config.get("bias", "none") != "none":
        found["bias"] = str(config["bias"])
    initial = config.get("init_lora_weights", True)
    if initial is not True:
        found["initialisation"] = str(initial)
    return found


def varying_number(recipes: Sequence[Mapping[str, Json]]) -> str:
    """Return the number of the recipes that is worth a picture: it differs; empty if none does."""
    for name in ("rank", "virtual tokens", "alpha"):
        values = {r[name] for r in recipes if isinstance(r.get(name), int | float)}
        if len(values) > 1 and min(values) > 0:
            return name
    return ""
