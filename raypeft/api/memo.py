"""Digests of files, remembered in the store: a 140 GB base is hashed once and not every night."""

from collections.abc import Iterator, MutableMapping

from raypeft.core.identity import canonical
from raypeft.engines.bases import FileKey
from raypeft.errors import SetupError
from raypeft.store.store import Store


class FileDigests(MutableMapping[FileKey, str]):
    """A mapping from what the file system says about a file to its content's digest.

    Only what was asked for in this process can be listed.

    Args:
        store: Where they are remembered.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[FileKey, str] = {}

    def __getitem__(self, key: FileKey) -> str:
        if key not in self._known:
            value = self._store.get_memo("file", canonical(list(key)))
            if not isinstance(value, str):
                raise KeyError(key)
            self._known[key] = value
        return self._known[key]

    def __setitem__(self, key: FileKey, value: str) -> None:
        self._known[key] = value
        try:
            self._store.put_memo("file", canonical(list(key)), value)
        except SetupError:
            # Remembering saves time and nothing else; a store that can only be read still plans.
            return

    def __delitem__(self, key: FileKey) -> None:
        raise TypeError("a digest is never forgotten: its key names the file's very version")

    def __iter__(self) -> Iterator[FileKey]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)
