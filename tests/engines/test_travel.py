"""Adapters are found, and kept, by what they are and not by where they lie."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from raypeft.core.records import Adapter, EngineSpec, FailureKind
from raypeft.engines import travel
from raypeft.engines.adapters import adapter_digest, open_adapter, read_adapter
from raypeft.engines.bases import tokenizer_digest
from raypeft.engines.tensorfiles import hash_file
from raypeft.engines.travel import (
    AdapterBytes,
    LocalAdapters,
    content_key,
    read_adapter_bytes,
    reads_adapters,
)
from raypeft.errors import CellError
from tests.engines.samples import hand_made_adapter


@pytest.fixture
def adapter(tmp_path: Path) -> Adapter:
    """An adapter where the driver is."""
    return read_adapter(str(hand_made_adapter(tmp_path / "driver" / "lora")), name="lora")


@pytest.fixture
def here(tmp_path: Path) -> LocalAdapters:
    """Another node."""
    return LocalAdapters(tmp_path / "cache")


def elsewhere(adapter: Adapter, folder: Path) -> Adapter:
    return replace(adapter, path=str(folder))


def refusal_of(adapter: Adapter, here: LocalAdapters, brought: AdapterBytes) -> CellError:
    with pytest.raises(CellError) as raised:
        here.keep(adapter, brought)
    return raised.value


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_an_adapter_that_is_there_is_left_where_it_is(
    adapter: Adapter, here: LocalAdapters, tmp_path: Path
) -> None:
    assert here.find(adapter) == adapter
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("path", ["missing", "/no/such/folder", "organisation/name", "./lora"])
def test_an_adapter_that_is_not_there_is_not_found(
    adapter: Adapter, here: LocalAdapters, path: str
) -> None:
    assert here.find(replace(adapter, path=path)) is None


def test_other_content_under_its_path_is_not_the_adapter(
    adapter: Adapter, here: LocalAdapters, tmp_path: Path
) -> None:
    other = hand_made_adapter(tmp_path / "node" / "lora", lora_alpha=32)
    assert here.find(elsewhere(adapter, other)) is None


def test_what_was_brought_is_found_by_every_slot_of_the_node(
    adapter: Adapter, here: LocalAdapters, tmp_path: Path
) -> None:
    lost = elsewhere(adapter, tmp_path / "nowhere")
    kept = here.keep(lost, read_adapter_bytes(adapter))
    assert Path(kept.path).parent == tmp_path / "cache"
    assert open_adapter(kept).config == open_adapter(adapter).config
    assert here.find(lost) == kept
    assert LocalAdapters(tmp_path / "cache").find(lost) == kept
    assert here.keep(lost, read_adapter_bytes(adapter)) == kept  # another slot was faster


def test_only_what_an_engine_needs_travels(adapter: Adapter) -> None:
    folder = Path(adapter.path)
    for name in ("training_args.bin", "README.md", "optimizer.pt", "tokenizer.json"):
        (folder / name).write_text("{}")
    (folder / "checkpoint-1").mkdir()
    brought = read_adapter_bytes(adapter)
    assert sorted(brought.files) == ["adapter_config.json", "adapter_model.safetensors"]
    assert brought.content == adapter.digest


def test_its_own_tokenizer_travels_with_it_and_is_part_of_its_content(
    adapter: Adapter, here: LocalAdapters, tmp_path: Path
) -> None:
    def with_words(folder: Path, word: str) -> Adapter:
        shutil.copytree(adapter.path, folder)
        (folder / "tokenizer.json").write_text(f'{{"model": "{word}"}}')
        (folder / "additional_chat_templates").mkdir()
        (folder / "additional_chat_templates" / "tools.jinja").write_text(word)
        own = tokenizer_digest(str(folder))
        return replace(adapter, path=str(folder), tokenizer=str(folder), tokenizer_digest=own)

    one, two = with_words(tmp_path / "one", "a"), with_words(tmp_path / "two", "b")
    assert one.digest == two.digest
    assert content_key(one) != content_key(two) != content_key(adapter)
    # The node has the second under the path of the first.
    wrong = replace(one, path=two.path, tokenizer=two.path)
    assert here.find(wrong) is None
    kept = here.keep(wrong, read_adapter_bytes(one))
    assert kept.tokenizer == kept.path
    assert (Path(kept.path) / "additional_chat_templates" / "tools.jinja").read_text() == "a"
    assert here.find(two) == two
    assert "tokenizer" in refusal_of(wrong, here, read_adapter_bytes(two)).message


def test_pickled_weights_travel_only_where_the_sweep_allows_them(
    adapter: Adapter, here: LocalAdapters, tmp_path: Path
) -> None:
    folder = Path(adapter.path)
    weights = (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    digest = adapter_digest(hash_file(weights), adapter.config)
    allowed = replace(adapter, digest=digest, allow_pickle=True)
    brought = read_adapter_bytes(allowed)
    lost = elsewhere(allowed, tmp_path / "nowhere")
    assert refusal_of(replace(lost, allow_pickle=False), here, brought).kind == FailureKind.UNSAFE
    assert names(Path(here.keep(lost, brought).path)) == ["adapter_config.json", weights.name]
    with pytest.raises(CellError, match="unpickling can run code"):
        read_adapter_bytes(replace(allowed, allow_pickle=False))


def test_an_adapter_that_was_trained_on_does_not_travel(adapter: Adapter) -> None:
    hand_made_adapter(Path(adapter.path), lora_alpha=32)
    with pytest.raises(CellError, match="other content than when the sweep was planned"):
        read_adapter_bytes(adapter)


def test_other_content_than_the_digest_says_is_refused_and_leaves_nothing(
    adapter: Adapter, here: LocalAdapters, tmp_path: Path
) -> None:
    brought = read_adapter_bytes(adapter)
    broken = {**brought.files, "adapter_model.safetensors": b"\0" * 64}
    error = refusal_of(adapter, here, replace(brought, files=broken))
    assert error.kind == FailureKind.UNREADABLE
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("name", ["../adapter_config.json", "/etc/passwd", "a/../../b", ""])
def test_names_that_lead_elsewhere_are_refused(
    adapter: Adapter, here: LocalAdapters, name: str
) -> None:
    brought = read_adapter_bytes(adapter)
    error = refusal_of(adapter, here, replace(brought, files={**brought.files, name: b""}))
    assert error.kind == FailureKind.UNSAFE


def test_a_kept_copy_that_somebody_changed_is_not_used_and_is_replaced(
    adapter: Adapter, here: LocalAdapters, tmp_path: Path
) -> None:
    lost = elsewhere(adapter, tmp_path / "nowhere")
    kept = here.keep(lost, read_adapter_bytes(adapter))
    hand_made_adapter(Path(kept.path), lora_alpha=32)
    assert here.find(lost) is None
    assert LocalAdapters(tmp_path / "cache").find(lost) is None
    assert here.keep(lost, read_adapter_bytes(adapter)) == kept
    assert open_adapter(kept).config["lora_alpha"] == 4


def test_a_folder_that_others_can_change_is_neither_read_nor_written(
    adapter: Adapter, here: LocalAdapters, tmp_path: Path
) -> None:
    lost = elsewhere(adapter, tmp_path / "nowhere")
    here.keep(lost, read_adapter_bytes(adapter))
    (tmp_path / "cache").chmod(0o777)
    assert LocalAdapters(tmp_path / "cache").find(lost) is None
    assert refusal_of(lost, here, read_adapter_bytes(adapter)).kind == FailureKind.UNSAFE
    link = tmp_path / "link"
    (tmp_path / "cache").chmod(0o700)
    link.symlink_to(tmp_path / "cache")
    assert LocalAdapters(link).find(lost) is None


def test_what_no_slot_used_for_a_day_makes_room(
    adapter: Adapter, here: LocalAdapters, tmp_path: Path
) -> None:
    old = Path(here.keep(adapter, read_adapter_bytes(adapter)).path)
    os.utime(old, (0, 0))
    second = read_adapter(str(hand_made_adapter(tmp_path / "2", lora_alpha=8)), name="second")
    third = read_adapter(str(hand_made_adapter(tmp_path / "3", lora_alpha=16)), name="third")
    kept = here.keep(second, read_adapter_bytes(second))
    assert not old.exists()
    os.utime(kept.path, (0, 0))
    lost = elsewhere(second, tmp_path / "nowhere")
    assert LocalAdapters(tmp_path / "cache").find(lost) == kept  # used: it stays
    here.keep(third, read_adapter_bytes(third))
    assert Path(kept.path).exists()


def test_an_adapter_that_is_too_large_is_named_with_what_to_do(
    adapter: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(travel, "MOST_BYTES", 100)
    with pytest.raises(CellError) as raised:
        read_adapter_bytes(adapter)
    assert raised.value.kind == FailureKind.UNSUPPORTED
    assert "adapter_model.safetensors" in raised.value.message
    assert "copy the folder to every node" in raised.value.message


def test_no_room_on_the_node_is_worth_another_attempt(adapter: Adapter, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    error = refusal_of(adapter, LocalAdapters(tmp_path / "file" / "x"), read_adapter_bytes(adapter))
    assert (error.kind, error.retryable) == (FailureKind.UNREADABLE, True)
    assert "TMPDIR" in error.message


def test_a_fake_engine_opens_no_files_unless_it_is_told_to() -> None:
    spec = EngineSpec(kind="fake", base="b", base_digest="d")
    assert not reads_adapters(spec)
    assert reads_adapters(replace(spec, options={"script": {"reads_adapters": True}}))
    assert reads_adapters(replace(spec, kind="hf"))
