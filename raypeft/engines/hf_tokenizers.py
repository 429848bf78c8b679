"""The tokenizer of a loaded base, and those that adapters bring themselves.

Decides: which tokenizer an lm-eval model encodes with, prepared as HFLM prepares its own. Leaves
to others: whether an adapter brings one at all, and whether its vocabulary fits (`api`).
"""

from types import SimpleNamespace
from typing import Any

from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import configure_pad_token

from raypeft.core.records import Adapter, FailureKind
from raypeft.engines.bases import TOKENIZER_FILES, tokenizer_digest
from raypeft.engines.folders import resolve_folder
from raypeft.errors import CellError


class Tokenizers:
    """Switches the tokenizer of an lm-eval model with the adapter.

    Args:
        model: The loaded model, with the base's tokenizer.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._base = model.tokenizer
        self._own: dict[str, Any] = {}
        self.digest = ""

    def use(self, adapter: Adapter | None) -> None:
        """Let the model encode with this adapter's tokenizer, or with the base's.

        Raises:
            CellError: `unreadable` if the adapter's cannot be loaded, or is another one than when
                the sweep was planned.
        """
        digest = "" if adapter is None else adapter.tokenizer_digest
        if digest == self.digest:
            return
        if adapter is None or not digest:
            tokenizer = self._base
        else:
            if digest not in self._own:
                self._own = {digest: self._load(adapter)}  # the last one is enough
            tokenizer = self._own[digest]
        self._model.tokenizer = tokenizer
        self._model.vocab_size = tokenizer.vocab_size
        self._model.forget_texts()
        self.digest = digest

    def _load(self, adapter: Adapter) -> Any:
        what = f"the tokenizer of adapter {adapter.name!r}"
        path = adapter.tokenizer or adapter.path
        found = tokenizer_digest(path, adapter.revision)
        if found != adapter.tokenizer_digest:
            raise CellError(
                FailureKind.UNREADABLE,
                f"{what}: {path} holds another one than when the sweep was planned (digest "
                f"{found}, expected {adapter.tokenizer_digest}); plan again",
            )
        folder = resolve_folder(path, what=what, revision=adapter.revision, files=TOKENIZER_FILES)
        holder = SimpleNamespace()
        try:
            # As HFLM loads the base's.
            HFLM._create_tokenizer(
                holder,
                str(folder),
                None,
                trust_remote_code=False,
                add_bos_token=self._model.add_bos_token,
            )
            return configure_pad_token(holder.tokenizer, model_config=self._model.config)
        except (OSError, ValueError, KeyError, TypeError, ImportError, AssertionError) as error:
            first = str(error).strip().partition("\n")[0]
            raise CellError(
                FailureKind.UNREADABLE, f"{what} in {folder} cannot be loaded: {first}"
            ) from error
