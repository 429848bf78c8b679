import fnmatch
from collections.abc import Sequence
from typing import Any

import pytest

from raypeft.core.spec import AdapterEntry, Sweep, dump_sweep, expand, make_sweep, parse_sweep
from raypeft.errors import SpecError


class Disk:
    """An `AdapterFolders` of folders that are told: path → whether it is an adapter."""

    def __init__(self, folders: dict[str, bool], locked: str = "") -> None:
        self.folders = folders
        self.locked = locked

    def is_folder(self, path: str) -> bool:
        if path == self.locked:
            raise PermissionError(13, "Permission denied", path)
        return path.rstrip("/") in self.folders

    def is_adapter(self, path: str) -> bool:
        return self.folders.get(path.rstrip("/"), False)

    def children(self, path: str) -> Sequence[str]:
        prefix = path.rstrip("/") + "/"
        return sorted(
            f for f in self.folders if f.startswith(prefix) and "/" not in f[len(prefix) :]
        )

    def glob(self, pattern: str) -> Sequence[str]:
        depth = pattern.count("/")
        return sorted(
            folder
            for folder in self.folders
            if fnmatch.fnmatchcase(folder, pattern)
            and ("**" in pattern or folder.count("/") == depth)
        )


DISK = Disk(
    {
        "adapters": False,
        "adapters/llama": False,
        "adapters/llama/r8": True,
        "adapters/llama/r64": True,
        "adapters/llama/logs": False,
        "adapters/qwen": False,
        "adapters/qwen/r8": True,
        "adapters/[odd]": True,
        "empty": False,
        "org/local": True,
    }
)


def sweep(*adapters: Any, **base: Any) -> Sweep:
    bases = [{"path": "org/base", "adapters": list(adapters), **base}]
    return make_sweep({"output": "runs/x", "bases": bases, "tasks": ["arc_easy"]})


def expanded(*adapters: Any) -> dict[str | None, str]:
    return {one.name: one.path for one in expand(sweep(*adapters), DISK).bases[0].adapters}


def problems(given: Sweep, disk: Disk = DISK) -> list[str]:
    with pytest.raises(SpecError) as caught:
        expand(given, disk, source="sweep.yaml")
    assert caught.value.source == "sweep.yaml"
    return [str(problem) for problem in caught.value.problems]


def test_a_folder_that_is_an_adapter_is_that_adapter() -> None:
    assert expanded("adapters/llama/r8") == {"r8": "adapters/llama/r8"}
    assert expanded("adapters/llama/r8/") == {"r8": "adapters/llama/r8/"}


def test_a_folder_that_holds_adapters_is_all_of_them_and_nothing_else() -> None:
    assert expanded("adapters/llama") == {"r64": "adapters/llama/r64", "r8": "adapters/llama/r8"}


def test_a_pattern_keeps_every_folder_so_that_a_broken_adapter_is_reported() -> None:
    assert expanded("adapters/llama/*") == {
        "logs": "adapters/llama/logs",
        "r64": "adapters/llama/r64",
        "r8": "adapters/llama/r8",
    }


def test_two_stars_take_only_adapters_since_every_folder_on_the_way_matches() -> None:
    assert expanded("adapters/llama**") == {"r64": "adapters/llama/r64", "r8": "adapters/llama/r8"}


def test_a_folder_without_any_adapter_stays_an_entry_to_fail_when_it_is_read() -> None:
    assert expanded("empty") == {"empty": "empty"}


def test_a_folder_goes_before_a_pattern_and_before_a_hub_id() -> None:
    assert expanded("adapters/[odd]", "org/local") == {
        "[odd]": "adapters/[odd]",
        "local": "org/local",
    }


def test_a_path_that_is_not_here_and_reads_like_a_hub_id_is_one() -> None:
    assert expanded("acme/llama-lora_v1.2") == {"llama-lora_v1.2": "acme/llama-lora_v1.2"}


def test_an_entry_with_a_name_is_one_adapter_with_its_other_keys() -> None:
    given = {"path": "adapters/llama", "name": "all", "allow_pickle": True}
    (entry,) = expand(sweep(given), DISK).bases[0].adapters
    assert entry == AdapterEntry(path="adapters/llama", name="all", allow_pickle=True)


def test_an_unnamed_entrys_other_keys_go_to_everything_it_stands_for() -> None:
    given = {"path": "adapters/llama", "allow_pickle": True}
    assert [entry.allow_pickle for entry in expand(sweep(given), DISK).bases[0].adapters] == [
        True,
        True,
    ]


@pytest.mark.parametrize(
    "path", ["~/adapters/x", "/nowhere", "./nowhere", "a/b/c", "nowhere", "s3://bucket/adapter"]
)
def test_a_path_that_is_neither_here_nor_a_hub_id_is_refused(path: str) -> None:
    (found,) = problems(sweep(path))
    assert found == (
        f'bases[0].adapters[0]: "{path}" is neither a folder here nor a hub id (`org/name`); '
        "relative paths start at the working directory, and `~` is not expanded"
    )


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    (found,) = problems(sweep("adapters/lama/*"))
    assert 'the pattern "adapters/lama/*" matches no adapter folder' in found


def test_a_pattern_cannot_have_one_name() -> None:
    (found,) = problems(sweep({"path": "adapters/llama/*", "name": "all"}))
    assert 'the pattern "adapters/llama/*" has the name "all"; leave `name` out' in found


def test_two_adapters_of_one_name_are_refused_with_both_paths_and_the_remedy() -> None:
    assert problems(sweep("adapters/llama", "adapters/qwen")) == [
        'bases[0].adapters[1]: "adapters/qwen/r8" has the name "r8", as "adapters/llama/r8" at '
        "bases[0].adapters[0] has; give one of them another `name:`"
    ]
    assert expanded("adapters/llama", {"path": "adapters/qwen/r8", "name": "qwen-r8"})


def test_an_adapter_that_two_entries_reach_is_refused() -> None:
    (found,) = problems(sweep("adapters/llama", {"path": "adapters/llama/r8/", "name": "again"}))
    assert "stands here again, first at bases[0].adapters[0]; remove one of them" in found


def test_a_path_that_gives_no_name_asks_for_one() -> None:
    disk = Disk({"..": True})
    (found,) = problems(sweep(".."), disk)
    assert 'the name "..", from "..", cannot be a name' in found
    assert found.endswith("give it another with `name:`")


def test_a_revision_is_for_hub_ids() -> None:
    found = problems(
        make_sweep(
            {
                "output": "runs/x",
                "tasks": ["t"],
                "bases": [
                    {
                        "path": "org/local",
                        "revision": "v1",
                        "adapters": [{"path": "adapters/llama/*", "revision": "v2"}],
                    }
                ],
            }
        )
    )
    assert [text.split(":")[0] for text in found] == [
        "bases[0].revision",
        "bases[0].adapters[0].revision",
    ]
    given = sweep({"path": "acme/lora", "revision": "v2"})
    assert expand(given, DISK).bases[0].adapters[0].revision == "v2"


def test_what_cannot_be_looked_into_is_a_problem_like_any_other() -> None:
    disk = Disk({}, locked="locked/x")
    assert problems(sweep("locked/x", "nowhere"), disk)[0] == (
        'bases[0].adapters[0]: "locked/x" cannot be read: Permission denied'
    )


def test_every_problem_of_every_base_is_reported_at_once() -> None:
    bases = [
        {"path": "x", "adapters": ["nowhere", "adapters/no*", "adapters/llama"]},
        {"path": "y", "adapters": ["adapters/*/r8"]},
    ]
    given = make_sweep({"output": "o", "tasks": ["t"], "bases": bases})
    assert [text.split(":")[0] for text in problems(given)] == [
        "bases[0].adapters[0]",
        "bases[0].adapters[1]",
        "bases[1].adapters[0]",
    ]


def test_expanding_what_was_expanded_written_and_read_changes_nothing() -> None:
    once = expand(sweep("adapters/*", "acme/lora", "adapters/llama"), DISK)
    again = parse_sweep(dump_sweep(once), source="")
    assert again == once
    assert expand(again, DISK) == once
