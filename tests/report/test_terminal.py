import io

from rich.console import Console

from raypeft.report import terminal
from raypeft.report.findings import findings
from raypeft.report.morning import Morning, summarise
from tests.support.gain_rows import failed_cell, gain_row, morning_of, result_row


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
    assert len(text.splitlines()) <= 40
    for words in ("(baseline)", "Gains over base", "Failed cells", "7 tasks"):
        assert words in text


def test_a_night_of_many_adapters_and_tasks_fits_a_screen_too() -> None:
    assert len(printed(morning_of(many(32, 12))).splitlines()) <= 40


def test_the_baselines_values_and_intervals_stand_above_the_gains() -> None:
    gains = [gain_row("a", "t", "gain", 0.1) | {"baseline_low": 0.25, "baseline_high": 0.75}]
    lines = printed(morning_of(gains)).splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("(baseline)"))
    assert lines[at].split() == ["(baseline)", "0.5"]
    assert lines[at + 1].strip() == "[0.25, 0.75]"
    assert lines[at + 2].startswith("a ")


def test_baselines_without_adapters_have_a_table_of_their_own() -> None:
    rows = [result_row("t", is_group=False)]
    text = printed(summarise(rows, [], []))
    assert "Baseline of base" in text
    assert "± stderr" in text


def test_the_best_adapter_stands_first() -> None:
    lines = printed(morning_of(many(3, 2))).splitlines()
    order = [line.split()[0] for line in lines if line.startswith(("a0 ", "a1 ", "a2 "))]
    assert order == ["a2", "a1", "a0"]


def test_what_does_not_fit_is_counted_and_said_where_to_find() -> None:
    text = printed(morning_of(many(30, 14)))
    assert "… and 14 more adapters and 2 more tasks (--all or --html shows them)" in text
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
