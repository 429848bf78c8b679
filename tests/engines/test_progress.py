"""Every engine that runs here tells that it gets on."""

from dataclasses import replace

import pytest

from raypeft.core.records import EngineSpec, Shard, Subject
from raypeft.engines.fake import FakeEngine
from raypeft.engines.progress import so_far
from tests.engines.samples import mixed_calls, request_set

BASELINE = Subject(id="base", base="base")
REQUESTS = request_set(mixed_calls())


def test_the_fake_engine_gets_on_with_each_subject() -> None:
    before = so_far()
    engine = FakeEngine(EngineSpec(kind="fake", base="b", base_digest="0"))
    engine.answer(Shard(REQUESTS), [BASELINE, BASELINE])
    assert so_far() == before + 2


@pytest.mark.torch
@pytest.mark.parametrize("request_type", ["loglikelihood", "generate_until"])
@pytest.mark.parametrize("sharing", [False, True])
def test_a_model_gets_on_with_each_pass_and_token(
    tiny_spec: EngineSpec, request_type: str, sharing: bool
) -> None:
    from raypeft.engines.hf import HFEngine

    engine = HFEngine(replace(tiny_spec, sharing=sharing))
    try:
        asked = [one for one in REQUESTS.requests if one.request_type == request_type]
        assert asked
        requests = tuple(replace(one, index=at) for at, one in enumerate(asked))
        shard = Shard(replace(REQUESTS, requests=requests))
        engine.answer(shard, [BASELINE])  # what is asked of the model once is not the answers'
        before = so_far()
        engine.answer(shard, [BASELINE])
        assert so_far() > before
    finally:
        engine.close()
