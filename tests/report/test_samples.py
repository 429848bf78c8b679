import json
import math
from dataclasses import replace

from raypeft.core.records import Json, Request
from raypeft.report.samples import Asked, Pair, answer_value, per_pair, question_value, sample_data
from raypeft.store.changes import Change, Changes, Texts


def request(idx: int, *arguments: str) -> Request:
    return Request(idx, 0, idx, 0, "loglikelihood", arguments)


def texts(responses: Json, filtered: Json = None) -> Texts:
    return Texts(responses=json.dumps(responses), filtered_responses=json.dumps(filtered or []))


def pair(adapter: str, num: int, *, worse: int = 0) -> Pair:
    return Pair(
        base="base",
        adapter=adapter,
        subject=f"base/{adapter}",
        baseline="base",
        task="red",
        metric="acc",
        filter="none",
        request_set="digest",
        higher_is_better=True,
        changes=Changes(
            better=tuple(change(i, 1.0) for i in range(num)),
            worse=tuple(change(100 + i, 0.0) for i in range(worse)),
            num_better=10 * num,
            num_worse=10 * worse,
        ),
    )


def change(doc_id: int, after: float) -> Change:
    return Change(doc_id=doc_id, before=1 - after, after=after, is_better=after > 0)


ASKED = {
    "digest": {
        i: Asked(requests=(request(0, f"question {i}", " yes"),), target="yes") for i in range(200)
    }
}
SAID = {
    (subject, "red"): {i: texts([[f"{subject} {i}"]]) for i in range(200)}
    for subject in ("base", "base/one", "base/two")
}


def test_choices_are_listed_with_their_log_likelihoods_and_the_likeliest_is_marked() -> None:
    requests = [request(0, "q", " yes"), request(1, "q", " no")]
    text, cut = answer_value(requests, texts([[[-2.0, False]], [[-0.5, True]]]))
    assert (text, cut) == ("     -2.000  yes\n→    -0.500  no", 0)


def test_generated_text_is_shown_with_what_it_counted_as() -> None:
    assert answer_value([], texts([["The answer is 4."]], ["4"])) == [
        "The answer is 4.\ncounted as: 4",
        0,
    ]
    assert answer_value([], texts([["a", "b"]], ["a", "b"]))[0] == "[1] a\n[2] b"


def test_log_likelihoods_that_are_no_number_are_shown() -> None:
    value = Texts(responses='[[[{"$float":"-inf"},false]],[[-1.0,true]]]', filtered_responses="[]")
    text, _ = answer_value([], value)
    assert text.splitlines() == ["       -inf  choice 1", "→    -1.000  choice 2"]


def test_a_target_that_numbers_a_choice_is_shown_as_that_choice() -> None:
    asked = Asked(requests=(request(0, "q", " yes"), request(1, "q", " no")), target=1)
    assert question_value(asked) == ["q", "choice 2: no", 0]


def test_a_long_prompt_keeps_its_end_and_says_what_is_left_out() -> None:
    asked = Asked(requests=(request(0, "x" * 5000 + "the question"),), target=None)
    prompt, _, cut = question_value(asked)
    assert prompt.endswith("the question")
    assert cut == 5012 - len(prompt)


def test_questions_and_answers_of_the_baseline_are_kept_once() -> None:
    found = sample_data([pair("one", 5), pair("two", 5)], ASKED, SAID)
    assert len(found["questions"]) == 5
    assert len(found["answers"]) == 15
    first = found["pairs"][0]["items"][0]
    doc_id, question, before, after, *values = first
    assert found["questions"][question][0] == f"question {doc_id}"
    assert found["answers"][before][0] == f"base {doc_id}"
    assert found["answers"][after][0] == f"base/one {doc_id}"
    assert values == [0.0, 1.0]


def test_losses_and_gains_are_shown_in_turn() -> None:
    (found,) = sample_data([pair("one", 3, worse=2)], ASKED, SAID)["pairs"]
    assert [item[0] for item in found["items"]] == [100, 0, 101, 1, 2]
    assert (found["better"], found["worse"]) == (30, 20)


def test_every_pair_has_its_share_of_a_budget_that_is_kept() -> None:
    pairs = [pair("one", 20), pair("two", 20)]
    found = sample_data(pairs, ASKED, SAID, max_bytes=1500)
    sizes = [len(one["items"]) for one in found["pairs"]]
    assert max(sizes) - min(sizes) <= 1
    assert 0 < sum(sizes) < 40
    items = [item for one in found["pairs"] for item in one["items"]]
    texts_used = [*found["questions"], *found["answers"], *items]
    assert sum(len(json.dumps(value)) for value in texts_used) <= 1500
    assert {item[1] for item in items} == set(range(len(found["questions"])))
    assert {p for item in items for p in item[2:4]} == set(range(len(found["answers"])))


def test_what_grows_when_it_is_escaped_counts_as_it_will_stand_in_the_page() -> None:
    said = {cell: {i: texts([["<" * 400]]) for i in range(200)} for cell in SAID}
    plain = sample_data([pair("one", 20)], ASKED, SAID, max_bytes=20_000)
    escaped = sample_data([pair("one", 20)], ASKED, said, max_bytes=20_000)
    assert len(escaped["pairs"][0]["items"]) < len(plain["pairs"][0]["items"])


def test_where_the_store_cannot_be_read_the_page_says_so() -> None:
    found = sample_data([pair("one", 1)], {}, SAID)
    assert "could not be read" in found["questions"][0][0]


def test_fewer_documents_of_each_pair_are_looked_up_where_pairs_are_many() -> None:
    assert per_pair(1) == 11
    assert per_pair(384) == 4
    assert per_pair(100_000) == 2


def test_infinite_values_stay_json_that_a_browser_reads() -> None:
    found = pair("one", 0)
    odd = Change(doc_id=1, before=-math.inf, after=math.inf, is_better=True)
    changes = replace(found.changes, better=(odd,), num_better=1)
    data = sample_data([replace(found, changes=changes)], {}, {})
    text = json.dumps(data, allow_nan=False)
    assert '"-Infinity", "Infinity"' in text


def test_choices_without_a_number_are_shown_as_what_they_are() -> None:
    (text, _) = answer_value((), texts([[[None, True]], [[-1.0, False]]]))
    assert "[null, true]" in str(text)
