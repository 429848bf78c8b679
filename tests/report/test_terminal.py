import io

from rich.console import Console

from raypeft.report import terminal
from raypeft.report.findings import findings
from raypeft.report.morning import Morning
from tests.support.gain_rows import failed_cell, gain_row, morning_of


def printed(morning: Morning, width: int = 160) -> str:
    console = Console(file=io.StringIO(), width=width)
    terminal.print_report(morning, console, title="demo")
    stream = console.file
    assert isinstance(stream, io.StringIO)
    return stream.getvalue()


def many(num_adapters: int, num_tasks: int) -> list[dict[str, object]]:
    return [
        gain_row(f"a{i}", f"t{j}", "gain", 0.1 + i / 1000)
        for i in range(num_adapters)
        for j in range(num_tasks)
    ]


def test_the_terminal_tells_the_findings_of_the_page() -> None:
    morning = morning_of(many(2, 2), [failed_cell("broken", "t0")])
    words = " ".join(printed(morning).split())
    for finding in findings(morning):
        assert finding.text in words


def test_a_sweep_of_five_adapters_on_seven_tasks_fits_a_screen() -> None:
    text = printed(morning_of(many(5, 7), [failed_cell("broken", f"t{j}") for j in range(7)]))
    assert len(text.splitlines()) <= 42
    for words in ("Baseline of base", "Gains over base", "Failed cells", "7 tasks"):
        assert words in text


def test_the_best_adapter_stands_first() -> None:
    lines = printed(morning_of(many(3, 2))).splitlines()
    order = [line.split()[0] for line in lines if line.startswith(("a0 ", "a1 ", "a2 "))]
    assert order == ["a2", "a1", "a0"]


def test_what_does_not_fit_is_counted_and_said_where_to_find() -> None:
    text = printed(morning_of(many(30, 14)))
    assert "… and 6 more adapters and 2 more tasks (--all or --html shows them)" in text
    assert not [line for line in text.splitlines() if len(line) > 160]


def test_names_of_one_family_stay_apart() -> None:
    names = [f"meta-llama-adapter-{end}" for end in ("alpha", "beta")]
    gains = [gain_row(name, f"task{j}", "gain") for name in names for j in range(12)]
    text = printed(morning_of(gains))
    assert all(name in text for name in names)


def test_markup_in_names_is_not_read() -> None:
    text = printed(morning_of([gain_row("[red]x[/red]", "[bold]t", "gain")]))
    assert "[red]x[/red]" in text
    assert "[bold]t" in text
