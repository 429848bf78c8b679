"""Plans of any shape, made of nothing but names."""

from raypeft.core.plan import Cell, EngineCost, Plan, make_units
from raypeft.core.records import (
    Adapter,
    Document,
    EngineSpec,
    EvaluationSettings,
    Hardware,
    Request,
    RequestSet,
    Subject,
)

HARDWARE = Hardware(fingerprint="f" * 8, device="a processor")


def make_plan(
    *,
    bases: int = 1,
    adapters: int = 2,
    tasks: int = 1,
    shards: int = 1,
    subjects_per_unit: int = 1,
    tokens: int = 1000,
    load_seconds: float = 0.0,
    upper: float = 1.0,
) -> Plan:
    """Return a plan of every subject on every task; later tasks and bases are longer."""
    engines: dict[str, EngineSpec] = {}
    subjects: dict[str, Subject] = {}
    cells: list[Cell] = []
    for number in range(bases):
        base = f"base{number}"
        engines[base] = EngineSpec(kind="fake", base=base, base_digest=base)
        members = [Subject(id=base, base=base)]
        for index in range(adapters):
            adapter = Adapter(name=f"a{index}", path=f"a{index}", digest=f"{base}a{index}")
            members.append(Subject(id=f"{base}/a{index}", base=base, adapter=adapter))
        subjects |= {subject.id: subject for subject in members}
        cells += [
            make_cell(subject, task, shards, tokens * (1 + task) * (1 + number))
            for task in range(tasks)
            for subject in members
        ]
    return Plan(
        engines=engines,
        subjects=subjects,
        cells={cell.key: cell for cell in cells},
        units=make_units(cells, answered={}, subjects_per_unit=subjects_per_unit),
        costs={name: EngineCost(load_seconds=load_seconds, upper=upper) for name in engines},
    )


def make_cell(subject: Subject, task: int, shards: int, tokens: int) -> Cell:
    """Return one cell of `make_plan`."""
    key = f"{subject.id}:task{task}"
    return Cell(
        key=key,
        score_key=f"score of {key}",
        subject=subject.id,
        base=subject.base,
        task=f"task{task}",
        entry=f"task{task}",
        request_set=f"requests{task}",
        is_baseline=subject.is_baseline,
        tokens=tokens,
        shards=shards,
    )


def make_request_set(digest: str, num_requests: int = 6) -> RequestSet:
    """Return a request set of short log-likelihood requests."""
    return RequestSet(
        digest=digest,
        task=digest,
        entry=digest,
        output_type="multiple_choice",
        version="1",
        num_fewshot=0,
        num_docs=num_requests,
        settings=EvaluationSettings(),
        config={},
        requests=tuple(
            Request(index, index, 0, 0, "loglikelihood", (f"context {index}", " yes"))
            for index in range(num_requests)
        ),
        documents=tuple(
            Document(index, {"text": f"context {index}"}, " yes", f"d{index}", f"t{index}")
            for index in range(num_requests)
        ),
    )
