"""A chat template without its model gives the text that lm-eval's model gives."""

from pathlib import Path

import pytest

from raypeft.core.records import FailureKind
from raypeft.engines.tokenizer import load_chat_template
from raypeft.errors import CellError
from tests.engines.zoo import reference
from tests.support.tiny import tiny_tokenizer

pytestmark = pytest.mark.torch

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Which color?"},
    {"role": "assistant", "content": "red"},
]
REFUSES_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}"
    "{% endif %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_tokenizer(tmp_path / "tokenizer")


def set_templates(folder: Path, template: str, **named: str) -> None:
    (folder / "chat_template.jinja").write_text(template)
    for name, text in named.items():
        file = folder / "additional_chat_templates" / f"{name}.jinja"
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)


@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_the_text_is_that_of_lm_evals_model(tiny_base: Path, add_generation_prompt: bool) -> None:
    model = reference(tiny_base, None, batch_size=1)
    template = load_chat_template(str(tiny_base))

    expected = model.apply_chat_template(CHAT, add_generation_prompt=add_generation_prompt)

    assert expected
    assert template.apply_chat_template(CHAT, add_generation_prompt) == expected
    assert template.tokenizer_name == model.tokenizer_name
    assert template.name == "default"


def test_a_template_that_refuses_system_text_gets_none_as_in_lm_eval(folder: Path) -> None:
    set_templates(folder, REFUSES_SYSTEM)

    text = load_chat_template(str(folder)).apply_chat_template(CHAT, add_generation_prompt=False)

    assert text == "[user]Which color?[assistant]red"


def test_a_named_template_is_the_one_applied(folder: Path) -> None:
    set_templates(folder, "default", rag="rag for {{ messages | length }}")

    named = load_chat_template(str(folder), template="rag")
    default = load_chat_template(str(folder))

    assert named.apply_chat_template(CHAT) == "rag for 3"
    assert named.name == "rag"
    assert default.apply_chat_template(CHAT) == "default"
    assert named.digest != default.digest


def test_a_name_that_is_not_there_lists_those_that_are(folder: Path) -> None:
    set_templates(folder, "default", rag="rag")

    with pytest.raises(CellError, match=r"no chat template 'tools'; it has default, rag") as raised:
        load_chat_template(str(folder), template="tools")
    assert raised.value.kind == FailureKind.SPEC


def test_a_tokenizer_without_a_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()

    with pytest.raises(CellError, match="has no chat template, so apply_chat_template") as raised:
        load_chat_template(str(folder))
    assert raised.value.kind == FailureKind.SPEC


def test_the_digest_follows_the_template_and_the_tokenizer(folder: Path, tmp_path: Path) -> None:
    first = load_chat_template(str(folder))
    copy = load_chat_template(str(tiny_tokenizer(tmp_path / "copy")))
    other = load_chat_template(str(tiny_tokenizer(tmp_path / "other", vocab_size=350)))
    set_templates(folder, "changed")

    assert copy.digest == first.digest
    assert other.digest != first.digest
    assert load_chat_template(str(folder)).digest != first.digest


def test_a_tokenizer_that_cannot_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "tokenizer_config.json").write_text("{}")

    with pytest.raises(CellError, match="cannot be loaded") as raised:
        load_chat_template(str(tmp_path))
    assert raised.value.kind == FailureKind.UNREADABLE
