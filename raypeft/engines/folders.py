"""Where a base or an adapter lies on this machine.

Decides: whether a name in the sweep file is a local path or a hub id, and which local folder
stands for it. What looks like a local path is never looked up on the hub, so a mistyped folder
is an error and not a network request. Leaves to others: what must be in the folder.
"""

import os
import re
from pathlib import Path

from raypeft.core.records import FailureKind
from raypeft.errors import CellError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
BASE_FILES = (
    "*.safetensors",
    "*.json",
    "*.jinja",
    "*.txt",
    "*.model",
    "*.tiktoken",
    "additional_chat_templates/*",
)
REMOTE_CODE_FILES = ("*.py",)


def is_hub_id(path: str) -> bool:
    """Return whether a name can only mean a repository on the hub.

    A folder that exists, an absolute path, a path that starts with `.` or `~`, has more than one
    slash, or whose first part is a folder here, is local.
    """
    if Path(path).expanduser().exists() or os.path.lexists(path):
        return False
    if not _HUB_ID.fullmatch(path):
        return False
    first, _, rest = path.partition("/")
    return not (rest and Path(first).is_dir())


def resolve_folder(
    path: str, *, what: str, revision: str | None = None, files: tuple[str, ...]
) -> Path:
    """Return the local folder that a path or hub id stands for.

    A hub id is taken from the local cache, and downloaded first unless the hub is switched off
    (`HF_HUB_OFFLINE=1`).

    Args:
        path: Local folder or hub id.
        what: `base` or `adapter`, for the message.
        revision: Hub revision; not used for a local folder.
        files: Patterns of the files needed, for a download.

    Raises:
        CellError: `spec` if there is no such folder or repository.
    """
    if is_hub_id(path):
        return _from_hub(path, what=what, revision=revision, files=files)
    folder = Path(path).expanduser()
    try:
        folder.stat()
    except FileNotFoundError:
        raise CellError(
            FailureKind.SPEC,
            f"{what} {path!r}: there is no such folder (looked at {folder.absolute()}); "
            "correct the path, or give a hub id as 'organisation/name'",
        ) from None
    except OSError as error:  # a loop of symbolic links, a part of the path that is a file, …
        raise CellError(
            FailureKind.SPEC, f"{what} {path!r}: cannot be opened: {error.strerror}"
        ) from None
    if not folder.is_dir():
        raise CellError(
            FailureKind.SPEC,
            f"{what} {path!r} is a file; give the folder that holds it: {str(folder.parent)!r}",
        )
    return folder.resolve()


def _from_hub(path: str, *, what: str, revision: str | None, files: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    at = f" at revision {revision!r}" if revision else ""
    try:
        return Path(snapshot_download(path, revision=revision, allow_patterns=list(files)))
    except (LocalEntryNotFoundError, FileNotFoundError):
        reason = (
            "not in the local hub cache, and the hub is switched off (HF_HUB_OFFLINE)"
            if HF_HUB_OFFLINE
            else "not in the local hub cache, and the hub could not be reached"
        )
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
    raise CellError(
        FailureKind.SPEC,
        f"{what} {path!r}{at}: neither a folder here nor available from the hub: {reason}; "
        "download it beforehand, or give the path of a local folder",
    )


def read_failure(what: str, file: Path, error: OSError) -> CellError:
    """Return the error for a file that cannot be read, as a person would say it."""
    reason = "there is no such file" if isinstance(error, FileNotFoundError) else error.strerror
    return CellError(FailureKind.UNREADABLE, f"{what}: {file} cannot be read: {reason}")
