"""What a certificate is measured by, when it is measured anew, and what is kept of a failure."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from raypeft.api import certificate_work, certificates, certifying, concluding
from raypeft.api.assigning import Finding
from raypeft.core.certificate import Certificate, Effect
from raypeft.core.records import (
    Answer,
    EngineKind,
    EngineSpec,
    Failure,
    FailureKind,
    Hardware,
    RequestSet,
    Subject,
    SubjectAnswers,
)
from raypeft.core.spec import Sweep, make_sweep
from raypeft.store.store import Store
from tests.support.plans import make_request_set

BASE = Subject(id="base", base="base")
FACTS: Any = SimpleNamespace(digest="base", dtype="float32")
LOGLIKELIHOODS = Certificate(
    num_loglikelihoods=4,
    worst_nats=0.001,
    num_documents=2,
    num_flips=1,
    effect=Effect(slope=1.0, slope_error=0.01, unexplained=0.0, noise=0.001),
)
TEXTS = Certificate(num_texts=3, num_diverged=2, num_at_once=1, first_divergence=0)


def sweep_of(tmp_path: Path, *, documents: int = 4, **base: Any) -> Sweep:
    vllm = {"certificate_documents": documents, "batch_invariant": base.pop("invariant", False)}
    return make_sweep(
        {
            "output": str(tmp_path / "run"),
            "bases": [{"path": "base", **base}],
            "tasks": ["task"],
            "engine": {"vllm": vllm},
        }
    )


def finding(sweep: Sweep, store: Store, *, of_any_version: bool = False) -> Finding:
    certified = certificates.certified_by(sweep, store, of_any_version=of_any_version)
    return certified(sweep.bases[0], FACTS, "")


@pytest.mark.parametrize(("kind", "is_new"), [("vllm", True), ("hf", False)])
def test_another_vllm_answers_anew_what_it_is_certified_by(
    monkeypatch: pytest.MonkeyPatch, kind: EngineKind, is_new: bool
) -> None:
    engine = EngineSpec(kind=kind, base="base", base_digest="base")

    def key(version: str) -> str:
        monkeypatch.setattr(certificate_work, "vllm_version", lambda: version)
        return certificate_work._cell(BASE, make_request_set("sample", 3), "base", engine).key

    assert (key("0.31.0") != key("0.32.0")) == is_new


def test_a_certificate_says_nothing_of_requests_that_it_has_none_of() -> None:
    assert certifying._says_nothing_of(LOGLIKELIHOODS, {"multiple_choice", "generate_until"})
    assert not certifying._says_nothing_of(LOGLIKELIHOODS, {"multiple_choice"})
    assert certifying._says_nothing_of(TEXTS, {"loglikelihood_rolling"})
    assert not certifying._says_nothing_of(TEXTS, {"generate_until"})


def test_what_is_measured_later_does_not_hide_what_was_measured_before() -> None:
    both = concluding.joined(TEXTS, LOGLIKELIHOODS)
    assert both == concluding.joined(LOGLIKELIHOODS, TEXTS)
    assert (both.worst_nats, both.num_flips, both.num_at_once) == (0.001, 1, 1)
    assert both.effect == LOGLIKELIHOODS.effect
    assert not certifying._says_nothing_of(both, {"multiple_choice", "generate_until"})
    newer = replace(LOGLIKELIHOODS, worst_nats=0.5)
    assert concluding.joined(newer, LOGLIKELIHOODS) == newer


# --- what is remembered -----------------------------------------------------------------------


@pytest.mark.parametrize("measured", [LOGLIKELIHOODS, TEXTS])
def test_a_certificate_is_read_as_it_was_kept(tmp_path: Path, measured: Certificate) -> None:
    kept = certificates.Certificates(sweep_of(tmp_path), Store(str(tmp_path / "store")))
    kept.put("key", measured, vllm="0.32.0")
    value = kept.current("key")
    assert value is not None
    assert value["vllm"] == "0.32.0"
    assert certificates.read_certificate(value) == measured


@pytest.mark.parametrize("has_failed", [True, False])
def test_what_refuses_vllm_is_measured_again_under_another_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_failed: bool
) -> None:
    sweep, store = sweep_of(tmp_path), Store(str(tmp_path / "store"))
    kept = certificates.Certificates(sweep, store)
    key = kept.key(sweep.bases[0], FACTS, "")
    monkeypatch.setattr(certificates, "vllm_version", lambda: "0.31.0")
    if has_failed:
        kept.put_failed(key, "why not")
    else:
        kept.put(key, replace(LOGLIKELIHOODS, worst_nats=9.0), vllm="0.31.0")
    assert finding(sweep, store).refused
    monkeypatch.setattr(certificates, "vllm_version", lambda: "0.32.0")
    assert finding(sweep, store) == Finding()
    # Who only reads what was run, or has no vLLM to measure with, plans as it was run.
    assert finding(sweep, store, of_any_version=True).refused
    monkeypatch.setattr(certificates, "vllm_version", lambda: "")
    assert finding(sweep, store).refused


def test_more_documents_are_measured_anew_and_fewer_are_not(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    sweep = sweep_of(tmp_path, documents=4)
    kept = certificates.Certificates(sweep, store)
    kept.put(kept.key(sweep.bases[0], FACTS, ""), LOGLIKELIHOODS, vllm="0.32.0")
    found = finding(sweep, store)
    assert found.refused == ""
    assert "its effect is 1.00 times that under hf" in found.note
    assert finding(sweep_of(tmp_path, documents=2), store) == found
    assert finding(sweep_of(tmp_path, documents=8), store) == Finding()


@pytest.mark.parametrize(
    "change", [{"max_length": 64}, {"add_bos_token": True}, {"invariant": True}]
)
def test_other_ways_to_answer_need_a_certificate_of_their_own(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    store = Store(str(tmp_path / "store"))
    sweep, other = sweep_of(tmp_path), sweep_of(tmp_path, **change)
    kept = certificates.Certificates(sweep, store)
    kept.put_failed(kept.key(sweep.bases[0], FACTS, ""), "why not")
    assert finding(sweep, store).refused
    assert finding(other, store) == Finding()


# --- what follows from answers ----------------------------------------------------------------


def work_of(*sets: RequestSet) -> Any:
    cells = {
        ("base", one.digest, kind): SimpleNamespace(key=f"{kind}-{one.digest}")
        for one in sets
        for kind in ("hf", "vllm")
    }
    return SimpleNamespace(
        cells=cells,
        samples={"base": sets},
        request_sets={one.digest: one for one in sets},
        may_go_on={one.digest: frozenset() for one in sets},
    )


def concluded(
    tmp_path: Path, work: Any, failures: dict[str, Failure], store: Store
) -> tuple[Finding, list[str]]:
    """Return what is known of a base after its certificate's cells ended so, by key."""
    sweep, said = sweep_of(tmp_path), list[str]()
    folder = tmp_path / "base"
    folder.mkdir(exist_ok=True)
    facts: Any = SimpleNamespace(**vars(FACTS), path=str(folder))
    resolved = SimpleNamespace(bases={"base": facts}, sweep=sweep, base=lambda name: sweep.bases[0])
    planned: Any = SimpleNamespace(resolved=resolved)
    concluding.Concluding(planned, work, store, failures, said.append).conclude(BASE)
    return finding(sweep, store), said


SAMPLE = make_request_set("sample", 3)


def failed(tmp_path: Path, **failures: Failure) -> tuple[Finding, list[str]]:
    by_key = {f"{kind}-{SAMPLE.digest}": failure for kind, failure in failures.items()}
    return concluded(tmp_path, work_of(SAMPLE), by_key, Store(str(tmp_path / "store")))


def test_what_vllm_alone_cannot_answer_goes_to_hf_with_the_reason(tmp_path: Path) -> None:
    failure = Failure(FailureKind.UNSUPPORTED, "adapter 'a': vLLM refuses it: 42")
    found, said = failed(tmp_path, vllm=failure)
    assert "vLLM refuses it: 42" in found.refused
    assert "can by hf" in said[0]


@pytest.mark.parametrize(
    ("hf", "vllm"),
    [
        (FailureKind.NO_EFFECT, FailureKind.NO_EFFECT),  # neither can
        (None, FailureKind.CRASHED),  # it may pass
        (FailureKind.TASK_FAILED, FailureKind.TASK_FAILED),  # nothing is left to compare
    ],
)
def test_other_failures_refuse_nothing(
    tmp_path: Path, hf: FailureKind | None, vllm: FailureKind
) -> None:
    failures = {"vllm": Failure(vllm, "why not")}
    if hf is not None:
        failures["hf"] = Failure(hf, "why not")
    found, said = failed(tmp_path, **failures)
    assert found == Finding()
    assert said == ["base has no certificate, and is answered without one: why not"]


def answer(store: Store, key: str, one: RequestSet, shift: float, version: str) -> None:
    answers = tuple(
        Answer(request.index, logprob=-1.0 - request.index + shift, is_greedy=False)
        for request in one.requests
    )
    software = {"vllm": version} if version else {}
    hardware = Hardware(fingerprint="f" * 8, device="a processor", software=software)
    store.put_answers(key, 0, 1, SubjectAnswers(subject="base", answers=answers), hardware, 1.0)


def test_a_task_that_fails_takes_no_certificate_from_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path / "store"))
    able, unable = SAMPLE, make_request_set("unable", 3)
    answer(store, f"hf-{able.digest}", able, 0.0, "")
    answer(store, f"vllm-{able.digest}", able, 9.0, "0.31.0")
    failures = {f"vllm-{unable.digest}": Failure(FailureKind.TASK_FAILED, "its prompt is empty")}
    for module in (certificates, concluding):
        monkeypatch.setattr(module, "vllm_version", lambda: "0.32.0")

    found, said = concluded(tmp_path, work_of(unable, able), failures, store)

    assert "up to 9 nats" in found.refused
    # What is kept is the version that answered, and where another is installed here it is said.
    (told,) = said
    assert "vllm answered in version 0.31.0, and here is 0.32.0" in told
    kept = certificates.Certificates(sweep_of(tmp_path), store)
    value = kept.current(kept.key(sweep_of(tmp_path).bases[0], FACTS, ""))
    assert value is not None
    assert value["vllm"] == "0.31.0"
