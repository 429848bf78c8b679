"""What a certificate is measured by, when it is measured anew, and what is kept of a failure."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from raypeft.api import certifying
from raypeft.api.assigning import Finding
from raypeft.core.certificate import Certificate
from raypeft.core.records import EngineKind, EngineSpec, Failure, FailureKind, Subject
from raypeft.core.spec import make_sweep
from raypeft.store.store import Store
from tests.support.plans import make_request_set

BASE = Subject(id="base", base="base")
FACTS: Any = SimpleNamespace(digest="base", dtype="float32")
LOGLIKELIHOODS = Certificate(num_loglikelihoods=4, worst_nats=0.001, num_documents=2, num_flips=1)
TEXTS = Certificate(num_texts=3, num_diverged=2, num_at_once=1, first_divergence=0)


@pytest.mark.parametrize(("kind", "is_new"), [("vllm", True), ("hf", False)])
def test_another_vllm_answers_anew_what_it_is_certified_by(
    monkeypatch: pytest.MonkeyPatch, kind: EngineKind, is_new: bool
) -> None:
    engine = EngineSpec(kind=kind, base="base", base_digest="base")

    def key(version: str) -> str:
        monkeypatch.setattr(certifying, "_vllm_version", lambda: version)
        return certifying._cell(BASE, make_request_set("sample", 3), "base", engine).key

    assert (key("0.31.0") != key("0.32.0")) == is_new


def test_a_certificate_says_nothing_of_requests_that_it_has_none_of() -> None:
    assert certifying._says_nothing_of(LOGLIKELIHOODS, {"multiple_choice", "generate_until"})
    assert not certifying._says_nothing_of(LOGLIKELIHOODS, {"multiple_choice"})
    assert certifying._says_nothing_of(TEXTS, {"loglikelihood_rolling"})
    assert not certifying._says_nothing_of(TEXTS, {"generate_until"})


def test_what_is_measured_later_does_not_hide_what_was_measured_before() -> None:
    both = certifying._joined(TEXTS, LOGLIKELIHOODS)
    assert both == certifying._joined(LOGLIKELIHOODS, TEXTS)
    assert (both.worst_nats, both.num_flips, both.num_at_once) == (0.001, 1, 1)
    assert not certifying._says_nothing_of(both, {"multiple_choice", "generate_until"})
    newer = replace(LOGLIKELIHOODS, worst_nats=0.5)
    assert certifying._joined(newer, LOGLIKELIHOODS) == newer


def concluded(tmp_path: Path, **failures: Failure) -> tuple[Finding, list[str]]:
    """Return what is known of a base after its certificate's cells failed so, by engine."""
    cells = {("base", "sample", kind): SimpleNamespace(key=kind) for kind in ("hf", "vllm")}
    planned: Any = SimpleNamespace(resolved=SimpleNamespace(bases={"base": FACTS}))
    work: Any = SimpleNamespace(cells=cells)
    sink: Any = SimpleNamespace(failures=failures)
    store, said = Store(str(tmp_path / "store")), list[str]()
    certifying._conclude_nothing(BASE, work, planned, store, sink, said.append)
    values = {"output": str(tmp_path / "run"), "bases": [{"path": "base"}], "tasks": ["task"]}
    return certifying.certified_by(make_sweep(values), store)(FACTS, ""), said


def test_what_vllm_alone_cannot_answer_goes_to_hf_with_the_reason(tmp_path: Path) -> None:
    failure = Failure(FailureKind.UNSUPPORTED, "adapter 'a': vLLM refuses it: 42")
    found, said = concluded(tmp_path, vllm=failure)
    assert "vLLM refuses it: 42" in found.refused
    assert "can by hf" in said[0]


@pytest.mark.parametrize(
    ("hf", "vllm"),
    [
        (FailureKind.NO_EFFECT, FailureKind.NO_EFFECT),  # neither can
        (None, FailureKind.CRASHED),  # it may pass
    ],
)
def test_other_failures_refuse_nothing(
    tmp_path: Path, hf: FailureKind | None, vllm: FailureKind
) -> None:
    failures = {"vllm": Failure(vllm, "why not")}
    if hf is not None:
        failures["hf"] = Failure(hf, "why not")
    found, said = concluded(tmp_path, **failures)
    assert found == Finding()
    assert said == ["base has no certificate, and is answered without one: why not"]
