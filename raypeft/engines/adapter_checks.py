"""What an adapter's tensors must be like, checked on headers and values alone.

Decides: whether values are finite; and for LoRA whether pairs are complete, ranks are those of
the config, tensors and `target_modules` name the same modules, the base has those modules in
those sizes, and the adapter can change anything. Leaves to others: the other adapter types and
every name this module cannot map to the base (`hf_adapters` compares the exact set of tensors).
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from raypeft.core.records import FailureKind, Json
from raypeft.engines.bases import read_base_tensors
from raypeft.engines.folders import read_failure
from raypeft.engines.tensorfiles import TensorInfo, TensorScan, scan_tensor
from raypeft.engines.vocabulary import base_vocabulary, enlarged, saved_vocabulary
from raypeft.errors import CellError

_PREFIX = "base_model.model."
_LORA_KEY = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_(?:embedding_)?[AB]|lora_magnitude_vector)(?:\.weight)?"
)
_PARTNERS = {
    "lora_A": "lora_B",
    "lora_B": "lora_A",
    "lora_embedding_A": "lora_embedding_B",
    "lora_embedding_B": "lora_embedding_A",
}
# Under these settings a LoRA tensor's shape, or whether zero means "no effect", is another story.
_OTHER_SHAPES = ("target_parameters", "use_bdlora", "use_qalora", "layer_replication")
_FLOATS = ("F64", "F32", "F16", "BF16", "F8_E5M2", "F8_E4M3")
_ORDINARY_INIT = (None, True, False, "gaussian")

_KINDS: Mapping[str, tuple[type | tuple[type, ...], str]] = {
    "r": (int, "a whole number"),
    "lora_alpha": ((int, float), "a number"),
    "target_modules": ((str, list), "a list of names or a regular expression"),
    "modules_to_save": (list, "a list of names"),
    "rank_pattern": (dict, "a mapping of patterns to ranks"),
    "alpha_pattern": (dict, "a mapping of patterns to alphas"),
}

Modules = Mapping[str, Mapping[str, TensorInfo]]
"""LoRA tensors by module and part (`lora_A`, …)."""


def check_values(
    weights: Path, tensors: Mapping[str, TensorInfo], config: Mapping[str, Json], *, what: str
) -> None:
    """Read every value: refuse NaN and infinity, and what is zero everywhere.

    Raises:
        CellError: `not_finite`, `no_effect` or `unreadable`.
    """
    try:
        scans = {name: scan_tensor(weights, tensor) for name, tensor in tensors.items()}
    except OSError as error:
        raise read_failure(what, weights, error) from None
    broken = [name for name, scan in scans.items() if scan.num_non_finite]
    if broken:
        first = broken[0]
        raise CellError(
            FailureKind.NOT_FINITE,
            f"{what}: {len(broken)} of {len(tensors)} tensors in {weights} hold NaN or infinity, "
            f"first {scans[first].num_non_finite} of {tensors[first].num_elements} values of "
            f"{first!r}; the training diverged, use an earlier checkpoint",
        )
    if all(scan.is_zero for scan in scans.values()):
        raise CellError(
            FailureKind.NO_EFFECT,
            f"{what}: in {weights} every value of all {len(tensors)} tensors is zero: nothing was "
            "trained, or its trained weights were not gathered before it was saved",
        )
    if _is_zero_lora(tensors, scans, config):
        raise CellError(
            FailureKind.NO_EFFECT,
            f"{what}: in {weights} every lora_B (or lora_A) is zero, so the adapter changes "
            "nothing; it was saved before it was trained, or its trained weights were not gathered",
        )


def check_lora(
    tensors: Mapping[str, TensorInfo],
    config: Mapping[str, Json],
    *,
    what: str,
    base_folder: str | None = None,
) -> None:
    """Check the tensors of a LoRA adapter against its config, and its base if that is given.

    Raises:
        CellError: `does_not_fit`, or `unreadable` for settings that mean nothing.
    """
    if config.get("peft_type") != "LORA":
        return
    _check_settings(config, what)
    modules = _lora_modules(tensors)
    if not modules and not _changes_other_things(config):
        raise _misfit(what, "no tensor has a LoRA name (lora_A, lora_B)", tensors)
    _check_numbers(modules, what)
    _check_partners(modules, what)
    if not any(config.get(setting) for setting in _OTHER_SHAPES):
        _check_ranks(modules, config, what)
        _check_patterns(modules, config, what)
        _check_targets(modules, config, what)
        if base_folder is not None:
            folder = Path(base_folder)
            rows, own = base_vocabulary(folder), read_base_tensors(folder)
            base = enlarged(own, rows, saved_vocabulary(tensors, own, rows, what=what))
            _check_base(modules, base, what)
            _check_saved_modules(tensors, base, what)
            _check_missing_targets(modules, config, base, what)


def _check_settings(config: Mapping[str, Json], what: str) -> None:
    for setting, (kinds, allowed) in _KINDS.items():
        value = config.get(setting)
        if value is not None and (not isinstance(value, kinds) or isinstance(value, bool)):
            raise _bad_setting(what, setting, value, allowed)
    targets = config.get("target_modules")
    patterns = {
        "target_modules": [targets] if isinstance(targets, str) else [],
        "rank_pattern": config.get("rank_pattern") or (),
        "alpha_pattern": config.get("alpha_pattern") or (),
    }
    for setting, texts in patterns.items():
        for text in texts:
            try:
                re.compile(text)
            except re.error as error:
                allowed = f"a regular expression ({error})"
                raise _bad_setting(what, setting, text, allowed) from None


def _bad_setting(what: str, setting: str, value: Json, allowed: str) -> CellError:
    return CellError(
        FailureKind.UNREADABLE,
        f"{what}: adapter_config.json says {setting}={value!r}, which is not {allowed}",
    )


def _lora_modules(tensors: Mapping[str, TensorInfo]) -> Modules:
    modules: dict[str, dict[str, TensorInfo]] = defaultdict(dict)
    for name, tensor in tensors.items():
        if match := _LORA_KEY.fullmatch(name):
            modules[match["module"]][match["part"]] = tensor
    return modules


def _changes_other_things(config: Mapping[str, Json]) -> bool:
    return bool(config.get("modules_to_save") or config.get("trainable_token_indices"))


def _check_numbers(modules: Modules, what: str) -> None:
    """Refuse what PEFT would round to floats, or takes for a matrix of rank 0."""
    named = {
        f"{module}.{part}": one for module, parts in modules.items() for part, one in parts.items()
    }
    others = [f"{name} of {one.dtype}" for name, one in named.items() if one.dtype not in _FLOATS]
    if others:
        raise _misfit(what, "LoRA tensors hold floating-point numbers, but there is", others)
    empty = [f"{name} of shape {one.shape}" for name, one in named.items() if not one.num_elements]
    if empty:
        raise _misfit(what, "LoRA tensors without any values", empty)


def _check_partners(modules: Modules, what: str) -> None:
    lonely = [
        f"{module}.{part} without {_PARTNERS[part]}"
        for module, parts in modules.items()
        for part in parts
        if part in _PARTNERS and _PARTNERS[part] not in parts
    ]
    if lonely:
        raise _misfit(what, "LoRA tensors come in pairs, but there is", lonely)


def _check_ranks(modules: Modules, config: Mapping[str, Json], what: str) -> None:
    wrong: list[str] = []
    for module, parts in modules.items():
        expected = _expected_rank(module, config)
        for part, tensor in parts.items():
            if part not in _PARTNERS or expected is None:
                continue
            axis = 0 if part.endswith("A") else 1
            rank = tensor.shape[axis] if len(tensor.shape) > axis else None
            if rank != expected:
                wrong.append(f"{module}.{part} of shape {tensor.shape} (expected rank {expected})")
    if wrong:
        raise _misfit(
            what,
            f"adapter_config.json says r={config.get('r')}"
            f"{' with a rank_pattern' if config.get('rank_pattern') else ''}, but there is",
            wrong,
        )


def _check_patterns(modules: Modules, config: Mapping[str, Json], what: str) -> None:
    """Refuse patterns that fit no module: PEFT takes the common rank or alpha there instead."""
    for setting in ("rank_pattern", "alpha_pattern"):
        idle = [
            pattern
            for pattern in config.get(setting) or {}
            if not any(_fits_pattern(module, pattern) for module in modules)
        ]
        if idle:
            raise _misfit(
                what,
                f"the {setting} of adapter_config.json is for modules that the adapter does not "
                "have, so that those it was meant for would get another one; correct or remove",
                idle,
            )


def _fits_pattern(module: str, pattern: str) -> bool:
    # As peft.utils.other.get_pattern_key.
    return re.match(rf"(.*\.)?({pattern})$", module.removeprefix(_PREFIX)) is not None


def _expected_rank(module: str, config: Mapping[str, Json]) -> int | None:
    rank = config.get("r", 8)
    for pattern, value in (config.get("rank_pattern") or {}).items():
        if _fits_pattern(module, pattern):
            rank = value
            break
    return rank if isinstance(rank, int) else None


def _check_targets(modules: Modules, config: Mapping[str, Json], what: str) -> None:
    targets = config.get("target_modules")
    if not targets or targets == "all-linear":
        return
    strangers = [
        module
        for module in modules
        if not _is_target(module, targets) and not _is_tied_by_peft(module, config)
    ]
    if strangers:
        shown = targets if isinstance(targets, str) else ", ".join(sorted(map(str, targets)))
        raise _misfit(
            what,
            f"adapter_config.json targets {shown}, but the weights are also for other modules, "
            "which PEFT would ignore without a word",
            strangers,
        )


def _is_target(module: str, targets: str | list[str]) -> bool:
    name = module.removeprefix(_PREFIX)
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _is_tied_by_peft(module: str, config: Mapping[str, Json]) -> bool:
    """Whether PEFT may have tied this one to a target, under a name that its config leaves out.

    Which modules a base ties only the loaded base tells; they stand outside the layers.
    """
    outside = not any(part.isdigit() for part in module.split("."))
    return bool(config.get("ensure_weight_tying")) and outside


def _check_base(modules: Modules, base: Mapping[str, TensorInfo], what: str) -> None:
    patterns = {_without_numbers(name) for name in base}
    missing: list[str] = []
    misshapen: list[str] = []
    for module, parts in modules.items():
        name = f"{module.removeprefix(_PREFIX)}.weight"
        weight = base.get(name)
        if weight is None:
            # The base has this module in other layers, so its names are understood.
            if _without_numbers(name) in patterns:
                missing.append(module)
        elif (sizes := _sizes(parts)) and not _sizes_fit(sizes, weight):
            misshapen.append(f"{module} for {sizes[0]}→{sizes[1]} at a weight {weight.shape}")
    if missing:
        raise _misfit(what, "it belongs to another base: this one has no module", missing)
    if misshapen:
        raise _misfit(what, "it belongs to another base: sizes differ", misshapen)


def _sizes(parts: Mapping[str, TensorInfo]) -> tuple[int, int] | None:
    for first, second in (("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B")):
        if first in parts and second in parts:
            shapes = parts[first].shape, parts[second].shape
            if len(shapes[0]) == len(shapes[1]) == 2:
                return shapes[0][1], shapes[1][0]
    return None


def _sizes_fit(sizes: tuple[int, int], weight: TensorInfo) -> bool:
    # Quantised weights are packed, convolutions have more axes: left to the engine.
    if len(weight.shape) != 2 or weight.dtype not in ("F64", "F32", "F16", "BF16"):
        return True
    # Linear holds (out, in); Embedding and GPT-2's Conv1D hold (in, out).
    return weight.shape in (sizes, sizes[::-1])


def _check_saved_modules(
    tensors: Mapping[str, TensorInfo], base: Mapping[str, TensorInfo], what: str
) -> None:
    misshapen = [
        f"{name} of shape {tensor.shape} for a weight {base[own].shape}"
        for name, tensor in tensors.items()
        if (own := name.removeprefix(_PREFIX).replace(".base_layer.", ".")) in base
        and base[own].shape != tensor.shape
    ]
    if misshapen:
        raise _misfit(
            what,
            "it replaces whole weights in other sizes (for more tokens than the base has, a copy "
            "of the base is enlarged; fewer tokens and other layers belong to another base)",
            misshapen,
        )


def _check_missing_targets(
    modules: Modules, config: Mapping[str, Json], base: Mapping[str, TensorInfo], what: str
) -> None:
    targets = config.get("target_modules")
    if not isinstance(targets, list) or config.get("layers_to_transform"):
        return
    if config.get("exclude_modules"):
        return
    in_base = [name.removesuffix(".weight") for name in base if name.endswith(".weight")]
    missing = [
        target
        for target in targets
        if not any(_is_target(module, [target]) for module in modules)
        and any(_is_target(name, [target]) for name in in_base)
    ]
    if missing:
        raise _misfit(what, "adapter_config.json targets modules without any weights", missing)


def _is_zero_lora(
    tensors: Mapping[str, TensorInfo],
    scans: Mapping[str, TensorScan],
    config: Mapping[str, Json],
) -> bool:
    if config.get("peft_type") != "LORA" or config.get("use_dora"):
        return False
    if config.get("init_lora_weights", True) not in _ORDINARY_INIT:
        return False  # PiSSA and its like change the base as well
    matches = {name: _LORA_KEY.fullmatch(name) for name in tensors}
    zero: dict[str, bool] = defaultdict(bool)
    for name, match in matches.items():
        if match is None:
            return False  # a bias or a saved module may have the effect
        zero[match["module"]] |= scans[name].is_zero
    return all(zero.values())


def _without_numbers(name: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name)


def _misfit(what: str, problem: str, names: Iterable[str] | Collection[str]) -> CellError:
    listed = list(names)
    shown = ", ".join(listed[:3])
    more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
    return CellError(FailureKind.DOES_NOT_FIT, f"{what}: {problem}: {shown}{more}")
