import pytest

from raypeft.core.equivalence import Margin
from raypeft.core.spec import Sweep, dump_sweep, make_sweep, parse_sweep
from raypeft.errors import SpecError

MINIMAL = {"output": "runs/a", "bases": ["gpt2"], "tasks": ["arc_easy"]}


def sweep(**statistics: object) -> Sweep:
    return make_sweep(MINIMAL | {"statistics": statistics})


def test_without_a_word_about_it_statistics_are_the_usual_ones() -> None:
    usual = make_sweep(MINIMAL).statistics
    assert (usual.alpha, usual.power, usual.resamples, usual.noise_floor) == (
        0.05,
        0.8,
        9_999,
        False,
    )
    assert usual.margins == {}


def test_margins_are_numbers_or_shares_by_metric() -> None:
    found = sweep(margin={"acc": 0.01, "word_perplexity": "2%"}).statistics.margins
    assert found == {"acc": Margin(0.01), "word_perplexity": Margin(0.02, is_relative=True)}


def test_early_stopping_is_off_and_a_word_turns_it_on() -> None:
    assert make_sweep(MINIMAL).statistics.early_stopping is None
    found = sweep(early_stopping={}).statistics.early_stopping
    assert found is not None
    assert (found.metric, found.least_gain, found.alpha, found.looks) == ("", 0.0, 0.05, 8)


@pytest.mark.parametrize(
    ("setting", "place"),
    [
        ({"alpha": 0}, "alpha"),
        ({"least_gain": 1.0}, "least_gain"),
        ({"looks": 1}, "looks"),
        ({"metric": "acc,"}, "metric"),
        ({"bound": "hoeffding"}, "bound"),
    ],
)
def test_early_stopping_that_makes_no_sense_is_refused_by_its_place(
    setting: dict[str, object], place: str
) -> None:
    with pytest.raises(SpecError, match=f"statistics.early_stopping.{place}"):
        sweep(early_stopping=setting)


def test_what_is_set_comes_back_from_the_written_sweep() -> None:
    made = make_sweep(
        MINIMAL
        | {"statistics": {"margin": {"acc": "1%"}, "noise_floor": True, "alpha": 0.01}}
        | {"tasks": [{"name": "squad", "cluster": "passage.id"}]}
    )
    again = parse_sweep(dump_sweep(made), source="x")
    assert again == made
    assert again.tasks[0].cluster == "passage.id"


@pytest.mark.parametrize(
    ("statistics", "words"),
    [
        ({"margin": 0.01}, "a mapping of metrics to margins"),
        ({"margin": {"acc": -1}}, "that of acc is -1, expected a number above 0"),
        ({"margin": {"acc": "two"}}, "that of acc is 'two'"),
        ({"alpha": 5}, "a share above 0 and below 1"),
        ({"resamples": 10}, "a whole number from 999"),
        ({"noise_flor": True}, "did you mean `noise_floor`?"),
        ({"noise_floor": "yes"}, "true or false"),
    ],
)
def test_what_is_wrong_says_what_is_allowed(statistics: dict[str, object], words: str) -> None:
    with pytest.raises(SpecError) as raised:
        sweep(**statistics)
    assert words in str(raised.value)


@pytest.mark.parametrize("names", [("x", "x@again"), ("x@hf@again", "x")])
def test_a_base_must_not_be_called_as_a_baseline_that_is_answered_again(
    names: tuple[str, str],
) -> None:
    bases = [{"path": f"org/{i}", "name": name} for i, name in enumerate(names)]
    with pytest.raises(SpecError, match="second baselines of a base"):
        make_sweep(MINIMAL | {"bases": bases})
