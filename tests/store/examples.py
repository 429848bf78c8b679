"""Records to store: one of each by hand, and hypothesis strategies for all that may come."""

from collections.abc import Sequence

from hypothesis import strategies as st

from raypeft.core.identity import request_set_digest
from raypeft.core.records import (
    Answer,
    Document,
    EvaluationSettings,
    Failure,
    FailureKind,
    Frozen,
    Group,
    Hardware,
    Json,
    MetricValue,
    Request,
    RequestSet,
    RequestType,
    Sample,
    Scored,
    SubjectAnswers,
)

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=20)
"""Lone surrogates and NUL among them."""
TEXT = st.text(max_size=20)
JSON_VALUES: st.SearchStrategy[Json] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(ANY_TEXT | st.sampled_from(["$float", "$$float"]), inner, max_size=4)
    ),
    max_leaves=12,
)

HARDWARE = Hardware(
    fingerprint="f00d",
    device="Some CPU",
    num_devices=0,
    memory_gib=15.6,
    threads=2,
    node="n1",
    software={"torch": "2.13", "peft": "0.21.2"},
)


def make_request_set(
    requests: Sequence[Request], documents: Sequence[Document], **fields: Json
) -> RequestSet:
    values: dict[str, Json] = {
        "task": "toy",
        "entry": "toy",
        "output_type": "multiple_choice",
        "version": "1.0",
        "num_fewshot": 2,
        "num_docs": 10,
        "settings": EvaluationSettings(limit=0.5, gen_kwargs={"until": ["\n"], "top_p": 0.1}),
        "config": {"task": "toy", "metric_list": [{"metric": "acc"}]},
        "tokenizer_digest": "",
        "lm_eval_version": "0.4.13",
    } | fields
    digest = request_set_digest(
        task=values["task"],
        version=values["version"],
        output_type=values["output_type"],
        requests=requests,
        documents=documents,
        tokenizer_digest=values["tokenizer_digest"],
    )
    return RequestSet(digest=digest, requests=tuple(requests), documents=tuple(documents), **values)


def choices(num_documents: int = 3, num_choices: int = 2, **fields: Json) -> RequestSet:
    """Return a request set like that of a multiple-choice task."""
    documents = [
        Document(i, {"z": i, "a": [1, 2.5, None]}, i % num_choices, f"d{i}", f"t{i}")
        for i in range(num_documents)
    ]
    requests = [
        Request(
            doc * num_choices + choice, doc, choice, 0, "loglikelihood", (f"Q{doc}", f" {choice}")
        )
        for doc in range(num_documents)
        for choice in range(num_choices)
    ]
    return make_request_set(requests, documents, **fields)


def answers_for(indices: Sequence[int], shift: float = 0.0) -> SubjectAnswers:
    return SubjectAnswers(
        subject="base/lora",
        answers=tuple(Answer(i, logprob=-0.1 * i - shift, is_greedy=i % 2 == 0) for i in indices),
        tokens=10 * len(indices),
        seconds=0.25,
        path="shared",
    )


def example_scored(task: str = "toy") -> Scored:
    samples = [
        Sample(
            doc_id=i,
            filter="none",
            responses=[[[-1.5, True]], [[-2.0, False]]],
            filtered_responses=[[-1.5, True], [-2.0, False]],
            metrics={"acc": float(i % 2), "pair": [-3.25, 7], "flag": True, "odd": float("nan")},
            doc_hash=f"d{i}",
            prompt_hash=f"p{i}",
            target_hash=f"t{i}",
        )
        for i in range(3)
    ]
    acc = MetricValue(
        metric="acc",
        filter="none",
        value=1 / 3,
        value_json="0.3333333333333333",
        stderr=None,
        n=3,
        higher_is_better=True,
        aggregation="mean",
    )
    return Scored(
        task=task,
        metrics=(acc,),
        samples=tuple(samples),
        lm_eval={"acc,none": 1 / 3, "acc_stderr,none": "N/A"},
        lm_eval_version="0.4.13",
    )


def example_frozen(request_sets: Sequence[RequestSet] = (), *, failed: bool = False) -> Frozen:
    failure = Failure(FailureKind.TASK_FAILED, "no such file", retryable=True, detail="Traceback")
    group = Group(
        name="suite",
        children=("toy", "other"),
        aggregate_metric_list=({"metric": "acc", "weight_by_size": False},),
        metadata={"version": 2.0},
    )
    return Frozen(
        entry="suite",
        request_sets=tuple(request_sets),
        groups=(group,),
        failures={"other": failure} if failed else {},
    )


@st.composite
def any_request_set(draw: st.DrawFn) -> RequestSet:
    doc_ids = sorted(draw(st.sets(st.integers(0, 50), max_size=5)))
    documents = [
        Document(i, draw(JSON_VALUES), draw(JSON_VALUES), draw(TEXT), draw(TEXT)) for i in doc_ids
    ]
    requests = []
    for index in range(draw(st.integers(0, 6)) if doc_ids else 0):
        kinds: list[RequestType] = ["loglikelihood", "loglikelihood_rolling", "generate_until"]
        kind = draw(st.sampled_from(kinds))
        arguments: tuple[Json, ...] = (draw(ANY_TEXT),)
        if kind == "loglikelihood":
            arguments += (draw(ANY_TEXT),)
        elif kind == "generate_until":
            arguments += (draw(st.dictionaries(TEXT, JSON_VALUES, max_size=3)),)
        doc_id = draw(st.sampled_from(doc_ids))
        requests.append(Request(index, doc_id, draw(st.integers(0, 3)), 0, kind, arguments))
    config = draw(st.dictionaries(TEXT, JSON_VALUES, max_size=3))
    return make_request_set(requests, documents, config=config)


def any_answers() -> st.SearchStrategy[SubjectAnswers]:
    answer = st.tuples(st.none() | st.floats(), st.none() | st.booleans(), st.none() | ANY_TEXT)
    return st.lists(answer, max_size=6).map(
        lambda rows: SubjectAnswers(
            subject="s", answers=tuple(Answer(i, *row) for i, row in enumerate(rows))
        )
    )


def any_scored() -> st.SearchStrategy[Scored]:
    sample = st.builds(
        Sample,
        doc_id=st.integers(0, 99),
        filter=TEXT,
        responses=JSON_VALUES,
        filtered_responses=JSON_VALUES,
        metrics=st.dictionaries(TEXT, JSON_VALUES, max_size=3),
        doc_hash=TEXT,
        prompt_hash=TEXT,
        target_hash=TEXT,
    )
    return st.builds(
        Scored,
        task=TEXT,
        metrics=st.just(example_scored().metrics),
        samples=st.lists(sample, max_size=4).map(tuple),
        lm_eval=JSON_VALUES,
        lm_eval_version=TEXT,
    )
