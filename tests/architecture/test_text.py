"""What no file of the project may say, and what the documentation must not promise in vain."""

import fnmatch
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.architecture.source import ROOT

# Written in two parts, so that this file does not breach its own rule.
HOSTS = tuple(
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("download.pytorch", "org"),
        ("anaconda", "org"),
        ("npmjs", "org"),
        ("deb", "debian", "org"),
        ("proxy.golang", "org"),
    )
)

MACHINE_PATH = re.compile(
    r"(?<![\w.~$}-])/(work|root|Users|home/(?!(?:ray|me)\b)\w+)(?=[/\s'\"`)]|$)"
)
"""A path of somebody's machine. `/home/ray` stands in Ray's own images, `/home/me` for anybody."""

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")

BINARY = {".parquet", ".safetensors", ".png", ".jpg", ".gz", ".whl", ".bin", ".pyc"}


def is_ignored(name: str, patterns: list[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern.rstrip("/")) for pattern in patterns)


def project_files(root: Path) -> Iterator[Path]:
    """Yield the text files that belong to the project: all but what `.gitignore` names."""
    patterns = [".git", *(root / ".gitignore").read_text(encoding="utf-8").split()]
    stack = [root]
    while stack:
        for path in sorted(stack.pop().iterdir()):
            if is_ignored(path.name, patterns) or path.is_symlink():
                continue
            if path.is_dir():
                # A virtual environment may have any name.
                stack += [] if (path / "pyvenv.cfg").exists() else [path]
            elif path.suffix not in BINARY:
                yield path


def host_breaches(text: str) -> list[str]:
    return [host for host in HOSTS if host in text]


def path_breaches(text: str) -> list[str]:
    return [match.group() for match in MACHINE_PATH.finditer(text)]


def broken_links(text: str, folder: Path) -> list[str]:
    targets = (match.group(1).partition("#")[0] for match in LINK.finditer(text))
    return [
        target
        for target in targets
        if target and not re.match(r"[a-z]+:", target) and not (folder / target).exists()
    ]


FILES = list(project_files(ROOT))
PAGES = [path for path in FILES if path.suffix == ".md"]


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_the_files_of_the_project_are_read() -> None:
    names = {relative(path) for path in FILES}
    assert {"Makefile", "pyproject.toml", "raypeft/errors.py", ".ci/run", "README.md"} <= names
    assert not any(name.startswith((".venv/", ".git/", "build/")) for name in names)


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_no_file_names_a_package_host_or_a_path_of_a_machine(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert host_breaches(text) == []
    assert path_breaches(text) == []


@pytest.mark.parametrize("path", PAGES, ids=relative)
def test_every_link_of_a_page_leads_somewhere(path: Path) -> None:
    assert broken_links(path.read_text(encoding="utf-8"), path.parent) == []


def test_a_package_host_is_caught() -> None:
    assert host_breaches(f"--index-url https://{HOSTS[0]}/simple") == [HOSTS[0]]


@pytest.mark.parametrize("folder", ["work", "root", "Users", "home/somebody"])
def test_a_path_of_a_machine_is_caught(folder: str) -> None:
    assert path_breaches(f"see /{folder}/main/x.py") == [f"/{folder}"]
    assert path_breaches(f"cd '/{folder}'") == [f"/{folder}"]


@pytest.mark.parametrize("folder", ["work", "root", "Users"])
@pytest.mark.parametrize("text", ["a/{}/b", "~/{}/x", "$HOME/{}/x", "the {}ing"])
def test_other_paths_are_allowed(text: str, folder: str) -> None:
    assert path_breaches(text.format(folder)) == []


def test_the_home_of_ray_s_own_image_is_allowed() -> None:
    assert path_breaches("/{}/ray/anaconda3".format("home")) == []


def test_a_broken_link_is_caught(tmp_path: Path) -> None:
    (tmp_path / "there.md").touch()
    text = "[a](there.md) [b](there.md#part) [c](#here) [d](https://example.org) [e](gone.md)"
    assert broken_links(text, tmp_path) == ["gone.md"]


def test_ignored_files_and_environments_are_left_out(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("build/\n*.egg-info/\n")
    for name in ("build/a.txt", "x.egg-info/b.txt", "venv/c.txt", "venv/pyvenv.cfg", "src/d.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = {path.relative_to(tmp_path).as_posix() for path in project_files(tmp_path)}
    assert found == {".gitignore", "src/d.py"}
