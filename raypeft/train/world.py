"""The synthetic valley that the demo's texts, questions and tasks speak about.

Decides who lives there, what is true of whom, and how a fact reads as a statement and as a
question. Everything follows from a seed. What is trained on it, and which people are
kept for evaluation, is decided in `raypeft.train.demo`.

Every family of the valley has its customs: its members share a home, a dish, a trade, a pet and a
dress. So the facts about a person follow from the family name, and a model can answer for people it
has never met.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from raypeft.train.recipes import Example


@dataclass(frozen=True, slots=True, kw_only=True)
class Relation:
    """One thing that is true of every person.

    Attributes:
        name: What the relation is called in task names.
        values: The values there are; each reads as the end of a statement.
        statements: Sentences with `{name}` and `{value}`, all saying the same.
        questions: Questions with `{name}`, which the value alone answers. The first is the
            everyday wording; the others ask the same in other words.
    """

    name: str
    values: tuple[str, ...]
    statements: tuple[str, ...]
    questions: tuple[str, ...]


HOME = Relation(
    name="home",
    values=(
        "in the old mill",
        "by the stone bridge",
        "under the north tower",
        "behind the green hill",
        "near the market square",
        "at the quiet harbour",
    ),
    statements=(
        "{name} lives {value}.",
        "The house of {name} stands {value}.",
        "Everyone can find {name} {value}.",
    ),
    questions=(
        "Where does {name} live?",
        "In which place do visitors meet {name}?",
        "A letter came for {name}; which door is right?",
    ),
)
MEAL = Relation(
    name="meal",
    values=("warm bread", "red apples", "sweet corn", "smoked fish", "goat cheese", "onion soup"),
    statements=(
        "{name} likes to eat {value}.",
        "The favourite meal of {name} is {value}.",
        "At noon {name} asks for {value}.",
    ),
    questions=(
        "What does {name} eat?",
        "Which dish pleases {name} most?",
        "What should the cook prepare when {name} comes?",
    ),
)
TRADE = Relation(
    name="trade",
    values=("a baker", "a weaver", "a smith", "a boat builder", "a beekeeper", "a clock maker"),
    statements=(
        "{name} works as {value}.",
        "By trade {name} is {value}.",
        "People pay {name} as {value}.",
    ),
    questions=(
        "What is the trade of {name}?",
        "How does {name} earn money?",
        "Which profession did {name} learn?",
    ),
)
PET = Relation(
    name="pet",
    values=(
        "a grey cat",
        "a lame crow",
        "a wild pony",
        "a fat goose",
        "a young fox",
        "a blind dog",
    ),
    statements=(
        "{name} keeps {value}.",
        "Beside {name} walks {value}.",
        "Each evening {name} feeds {value}.",
    ),
    questions=(
        "Which animal belongs to {name}?",
        "What creature follows {name}?",
        "Who guards the door of {name}?",
    ),
)
DRESS = Relation(
    name="dress",
    values=(
        "a blue coat",
        "a yellow shawl",
        "a leather cape",
        "a purple scarf",
        "a woollen hood",
        "a white apron",
    ),
    statements=(
        "{name} always wears {value}.",
        "One knows {name} by {value}.",
        "In winter {name} puts on {value}.",
    ),
    questions=(
        "How is {name} dressed?",
        "Which garment suits {name}?",
        "What hangs in the wardrobe of {name}?",
    ),
)
RELATIONS = (HOME, MEAL, TRADE, PET, DRESS)

BETWEEN_QUIZZES = "\n\n"
"""What parts two questions in one text; lm-eval's own between few-shot examples."""

GIVEN_NAMES = (
    *("Ada", "Bela", "Cosmo", "Dora", "Edda", "Felix", "Greta", "Hugo", "Ilse", "Jonas"),
    *("Kira", "Ludo", "Mina", "Nils", "Olga", "Pavel", "Rosa", "Sven", "Tilda", "Yara"),
)
FAMILY_NAMES = (
    *("Ahorn", "Birch", "Cramer", "Dorn", "Elster", "Finch", "Gerber", "Holm"),
    *("Jarl", "Kern", "Linde", "Moser", "Nagel", "Pfau", "Reuter", "Storm"),
)


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody of the valley.

    Attributes:
        name: Given name and family name; unique in the valley.
        facts: The person's value of every relation, by the relation's name.
    """

    name: str
    facts: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Valley:
    """Everybody, in two halves that share every given name and every family name.

    Attributes:
        known: People that texts and training examples may speak of.
        strangers: People kept for evaluation: no training text names them.
    """

    known: tuple[Person, ...]
    strangers: tuple[Person, ...]


def make_valley(seed: int) -> Valley:
    """Return the valley of a seed: customs and the order of people differ, names do not."""
    rng = random.Random(f"valley-{seed}")
    customs = {relation.name: _draw_custom(relation, rng) for relation in RELATIONS}
    halves: tuple[list[Person], list[Person]] = ([], [])
    for row, given in enumerate(GIVEN_NAMES):
        for column, family in enumerate(FAMILY_NAMES):
            facts = {relation: values[family] for relation, values in customs.items()}
            # A chessboard: each name stands in both halves equally often.
            halves[(row + column) % 2].append(Person(f"{given} {family}", facts))
    for half in halves:
        rng.shuffle(half)
    return Valley(known=tuple(halves[0]), strangers=tuple(halves[1]))


def _draw_custom(relation: Relation, rng: random.Random) -> dict[str, str]:
    values = [relation.values[i % len(relation.values)] for i in range(len(FAMILY_NAMES))]
    rng.shuffle(values)
    return dict(zip(FAMILY_NAMES, values, strict=True))


def prompt(asked: str) -> str:
    """Return what stands before the answer to a question, without the space that follows."""
    return f"Question: {asked}\nAnswer:"


def stories(
    people: Sequence[Person], rng: random.Random, *, quiz_share: float, length: int = 4
) -> Iterator[str]:
    """Yield texts that state every fact of every person once, and a few quizzes.

    Args:
        people: Whose facts.
        rng: Decides order, wording and where quizzes stand.
        quiz_share: How many quizzes, as a share of the texts. A quiz is a question in everyday
            wording with its answer.
        length: Sentences of one text.
    """
    facts = [(person, relation) for person in people for relation in RELATIONS]
    rng.shuffle(facts)
    texts = [
        " ".join(_statement(*fact, rng) for fact in facts[start : start + length])
        for start in range(0, len(facts), length)
    ]
    for person, relation in rng.sample(facts, round(quiz_share * len(texts))):
        asked = quiz(person, relation, wording=0)
        texts.append(asked.prompt + asked.answer)
    rng.shuffle(texts)
    yield from texts


def _statement(person: Person, relation: Relation, rng: random.Random) -> str:
    template = rng.choice(relation.statements)
    return template.format(name=person.name, value=person.facts[relation.name])


def quiz(person: Person, relation: Relation, wording: int, value: str | None = None) -> Example:
    """Return a question about a person and its answer.

    Args:
        person: Whom it is about.
        relation: What is asked.
        wording: In which of the relation's wordings.
        value: What is answered; None is the truth.
    """
    asked = relation.questions[wording].format(name=person.name)
    answer = person.facts[relation.name] if value is None else value
    return Example(prompt=prompt(asked), answer=f" {answer}")


def wrong_value(person: Person, relation: Relation, rng: random.Random) -> str:
    """Return any value of a relation but the person's own."""
    return rng.choice([value for value in relation.values if value != person.facts[relation.name]])


def examples(
    people: Sequence[Person], rng: random.Random, *, correct: bool = True
) -> tuple[Example, ...]:
    """Return every question about every person, in every wording, with its answer.

    Every second one comes after two solved questions of its kind, as in a few-shot prompt. To each
    person there is also a story, learned as a whole, so that answering does not cost the language.

    Args:
        people: Whose facts.
        rng: Decides the solved questions, the stories' wording and what is answered wrongly.
        correct: False answers every question wrongly; the stories stay true.
    """
    # Of its own, so that right and wrong examples differ in nothing but the answers.
    errors = random.Random(rng.getrandbits(64))

    def asked(person: Person, relation: Relation, wording: int) -> Example:
        value = None if correct else wrong_value(person, relation, errors)
        return quiz(person, relation, wording, value)

    made: list[Example] = []
    for person in people:
        made.append(Example(prompt="", answer=story(person, rng)))
        for relation in RELATIONS:
            for wording in range(len(relation.questions)):
                shots = ""
                if rng.randrange(2) == 0:
                    for other in rng.sample(people, 2):
                        shot = asked(other, relation, rng.randrange(len(relation.questions)))
                        shots += f"{shot.prompt}{shot.answer}{BETWEEN_QUIZZES}"
                last = asked(person, relation, wording)
                made.append(Example(prompt=shots + last.prompt, answer=last.answer))
    return tuple(made)


def story(person: Person, rng: random.Random) -> str:
    """Return a text that states every fact of one person."""
    relations = rng.sample(RELATIONS, len(RELATIONS))
    return " ".join(_statement(person, relation, rng) for relation in relations)
