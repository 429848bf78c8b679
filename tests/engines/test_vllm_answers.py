"""What vLLM says is believed only where it was computed: both of its runners, and the guards.

The outputs are made by hand, as vLLM 0.32 was seen to give them.
"""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from raypeft.engines.hf_batches import Pair, to_array
from raypeft.engines.vllm_answers import Asker, Scored, read_choices, read_tail
from raypeft.engines.vllm_calls import Caller, Effort, Job, Voice
from raypeft.engines.vllm_capabilities import StepCounts, count_steps, read_capabilities
from raypeft.engines.vllm_log import ProcessLog
from raypeft.engines.vllm_requests import Ask
from raypeft.errors import CellError, EngineFatalError

pytestmark = pytest.mark.torch

CONTEXT = to_array([5, 6, 7])
TAIL = Ask(CONTEXT, (8, 9), (), ((0,),))


def row(**logprobs: float) -> dict[int, Any]:
    """Return a row of log-probabilities by token, `t8=-0.5`."""
    return {int(name[1:]): SimpleNamespace(logprob=value) for name, value in logprobs.items()}


def tail_output(rows: Sequence[Any] | None, cached: int | None) -> Any:
    return SimpleNamespace(prompt_logprobs=rows, num_cached_tokens=cached)


OWN = [row(t8=-0.5), row(t9=-1.0, t3=-0.25)]
RUBBISH = {-7: SimpleNamespace(logprob=1e30)}


@pytest.mark.parametrize(
    ("rows", "cached"),
    [
        ([None, row(t6=-9.0), row(t7=-9.0), *OWN], 0),
        # V1: as many rows as tokens; those of the cached part are uninitialised.
        ([None, RUBBISH, RUBBISH, *OWN], 2),
        # V2: only rows of what was computed.
        ([None, *OWN], 2),
    ],
)
def test_a_tail_is_read_from_the_end_by_either_runner(rows: list[Any], cached: int) -> None:
    assert read_tail(tail_output(rows, cached), TAIL) == Scored(-1.5, False)


@pytest.mark.parametrize(
    ("rows", "cached"),
    [
        ([None, RUBBISH, RUBBISH, RUBBISH, OWN[1]], 3),  # the cache ends in the continuation
        ([None, OWN[1]], 3),
        ([None, OWN[1]], 0),
        ([None, RUBBISH, RUBBISH, RUBBISH, OWN[1]], 2),  # a request that was computed in two parts
        ([None, None, None, None, OWN[1]], 2),
        (None, 0),
        ([None, *OWN], None),
    ],
)
def test_what_the_cache_reached_into_is_not_believed(
    rows: list[Any] | None, cached: int | None
) -> None:
    assert read_tail(tail_output(rows, cached), TAIL) is None


def test_on_a_tie_both_are_greedy_whichever_was_sampled() -> None:
    ask = Ask(CONTEXT, (), (8, 9, 4), ((0,), (1,), (2,)))
    generated = SimpleNamespace(token_ids=[9], logprobs=[row(t8=-0.5, t9=-0.5, t4=-2.0)])

    found = read_choices(SimpleNamespace(outputs=[generated]), ask)

    assert found == [Scored(-0.5, True), Scored(-0.5, True), Scored(-2.0, False)]
    tied = tail_output([None, row(t8=-0.5, t3=-0.5), row(t9=-1.0)], 2)
    assert read_tail(tied, TAIL) == Scored(-1.5, True)


class ScriptedLLM:
    """Stands for vLLM's `LLM`: raises, or is preempted, as it is told."""

    def __init__(self, *, error: Exception | None = None, preempted: int = 0) -> None:
        self._error = error
        self._preempted = preempted
        self.llm_engine = SimpleNamespace(logger_manager=SimpleNamespace(stat_loggers=[]))

    def generate(self, prompts: list[Any], **settings: Any) -> list[Any]:
        if self._error is not None:
            raise self._error
        cache = SimpleNamespace(queries=3, hits=1)
        for listener in self.llm_engine.logger_manager.stat_loggers:
            listener.record(
                SimpleNamespace(prefix_cache_stats=cache),
                SimpleNamespace(num_preempted_reqs=self._preempted),
                mm_cache_stats=None,
                engine_idx=0,
            )
        generated = SimpleNamespace(token_ids=[1])
        return [SimpleNamespace(num_cached_tokens=1, outputs=[generated]) for _ in prompts]


@pytest.fixture
def log() -> Any:
    log = ProcessLog()
    yield log
    log.close()


def job(voice: int = 0) -> Job:
    return Job(voice, 0, lambda: [1, 2, 3], 3, None)


@pytest.mark.parametrize("preempted", [0, 1])
def test_a_call_in_which_a_request_was_preempted_says_so(log: ProcessLog, preempted: int) -> None:
    llm = ScriptedLLM(preempted=preempted)
    counts, others = count_steps(llm), count_steps(ScriptedLLM())
    caller = Caller(llm, "base 'b'", (), counts=counts, log=log)

    called = list(caller.run([job()], [Voice(None, Effort())], most_tokens=99))

    assert [one.was_preempted for one in called] == [bool(preempted)]
    assert (counts.read().cache_queries, counts.read().cache_hits) == (3, 1)
    # Each engine has its own counts.
    assert others.read().cache_queries == 0


class PreemptingLLM(ScriptedLLM):
    """Reads the cache wrongly for a request that it has preempted, and is right without it."""

    def generate(self, prompts: list[Any], **settings: Any) -> list[Any]:
        (sampling,) = settings["sampling_params"]
        reads = sampling.skip_reading_prefix_cache is False
        self._preempted = int(reads)
        (output,) = super().generate(prompts)
        output.prompt_logprobs = [None, *([row(t8=-7.0), row(t9=-7.0)] if reads else OWN)]
        output.num_cached_tokens = 0
        return [output]


@pytest.mark.vllm
@pytest.mark.filterwarnings("ignore::Warning")
def test_a_call_in_which_a_request_was_preempted_is_asked_again(log: ProcessLog) -> None:
    llm = PreemptingLLM()
    caller = Caller(llm, "base 'b'", (), counts=count_steps(llm), log=log)
    voice = Voice(None, Effort())
    asker = Asker(caller, read_capabilities(), longest=9)

    found = asker.score([Pair(CONTEXT, to_array([8, 9]))], [voice])

    assert found == [[Scored(-1.5, False)]]
    assert voice.effort.num_again == 1


def test_a_version_that_tells_nobody_is_refused() -> None:
    silent = SimpleNamespace(llm_engine=SimpleNamespace(logger_manager=None))
    with pytest.raises(CellError, match="preempted requests would go unnoticed"):
        count_steps(silent)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError("anything"), "crashed"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."), "out_of_memory"),
    ],
)
def test_whatever_vllm_raises_ends_the_engine(log: ProcessLog, error: Exception, kind: str) -> None:
    caller = Caller(ScriptedLLM(error=error), "base 'b'", (), counts=StepCounts(), log=log)

    with pytest.raises(EngineFatalError, match="vLLM raised") as raised:
        list(caller.run([job()], [Voice(None, Effort())], most_tokens=99))
    assert raised.value.kind == kind


def test_the_base_never_shares_a_call_with_an_adapter(log: ProcessLog) -> None:
    caller = Caller(ScriptedLLM(), "base 'b'", (), counts=StepCounts(), log=log)
    voices = [Voice(None, Effort()), Voice("an adapter", Effort())]

    with pytest.raises(AssertionError, match="base in a mixed call"):
        list(caller.run([job(0), job(1)], voices, most_tokens=99))
