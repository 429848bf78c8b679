from pathlib import Path

import numpy as np
import pytest

from raypeft.core.records import Json, Sample, Scored
from raypeft.store.changes import Values, changes, read_texts, read_values
from raypeft.store.output import Results, open_table_writer
from raypeft.store.rows import samples_table


def scored(values: dict[int, Json], filter_name: str = "none") -> Scored:
    samples = tuple(
        Sample(
            doc_id=doc_id,
            filter=filter_name,
            responses=[[f"raw {doc_id}"]],
            filtered_responses=[f"filtered {doc_id}"],
            metrics={"other": 7.0} if value is None else {"other": 7.0, "acc": value},
            doc_hash="d",
            prompt_hash="p",
            target_hash="t",
        )
        for doc_id, value in values.items()
    )
    return Scored(task="red", metrics=(), samples=samples, lm_eval={}, lm_eval_version="0")


def values(**by_doc: float) -> Values:
    return Values(
        doc_ids=np.array([int(name[1:]) for name in by_doc], dtype=np.int64),
        values=np.array(list(by_doc.values())),
    )


@pytest.fixture
def results(tmp_path: Path) -> Results:
    with open_table_writer(str(tmp_path), "samples") as writer:
        writer.write(samples_table("base", scored({0: 1.0, 1: 0.0, 2: True, 3: None})))
        writer.write(samples_table("base", scored({0: 0.5}, "strict")))
        writer.write(samples_table("base/one", scored({2: 0.0, 1: 1.0, 0: 1.0, 3: [1, 2]})))
    return Results(str(tmp_path))


def test_one_metric_is_read_under_its_filter_in_order_of_documents(results: Results) -> None:
    cells = {(s, "red"): ("acc", "none") for s in ("base", "base/one", "base/unknown")}
    found = read_values(results, cells)
    assert set(found) == {("base", "red"), ("base/one", "red")}
    assert found["base", "red"].doc_ids.tolist() == [0, 1, 2]
    assert found["base", "red"].values.tolist() == [1.0, 0.0, 1.0]
    assert found["base/one", "red"].doc_ids.tolist() == [0, 1, 2, 3]
    assert np.isnan(found["base/one", "red"].values[3])


def test_only_the_texts_that_are_wanted_are_read(results: Results) -> None:
    found = read_texts(results, {("base/one", "red"): ("none", frozenset({1, 9}))})
    assert list(found) == [("base/one", "red")]
    assert list(found["base/one", "red"]) == [1]
    assert found["base/one", "red"][1].responses == '[["raw 1"]]'


def test_documents_that_differ_are_counted_and_the_largest_differences_named() -> None:
    before = values(d0=0.0, d1=1.0, d2=0.5, d3=0.0, d5=np.nan, d6=0.0)
    after = values(d0=1.0, d1=0.0, d2=0.75, d3=0.0, d4=1.0, d5=1.0, d6=1.0)
    found = changes(before, after, higher_is_better=True, limit=2)
    assert (found.num_better, found.num_worse) == (3, 1)
    assert [one.doc_id for one in found.better] == [0, 6]
    assert [(one.doc_id, one.before, one.after) for one in found.worse] == [(1, 1.0, 0.0)]


def test_where_lower_is_better_the_sides_change_places() -> None:
    found = changes(values(d0=0.0), values(d0=1.0), higher_is_better=False, limit=5)
    assert (found.num_better, found.num_worse) == (0, 1)
    assert not found.worse[0].is_better
