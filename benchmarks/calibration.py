"""Whether the statistics keep what they promise, by simulation; and how long they take.

    python benchmarks/calibration.py [--record FILE] [--scale 1.0]

Documents are drawn with known truth, scored cells are made of them, and `compute_gains` says what
it says of a sweep. Counted is how often it is wrong: false verdicts in a family, intervals that
miss, gains of detectable size that are found, equivalence that is not so, documents that stand in
clusters, the best adapter's gain, hopeless adapters that are stopped. Every rate stands beside what
was promised, with twice its own standard error. The exit code is 1 if one lies beyond it.
"""

import argparse
import math
import platform
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt

from raypeft.core.clusters import Clusters
from raypeft.core.comparable import ScoredCell
from raypeft.core.equivalence import Margin
from raypeft.core.gains import Gain, GainSettings, Verdict, compute_gains
from raypeft.core.looks import should_stop
from raypeft.core.multiple import FamilyColumn, max_t
from raypeft.core.records import Group, Hardware, Json, MetricValue, Sample, Scored
from raypeft.core.resampling import MeanGain

Floats = npt.NDArray[np.float64]
HARDWARE = Hardware(fingerprint="simulated", device="none")
Sides = tuple[list[ScoredCell], list[ScoredCell]]
"""Cells of baselines and of adapters."""
ALPHA = 0.05


@dataclass(frozen=True)
class Line:
    """One line of the record.

    Attributes:
        what: What was simulated.
        rate: How often it happened.
        trials: Of how many.
        promised: What was promised.
        side: `<=`, `>=` or `=`: which way the promise holds.
        slack: How far an approximation may lie beside it, as its source says; 0 for what is exact.
        note: What else to know.
    """

    what: str
    rate: float
    trials: int
    promised: float
    side: str
    slack: float = 0.0
    note: str = ""

    @property
    def error(self) -> float:
        """Standard error of the rate, were the promise just kept."""
        return math.sqrt(self.promised * (1 - self.promised) / self.trials)

    @property
    def holds(self) -> bool:
        """Whether the rate is what was promised, within three standard errors."""
        room = 3 * self.error + self.slack
        above, below = self.rate > self.promised + room, self.rate < self.promised - room
        return not ((above and self.side != ">=") or (below and self.side != "<="))

    def row(self) -> str:
        """Return the line of the table."""
        kept = "yes" if self.holds else "**no**"
        side = {"<=": "≤", ">=": "≥", "=": "="}[self.side]
        return (
            f"| {self.what} | {self.rate:.3f} ± {2 * self.error:.3f} | {side} {self.promised:.2f} "
            f"| {self.trials} | {kept} | {self.note} |"
        )


# --- cells ------------------------------------------------------------------------------------


def cell(
    values: Sequence[Json],
    *,
    adapter: str | None,
    task: str = "task",
    metric: str = "acc",
    aggregation: str = "mean",
    value: float | None = None,
    higher: bool = True,
) -> ScoredCell:
    """Return a scored cell with these values of the documents."""
    if value is None:
        value = float(np.mean(np.asarray(values, dtype=np.float64)))
    samples = tuple(
        Sample(
            doc_id=i,
            filter="none",
            responses=None,
            filtered_responses=None,
            metrics={metric: v},
            doc_hash="",
            prompt_hash="",
            target_hash="",
        )
        for i, v in enumerate(values)
    )
    metrics = MetricValue(
        metric=metric,
        filter="none",
        value=value,
        value_json="",
        stderr=None,
        n=len(values),
        higher_is_better=higher,
        aggregation=aggregation,
    )
    scored = Scored(task=task, metrics=(metrics,), samples=samples, lm_eval={}, lm_eval_version="")
    return ScoredCell(
        subject="base" if adapter is None else f"base/{adapter}",
        base="base",
        base_digest="",
        adapter=adapter,
        task=task,
        request_set=f"requests of {task}",
        numerics={},
        hardware=(HARDWARE,),
        scored=scored,
    )


def shares(
    rng: np.random.Generator, truth: Floats, n: int, likeness: float, difficulty: float = 1.0
) -> Floats:
    """Return 0/1 values of the baseline and the adapters, shape (1 + adapters, n).

    Adapters are alike: they share a baseline, the documents' difficulty and what training does.
    """
    hardness = rng.normal(0, difficulty, n)
    common = math.sqrt(likeness) * rng.normal(0, 1, n)
    own = math.sqrt(1 - likeness) * rng.normal(0, 1, (len(truth), n))
    base = hardness + rng.normal(0, 1, n)
    values = np.vstack([base, hardness + common + own + truth[:, None]])
    return (values > 0).astype(np.float64)


def skewed(
    rng: np.random.Generator, truth: Floats, n: int, likeness: float, _: float = 1.0
) -> Floats:
    """Return the same of a metric with a long tail, a log-likelihood for instance."""
    common = math.sqrt(likeness) * (rng.exponential(1, n) - 1)
    own = math.sqrt(1 - likeness) * (rng.exponential(1, (len(truth), n)) - 1)
    return np.vstack([rng.exponential(1, n) - 1, common + own + truth[:, None]])


def family(tables: Sequence[Floats]) -> Sides:
    """Return baselines and adapters of some tasks, from tables of values."""
    sides: Sides = ([], [])
    for number, table in enumerate(tables):
        for place, values in enumerate(table.astype(float).tolist()):
            adapter = None if place == 0 else f"a{place}"
            sides[place > 0].append(cell(values, adapter=adapter, task=f"task{number}"))
    return sides


# --- simulations ------------------------------------------------------------------------------


def families(scale: float) -> Iterator[Line]:
    """False verdicts in families of 6 adapters × 2 tasks and their group."""
    group = Group(name="g", children=("task0", "task1"), aggregate_metric_list=({"metric": "acc"},))
    for make, kind in ((shares, "0/1"), (skewed, "skewed")):
        for likeness in (0.0, 0.9):
            rng = np.random.default_rng(1)
            trials = round(700 * scale)
            alarms, discoveries = 0, 0
            for trial in range(trials):
                tables = [make(rng, np.zeros(6), 80, likeness) for _ in range(2)]
                settings = GainSettings(seed=trial, resamples=499)
                gains = compute_gains(*family(tables), [group], settings)
                assert {gain.correction for gain in gains} == {"max-T"}
                alarms += any(gain.verdict is not Verdict.INCONCLUSIVE for gain in gains)
                discoveries += any((gain.q or 0) <= ALPHA for gain in gains)
            what = f"any false verdict, {kind}, adapters alike by {likeness:g}"
            note = f"any q ≤ {ALPHA}: {discoveries / trials:.3f}"
            yield Line(what, alarms / trials, trials, ALPHA, "<=", note=note)
    rng = np.random.default_rng(2)
    truth = np.asarray([0.0] * 5 + [1.2] * 3)
    trials = round(400 * scale)
    alarms, found = 0, 0
    for trial in range(trials):
        settings = GainSettings(seed=trial, resamples=499)
        gains = compute_gains(*family([shares(rng, truth, 100, 0.5)]), (), settings)
        alarms += any(gain.verdict is not Verdict.INCONCLUSIVE for gain in gains[:5])
        found += sum(gain.verdict is Verdict.GAIN for gain in gains[5:])
    note = f"true gains found: {found / trials / 3:.2f}"
    what = "any false verdict beside 3 true gains of 8"
    yield Line(what, alarms / trials, trials, ALPHA, "<=", note=note)


def corrections(scale: float) -> Iterator[Line]:
    """Max-T by itself, of 6 adapters × (2 tasks and their group), in many more families."""

    def equal(rng: np.random.Generator, truth: Floats, n: int, _: float) -> Floats:
        return rng.exponential(1, (1 + len(truth), n))

    for make, kind in ((shares, "0/1"), (skewed, "skewed"), (equal, "skewed and exchangeable")):
        trials, rng, alarms = round(4_000 * scale), np.random.default_rng(10), 0
        for trial in range(trials):
            tables = [make(rng, np.zeros(6), 60, 0.5).astype(float) for _ in range(2)]
            rows = [table[1:] - table[0] for table in tables]
            columns = [
                FamilyColumn(MeanGain(row, (60,)), (f"task{i}",)) for i, row in enumerate(rows)
            ]
            both = MeanGain(np.concatenate(rows, axis=1), (60, 60), (0.5, 0.5))
            columns.append(FamilyColumn(both, ("task0", "task1")))
            found = max_t(columns, seed=trial, resamples=199, alpha=ALPHA)
            assert found is not None
            alarms += min(found.p) <= ALPHA
        yield Line(f"any false p by max-T, {kind}", alarms / trials, trials, ALPHA, "<=")


def intervals(scale: float) -> Iterator[Line]:
    """Intervals of gains and of the values themselves."""
    trials = round(1_000 * scale)
    # A BCa interval comes up to its level from below as documents grow (Efron & Tibshirani 1993,
    # ch. 14); with a hundred heavy-tailed ones it is one or two hundredths short.
    for make, kind, n, slack in ((shares, "0/1", 100, 0.01), (skewed, "skewed", 100, 0.02)):
        rng = np.random.default_rng(3)
        table = make(rng, np.zeros(1), n * trials, 0.0, 0.0).astype(float)
        pieces = table.reshape(2, trials, n)
        own = 0.5 if kind == "0/1" else 0.0
        hits, levels = 0, 0
        for trial in range(trials):
            sides = family([pieces[:, trial]])
            (gain,) = compute_gains(*sides, (), GainSettings(seed=trial, resamples=999))
            hits += (gain.low or 0) <= 0 <= (gain.high or 0)
            levels += (gain.baseline_low or 0) <= own <= (gain.baseline_high or 0)
        note = f"BCa of {n} documents, allowed to be {slack} short"
        what = f"interval of a gain covers it, {kind}"
        yield Line(what, hits / trials, trials, 0.95, "=", slack, note)
        what = f"interval of the baseline covers its value, {kind}"
        yield Line(what, levels / trials, trials, 0.95, "=", 0.01 + slack)


def power(scale: float) -> Iterator[Line]:
    """Gains of the size that was called detectable, and documents that were called needed."""
    trials, rng = round(400 * scale), np.random.default_rng(4)
    before = compute_gains(*family([rng.normal(0, 1, (7, 300))]), (), GainSettings(resamples=4_999))
    detectable = float(np.mean([gain.smallest_detectable_gain or 0 for gain in before]))
    needed = [gain.documents_needed for gain in before if gain.documents_needed]
    assert needed
    truth = np.asarray([detectable] + [0.0] * 5)
    found = 0
    for trial in range(trials):
        table = rng.normal(0, 1, (7, 300))
        table[1:] += truth[:, None]
        gains = compute_gains(*family([table]), (), GainSettings(seed=trial, resamples=499))
        found += gains[0].verdict is Verdict.GAIN
    what = "a gain of detectable size is found"
    yield Line(what, found / trials, trials, 0.8, "=", 0.03)
    # A pilot's own number of documents is as uncertain as its standard error, so each trial has a
    # pilot of its own, in which the gain comes out as it is.
    half, found, asked = detectable / 2, 0, []
    for trial in range(trials):
        pilot = rng.normal(0, 1, (7, 300))
        pilot[1] += half - (pilot[1] - pilot[0]).mean()
        settings = GainSettings(seed=trial, resamples=1_999)
        documents = compute_gains(*family([pilot]), (), settings)[0].documents_needed or 0
        asked.append(documents)
        table = rng.normal(0, 1, (7, documents))
        table[1] += half
        gains = compute_gains(*family([table]), (), GainSettings(seed=trial, resamples=499))
        found += gains[0].verdict is Verdict.GAIN
    what = "a gain of half that size is found with the documents that a pilot asks for"
    note = f"{np.median(asked):.0f} instead of 300, in the median"
    yield Line(what, found / trials, trials, 0.8, ">=", 0, note)


def equivalence(scale: float) -> Iterator[Line]:
    """Verdicts of equivalence where the true difference is the margin."""
    for adapters in (1, 6):
        trials, rng, wrong = round(600 * scale), np.random.default_rng(5), 0
        margins = {"acc": Margin(0.05)}
        for trial in range(trials):
            moves = rng.choice([-1.0, 0.0, 1.0], (adapters, 300), p=[0.1, 0.85, 0.05])
            base = np.where(rng.random(300) < 0.5, 0.0, 1.0)
            # Values are kept between 0 and 1 by letting the baseline be what the move allows.
            sides: Sides = ([cell(base.tolist(), adapter=None)], [])
            for k, move in enumerate(moves):
                order = np.argsort(rng.random(300))
                up, down = (move[order] > 0).sum(), (move[order] < 0).sum()
                after = base.copy()
                after[rng.choice(np.flatnonzero(base == 0), up, replace=False)] = 1.0
                after[rng.choice(np.flatnonzero(base == 1), down, replace=False)] = 0.0
                sides[1].append(cell(after.tolist(), adapter=f"a{k}"))
            settings = GainSettings(seed=trial, resamples=499, margins=margins)
            gains = compute_gains(*sides, (), settings)
            wrong += any((gain.p_equivalent or 1) <= ALPHA for gain in gains)
        what = f"any of {adapters} is called equivalent at the margin"
        yield Line(what, wrong / trials, trials, ALPHA, "<=", 0.01)


def clusters(scale: float) -> Iterator[Line]:
    """Documents that come six to a passage and fall alike, without any gain."""
    trials, rng = round(400 * scale), np.random.default_rng(6)
    wrong = {"documents": 0, "clusters": 0}
    known = {"requests of task0": Clusters({i: str(i // 6) for i in range(180)})}
    for trial in range(trials):
        table = np.repeat(shares(rng, np.zeros(1), 30, 0.0), 6, axis=1)
        for name, given in (("documents", {}), ("clusters", known)):
            settings = GainSettings(seed=trial, resamples=499, clusters=given)
            (gain,) = compute_gains(*family([table]), (), settings)
            wrong[name] += gain.verdict is not Verdict.INCONCLUSIVE
    note = f"taken document by document: {wrong['documents'] / trials:.2f}"
    what = "false verdict with clusters"
    yield Line(what, wrong["clusters"] / trials, trials, ALPHA, "<=", note=note)


def ranking(scale: float) -> Iterator[Line]:
    """The best of 12 adapters whose true gains differ by little."""
    trials, rng = round(250 * scale), np.random.default_rng(7)
    over, mended, below = [], [], 0
    for trial in range(trials):
        truth = rng.normal(0, 0.05, 12)
        table = rng.normal(0, 1, (13, 400))
        table[1:] += truth[:, None]
        gains = compute_gains(*family([table]), (), GainSettings(seed=trial, resamples=999))
        best = next(i for i, gain in enumerate(gains) if gain.rank == 1)
        over.append((gains[best].gain or 0) - truth[best])
        mended.append((gains[best].shrunk_gain or 0) - truth[best])
        below += mended[-1] > 0
    note = f"overstated by {np.mean(over):+.4f}, shrunk by {np.mean(mended):+.4f}"
    yield Line("the best adapter's shrunk gain is above the truth", below / trials, trials, 0.5,
               "=", 0.05, note)  # fmt: skip


def looks(scale: float) -> Iterator[Line]:
    """Looks after every document, at adapters that are worth their time and at others."""
    trials, rng = round(1_000 * scale), np.random.default_rng(8)

    def drawn(gain: float) -> list[float]:
        return list(rng.choice([-1.0, 0.0, 1.0], 2_000, p=[0.15 - gain / 2, 0.7, 0.15 + gain / 2]))

    for gain in (0.0, 0.03):
        stops = sum(
            should_stop(drawn(gain), alpha=ALPHA, least_gain=gain).stops for _ in range(trials)
        )
        what = f"stopped, although its gain is the least that is wanted ({gain:g})"
        yield Line(what, stops / trials, trials, ALPHA, "<=")
    for gain, wanted in ((-0.05, 0.75), (-0.1, 0.95)):
        found = [should_stop(drawn(gain), alpha=ALPHA, least_gain=0.0) for _ in range(trials // 4)]
        rate = sum(look.stops for look in found) / len(found)
        middle = np.median([look.num_documents for look in found])
        note = f"after {middle:.0f} of 2000 documents in the median"
        yield Line(
            f"stopped, its true gain being {gain:g}", rate, len(found), wanted, ">=", 0, note
        )


def sweep_seconds() -> str:
    """Return how long a whole sweep's gains take, in what memory, and what of them is found.

    Four of 32 adapters gain, and four lose, on half of the 12 tasks.
    """
    rng = np.random.default_rng(9)
    names = ("acc", "acc_norm", "logprob", "nll")
    sides: Sides = ([], [])
    for task in range(12):
        for metric in names:
            make = shares if metric.startswith("acc") else skewed
            truth = np.zeros(32)
            if task < 6:
                truth[:4], truth[4:8] = 0.5, -0.5
            table = make(rng, truth, 1_000, 0.5)
            for place, values in enumerate(table.tolist()):
                name = None if place == 0 else f"a{place}"
                one = cell(values, adapter=name, task=f"task{task}", metric=metric)
                sides[place > 0].append(one)
    # One cell for each metric; pairing by request set keeps them apart as well as one cell would.
    started = time.process_time()
    gains: list[Gain] = []
    for metric in names:
        bases, adapters = (
            [one for one in side if one.scored.metrics[0].metric == metric] for side in sides
        )
        gains += compute_gains(bases, adapters)
    seconds = time.process_time() - started
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    found = missed = false = 0
    for gain in gains:
        number, is_planted = int(gain.adapter[1:]), gain.task in {f"task{i}" for i in range(6)}
        wanted = (Verdict.GAIN if number <= 4 else Verdict.LOSS) if number <= 8 else None
        if is_planted and wanted is not None:
            found, missed = found + (gain.verdict is wanted), missed + (gain.verdict is not wanted)
        else:
            false += gain.verdict is not Verdict.INCONCLUSIVE
    return (
        f"{len(gains)} gains (32 adapters × 12 tasks × 4 metrics, 1000 documents each, 9999 draws) "
        f"took {seconds:.1f} s of one core; the process held {memory:.2f} GiB at most. Of "
        f"{found + missed} planted effects {found} were found with the right sign; {false} of "
        f"{len(gains) - found - missed} others were called a gain or loss (4 families at {ALPHA})."
    )


def main() -> None:
    """Simulate, print the record, and leave with 1 if a promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", type=Path, help="write the record here")
    parser.add_argument("--scale", type=float, default=1.0, help="times as many trials")
    arguments = parser.parse_args()
    started = time.process_time()
    lines: list[Line] = []
    for simulate in (
        families,
        corrections,
        intervals,
        power,
        equivalence,
        clusters,
        ranking,
        looks,
    ):
        for line in simulate(arguments.scale):
            print(line.row(), flush=True)
            lines.append(line)
    text = "\n".join(
        [
            "# Calibration: what the statistics promise, and what they keep",
            "",
            f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, Python "
            f"{platform.python_version()}; numpy {version('numpy')}, scipy {version('scipy')}",
            "",
            f"Command: `python benchmarks/calibration.py --scale {arguments.scale:g}`, "
            f"{time.process_time() - started:.0f} s of one core. Rates with twice the "
            "standard error that they would have if the promise were just kept; a promise holds "
            "within three, and within 0.01 to 0.05 more where it is an approximation.",
            "",
            "| simulated | rate | promised | trials | kept | |",
            "|---|---|---|---|---|---|",
            *(line.row() for line in lines),
            "",
            sweep_seconds(),
            "",
        ]
    )
    print(text)
    if arguments.record:
        arguments.record.write_text(text, encoding="utf-8")
    if not all(line.holds for line in lines):
        sys.exit(1)


if __name__ == "__main__":
    main()
