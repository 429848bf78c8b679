"""Whether an adapter was trained on the base it is put on, as far as that can be known.

Decides: whether the base that an adapter's config names is another one than the sweep's, by
content where both are here, by name where both are hub ids. Leaves to others: whether tensors fit
(`adapter_checks`), which two bases of one architecture cannot tell apart: an adapter of a chat
model fits its base model and gives a number that looks right.

Most configs name a base that is not on this machine; such an adapter is accepted.
"""

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path

from raypeft.core.records import FailureKind, Json
from raypeft.engines.bases import FileKey, read_base, read_base_tensors
from raypeft.engines.folders import is_hub_id
from raypeft.errors import CellError


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetBase:
    """The base that an adapter is put on.

    Attributes:
        name: As the sweep file has it: a local folder or hub id.
        folder: Its local folder.
        digest: Digest of its content; None computes it, and only where it is needed.
        tokenizer: Another tokenizer that takes the place of its own, as part of that digest.
        trust_remote_code: Whether its own code is part of that digest.
        memo: Digests of files from earlier reading; filled with the new ones.
    """

    name: str
    folder: str
    digest: str | None = None
    tokenizer: str | None = None
    trust_remote_code: bool = False
    memo: MutableMapping[FileKey, str] | None = None


def check_recorded_base(config: Mapping[str, Json], base: TargetBase, *, what: str) -> None:
    """Refuse an adapter whose config names another base.

    Raises:
        CellError: `does_not_fit`.
    """
    recorded = config.get("base_model_name_or_path")
    if not isinstance(recorded, str) or not recorded:
        return
    if is_hub_id(recorded):
        # Hub ids differ by more than case where they differ at all.
        if is_hub_id(base.name) and recorded.casefold() != base.name.casefold():
            raise _other_base(recorded, base, what, "")
        return
    if difference := _difference(recorded, base):
        raise _other_base(recorded, base, what, difference)


def _difference(recorded: str, base: TargetBase) -> str:
    """Return how the content of a local folder differs from the base's; empty if it is unknown."""
    folder = Path(recorded).expanduser()
    try:
        if not folder.is_dir() or folder.samefile(base.folder):
            return ""
        # Headers first: hashing a large model only to see another shape would take minutes.
        if _shapes(folder) != _shapes(Path(base.folder)):
            return ", whose tensors are others"
        theirs = _digest(str(folder), base)
    except (OSError, CellError):
        return ""  # no base that could be compared lies there
    ours = base.digest or _digest(base.folder, base)
    return "" if theirs == ours else f" (content {theirs[:8]}, here {ours[:8]})"


def _digest(folder: str, base: TargetBase) -> str:
    facts = read_base(
        folder,
        tokenizer=base.tokenizer,
        trust_remote_code=base.trust_remote_code,
        memo=base.memo,
    )
    return facts.digest


def _shapes(folder: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {name: (one.dtype, one.shape) for name, one in read_base_tensors(folder).items()}


def _other_base(recorded: str, base: TargetBase, what: str, difference: str) -> CellError:
    return CellError(
        FailureKind.DOES_NOT_FIT,
        f"{what}: its config says that it was trained on {recorded!r}{difference}, and this base "
        f"is {base.name!r}; list it under that base, or say `any_base: true` for this adapter if "
        "it is meant for this one",
    )
