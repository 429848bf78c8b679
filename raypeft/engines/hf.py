"""The reference engine: transformers and PEFT, through lm-eval's own `HFLM`.

Decides: which requests a shard holds, how they go through the model, and what a failure means
for whom. Leaves to lm-eval: everything between tokens and numbers. The methods that compute
(`_loglikelihood_tokens`, `generate_until`) are HFLM's, and get whole batches as HFLM would form
them; so answers are those of lm-eval at the same batch size, bit for bit.
"""

import time
import traceback
from collections.abc import Iterator, Sequence

import torch
from lm_eval.api.instance import Instance

from raypeft.core.records import (
    Answer,
    EngineSpec,
    Failure,
    FailureKind,
    Hardware,
    Shard,
    Subject,
    SubjectAnswers,
)
from raypeft.engines.hardware import read_hardware
from raypeft.engines.hf_batches import Batch, batch_seed, shard_range
from raypeft.engines.hf_failures import as_failure, free_memory, is_fatal
from raypeft.engines.hf_model import HFModel
from raypeft.engines.hf_requests import Encoded, EncodedSets
from raypeft.engines.hf_shared import RowLimit, Shared, choose_packing, run_packed
from raypeft.engines.sharing_check import SharingCheck, Verdict, why_never
from raypeft.errors import CellError, EngineFatalError


class HFEngine(HFModel):
    """A base in transformers that answers for itself and, one at a time, for its adapters.

    It is an lm-eval model as well: `simple_evaluate(model=engine)` evaluates what is attached.

    Args:
        spec: What to load.

    Raises:
        CellError: `load_failed`, `unsafe` or `out_of_memory` if the base cannot be loaded.
    """

    def __init__(self, spec: EngineSpec) -> None:
        super().__init__(spec)
        self._is_closed = False
        self._limit = RowLimit()
        self._check: SharingCheck | None = None
        self._found: dict[tuple[str | None, str, str], Verdict] = {}
        self._num_unfit = 0
        packing = None
        # By what is the same in every slot: shards are cut between packed rows, or between plain
        # batches, whether or not this slot then has the memory to run them packed.
        if not (self._why_unasked() or why_never(self._base)):
            packing = choose_packing(
                self._base,
                self._device,
                max_length=self.max_length,
                batch_tokens=spec.batch_tokens,
            )
            self._standing_verdict()  # of the base, while the slot starts
        self._sets = EncodedSets(self, batch_size=spec.batch_size, packing=packing)

    def answer(self, shard: Shard, subjects: Sequence[Subject]) -> list[SubjectAnswers]:
        """Answer the requests of a shard for each subject; see `raypeft.engines.base.Engine`."""
        if self._is_closed:
            raise EngineFatalError(f"the engine of {self._spec.base!r} is closed")
        if not all(subject.tokenizer_digest for subject in subjects):
            # What the base's tokenizer cannot encode is nobody's fault: the whole unit fails.
            self._tokenizers.use(None)
            self._sets.get(shard.request_set)
        return [self._answer_for(subject, shard) for subject in subjects]

    def hardware(self) -> Hardware:
        """Return what this engine runs on."""
        return read_hardware(str(self._device))

    def close(self) -> None:
        """Give the memory back; calling it twice is harmless."""
        self._is_closed = True
        self._peft = self._base = self._model = self._attached = self._variant = None
        self._check = None
        free_memory()

    def _answer_for(self, subject: Subject, shard: Shard) -> SubjectAnswers:
        started = time.perf_counter()
        self._tokens_seen = 0
        answers: tuple[Answer, ...] = ()
        failure: Failure | None = None
        path = "plain"
        try:
            self.switch_to(subject)
            encoded = self._sets.get(shard.request_set, self._tokenizers.digest)
            verdict = self._verdict(encoded, shard)
            path = self._path(encoded, verdict)
            self._tokens_seen = self._num_unfit = 0  # those of the checks are not the answers'
            answers = self._run(encoded, shard, verdict)
            path = self._path(encoded, verdict)
            _check_finite(answers, subject)
        except Exception as error:
            if is_fatal(error):
                raise EngineFatalError(f"{type(error).__name__}: {error}") from error
            failure = as_failure(error, f"subject {subject.id!r}", traceback.format_exc())
            if subject.attached is None and failure.kind is FailureKind.CRASHED:
                self.restore()
                raise
        if failure is not None:
            # Outside the handler, where the frames of the failed call no longer hold tensors.
            answers = ()
            free_memory()
            self.restore()
            if failure.kind is FailureKind.OUT_OF_MEMORY:
                raise CellError(failure.kind, failure.message, retryable=True)
        return SubjectAnswers(
            subject=subject.id,
            answers=answers,
            failure=failure,
            tokens=self._tokens_seen,
            seconds=time.perf_counter() - started,
            path=path,
        )

    # --- shared or plain ----------------------------------------------------------------------

    def _standing_verdict(self) -> Verdict:
        """Return why what is attached now must not share contexts, if so.

        Asked of the model once for the base and once for each adapter that is attached.
        """
        standing = self.standing
        key = (standing, "", "")
        if key not in self._found:
            # Only the last few matter: an adapter stays attached while there is work for it.
            self._found = {
                known: verdict
                for known, verdict in self._found.items()
                if known[0] in (None, standing)
            }
            self._found[key] = self._ask_model()
        return self._found[key]

    def _why_unasked(self) -> str:
        """Return why contexts are not shared, whatever the model says; empty if it is asked."""
        if not self._spec.sharing:
            return "the sweep file says so"
        return "" if self.backend == "causal" else f"a {self.backend} model"

    def _ask_model(self) -> Verdict:
        if why := self._why_unasked():
            return Verdict(why)
        if self._route is not None and not self._route.may_share_context:
            return Verdict(self._route.why_plain)
        if self._check is None:
            self._check = SharingCheck(self._base, self._device, self.max_length)
        return self._check.of_model(self._shared(), self._model_call)

    def _verdict(self, encoded: Encoded, shard: Shard) -> Verdict:
        """Return why the requests of this shard's request set must not share contexts, if so.

        Asked of the model once for each request set and standing, of the whole set's longest
        rows: all its shards get the same answer.
        """
        found = self._standing_verdict()
        if found.why or encoded.packed is None or not encoded.packed.rows or self._check is None:
            return found
        tokens = (shard.request_set.digest, self._tokenizers.digest)
        key = (self.standing, *tokens)
        if key not in self._found:
            self._found[key] = self._check.of_requests(
                self._shared(), self._model_call, encoded.packed, tokens
            )
        return self._found[key]

    def _shared(self) -> Shared:
        return Shared(self._model, self._device, self.softmax_dtype)

    def _path(self, encoded: Encoded, verdict: Verdict) -> str:
        """Return `<shared context | plain>[, lane <lane>][: <notes>]`."""
        packed = encoded.packed
        is_plain = packed is None or not packed.rows or bool(verdict.why)
        head = "plain" if is_plain else "shared context"
        head += "" if self.lane is None else f", lane {self.lane}"
        notes = [verdict.why, self.merging_note]
        if packed is not None and not verdict.why:
            total = len(encoded.pairs)
            if packed.left_out:
                notes.append(f"{len(packed.left_out)} of {total} plain: longer than the model")
            if self._num_unfit:
                notes.append(f"{self._num_unfit} of {total} plain: memory ran out for their rows")
        text = "; ".join(note for note in notes if note)
        return f"{head}: {text}" if text else head

    # --- the three kinds of requests ----------------------------------------------------------

    def _run(self, encoded: Encoded, shard: Shard, verdict: Verdict) -> tuple[Answer, ...]:
        answers = [
            *self._run_pairs(encoded, shard, verdict),
            *self._run_rolling(encoded, shard),
            *self._run_generations(encoded, shard),
        ]
        return tuple(sorted(answers, key=lambda answer: answer.index))

    def _run_pairs(self, encoded: Encoded, shard: Shard, verdict: Verdict) -> Iterator[Answer]:
        packed = encoded.packed
        if packed is None or not packed.rows or (verdict.why and not verdict.is_memory):
            yield from self._run_plain_batches(encoded, encoded.pair_batches, shard)
            return
        rows = packed.shard_rows(shard.index, shard.count)
        if verdict.is_memory:
            # Another slot may have had the memory: the shard holds the requests that it has there.
            unfit = [position for at in rows for position in packed.rows[at].positions]
        else:
            found = run_packed(self._shared(), packed, rows, self._limit)
            unfit = found.unfit
            self._num_unfit = len(unfit)
            left = set(unfit)
            ran = [at for at in rows if packed.rows[at].positions[0] not in left]
            self._tokens_seen += sum(len(packed.rows[at].tokens) for at in ran)
            if any(packed.rows[at].has_prefix for at in ran):
                self._tokens_seen += len(packed.prefix)
            requests = encoded.requests["loglikelihood"]
            for position, (logprob, is_greedy) in found.answers.items():
                yield Answer(requests[position].index, logprob=logprob, is_greedy=is_greedy)
        yield from self._run_plain(encoded, unfit)
        yield from self._run_plain_batches(encoded, encoded.left_out_batches, shard)

    def _run_plain_batches(
        self, encoded: Encoded, batches: tuple[Batch, ...], shard: Shard
    ) -> Iterator[Answer]:
        own = shard_range(len(batches), shard.index, shard.count)
        yield from self._run_plain(encoded, [at for number in own for at in batches[number]])

    def _run_plain(self, encoded: Encoded, positions: Sequence[int]) -> Iterator[Answer]:
        if not positions:
            return
        ordered = sorted(positions)
        pairs = [encoded.pairs[position].as_lm_eval() for position in ordered]
        results = self._loglikelihood_tokens(pairs, disable_tqdm=True)
        requests = encoded.requests["loglikelihood"]
        for position, (logprob, is_greedy) in zip(ordered, results, strict=True):
            yield Answer(requests[position].index, logprob=logprob, is_greedy=is_greedy)

    def _run_rolling(self, encoded: Encoded, shard: Shard) -> Iterator[Answer]:
        plan = encoded.rolling
        positions = plan.positions(shard.index, shard.count)
        logprobs: dict[int, float] = {}
        for batch in plan.batches(positions):
            windows = [plan.windows[at].as_lm_eval() for at in batch]
            results = self._loglikelihood_tokens(
                windows, disable_tqdm=True, override_bs=len(windows)
            )
            logprobs.update(zip(batch, (logprob for logprob, _ in results), strict=True))
        requests = encoded.requests.get("loglikelihood_rolling", ())
        for position, logprob in zip(positions, plan.sums(positions, logprobs), strict=True):
            yield Answer(requests[position].index, logprob=logprob)

    def _run_generations(self, encoded: Encoded, shard: Shard) -> Iterator[Answer]:
        batches = encoded.generation_batches
        own = [batches[at] for at in shard_range(len(batches), shard.index, shard.count)]
        greedy = sorted(at for batch in own if not batch.is_sampled for at in batch.positions)
        texts = self._generate(encoded, tuple(greedy))
        for batch in own:
            if batch.is_sampled:
                torch.manual_seed(
                    batch_seed(self._spec.seed, shard.request_set.digest, batch.number)
                )
                texts |= self._generate(encoded, batch.positions)
        requests = encoded.requests.get("generate_until", ())
        for position, text in texts.items():
            yield Answer(requests[position].index, text=text)

    def _generate(self, encoded: Encoded, positions: Batch) -> dict[int, str]:
        if not positions:
            return {}
        instances = [
            Instance(
                request_type="generate_until",
                doc={},
                arguments=encoded.generations[position],
                idx=0,
            )
            for position in positions
        ]
        texts = self.generate_until(instances, disable_tqdm=True)
        return dict(zip(positions, texts, strict=True))


def _check_finite(answers: Sequence[Answer], subject: Subject) -> None:
    broken = [
        answer.index
        for answer in answers
        if answer.logprob is not None and not abs(answer.logprob) < float("inf")
    ]
    if broken:
        raise CellError(
            FailureKind.NOT_FINITE,
            f"subject {subject.id!r}: {len(broken)} of {len(answers)} log-likelihoods are NaN or "
            f"infinite, first that of request {broken[0]}",
        )
