"""Requests are encoded as lm-eval encodes them, once for each request set."""

from typing import Any

import pytest
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM

from raypeft.core.records import FailureKind
from raypeft.engines.hf_requests import EncodedSets, encode
from raypeft.errors import CellError
from tests.engines.samples import mixed_calls, request_set

pytestmark = pytest.mark.torch


class Letters(TemplateLM):  # type: ignore[misc]  # lm-eval is untyped
    """An lm-eval model whose tokens are letters; keeps what it was asked to score."""

    backend = "causal"
    max_length = 12
    eot_token_id = 0

    def __init__(self) -> None:
        super().__init__()
        self.num_encoded = 0
        self.scored: list[Any] = []

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        self.num_encoded += 1
        return [ord(letter) for letter in string if letter != "~"]

    def _loglikelihood_tokens(self, requests: Any, **_: Any) -> Any:
        self.scored = [(given, scored) for _, given, scored in requests]
        return [(0.0, True)] * len(requests)

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
        raise AssertionError("only log-likelihoods are asked for here")

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any:
        raise AssertionError("only log-likelihoods are asked for here")


CALLS = [("abc", " d"), ("abc", " e"), ("spaces  ", "x"), ("", "yz"), ("", "\0start")]


def test_pairs_are_encoded_as_lm_eval_encodes_them() -> None:
    model = Letters()
    requests = request_set([("loglikelihood", pair) for pair in CALLS])
    instances = [
        Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=0) for pair in CALLS
    ]
    model.loglikelihood(instances, disable_tqdm=True)

    encoded = encode(model, requests, batch_size=2)

    found = [(pair.context.tolist(), pair.continuation.tolist()) for pair in encoded.pairs]
    assert found == model.scored


def test_a_shared_context_is_kept_once() -> None:
    encoded = encode(Letters(), request_set([("loglikelihood", one) for one in CALLS[:2]]), 2)

    assert encoded.pairs[0].context is encoded.pairs[1].context
    assert encoded.num_tokens == 3 + 2 + 2


def test_positions_count_within_a_request_type() -> None:
    requests = request_set(
        [
            ("generate_until", ("a", {"until": []})),
            ("loglikelihood", ("a", "b")),
            ("loglikelihood_rolling", ("long text " * 4,)),
            ("loglikelihood", ("a", "c")),
        ]
    )

    encoded = encode(Letters(), requests, batch_size=4)

    own = {kind: [one.index for one in members] for kind, members in encoded.requests.items()}
    assert own == {"generate_until": [0], "loglikelihood": [1, 3], "loglikelihood_rolling": [2]}
    assert encoded.pair_batches == ((0, 1),)
    assert encoded.rolling.starts == (0, 4)
    assert encoded.generations == (("a", {"until": []}),)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (("context", ""), "continuation '' encodes to no tokens"),
        (("context", "~"), "continuation '~' encodes to no tokens"),
        (("", ""), "encodes to no tokens"),
        (("~", "a"), "context '~' encodes to no tokens"),
        (("context", "a" * 13), "13 tokens, more than the 12 of the model"),
    ],
)
def test_a_request_that_no_model_can_answer_is_named(pair: tuple[str, str], message: str) -> None:
    requests = request_set([("loglikelihood", ("fine", " too")), ("loglikelihood", pair)])

    with pytest.raises(CellError, match=message) as raised:
        encode(Letters(), requests, batch_size=2)
    assert raised.value.kind == FailureKind.TASK_FAILED
    assert "request 1 " in raised.value.message


def test_a_request_set_is_encoded_once_and_the_least_recent_is_dropped() -> None:
    model = Letters()
    sets = EncodedSets(model, batch_size=2, most_tokens=12)
    first, second, third = (
        request_set([("loglikelihood", ("abc", "de"))], task=name) for name in "xyz"
    )

    kept = [sets.get(first), sets.get(second), sets.get(first), sets.get(third)]
    calls = model.num_encoded

    assert kept[0] is kept[2]
    assert sets.get(first) is kept[0]
    assert model.num_encoded == calls
    assert sets.get(second) is not kept[1]
    assert model.num_encoded > calls


def test_a_request_set_larger_than_the_memory_is_still_kept() -> None:
    sets = EncodedSets(Letters(), batch_size=2, most_tokens=1)
    requests = request_set([("loglikelihood", ("abc", "de"))])

    assert sets.get(requests) is sets.get(requests)


def test_every_call_has_a_place() -> None:
    encoded = encode(_Long(), request_set(mixed_calls(sampled=True)), batch_size=4)

    assert sum(map(len, encoded.requests.values())) == len(mixed_calls(sampled=True))


class _Long(Letters):
    max_length = 2000
