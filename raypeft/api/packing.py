"""What of a sweep travels to a cluster, and how its paths read there.

Decides: task files and adapters travel, below a size; bases are read by the nodes themselves,
from a folder that they see or from the hub; results go to a place that outlives the job. Paths
inside the working directory keep their names, so that what task files name in turn is found too;
others are renamed. Where the cluster sees this machine's files, nothing travels but the sweep.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from raypeft.core.spec import AdapterEntry, Base, Sweep, TaskEntry, expand
from raypeft.core.spec_fields import last_component
from raypeft.engines.bases import TOKENIZER_FILES
from raypeft.engines.folders import ADAPTER_FILES
from raypeft.errors import Problem, SpecError
from raypeft.runtime.files import LocalFolders
from raypeft.runtime.package import MAX_PACKAGE_BYTES, size_of

_SKIPPED = "__pycache__"
_CODE = (".yaml", ".yml", ".py")

OWN_FOLDER = "packaged"
"""What lies in the package under a name that it did not have here lies in this folder."""

NUM_LARGEST = 5
"""So many of the largest files a refusal names."""


@dataclass(slots=True)
class Package:
    """A sweep as it travels.

    Attributes:
        sweep: The sweep with the paths as they read on the cluster.
        files: What travels, by its name in the package.
        folders: Folders that must be there even if nothing in them travels.
        notes: What its sender should know.
    """

    sweep: Sweep
    files: dict[str, Path] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)


def pack(sweep: Sweep, *, shared_files: bool = False, source: str = "") -> Package:
    """Return a sweep as it travels to a cluster.

    Args:
        sweep: As read; adapters need not be expanded, and what is named by an absolute path
            and is not here is left for the cluster to find.
        shared_files: Whether the cluster sees this machine's files under the same paths.
        source: The sweep file, for messages.

    Raises:
        SpecError: With everything that could not be found there, or if it is too large.
    """
    packer = _Packer(shared_files)
    packed = packer.sweep(_expanded(sweep, source))
    if packer.problems:
        raise SpecError(tuple(packer.problems), source)
    package = Package(packed, packer.files, packer.folders, packer.notes)
    _check_size(package, source)
    return package


def _expanded(sweep: Sweep, source: str) -> Sweep:
    """Expand the adapters that are here; the others follow those of their base, as they are."""
    disk = LocalFolders()
    there = [
        tuple(entry for entry in base.adapters if _only_there(entry.path, disk))
        for base in sweep.bases
    ]
    here = [
        base.model_copy(update={"adapters": tuple(a for a in base.adapters if a not in others)})
        for base, others in zip(sweep.bases, there, strict=True)
    ]
    found = expand(sweep.model_copy(update={"bases": tuple(here)}), disk, source=source)
    bases = [
        base.model_copy(update={"adapters": (*base.adapters, *others)})
        for base, others in zip(found.bases, there, strict=True)
    ]
    return sweep.model_copy(update={"bases": tuple(bases)})


def _only_there(path: str, disk: LocalFolders) -> bool:
    try:
        return os.path.isabs(path) and not (disk.is_folder(path) or disk.glob(path))
    except OSError:
        return False  # it is here and cannot be read, which `expand` says


class _Packer:
    def __init__(self, shared_files: bool) -> None:
        self._shared = shared_files
        self.files: dict[str, Path] = {}
        self.folders: set[str] = set()
        self.notes: list[str] = []
        self.problems: list[Problem] = []
        self._renamed: dict[Path, str] = {}

    def sweep(self, sweep: Sweep) -> Sweep:
        """Return the sweep as it reads on the cluster, and collect what travels."""
        bases = [self._base(base, f"bases[{i}]") for i, base in enumerate(sweep.bases)]
        tasks = [self._task(task, f"tasks[{i}]") for i, task in enumerate(sweep.tasks)]
        include = [self._folder(p, f"include_path[{i}]") for i, p in enumerate(sweep.include_path)]
        if not self._shared:
            own = [task.name for task in sweep.tasks if _is_file(task)]
            self._add_data([*sweep.include_path, *own])
        return sweep.model_copy(
            update={
                "output": self._place(sweep.output, "output"),
                "store": self._place(sweep.store, "store"),
                "bases": tuple(bases),
                "tasks": tuple(tasks),
                "include_path": tuple(include),
            }
        )

    def _place(self, path: str, place: str) -> str:
        """Return where results go: a URI, or a folder that is not the job's own."""
        if "://" in path or os.path.isabs(path):
            return path
        if self._shared:
            return os.path.abspath(path)
        self.problems.append(
            Problem(
                place,
                f"{path!r} is relative; in a job it would lie in a folder that Ray deletes",
                "give a URI (s3://, gs://) or an absolute path on a disk of the head, or "
                "--shared-files if the cluster sees this machine's files under the same paths",
            )
        )
        return path

    def _base(self, base: Base, place: str) -> Base:
        path = self._by_nodes(base.path, f"{place}.path")
        tokenizer = base.tokenizer and self._by_nodes(base.tokenizer, f"{place}.tokenizer")
        adapters = tuple(
            self._adapter(entry, f"{place}.adapters[{i}]") for i, entry in enumerate(base.adapters)
        )
        return base.model_copy(update={"path": path, "tokenizer": tokenizer, "adapters": adapters})

    def _by_nodes(self, path: str, place: str) -> str:
        """Return a path that the nodes read themselves: too large to travel."""
        if os.path.isabs(path):
            return path
        if not Path(path).exists() and not path.startswith("."):
            return path  # a hub id, or an error that the run reports
        if self._shared:
            return os.path.abspath(path)
        remedy = (
            "give the absolute path of its folder on the nodes, or a hub id; with --shared-files "
            "this folder is taken"
        )
        message = f"{path!r} is relative; weights of a base do not travel, the nodes read them"
        self.problems.append(Problem(place, message, remedy))
        return path

    def _adapter(self, entry: AdapterEntry, place: str) -> AdapterEntry:
        if not Path(entry.path).is_dir():
            return entry  # a hub id, or on the cluster only
        if self._shared:
            return entry.model_copy(update={"path": os.path.abspath(entry.path)})
        name = self._name(entry.path)
        folder = Path(entry.path)
        self.folders.add(name)
        for pattern in (*ADAPTER_FILES, *TOKENIZER_FILES):
            for path in sorted(folder.glob(pattern)):
                if path.is_file():
                    self.files[f"{name}/{path.relative_to(folder).as_posix()}"] = path
        return entry.model_copy(update={"path": name})

    def _folder(self, path: str, place: str) -> str:
        """Return a folder of task files that travels, or a single task file."""
        if not Path(path).exists():
            if os.path.isabs(path):
                return path  # on the cluster only
            message, remedy = f"there is no {path!r}", "create it, or correct the path"
            self.problems.append(Problem(place, message, remedy))
            return path
        if self._shared:
            return os.path.abspath(path)
        name = self._name(path)
        self._add(name, Path(path))
        return name

    def _task(self, task: TaskEntry, place: str) -> TaskEntry:
        """Return an entry; one that is a task file travels with the code beside it."""
        if not _is_file(task):
            return task
        path = Path(task.name)
        name = self._folder(task.name, place)
        if not self._shared and path.exists():
            parent = name.rpartition("/")[0]
            for other in sorted(path.parent.iterdir()):
                if other.is_file() and other.suffix in _CODE:
                    self.files[f"{parent}/{other.name}" if parent else other.name] = other
        return task.model_copy(update={"name": name})

    def _add(self, name: str, path: Path) -> None:
        if path.is_file():
            self.files[name] = path
            return
        self.folders.add(name)
        for file in _files_below(path):
            self.files[f"{name}/{file.relative_to(path).as_posix()}"] = file

    def _add_data(self, roots: Sequence[str]) -> None:
        """Add the data that task files name by a relative path, wherever it lies."""
        present = [root for root in roots if Path(root).exists()]
        if not present:
            return
        from raypeft.harness.include import named_data  # lm-eval; only own tasks need it

        elsewhere: list[str] = []
        for text, paths in named_data(present).items():
            if os.path.isabs(text):
                elsewhere.append(text)
            elif os.path.normpath(text).startswith(".."):
                message = f"a task file names its data {text!r}, outside the working directory"
                remedy = "start from a folder above both, or name it by an absolute path there"
                self.problems.append(Problem("include_path", message, remedy))
            else:
                self.files |= {Path(os.path.normpath(path)).as_posix(): path for path in paths}
        if elsewhere:
            self.notes.append(
                f"task files name {len(elsewhere)} data files by absolute paths, which do not "
                f"travel: the cluster must have them there ({elsewhere[0]}, …)"
            )

    def _name(self, path: str) -> str:
        """Return what a path is called in the package; outside the working directory anew."""
        inside = os.path.relpath(os.path.abspath(path))
        if inside != "." and inside.partition(os.sep)[0] not in {"..", OWN_FOLDER}:
            return Path(inside).as_posix()
        key = Path(os.path.abspath(path))
        if key not in self._renamed:
            # The last component is what an adapter, or a task file, is known by.
            last = last_component(key.as_posix())
            self._renamed[key] = f"{OWN_FOLDER}/{len(self._renamed)}/{last}"
        return self._renamed[key]


def _is_file(task: TaskEntry) -> bool:
    return task.name.endswith((".yaml", ".yml"))


def _files_below(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        # Hidden ones are of no use to a task, and may hold secrets (.env), which whoever may look
        # at the cluster could read.
        if path.is_file() and not any(one == _SKIPPED or one.startswith(".") for one in parts):
            yield path


def _check_size(package: Package, source: str) -> None:
    total = size_of(package.files)
    if total <= MAX_PACKAGE_BYTES:
        return
    sizes = {name: path.stat().st_size for name, path in package.files.items()}
    largest = sorted(sizes, key=lambda name: sizes[name], reverse=True)[:NUM_LARGEST]
    shown = ", ".join(f"{name} ({sizes[name] / 2**20:.0f} MiB)" for name in largest)
    problem = Problem(
        "",
        f"its adapters and task files are {total / 2**20:.0f} MiB, at most "
        f"{MAX_PACKAGE_BYTES / 2**20:.0f} MiB travel with a job; the largest: {shown}",
        "put the large adapters on a disk that the cluster sees and name them by their absolute "
        "path there, or push them to the hub; with --shared-files nothing travels",
    )
    raise SpecError((problem,), source)
