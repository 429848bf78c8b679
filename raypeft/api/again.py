"""The baselines of a sweep that are answered twice more, for the noise floor.

Decides which they are and what they are called: each baseline again as it is, and through an
adapter of zero effect, which takes the path that adapters take. What their answers say of a
baseline is decided by `raypeft.core.noise`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from raypeft.api.assigning import Assigned
from raypeft.core.engine_choice import AGAIN_SUFFIX, ZERO_SUFFIX
from raypeft.core.records import Adapter, Failure, Subject
from raypeft.engines.zero_adapter import ZeroAdapter, find_zero_adapter, is_written
from raypeft.errors import CellError, SetupError
from raypeft.store.files import Folder

Found = list[tuple[Subject, Failure | None]]

ZERO_FOLDER = "zero_adapters"
"""Folder of the output in which adapters of zero effect lie, each under its subject's name."""


@dataclass(frozen=True, slots=True)
class Again:
    """A base's subjects with the second answers of its baselines.

    Attributes:
        found: The subjects, each with why it has failed.
        assigned: Their engines.
        warning: Why a baseline is not answered through an adapter of zero effect; may be empty.
        zeros: The adapters of zero effect, by subject id.
    """

    found: Found
    assigned: Assigned
    warning: str
    zeros: dict[str, ZeroAdapter]


def answered_again(found: Found, assigned: Assigned, base_folder: str, output: str) -> Again:
    """Return a base's subjects and engines with further answers of each baseline.

    A base that is enlarged for some adapters is answered once: those adapters have no noise floor.

    Args:
        found: The base's subjects, each with why it has failed.
        assigned: Their engines.
        base_folder: The base's local folder.
        output: The sweep's output.
    """
    done: Found = []
    routes = dict(assigned.routes)
    zeros: dict[str, ZeroAdapter] = {}
    warnings: list[str] = []
    for subject, failure in found:
        done.append((subject, failure))
        if not subject.is_baseline or subject.vocab_size is not None or subject.id not in routes:
            continue
        again = replace(subject, id=f"{subject.id}{AGAIN_SUFFIX}", again=True)
        done.append((again, failure))
        routes[again.id] = routes[subject.id]
        if failure is not None:
            continue
        zero = _zero_adapter(_compared(subject, found, assigned), base_folder, output)
        if isinstance(zero, str):
            warnings.append(
                f"{subject.id}'s noise floor is without an adapter of zero effect: {zero}"
            )
            continue
        name = f"{subject.id}{ZERO_SUFFIX}"
        through = zero.named(name, _folder(output, name))
        done.append((replace(again, id=name, through=through), None))
        routes[name] = routes[subject.id]
        zeros[name] = zero
    return Again(done, replace(assigned, routes=routes), "; ".join(warnings), zeros)


def write_zero_adapters(subjects: Mapping[str, Subject], zeros: Mapping[str, ZeroAdapter]) -> None:
    """Write the adapters of zero effect that are not in the output yet.

    Args:
        subjects: Every subject of the sweep, by id.
        zeros: The adapters, by the id of the subject that is answered through it.

    Raises:
        SetupError: If the output cannot be written.
    """
    for name, zero in zeros.items():
        adapter = subjects[name].through
        assert adapter is not None, name
        if is_written(adapter):
            continue
        try:
            zero.write(Path(adapter.path))
        except OSError as error:
            raise SetupError(
                f"{adapter.path}, the adapter of zero effect behind {name}, cannot "
                f"be written: {error.strerror or error}",
                "make room there, give another `output`, or leave out `statistics.noise_floor`",
            ) from error


def _compared(baseline: Subject, found: Found, assigned: Assigned) -> list[Adapter]:
    """Return the adapters that are compared with a baseline."""
    kind = assigned.routes[baseline.id].kind
    return [
        subject.adapter
        for subject, failure in found
        if subject.adapter is not None
        and failure is None
        and subject.vocab_size is None
        and assigned.routes[subject.id].kind == kind
    ]


def _zero_adapter(adapters: Sequence[Adapter], base_folder: str, output: str) -> ZeroAdapter | str:
    """Return the adapter of zero effect that is like these, or why there is none."""
    if not adapters:
        return "no adapter is compared with it"
    alike = [one for one in adapters if one.peft_type == "LORA" and not one.merge]
    if not alike:
        return "none of its adapters is a LoRA that is attached (merged ones change the weights)"
    if not Folder(output).is_local:
        return f"it would lie in the output, and engines cannot read adapters from {output}"
    try:
        zero = find_zero_adapter(alike, base_folder)
    except CellError as error:
        return error.message
    return zero or (
        "none of its adapters has a LoRA in safetensors on linear modules that stand in the base's "
        "files under the same name"
    )


def _folder(output: str, name: str) -> Path:
    return Folder(output).local_path(f"{ZERO_FOLDER}/{name}").absolute()
