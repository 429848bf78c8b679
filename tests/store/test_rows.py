import math
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings

from raypeft.core.gains import Gain, Verdict
from raypeft.core.records import Answer, Failure, FailureKind, Scored, SubjectAnswers
from raypeft.store.parquet import from_parquet, to_parquet
from raypeft.store.rows import (
    ShardFacts,
    answers_of,
    answers_table,
    gains_table,
    samples_table,
    scored_of,
    scores_table,
)
from raypeft.store.tables import header_of, run_of
from tests.store.examples import HARDWARE, any_answers, any_scored, example_scored

RELAXED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

FACTS = ShardFacts(
    cell="cell",
    shard_index=1,
    shard_count=3,
    num_answers=0,
    hardware=HARDWARE,
    seconds=0.5,
    unit_seconds=2.0,
    tokens=7,
    path="plain",
)


@RELAXED
@given(any_answers())
def test_answers_come_back_equal_from_their_file(answers: SubjectAnswers) -> None:
    facts = replace(FACTS, num_answers=len(answers.answers))
    data = to_parquet(answers_table(answers, facts))
    back, back_facts = answers_of(from_parquet(data, "answers", "place"))
    assert repr(tuple(back)) == repr(answers.answers)
    assert back_facts == facts


def test_run_facts_are_no_content() -> None:
    answers = SubjectAnswers(subject="s", answers=(Answer(0, text="x"),))
    table = answers_table(answers, FACTS)
    assert header_of(table).keys() == {"cell", "shard_index", "shard_count", "num_answers"}
    assert run_of(table)["hardware"]["node"] == "n1"
    assert table.column_names == ["cell", "index", "logprob", "is_greedy", "text", "text_json"]


def test_a_failure_cannot_be_stored_as_answers() -> None:
    failure = Failure(FailureKind.NOT_FINITE, "NaN")
    with pytest.raises(ValueError, match="s failed"):
        answers_table(SubjectAnswers(subject="s", failure=failure), FACTS)


def test_answers_out_of_order_are_refused() -> None:
    for indices in ((1, 0), (0, 0)):
        answers = SubjectAnswers(subject="s", answers=tuple(Answer(i) for i in indices))
        with pytest.raises(ValueError, match="not sorted"):
            answers_table(answers, FACTS)


@RELAXED
@given(any_scored())
def test_scores_come_back_equal_from_their_file(scored: Scored) -> None:
    data = to_parquet(scores_table(scored))
    assert repr(scored_of(from_parquet(data, "scores", "place"))) == repr(scored)


def test_samples_have_a_number_where_the_value_is_one() -> None:
    table = samples_table("base/lora", example_scored())
    first = table["metrics"].to_pylist()[0]
    assert [item["name"] for item in first] == ["acc", "pair", "flag", "odd"]
    assert [item["value"] for item in first[:3]] == [0.0, None, 1.0]
    assert math.isnan(first[3]["value"])
    assert [item["json"] for item in first] == ["0.0", "[-3.25,7]", "true", '{"$float":"nan"}']
    assert set(table["subject"].to_pylist()) == {"base/lora"}


def test_a_whole_number_beyond_float64_is_kept_as_text_only() -> None:
    scored = example_scored()
    sample = replace(scored.samples[0], metrics={"big": 10**400})
    table = samples_table("s", replace(scored, samples=(sample,)))
    (item,) = table["metrics"].to_pylist()[0]
    assert (item["value"], item["json"]) == (None, str(10**400))


def test_gains_are_rows_with_the_verdict_as_text() -> None:
    gain = Gain(
        base="b",
        adapter="a",
        task="t",
        is_group=False,
        metric="acc",
        filter="none",
        aggregation="mean",
        request_set="r",
        verdict=Verdict.LOSS,
        wins=3,
        losses=9,
    )
    (row,) = gains_table([gain]).to_pylist()
    assert (row["verdict"], row["wins"], row["losses"], row["low"]) == ("loss", 3, 9, None)
