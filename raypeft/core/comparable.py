"""Which results may be compared: the rules of pairing an adapter with its baseline.

Decides, field by field, whether two scored cells answered the same questions under the same
conditions, and pairs their documents. What is computed from a pair is left to `gains`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raypeft.core.identity import canonical
from raypeft.core.records import Hardware, Json, MetricValue, Sample, Scored
from raypeft.errors import IncomparableError

ABSENT = "(absent)"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredCell:
    """A cell's results with everything that decides whether they may be compared.

    Attributes:
        subject: The subject's id.
        base: The base's name.
        base_digest: Digest of the base's content.
        adapter: The adapter's name; None for the baseline.
        task: The leaf task.
        request_set: Digest of the request set.
        numerics: Settings of the engine that can change a score.
        hardware: What answered, one for each shard; duplicates are harmless.
        scored: The cell's metrics and samples.
        scoring: Digest of what decides scores beside lm-eval: metrics, filters, own Python.
        sampling_seed: Seed, if any request samples.
        paths: Which way each shard took (`shared context …`, `plain …`), where that is known.
    """

    subject: str
    base: str
    base_digest: str
    adapter: str | None
    task: str
    request_set: str
    numerics: Mapping[str, Json]
    hardware: tuple[Hardware, ...]
    scored: Scored
    scoring: str = ""
    sampling_seed: int | None = None
    paths: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """An adapter's cell and its baseline's, found comparable.

    Attributes:
        baseline: The baseline's cell.
        adapter: The adapter's cell.
        note: What a reader must know although the pair was let through; usually empty.
    """

    baseline: ScoredCell
    adapter: ScoredCell
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """An adapter's cell with its baseline, or why they must not be compared.

    Attributes:
        cell: The adapter's cell.
        baseline: The baseline's cell, for its values; None if there is none.
        pair: Both, if they are comparable.
        refusal: Why not, otherwise.
    """

    cell: ScoredCell
    baseline: ScoredCell | None
    pair: Pair | None
    refusal: str


def match_baseline(
    cell: ScoredCell, baselines: Sequence[ScoredCell], *, allow_mixed_hardware: bool = False
) -> Match:
    """Find the baseline of an adapter's cell, preferring the one of the same request set."""
    same_task = [b for b in baselines if (b.base, b.task) == (cell.base, cell.task)]
    # Adapters that another engine answers than the base have a baseline of that engine; those with
    # a larger vocabulary one that is enlarged alike, and asked with their own tokenizer where they
    # have one. Otherwise what differs is named below.
    for setting in ("engine", "vocab_size", "tokenizer"):
        wanted = cell.numerics.get(setting)
        alike = [b for b in same_task if b.numerics.get(setting) == wanted]
        same_task = alike or same_task
    same = [b for b in same_task if b.request_set == cell.request_set] or same_task
    # Where none is alike the base as it is stands for them, and what differs is named.
    baseline = min(same, key=lambda b: (b.subject != b.base, b.subject), default=None)
    if baseline is None:
        refusal = f"no baseline: {cell.base} alone has no result on {cell.task}"
        return Match(cell=cell, baseline=None, pair=None, refusal=refusal)
    try:
        note = check_comparable(baseline, cell, allow_mixed_hardware=allow_mixed_hardware)
    except IncomparableError as error:
        return Match(cell=cell, baseline=baseline, pair=None, refusal=str(error))
    pair = Pair(baseline=baseline, adapter=cell, note=note)
    return Match(cell=cell, baseline=baseline, pair=pair, refusal="")


def check_comparable(
    baseline: ScoredCell, adapter: ScoredCell, *, allow_mixed_hardware: bool = False
) -> str:
    """Check that two cells may be compared.

    Args:
        baseline: The one side.
        adapter: The other.
        allow_mixed_hardware: Let different hardware through, and say so in what is returned.

    Returns:
        A note for the tables, empty unless different hardware was let through, one side is merged,
        or only one shared contexts in 16 bits.

    Raises:
        IncomparableError: With the first field that differs and both its values.
    """
    context = f"{adapter.subject} against {baseline.subject} on {adapter.task}"
    for field, left, right in _identity_fields(baseline, adapter):
        if left != right:
            raise IncomparableError(field, left, right, context)
    left_hardware, right_hardware = _fingerprints(baseline), _fingerprints(adapter)
    # A cell whose shards ran on several kinds of hardware matches nothing, not even another such
    # cell: which document met which hardware may differ.
    num_kinds = len({machine.fingerprint for machine in baseline.hardware})
    notes = [
        note for note in (_merging_note(baseline, adapter), _path_note(baseline, adapter)) if note
    ]
    if left_hardware == right_hardware and num_kinds == 1:
        return "; ".join(notes)
    field, left, right = _hardware_difference(baseline, adapter)
    if not allow_mixed_hardware:
        raise IncomparableError(field, left, right, context)
    return "; ".join([f"mixed hardware: {field} is {left} against {right}", *notes])


def _merging_note(left: ScoredCell, right: ScoredCell) -> str:
    """Return what to know where one side is merged: a base alone has nothing to merge."""
    merged = [cell for cell in (left, right) if cell.numerics.get("merged")]
    if len(merged) != 1:
        return ""
    dtype = merged[0].numerics.get("dtype")
    return (
        f"{merged[0].subject} is merged into {dtype} weights: the rounding of merging is part of "
        "the difference (column `path` of the cells table says how much it moved on the probe)"
    )


def _path_note(left: ScoredCell, right: ScoredCell) -> str:
    """Return what to know where one side shared contexts and the other could not."""
    if not left.paths or not right.paths or left.numerics.get("dtype") == "float32":
        return ""
    ours, theirs = (sorted({_way(path) for path in cell.paths}) for cell in (left, right))
    if ours == theirs:
        return ""
    return (
        f"{left.subject} was answered by {' and '.join(ours)}, {right.subject} by "
        f"{' and '.join(theirs)}: the rounding of {left.numerics.get('dtype')} is part of the "
        "difference (`engine: {sharing: false}` answers both alike)"
    )


def _way(path: str) -> str:
    """Return the first words of a path: what was done, without lane and notes."""
    return path.split(",", 1)[0].split(":", 1)[0]


def _identity_fields(left: ScoredCell, right: ScoredCell) -> list[tuple[str, str, str]]:
    fields = [
        ("base", left.base, right.base),
        ("base_digest", left.base_digest, right.base_digest),
        # Before the request set, which differs for this reason where a chat template is applied.
        ("tokenizer", _tokenizer(left), _tokenizer(right)),
        ("task", left.task, right.task),
        ("request_set", left.request_set, right.request_set),
    ]
    # The engine first: where it differs, other settings differ for that reason alone.
    names = sorted({*left.numerics, *right.numerics}, key=lambda name: (name != "engine", name))
    for name in names:
        if name in ("merged", "tokenizer"):  # a note, and a field of its own
            continue
        sides = (_setting(left.numerics, name), _setting(right.numerics, name))
        fields.append((f"numerics.{name}", *sides))
    fields.append(("sampling_seed", str(left.sampling_seed), str(right.sampling_seed)))
    fields.append(("scoring", left.scoring, right.scoring))
    fields.append(
        ("lm_eval_version", left.scored.lm_eval_version, right.scored.lm_eval_version),
    )
    return fields + _software_fields(left, right)


def _tokenizer(cell: ScoredCell) -> str:
    return str(cell.numerics.get("tokenizer", "the base's"))


def _setting(numerics: Mapping[str, Json], name: str) -> str:
    return canonical(numerics[name]) if name in numerics else ABSENT


def _software_fields(left: ScoredCell, right: ScoredCell) -> list[tuple[str, str, str]]:
    names = sorted({name for cell in (left, right) for m in cell.hardware for name in m.software})
    fields = []
    for name in names:
        ours, theirs = _versions(left, name), _versions(right, name)
        if len(ours) > 1 and ours == theirs:
            # Both cells were answered by several versions: which document met which is unknown.
            theirs = [f"{version} (in another mixture)" for version in theirs]
        fields.append((f"software.{name}", " and ".join(ours), " and ".join(theirs)))
    return fields


def _versions(cell: ScoredCell, name: str) -> list[str]:
    return sorted({machine.software.get(name, ABSENT) for machine in cell.hardware}) or [ABSENT]


def _hardware_difference(left: ScoredCell, right: ScoredCell) -> tuple[str, str, str]:
    """Return the first thing that differs, in words where one machine faces one machine."""
    if all(len({m.fingerprint for m in cell.hardware}) == 1 for cell in (left, right)):
        ours, theirs = left.hardware[0], right.hardware[0]
        for name in ("device", "num_devices", "memory_gib", "threads"):
            sides = (str(getattr(ours, name)), str(getattr(theirs, name)))
            if sides[0] != sides[1]:
                return (f"hardware.{name}", *sides)
    return "hardware", _fingerprints(left), _fingerprints(right)


def _fingerprints(cell: ScoredCell) -> str:
    kinds = {f"{m.fingerprint} ({m.device})" for m in cell.hardware}
    return " and ".join(sorted(kinds)) or ABSENT


def check_metric(pair: Pair, baseline: MetricValue | None, adapter: MetricValue | None) -> None:
    """Check that two aggregates are of the same metric.

    Raises:
        IncomparableError: If one is missing or the metric's definition differs.
    """
    context = f"{pair.adapter.subject} against {pair.baseline.subject} on {pair.adapter.task}"
    if baseline is None or adapter is None:
        present = baseline or adapter
        name = f"{present.metric},{present.filter}" if present else ABSENT
        sides = [ABSENT if side is None else "present" for side in (baseline, adapter)]
        raise IncomparableError(f"metric {name}", sides[0], sides[1], context)
    for field in ("aggregation", "higher_is_better", "n"):
        left, right = getattr(baseline, field), getattr(adapter, field)
        if left != right:
            name = f"{field} of {adapter.metric},{adapter.filter}"
            raise IncomparableError(name, str(left), str(right), context)


def paired_samples(pair: Pair, filter_name: str) -> list[tuple[Sample, Sample]]:
    """Return baseline's and adapter's sample of each document under one filter, by doc_id.

    Raises:
        IncomparableError: If the documents, their prompts or their targets are not the same.
    """
    context = f"{pair.adapter.subject} against {pair.baseline.subject} on {pair.adapter.task}"
    left, right = (_by_document(cell, filter_name) for cell in (pair.baseline, pair.adapter))
    if left.keys() != right.keys():
        odd = min(left.keys() ^ right.keys())
        sides = ["present" if odd in side else ABSENT for side in (left, right)]
        raise IncomparableError(f"document {odd}", sides[0], sides[1], context)
    pairs = []
    for doc_id in sorted(left):
        ours, theirs = left[doc_id], right[doc_id]
        for field in ("doc_hash", "prompt_hash", "target_hash"):
            a, b = getattr(ours, field), getattr(theirs, field)
            if a != b:
                raise IncomparableError(f"{field} of document {doc_id}", a, b, context)
        pairs.append((ours, theirs))
    return pairs


def _by_document(cell: ScoredCell, filter_name: str) -> dict[int, Sample]:
    samples = [sample for sample in cell.scored.samples if sample.filter == filter_name]
    by_document = {sample.doc_id: sample for sample in samples}
    assert len(by_document) == len(samples), f"{cell.subject}, {cell.task}: a document twice"
    return by_document
