from typing import Any

import pytest

from raypeft.core.gate import AdapterGate, Decision, Row, is_judged, judge_adapter, passes
from raypeft.core.gate_policy import Policy, parse_policy
from raypeft.errors import SpecError


def row(task: str, gain: float | None, error: float | None = 0.01, **fields: Any) -> Row:
    """A row of the gains table."""
    values = {
        "task": task, "metric": "score", "filter": "none", "gain": gain, "standard_error": error,
        "n": 400, "num_clusters": None, "wins": None, "losses": None, "is_group": False,
        "higher_is_better": True, "method": "sampled swap test, BCa bootstrap",
        "baseline_value": 0.5, "noise_floor": None, "reason": "", "verdict": "inconclusive",
        "low": None if gain is None else gain - 0.02, "high": None if gain is None else gain + 0.02,
    }  # fmt: skip
    return values | fields


def judged(
    policy: str, *rows: Row, everything: tuple[str, ...] = (), num_open: int = 0
) -> AdapterGate:
    return judge_adapter(
        parse_policy(policy, source="policy.yaml"),
        rows,
        base="base",
        adapter="lora",
        everything=everything or tuple(r["task"] for r in rows),
        alpha=0.05,
        num_open=num_open,
    )


def decisions(found: AdapterGate) -> list[str]:
    return [str(check.decision) for check in found.checks]


# --- targets ----------------------------------------------------------------------------------


def test_a_target_that_gains_is_go() -> None:
    found = judged("targets: [a]", row("a", 0.1, verdict="gain"))
    assert found.decision is Decision.GO
    assert found.checks[0].reason == "a gain of +0.1 is shown"


@pytest.mark.parametrize(
    ("gain", "verdict", "decision", "words"),
    [
        (0.01, "inconclusive", Decision.UNDECIDED, "+0.01 is inconclusive"),
        (0.0, "equivalent", Decision.UNDECIDED, "+0 is equivalent"),
        (-0.1, "loss", Decision.NO_GO, "a loss of 0.1 is shown"),
        (-0.1, "inconclusive", Decision.NO_GO, "a gain of 0 is ruled out"),
    ],
)
def test_what_is_no_gain_does_not_pass(
    gain: float, verdict: str, decision: Decision, words: str
) -> None:
    found = judged("targets: [a]", row("a", gain, verdict=verdict))
    assert found.decision is decision
    assert words in found.checks[0].reason


def test_a_gain_of_some_size_must_be_shown_and_not_only_seen() -> None:
    policy = "targets: [{task: a, min_gain: 0.05}]"
    assert judged(policy, row("a", 0.2, verdict="gain")).decision is Decision.GO
    not_shown = judged(policy, row("a", 0.06, verdict="gain"))
    assert not_shown.decision is Decision.UNDECIDED
    assert "one of 0.05 is not shown (at worst +0.04351)" in not_shown.checks[0].reason
    ruled_out = judged(policy, row("a", 0.02, verdict="gain"))
    assert ruled_out.decision is Decision.NO_GO
    assert "a gain of 0.05 is ruled out" in ruled_out.checks[0].reason


# --- guards -----------------------------------------------------------------------------------


def test_a_guard_passes_only_where_a_larger_loss_is_ruled_out() -> None:
    policy = "guards: [{task: a, margin: 0.03}]"
    assert judged(policy, row("a", 0.0)).decision is Decision.GO
    assert judged(policy, row("a", 0.0, 0.05)).decision is Decision.UNDECIDED
    assert judged(policy, row("a", -0.02)).decision is Decision.UNDECIDED
    assert judged(policy, row("a", -0.1, verdict="loss")).decision is Decision.NO_GO
    # A loss that is sure, and smaller than what is allowed.
    assert judged(policy, row("a", -0.01, 0.001, verdict="loss")).decision is Decision.GO


def test_where_lower_is_better_more_is_a_loss() -> None:
    policy = "guards: [{task: a, margin: 2%}]"
    worse = row("a", 1.0, 0.01, higher_is_better=False, baseline_value=20.0)
    assert judged(policy, worse).decision is Decision.NO_GO
    better = row("a", -1.0, 0.01, higher_is_better=False, baseline_value=20.0)
    found = judged(policy, better)
    assert found.decision is Decision.GO
    assert (found.checks[0].limit, found.checks[0].gain) == (-0.4, 1.0)


def test_many_guards_share_the_level() -> None:
    rows = [row(task, -0.012) for task in "abcdefgh"]
    one = judged("guards: [{task: a, margin: 0.03}]", *rows)
    many = judged('guards: [{task: "*", margin: 0.03}]', *rows)
    assert one.decision is Decision.GO
    assert many.decision is Decision.UNDECIDED
    assert (many.checks[0].worst or 0) < (one.checks[0].worst or 0)


def test_no_difference_in_few_documents_is_no_proof() -> None:
    same = {"wins": 0, "losses": 0, "method": "no document differs"}
    policy = "guards: [{task: a, margin: 0.01}]"
    assert judged(policy, row("a", 0.0, 0.0, n=20, **same)).decision is Decision.UNDECIDED
    assert judged(policy, row("a", 0.0, 0.0, n=2000, **same)).decision is Decision.GO
    unbounded = judged(policy, row("a", 0.0, 0.0, reason="no interval: identical"))
    assert unbounded.checks[0].reason.endswith(
        "no spread to bound a loss by: no interval: identical"
    )


def test_noise_that_is_larger_than_the_margin_leaves_it_undecided() -> None:
    found = judged("guards: [{task: a, margin: 0.03}]", row("a", 0.01, noise_floor=0.04))
    assert found.decision is Decision.UNDECIDED
    assert "noise floor of 0.04" in found.checks[0].reason


def test_a_relative_margin_of_nothing_is_undecided() -> None:
    found = judged("guards: [{task: a, margin: 2%}]", row("a", 0.0, baseline_value=0.0))
    assert found.decision is Decision.UNDECIDED


# --- together ---------------------------------------------------------------------------------


def test_one_failed_check_is_no_go_and_one_open_one_is_undecided() -> None:
    policy = "{targets: [a], guards: [{task: b, margin: 0.03}, {task: c, margin: 0.03}]}"
    good, held = row("a", 0.1, verdict="gain"), row("b", 0.0)
    assert judged(policy, good, held, row("c", 0.0)).decision is Decision.GO
    assert judged(policy, good, held, row("c", 0.0, 0.1)).decision is Decision.UNDECIDED
    broken = judged(policy, good, row("b", 0.0, 0.1), row("c", -0.2))
    assert decisions(broken) == ["GO", "UNDECIDED", "NO-GO"]
    assert broken.decision is Decision.NO_GO


def test_what_is_missing_or_refused_never_passes() -> None:
    policy = '{targets: [a], guards: [{task: "*", margin: 0.03}]}'
    refused = row("b", None, None, verdict="refused", reason="hardware differs")
    found = judged(policy, row("a", 0.1, verdict="gain"), refused, everything=("a", "b", "c"))
    assert decisions(found) == ["GO", "UNDECIDED", "UNDECIDED"]
    assert [check.reason for check in found.checks[1:]] == [
        "no gain: hardware differs",
        "there is no result",
    ]
    assert found.decision is Decision.UNDECIDED


@pytest.mark.parametrize(
    ("num_open", "words"), [(1, "1 cell of base is open"), (7, "7 cells of base are open")]
)
def test_while_cells_are_open_nothing_passes(num_open: int, words: str) -> None:
    policy = "{targets: [a], guards: [{task: b, margin: 0.03}]}"
    good, held = row("a", 0.1, verdict="gain"), row("b", 0.0)
    found = judged(policy, good, held, num_open=num_open)
    assert found.decision is Decision.UNDECIDED
    assert decisions(found) == ["GO", "GO", "UNDECIDED"]
    assert (found.checks[2].kind, found.checks[2].task) == ("sweep", "*")
    assert words in found.checks[2].reason
    assert judged(policy, good, row("b", -0.2), num_open=num_open).decision is Decision.NO_GO


def test_a_guard_of_everything_else_must_cover_something() -> None:
    policy = '{targets: [a], guards: [{task: "*", margin: 0.03}]}'
    found = judged(policy, row("a", 0.1, verdict="gain"))
    assert found.decision is Decision.UNDECIDED
    assert decisions(found) == ["GO", "UNDECIDED"]
    assert 'the guard "*" covers nothing' in found.checks[1].reason
    # With a guard of its own for each other task it adds nothing, and nothing is unguarded.
    policy = '{targets: [a], guards: [{task: b, margin: 0.03}, {task: "*", margin: 0.03}]}'
    found = judged(policy, row("a", 0.1, verdict="gain"), row("b", 0.0))
    assert found.decision is Decision.GO


def test_everything_is_guarded_but_the_targets_and_what_has_a_guard_of_its_own() -> None:
    policy = '{targets: [a], guards: [{task: b, margin: 0.5}, {task: "*", margin: 0.03}]}'
    rows = [row("a", 0.1, verdict="gain"), row("b", -0.3), row("c", 0.0), row("d", 0.0)]
    found = judged(policy, *rows)
    assert [(c.kind, c.task) for c in found.checks] == [
        ("target", "a"),
        ("guard", "b"),
        ("guard", "c"),
        ("guard", "d"),
    ]
    assert found.decision is Decision.GO


def test_without_a_metric_the_first_one_of_the_task_is_meant() -> None:
    rows = [row("a", 0.0), row("a", 0.1, metric="other", verdict="gain")]
    assert judged("targets: [a]", *rows).checks[0].metric == "score"
    assert judged("targets: [{task: a, metric: other}]", *rows).decision is Decision.GO
    missing = judged("targets: [{task: a, metric: none_such}]", *rows).checks[0]
    assert (missing.metric, missing.reason) == ("none_such", "there is no result")


def test_the_forgetting_profile_has_the_largest_loss_first_and_no_target() -> None:
    rows = [
        row("a", 0.1, verdict="gain"),
        row("b", -0.01),
        row("c", 0.3, higher_is_better=False),
        row("d", None, verdict="refused"),
    ]
    profile = judged("targets: [a]", *rows).forgetting
    assert [(loss.task, loss.gain) for loss in profile] == [("c", -0.3), ("b", -0.01)]
    assert (profile[0].low, profile[0].high) == pytest.approx((-0.32, -0.28))


def test_a_policy_is_met_by_one_adapter_or_by_all() -> None:
    go = judged("targets: [a]", row("a", 0.1, verdict="gain"))
    undecided = judged("targets: [a]", row("a", 0.01))
    any_one, every_one = (
        Policy.model_validate({"targets": [{"task": "a"}], "require": kind})
        for kind in ("any", "all")
    )
    assert passes(any_one, [go, undecided])
    assert not passes(every_one, [go, undecided])
    assert passes(every_one, [go])
    assert not passes(any_one, [undecided])
    assert not passes(every_one, [])


def test_adapters_are_named_or_matched() -> None:
    policy = parse_policy("{targets: [a], adapters: [r64, 'lora-*']}", source="p")
    assert [name for name in ("r64", "r6", "lora-1") if is_judged(policy, name)] == [
        "r64",
        "lora-1",
    ]


# --- the file ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "expected a mapping"),
        ("{}", "neither targets nor guards"),
        ("{target: [a]}", "did you mean `targets`?"),
        ("{guards: [{task: a}]}", "guards[0].margin: is missing"),
        ("{guards: [{task: a, margin: 0}]}", "expected a number above 0"),
        ("{guards: [{task: a, margin: 1 point}]}", 'a share of the baseline'),
        ("{targets: [{task: a, min_gain: -1}]}", "a number of 0 or more"),
        ("{targets: [a], require: most}", "any or all"),
        ("{targets: [a], alpha: 5}", "a share above 0 and below 1"),
        ("[a]", "expected a mapping"),
    ],
)  # fmt: skip
def test_every_problem_of_the_file_says_what_is_allowed(text: str, words: str) -> None:
    with pytest.raises(SpecError) as raised:
        parse_policy(text, source="policy.yaml")
    assert words in str(raised.value)
    assert "policy.yaml" in str(raised.value)


def test_a_margin_that_allows_everything_guards_nothing() -> None:
    counted = row("a", -0.3, method="exact McNemar, BCa bootstrap", wins=10, losses=130)
    found = judged("guards: [{task: a, margin: 2}]", counted)
    assert found.decision is Decision.UNDECIDED
    assert "a margin of 2 allows everything" in found.checks[0].reason


def test_a_margin_of_the_whole_baseline_guards_nothing() -> None:
    found = judged("guards: [{task: a, margin: '100%'}]", row("a", -0.4))
    assert found.decision is Decision.UNDECIDED
    assert "allows that all of the baseline's value is lost" in found.checks[0].reason
