"""Scored cells, read back from a sweep's tables: what a comparison of any two subjects needs."""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from raypeft.api.html_report import baseline_of
from raypeft.api.stored import SWEEP_FILE, read_planned
from raypeft.core.clusters import Clusters, clusters_of
from raypeft.core.comparable import ScoredCell
from raypeft.core.engine_choice import SECOND_SUFFIXES, ZERO_SUFFIX
from raypeft.core.records import Group, Hardware, MetricValue, Sample, Scored
from raypeft.core.spec import Sweep, parse_sweep
from raypeft.errors import Problem, SetupError, SpecError
from raypeft.store.files import Folder
from raypeft.store.jsontext import load_json
from raypeft.store.output import open_output
from raypeft.store.store import Store

METRIC_FIELDS = (
    *("metric", "filter", "value", "value_json", "stderr", "n"),
    *("higher_is_better", "aggregation"),
)

Row = Mapping[str, Any]


class RunSweep:
    """A sweep that was run, as its output tells it; each part is read when it is asked for.

    Args:
        output: The sweep's output.
    """

    def __init__(self, output: str) -> None:
        self.output = output
        self._results = open_output(output)

    @cached_property
    def sweep(self) -> Sweep:
        """The sweep file, as it was run."""
        text = Folder(self.output).read(SWEEP_FILE)
        if text is None:
            raise SetupError(
                f"{self.output} holds no {SWEEP_FILE}, which says how gains are judged",
                "give the `output` of a sweep that was run",
            )
        return parse_sweep(text.decode(), source=f"{self.output}/{SWEEP_FILE}")

    @cached_property
    def rows(self) -> list[Row]:
        """Rows of the `results` table that belong to tasks."""
        return [row for row in self._results.results.to_pylist() if not row["is_group"]]

    @cached_property
    def group_rows(self) -> list[Row]:
        """Rows of the `results` table that belong to groups."""
        return [row for row in self._results.results.to_pylist() if row["is_group"]]

    @cached_property
    def subjects(self) -> tuple[str, ...]:
        """Subjects with results, in the order of the tables."""
        return tuple(dict.fromkeys(row["subject"] for row in self.rows))

    @cached_property
    def _paths(self) -> dict[tuple[str, str], str]:
        cells = self._results.cells.to_pylist()
        return {(row["subject"], row["task"]): row["path"] or "" for row in cells}

    @cached_property
    def _groups(self) -> dict[str, dict[str, Group]]:
        planned, _ = read_planned(self.output)
        return {
            base: {group.name: group for found in entries.values() for group in found}
            for base, entries in planned.frozen.groups.items()
        }

    def groups(self, base: str) -> dict[str, Group]:
        """Return a base's groups by name; the plan is made again only where there are any."""
        if not any(row["base"] == base for row in self.group_rows):
            return {}
        return self._groups.get(base, {})

    def clusters(self, tasks: Sequence[str]) -> dict[str, Clusters]:
        """Return by request set which documents belong together, where the sweep names a field."""
        fields = {task.name: task.cluster for task in self.sweep.tasks if task.cluster}
        found: dict[str, Clusters] = {}
        for row in self.rows if fields else ():
            name, digest = fields.get(row["entry"]), row["request_set"]
            if name is None or digest in found or row["task"] not in tasks:
                continue
            request_set = Store(self.sweep.store).get_request_set(digest)
            if request_set is None:
                raise SetupError(
                    f"the store {self.sweep.store} lacks request set {digest} of {row['task']}, "
                    f"whose documents are clustered by {name!r}",
                    "run the sweep again: what is answered stays so",
                )
            found[digest] = clusters_of(request_set.documents, name)
        return found

    def cells(self, subject: str) -> list[ScoredCell]:
        """Return a subject's scored cells.

        Raises:
            SpecError: If it has none.
        """
        by_task: dict[str, list[Row]] = {}
        for row in self.rows:
            if row["subject"] == subject:
                by_task.setdefault(row["task"], []).append(row)
        if not by_task:
            known = ", ".join(self.subjects) or "none"
            message = f"no results of {subject!r} in {self._results.place}"
            raise SpecError((Problem("", message, f"there are {known}"),))
        return [self._cell(task, rows) for task, rows in by_task.items()]

    def answered_twice(self, subject: str) -> list[tuple[ScoredCell, ScoredCell]]:
        """Return the cells of a subject's baseline that were answered again, in pairs."""
        by_name = {(r["subject"], r["task"], r["metric"], r["filter"]): r for r in self.rows}
        tasks: dict[str, str] = {}
        for (name, task, metric, filter_name), row in by_name.items():
            if name != subject:
                continue
            alike = [
                one
                for one in self.rows
                if one["adapter"] is None
                and (one["base"], one["task"], one["metric"], one["filter"])
                == (row["base"], task, metric, filter_name)
            ]
            baseline = baseline_of(row, alike)
            if baseline is not None:
                tasks[task] = baseline["subject"]
        known: dict[str, dict[str, ScoredCell]] = {}
        firsts = dict.fromkeys(tasks.values())
        for name in [first + end for first in firsts for end in ("", *SECOND_SUFFIXES)]:
            if name in self.subjects:
                known[name] = {cell.task: cell for cell in self.cells(name)}
        return [
            (known[first][task], known[first + end][task])
            for task, first in tasks.items()
            for end in SECOND_SUFFIXES
            if task in known.get(first + end, {})
        ]

    @cached_property
    def zero_subjects(self) -> frozenset[str]:
        """The baselines that were to be answered through an adapter of zero effect."""
        cells = self._results.cells.to_pylist()
        return frozenset(row["subject"] for row in cells if row["subject"].endswith(ZERO_SUFFIX))

    def _cell(self, task: str, rows: Sequence[Row]) -> ScoredCell:
        first = rows[0]
        path = self._paths.get((first["subject"], task), "")
        # That a baseline was answered again makes it a cell of its own, not another kind of answer.
        numerics = {k: v for k, v in json.loads(first["numerics"]).items() if k != "again"}
        return ScoredCell(
            subject=first["subject"],
            base=first["base"],
            base_digest=first["base_digest"],
            adapter=first["adapter"],
            task=task,
            request_set=first["request_set"],
            numerics=numerics,
            hardware=_machines(first),
            scored=self._scored(task, rows),
            scoring=first["scoring"],
            sampling_seed=first["sampling_seed"],
            paths=(path,) if path else (),
        )

    def _scored(self, task: str, rows: Sequence[Row]) -> Scored:
        samples = tuple(
            Sample(
                doc_id=row["doc_id"],
                filter=row["filter"],
                responses=None,
                filtered_responses=None,
                metrics={item["name"]: load_json(item["json"]) for item in row["metrics"]},
                doc_hash=row["doc_hash"],
                prompt_hash=row["prompt_hash"],
                target_hash=row["target_hash"],
            )
            for row in self._results.samples_of(rows[0]["subject"], task).to_pylist()
        )
        return Scored(
            task=task,
            metrics=tuple(
                MetricValue(**{name: row[name] for name in METRIC_FIELDS}) for row in rows
            ),
            samples=samples,
            lm_eval=None,
            lm_eval_version=rows[0]["lm_eval_version"],
        )


def _machines(row: Row) -> tuple[Hardware, ...]:
    """Return what answered, as far as the tables say: one machine for each distinct fingerprint."""
    software = [json.loads(text) for text in row["software"].split(" and ")]
    return tuple(
        Hardware(fingerprint=fingerprint, device=row["device"], software=versions)
        for fingerprint in row["hardware_fingerprint"].split(" and ")
        for versions in software
    )
