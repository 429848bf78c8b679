"""Small JSON files that say what they are, in which version, and whether they are whole.

Decides their form. What they hold and where they lie is decided by `store`.
"""

import json

from raypeft.core.identity import digest
from raypeft.core.records import Json
from raypeft.errors import StoreError
from raypeft.store.jsontext import dump_json, load_json
from raypeft.store.tables import CorruptError


def seal(kind: str, version: int, value: Json) -> bytes:
    """Return a value as the bytes of a file."""
    content = dump_json(value)
    whole = {
        "raypeft": kind,
        "version": version,
        "digest": digest(kind, version, content),
        # As text, so that the digest covers exactly what is read.
        "content": content,
    }
    return json.dumps(whole, indent=1).encode()


def unseal(data: bytes, kind: str, version: int, place: str) -> Json:
    """Return the value in the bytes of a file.

    Raises:
        CorruptError: If the bytes are not what was written.
        StoreError: If it is of another kind or version.
    """
    try:
        whole = json.loads(data)
        found, content, seen = (
            (whole["raypeft"], whole["version"]),
            whole["content"],
            whole["digest"],
        )
    except (ValueError, TypeError, KeyError) as error:
        raise CorruptError(place, f"no readable {kind} file: {error!r}") from error
    if found != (kind, version):
        raise StoreError(
            place,
            f"holds {found[0]} of version {found[1]}; this raypeft reads {kind} of {version}",
            "read it with the raypeft that wrote it, or use a new folder",
        )
    if seen != digest(kind, version, content):
        raise CorruptError(place, "its content is not what was written")
    return load_json(content)
