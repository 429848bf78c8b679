"""A base's chat template without the base: what freezing a chat needs of the model.

Decides: which template of a tokenizer is used, and its digest. Leaves to others: when to apply
it. The text comes from lm-eval's own `HFLM.apply_chat_template`, called on an object that holds
only the tokenizer, prepared as HFLM prepares it.
"""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from raypeft.core.identity import digest
from raypeft.core.records import FailureKind
from raypeft.engines.bases import TOKENIZER_FILES, tokenizer_digest
from raypeft.engines.folders import BASE_FILES, REMOTE_CODE_FILES, resolve_folder
from raypeft.errors import CellError

CHAT_TEMPLATE_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class HFChatTemplate:
    """A tokenizer's chat template.

    Attributes:
        digest: Digest of the tokenizer's files and the template's text.
        name: The template's name, `default` if none was asked for.
        tokenizer_name: As lm-eval names the tokenizer.
        text: The template (Jinja).
        model: What lm-eval's method is called on.
    """

    digest: str
    name: str
    tokenizer_name: str
    text: str
    model: SimpleNamespace

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return a conversation as text, exactly as lm-eval's HFLM does."""
        from lm_eval.models.huggingface import HFLM

        applied: str = HFLM.apply_chat_template(self.model, chat_history, add_generation_prompt)
        return applied


def load_chat_template(
    path: str,
    revision: str | None = None,
    trust_remote_code: bool = False,
    template: bool | str = True,
) -> HFChatTemplate:
    """Load the chat template of the tokenizer in a base's folder.

    Args:
        path: Local folder or hub id.
        revision: Hub revision.
        trust_remote_code: Whether the tokenizer's own code may run.
        template: True for the tokenizer's default template, or the name of one of its templates.
            lm-eval's `--apply_chat_template NAME` logs the name but applies the default; here the
            named one is applied.

    Raises:
        CellError: `spec` if the tokenizer has no (such) template; `unreadable` if it cannot be
            loaded.
    """
    what = f"tokenizer {path!r}"
    wanted = BASE_FILES + (REMOTE_CODE_FILES if trust_remote_code else ())
    folder = resolve_folder(path, what="tokenizer", revision=revision, files=wanted)
    model = _light_model(folder, what, trust_remote_code=trust_remote_code)
    text = _template_text(model.tokenizer, template, what)
    name = template if isinstance(template, str) else "default"
    if isinstance(template, str):
        model.chat_template_args["chat_template"] = text
    value = {"tokenizer": tokenizer_digest(str(folder)), "template": text}
    return HFChatTemplate(
        digest=digest("chat_template", CHAT_TEMPLATE_VERSION, value),
        name=name,
        tokenizer_name=model.tokenizer.name_or_path.replace("/", "__"),
        text=text,
        model=model,
    )


def _light_model(folder: Path, what: str, *, trust_remote_code: bool) -> SimpleNamespace:
    """Return what `HFLM.apply_chat_template` looks at, with HFLM's own tokenizer."""
    from lm_eval.models.huggingface import HFLM
    from lm_eval.models.utils import configure_pad_token

    model = SimpleNamespace(chat_template_args={})
    try:
        HFLM._create_tokenizer(
            model, str(folder), None, revision="main", trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        first = str(error).strip().partition("\n")[0]
        raise CellError(
            FailureKind.UNREADABLE, f"{what}: the tokenizer in {folder} cannot be loaded: {first}"
        ) from error
    model.tokenizer = configure_pad_token(model.tokenizer)
    return model


def _template_text(tokenizer: Any, template: bool | str, what: str) -> str:
    templates = tokenizer.chat_template
    if not templates:
        raise CellError(
            FailureKind.SPEC,
            f"{what}: it has no chat template, so apply_chat_template cannot be used with this "
            "base; set `apply_chat_template: false`, or add chat_template.jinja to its folder",
        )
    known = templates if isinstance(templates, dict) else {"default": templates}
    wanted = template if isinstance(template, str) else "default"
    if wanted not in known:
        raise CellError(
            FailureKind.SPEC,
            f"{what}: it has no chat template {wanted!r}; it has {', '.join(sorted(known))}",
        )
    return str(known[wanted])


def num_tokens(path: str, revision: str | None = None) -> int:
    """Return how many tokens a tokenizer has, special and added ones among them.

    Raises:
        CellError: `unreadable` if it cannot be loaded.
    """
    return len(_load(path, revision))


def extends(path: str, revision: str | None, base: str) -> bool:
    """Return whether a tokenizer has all tokens of another one, under the same numbers.

    Args:
        path: Folder or hub id of the one that may have more.
        revision: Its hub revision.
        base: Folder or hub id of the other one.

    Raises:
        CellError: `unreadable` if either cannot be loaded.
    """
    ours: dict[str, int] = _load(base, None).get_vocab()
    theirs: dict[str, int] = _load(path, revision).get_vocab()
    return ours.items() <= theirs.items()


def _load(path: str, revision: str | None) -> Any:
    from transformers import AutoTokenizer

    folder = resolve_folder(path, what="tokenizer", revision=revision, files=TOKENIZER_FILES)
    try:
        return AutoTokenizer.from_pretrained(str(folder))
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        first = str(error).strip().partition("\n")[0]
        raise CellError(
            FailureKind.UNREADABLE, f"tokenizer {path!r}: it cannot be loaded: {first}"
        ) from error
