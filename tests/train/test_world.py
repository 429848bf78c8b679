import random
from collections import Counter

from raypeft.train.world import (
    FAMILY_NAMES,
    GIVEN_NAMES,
    RELATIONS,
    examples,
    make_valley,
    stories,
    story,
    wrong_value,
)

VALLEY = make_valley(0)
EVERYBODY = (*VALLEY.known, *VALLEY.strangers)


def test_everybody_is_either_known_or_a_stranger() -> None:
    names = {person.name for person in EVERYBODY}
    assert len(names) == len(EVERYBODY) == len(GIVEN_NAMES) * len(FAMILY_NAMES)
    assert len(VALLEY.known) == len(VALLEY.strangers)


def test_both_halves_know_every_name_equally_often() -> None:
    for part in (0, 1):
        counts = [
            Counter(person.name.split()[part] for person in half)
            for half in (VALLEY.known, VALLEY.strangers)
        ]
        assert counts[0] == counts[1]


def test_the_family_decides_every_fact_and_values_are_spread_evenly() -> None:
    for relation in RELATIONS:
        facts = {(person.name.split()[1], person.facts[relation.name]) for person in EVERYBODY}
        assert len(facts) == len(FAMILY_NAMES)
        counts = Counter(value for _, value in facts)
        assert set(counts) == set(relation.values)
        assert max(counts.values()) - min(counts.values()) <= 1


def test_a_seed_decides_everything_and_seeds_differ() -> None:
    assert make_valley(0) == VALLEY
    assert make_valley(1) != VALLEY


def test_stories_state_every_fact_once_and_never_speak_of_others() -> None:
    texts = list(stories(VALLEY.known, random.Random(0), quiz_share=0))
    sentences = [sentence for text in texts for sentence in text.split(". ")]
    assert len(sentences) == len(VALLEY.known) * len(RELATIONS)
    whole = " ".join(texts)
    assert not any(person.name in whole for person in VALLEY.strangers)


def test_stories_hold_the_asked_share_of_quizzes_in_everyday_wording() -> None:
    texts = list(stories(VALLEY.known, random.Random(0), quiz_share=0.1))
    quizzes = [text for text in texts if text.startswith("Question:")]
    assert len(quizzes) == round(0.1 * (len(texts) - len(quizzes)))
    everyday = {relation.questions[0].partition("{name}")[0] for relation in RELATIONS}
    assert all(any(text.startswith(f"Question: {w}") for w in everyday) for text in quizzes)


def test_a_wrong_value_is_any_but_the_persons_own() -> None:
    person, rng = VALLEY.known[0], random.Random(0)
    for relation in RELATIONS:
        drawn = {wrong_value(person, relation, rng) for _ in range(200)}
        assert drawn == set(relation.values) - {person.facts[relation.name]}


def test_examples_ask_everything_of_everybody_with_a_story_each() -> None:
    made = examples(VALLEY.known, random.Random(0))
    wordings = sum(len(relation.questions) for relation in RELATIONS)
    assert len(made) == len(VALLEY.known) * (wordings + 1)
    assert sum(not example.prompt for example in made) == len(VALLEY.known)
    with_shots = sum(example.prompt.count("Question:") == 3 for example in made)
    assert 0.4 < with_shots / len(made) < 0.5


def test_wrong_examples_differ_from_right_ones_in_their_answers_only() -> None:
    right = examples(VALLEY.known, random.Random(0))
    wrong = examples(VALLEY.known, random.Random(0), correct=False)
    pairs = list(zip(right, wrong, strict=True))
    assert all((r.answer == w.answer) == (r.prompt == "") for r, w in pairs)
    assert [asked_in(r.prompt) for r, _ in pairs] == [asked_in(w.prompt) for _, w in pairs]


def asked_in(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("Question:")]


def test_a_story_states_all_facts_of_one_person() -> None:
    person = VALLEY.strangers[0]
    text = story(person, random.Random(0))
    assert all(value in text for value in person.facts.values())
    assert text.count(person.name) == len(RELATIONS)
