"""Pages in a real browser: where it is found, how it is started, what is noted about a page."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from playwright.sync_api import Browser, Dialog, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
Scheme: TypeAlias = Literal["light", "dark"]
DESKTOP, PHONE = (1280, 900), (390, 844)


def find_chromium() -> str:
    """Return the browser's path; `make browser` sees to it that there is one."""
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    assert found, f"none of {', '.join(NAMES)} is on PATH; `make browser` installs one"
    return found


@contextmanager
def started_browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=list(ARGUMENTS))
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Opened:
    """A page and everything it did.

    Attributes:
        page: The page.
        said: Console messages, errors and dialogs.
        requests: Addresses it asked for.
    """

    page: Page
    said: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def dismiss(self, dialog: Dialog) -> None:
        """Note a dialog, and end it: it would hold up the page."""
        self.said.append(dialog.message)
        dialog.dismiss()


@contextmanager
def opened(
    browser: Browser,
    path: str,
    *,
    size: tuple[int, int] = DESKTOP,
    scheme: Scheme = "light",
) -> Iterator[Opened]:
    """Give a file as a page, and check when the block ends that it kept quiet."""
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]}, color_scheme=scheme
    )
    page = context.new_page()
    found = Opened(page)
    page.on("console", lambda message: found.said.append(message.text))
    page.on("pageerror", lambda error: found.said.append(str(error)))
    page.on("dialog", found.dismiss)
    page.on("request", lambda request: found.requests.append(request.url))
    address = Path(path).as_uri()
    try:
        page.goto(address)
        yield found
        assert found.said == []
        assert found.requests == [address]
    finally:
        context.close()


def column(page: Page, table: str, head: str) -> int:
    """Return the place of a table's column."""
    heads = page.locator(f"#{table} thead .head").all_inner_texts()
    return heads.index(head)


def cells(page: Page, table: str, head: str) -> list[str]:
    """Return the texts of a column's cells, of the rows that are shown."""
    return _read(page, table, head, "cell.querySelector('bdi').textContent")


def values(page: Page, table: str, head: str) -> list[float]:
    """Return the exact numbers of a column's cells, of the rows that are shown."""
    return [float(value) for value in _read(page, table, head, "cell.dataset.value ?? 'nan'")]


def _read(page: Page, table: str, head: str, expression: str) -> list[str]:
    script = (
        "([rows, place]) => rows.filter((row) => !row.hidden)"
        f".map((row) => row.cells[place]).map((cell) => {expression})"
    )
    handle = page.evaluate_handle(f"() => [...document.querySelectorAll('#{table} tbody tr')]")
    found: list[str] = page.evaluate(script, [handle, column(page, table, head)])
    return found
