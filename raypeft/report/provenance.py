"""Where every number of the page comes from: identities, versions, hardware, request digests."""

from collections.abc import Sequence

from raypeft.report.morning import Row
from raypeft.report.page_tables import MAX_ROWS
from raypeft.report.table_views import TableView, names, text_cell

IDENTITY = (
    *("subject", "base", "adapter", "base_digest", "adapter_digest", "engine", "dtype"),
    *("softmax_dtype", "attn_implementation", "numerics"),
)
REQUESTS = (
    *("task", "entry", "request_set", "task_version", "num_fewshot", "scoring", "sampling_seed"),
    "lm_eval_version",
)
HARDWARE = (
    *("device", "num_devices", "memory_gib", "threads", "node", "hardware_fingerprint"),
    "software",
)
CELLS = (
    *("subject", "task", "state", "reason", "cell", "request_set", "attempts", "slot", "path"),
)


def provenance(results: Sequence[Row], cells: Sequence[Row]) -> tuple[TableView, ...]:
    """Return every identity field of a sweep, each combination once, and every cell."""
    single = [row for row in results if not row["is_group"]]
    scores = {(row["subject"], row["task"]): row["score"] for row in single}
    with_score = [
        {**row, "score": scores.get((row["subject"], row["task"]))} for row in cells[:MAX_ROWS]
    ]
    cut = len(cells) - len(with_score)
    note = f"{cut} more rows are in tables/cells.parquet." if cut else ""
    return (
        _distinct("subjects", "What answered", IDENTITY, single),
        _distinct("requests", "What was asked, and how it was scored", REQUESTS, single),
        _distinct(
            "hardware", "On what it was answered", HARDWARE, [c for c in cells if c["device"]]
        ),
        _distinct("cells", "Every cell", (*CELLS, "score"), with_score, note),
    )


def _distinct(
    key: str, caption: str, fields: Sequence[str], rows: Sequence[Row], note: str = ""
) -> TableView:
    found = dict.fromkeys(tuple(row[name] for name in fields) for row in rows)
    return TableView(
        key=f"provenance-{key}",
        caption=caption,
        heads=names(*(name.replace("_", " ") for name in fields)),
        rows=tuple(
            tuple(text_cell(value, "digest", max_chars=2000) for value in values)
            for values in found
        ),
        note=note,
        css="plain",
    )
