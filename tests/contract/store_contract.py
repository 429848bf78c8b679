"""What a store promises, wherever it lies. Subclass it and give an `open_store` fixture.

`open_store()` opens the same place anew each time, as another process would.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

import pytest

from raypeft.core.records import Answer, Document, Request, SubjectAnswers
from raypeft.errors import StoreError
from raypeft.store.files import Folder, Location
from raypeft.store.journal import Entry, Journal, read_journal
from raypeft.store.output import open_output, open_table_writer, write_table
from raypeft.store.rows import samples_table
from raypeft.store.store import Store
from raypeft.store.tables import build
from tests.store.examples import (
    HARDWARE,
    answers_for,
    choices,
    example_frozen,
    example_scored,
    make_request_set,
)

OpenStore: TypeAlias = Callable[[], Store]


class StoreContract:
    # --- request sets and freezes -------------------------------------------------------------

    def test_a_request_set_is_found_by_its_digest(self, open_store: OpenStore) -> None:
        request_set = choices()
        assert not open_store().has_request_set(request_set.digest)
        assert open_store().get_request_set(request_set.digest) is None
        open_store().put_request_set(request_set)
        assert open_store().has_request_set(request_set.digest)
        assert open_store().get_request_set(request_set.digest) == request_set

    def test_a_request_set_under_a_wrong_digest_is_refused(self, open_store: OpenStore) -> None:
        for wrong in (replace(choices(), digest="abc"), choices().for_slot()):
            with pytest.raises(StoreError, match="its content's is"):
                open_store().put_request_set(wrong)

    def test_a_freeze_comes_back_equal(self, open_store: OpenStore) -> None:
        frozen = example_frozen([choices(), choices(task="second")])
        assert open_store().get_frozen("key") is None
        open_store().put_frozen("key", frozen)
        assert open_store().get_frozen("key") == frozen
        assert open_store().get_request_set(frozen.request_sets[1].digest) is not None

    def test_freezes_of_equal_requests_keep_their_own_settings(self, open_store: OpenStore) -> None:
        one, other = choices(), choices(entry="suite", num_docs=99, config={"metric_list": []})
        assert one.digest == other.digest
        open_store().put_frozen("one", example_frozen([one]))
        open_store().put_frozen("other", example_frozen([other]))
        for key, expected in (("one", one), ("other", other)):
            found = open_store().get_frozen(key)
            assert found is not None
            assert found.request_sets == (expected,)

    def test_a_freeze_with_failures_is_tried_again_but_not_lost(
        self, open_store: OpenStore
    ) -> None:
        frozen = example_frozen([choices()], failed=True)
        open_store().put_frozen("key", frozen)
        assert open_store().get_frozen("key") is None
        assert open_store().get_frozen("key", partial=True) == frozen
        whole = example_frozen([choices()])
        open_store().put_frozen("key", whole)
        assert open_store().get_frozen("key") == whole

    # --- answers ------------------------------------------------------------------------------

    def test_shards_are_listed_and_put_together_in_order(self, open_store: OpenStore) -> None:
        for index in (2, 0, 1):
            part = answers_for(range(index, 9, 3))
            open_store().put_answers("cell-a", index, 3, part, HARDWARE, 1.5)
        open_store().put_answers("cell-b", 4, 7, answers_for([0]), HARDWARE, 1.5)
        assert open_store().answered() == {"cell-a": {3: {0, 1, 2}}, "cell-b": {7: {4}}}
        answers, facts = open_store().get_answers("cell-a", 3, num_requests=9)
        assert tuple(answers) == answers_for(range(9)).answers
        assert [fact.shard_index for fact in facts] == [0, 1, 2]
        assert facts[0].hardware == HARDWARE
        assert (facts[0].tokens, facts[0].path, facts[0].unit_seconds) == (30, "shared", 1.5)
        assert open_store().shard_facts("cell-a", 3) == facts

    def test_a_shard_without_requests_is_a_shard(self, open_store: OpenStore) -> None:
        for index, part in enumerate((answers_for([0, 1]), answers_for([]))):
            open_store().put_answers("cell", index, 2, part, HARDWARE, 0.0)
        answers, _ = open_store().get_answers("cell", 2, num_requests=2)
        assert len(answers) == 2

    def test_the_first_answers_win(self, open_store: OpenStore) -> None:
        open_store().put_answers("cell", 0, 1, answers_for([0]), HARDWARE, 0.0)
        open_store().put_answers("cell", 0, 1, answers_for([0], shift=9.0), HARDWARE, 0.0)
        answers, _ = open_store().get_answers("cell", 1)
        assert answers == [Answer(0, logprob=0.0, is_greedy=True)]

    def test_missing_shards_are_named(self, open_store: OpenStore) -> None:
        open_store().put_answers("cell", 1, 3, answers_for([0]), HARDWARE, 0.0)
        with pytest.raises(StoreError, match=r"cell cell in 3 shards: shards \[0, 2\] are missing"):
            open_store().get_answers("cell", 3)

    def test_missing_and_double_answers_are_named(self, open_store: OpenStore) -> None:
        for index, part in enumerate(([0, 1], [1, 2])):
            open_store().put_answers("twice", index, 2, answers_for(part), HARDWARE, 0.0)
        with pytest.raises(StoreError, match=r"requests \[1\] are answered twice"):
            open_store().get_answers("twice", 2)
        open_store().put_answers("gap", 0, 1, answers_for([0, 2]), HARDWARE, 0.0)
        with pytest.raises(StoreError, match=r"requests \[1\] have no answer, \[2\] are not in"):
            open_store().get_answers("gap", 1)
        open_store().put_answers("short", 0, 1, answers_for([0, 1]), HARDWARE, 0.0)
        with pytest.raises(StoreError, match=r"requests \[2\] have no answer"):
            open_store().get_answers("short", 1, num_requests=3)

    def test_no_such_shard_and_no_such_key_are_refused(self, open_store: OpenStore) -> None:
        with pytest.raises(ValueError, match="no shard 3 of 3"):
            open_store().put_answers("cell", 3, 3, answers_for([0]), HARDWARE, 0.0)
        with pytest.raises(ValueError, match="is no key"):
            open_store().put_answers("../cell", 0, 1, answers_for([0]), HARDWARE, 0.0)

    def test_text_of_any_kind_survives(self, open_store: OpenStore) -> None:
        texts = ("", "\x00", "a\nb\r", "日本語🙂", "\ud800")
        answers = SubjectAnswers(
            subject="s", answers=tuple(Answer(i, text=text) for i, text in enumerate(texts))
        )
        open_store().put_answers("cell", 0, 1, answers, HARDWARE, 0.0)
        found, _ = open_store().get_answers("cell", 1)
        assert [answer.text for answer in found] == list(texts)

    # --- scores, memos ------------------------------------------------------------------------

    def test_scores_are_found_by_their_key(self, open_store: OpenStore) -> None:
        assert open_store().scored() == set()
        assert open_store().get_scored("key") is None
        open_store().put_scored("key", example_scored())
        open_store().put_scored("key", example_scored("another"))
        assert open_store().scored() == {"key"}
        assert repr(open_store().get_scored("key")) == repr(example_scored())

    def test_memos_are_found_by_kind_and_key_and_can_change(self, open_store: OpenStore) -> None:
        key = "/models/llama:weights.safetensors:1234:99.5"
        assert open_store().get_memo("base", key) is None
        open_store().put_memo("base", key, {"digest": "abc"})
        assert open_store().get_memo("base", key) == {"digest": "abc"}
        assert open_store().get_memo("file", key) is None
        open_store().put_memo("base", key, ["new"])
        assert open_store().get_memo("base", key) == ["new"]

    def test_it_can_tell_that_it_is_writable(self, open_store: OpenStore) -> None:
        open_store().check_writable()
        assert open_store().answered() == {}

    # --- the output of a sweep lies in the same kinds of places -------------------------------

    def test_an_output_is_read_back(self, location: Location) -> None:
        with pytest.raises(StoreError, match="no sweep has written tables here"):
            open_output(location)
        with open_table_writer(location, "samples") as writer:
            for subject in ("base", "base/lora"):
                writer.write(samples_table(subject, example_scored()))
        write_table(location, "cells", build("cells", []))
        results = open_output(location)
        assert results.samples.num_rows == 6
        assert results.samples_of("base/lora", "toy").num_rows == 3
        assert results.samples_of("base/lora", "other").num_rows == 0
        assert results.cells.num_rows == 0
        with pytest.raises(StoreError, match="there is no such table"):
            _ = results.gains

    def test_a_journal_is_read_back_run_by_run(self, location: Location) -> None:
        for run in range(2):
            with Journal(location) as journal:
                for step in range(3):
                    journal.append("step", {"run": run, "step": step}, at_seconds=10.0 * run + step)
        assert list(read_journal(location)) == [
            Entry(at_seconds=10.0 * run + step, kind="step", fields={"run": run, "step": step})
            for run in range(2)
            for step in range(3)
        ]

    # --- damage -------------------------------------------------------------------------------

    def test_damaged_files_are_absent_and_can_be_written_again(
        self, open_store: OpenStore, location: Location, caplog: pytest.LogCaptureFixture
    ) -> None:
        request_set = make_request_set(
            [Request(0, 0, 0, 0, "loglikelihood", ("a", "b"))], [Document(0, {}, 0, "d", "t")]
        )
        folder = Folder(location)

        def put_all() -> None:
            store = open_store()
            store.put_frozen("key", example_frozen([request_set]))
            store.put_answers("cell", 0, 1, answers_for([0]), HARDWARE, 0.0)
            store.put_scored("score", example_scored())
            store.put_memo("base", "k", "v")

        def read_all() -> list[object]:
            store = open_store()
            return [
                store.get_frozen("key"),
                store.get_request_set(request_set.digest),
                store.get_scored("score"),
                store.get_memo("base", "k"),
                store.answered(),
            ]

        put_all()
        names = [entry.name for entry in folder.entries()]
        assert len(names) == 5
        for name in names:
            data = folder.read(name)
            assert data is not None
            folder.write(name, data[: len(data) // 2])
        with pytest.raises(StoreError, match="missing"):
            open_store().get_answers("cell", 1)
        assert not any(read_all())
        assert len(caplog.records) >= 5
        assert all("is damaged" in record.message for record in caplog.records)
        put_all()
        assert all(read_all())

    def test_a_file_of_another_version_is_refused_and_kept(
        self, open_store: OpenStore, location: Location
    ) -> None:
        open_store().put_memo("base", "k", "v")
        folder = Folder(location)
        (entry,) = folder.entries()
        data = folder.read(entry.name)
        assert data is not None
        folder.write(entry.name, data.replace(b'"version": 1', b'"version": 2'))
        for _ in range(2):
            with pytest.raises(StoreError, match="memo of version 2; this raypeft reads memo of 1"):
                open_store().get_memo("base", "k")
