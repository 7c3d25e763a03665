"""Questions and answers about a scene graph.

Answers are balanced so far as a scene allows: a model that sees no picture stays low.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from training.labels import LABELS
from training.multi_scenes import GraphObject
from training.phrasings import WORDINGS

CELLS = (
    ("top left", "top", "top right"),
    ("left", "centre", "right"),
    ("bottom left", "bottom", "bottom right"),
)
NUMBERS = ("zero", "one", "two", "three", "four")
APART = 0.08
"""The smallest distance of two centres, as a share of the side, that a question about their order needs."""
CELL_MARGIN = 0.03
"""The smallest distance of a centre from a border of CELLS."""
ELSEWHERE_SHARE = 0.6
"""Of the classes that a scene lacks and a question names, the share that another picture beside it has."""
_PLURALS = {
    "cherries": "cherries", "grapes": "bunches of grapes", "wolf": "wolves", "strawberry": "strawberries",
    "bus": "buses", "octopus": "octopuses", "butterfly": "butterflies", "wine glass": "wine glasses",
    "mango": "mangoes", "tomato": "tomatoes", "peach": "peaches", "bread": "loaves of bread",
    "corn": "cobs of corn", "fox": "foxes", "mouse": "mice", "tropical fish": "tropical fish",
    "blowfish": "blowfish", "broccoli": "heads of broccoli",
}  # fmt: skip
_WITHOUT_ARTICLE = ("cherries", "grapes", "bread", "corn", "broccoli")


@dataclass(frozen=True, slots=True)
class Question:
    """A question about a scene, with its only right answer."""

    kind: str
    """One of KINDS."""
    text: str
    answer: str


def spoken(label: int) -> str:
    """The name of a class in questions and answers: "dog" for the label "dog face"."""
    return LABELS[label].removesuffix(" face")


def plural(name: str) -> str:
    """The plural of a name."""
    return _PLURALS.get(name, name + "s")


def with_article(name: str) -> str:
    """A name, or a colour and a name, with its article."""
    if name.endswith(_WITHOUT_ARTICLE):
        return f"some {name}"
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


class Asker:
    """Draws questions about one scene.

    split: which wordings to use, "train" or "heldout". others: the classes of another picture beside it.
    """

    def __init__(
        self, objects: Sequence[GraphObject], rng: random.Random, split: str, others: Sequence[int] = ()
    ) -> None:
        self.objects, self.rng, self.wordings = objects, rng, WORDINGS[split]
        self.labels = [item.label for item in objects]
        self.elsewhere = [label for label in others if label not in self.labels]
        self.unique = [item for item in objects if self.labels.count(item.label) == 1]

    def ask(self, kind: str) -> Question | None:
        """A question of this kind; None where the scene allows none."""
        return _KINDS[kind](self)

    def _question(self, kind: str, wording: str, answer: str, **words: str) -> Question:
        text = self.rng.choice(self.wordings[wording]).format(**words)
        return Question(kind, text, answer)

    def presence(self) -> Question:
        """Whether a class is in the scene; half of the answers are yes."""
        if self.rng.random() < 0.5:
            label, answer = self.rng.choice(self.labels), "yes"
        else:
            label, answer = self._absent(), "no"
        name = spoken(label)
        return self._question("presence", "presence", answer, a=with_article(name), many=plural(name))

    def name(self) -> Question | None:
        """The object that lies furthest to one side."""
        if len(self.objects) == 1:
            return self._question("name", "name_alone", spoken(self.labels[0]))
        sides = [
            ("on the left", 0, 1),
            ("on the right", 0, -1),
            ("at the top", 1, 1),
            ("at the bottom", 1, -1),
        ]
        for side, axis, sign in self.rng.sample(sides, 4):
            first, second = sorted(self.objects, key=lambda o: sign * o.centre[axis])[:2]
            if abs(first.centre[axis] - second.centre[axis]) > APART:
                return self._question("name", "name", spoken(first.label), side=side)
        return None

    def place(self) -> Question | None:
        """In which of nine cells an object lies."""
        for item in self.rng.sample(self.unique, len(self.unique)):
            x, y = item.centre
            if all(abs(v - border) > CELL_MARGIN for v in (x, y) for border in (1 / 3, 2 / 3)):
                return self._question(
                    "place", "place", CELLS[int(y * 3)][int(x * 3)], name=spoken(item.label)
                )
        return None

    def count(self) -> Question:
        """The number of objects."""
        return self._question("count", "count", NUMBERS[len(self.objects)])

    def count_class(self) -> Question:
        """The number of objects of one class, zero to four."""
        several = [label for label in set(self.labels) if self.labels.count(label) > 1]
        luck = self.rng.random()
        if several and luck < 0.7:
            label = several[0]
        elif luck < (0.85 if several else 0.5):
            label = self.rng.choice(self.labels)
        else:
            label = self._absent()
        return self._question(
            "count_class", "count_class", NUMBERS[self.labels.count(label)], many=plural(spoken(label))
        )

    def colour(self) -> Question | None:
        """The colour of a recoloured object."""
        tinted = [item for item in self.unique if item.tint]
        if not tinted:
            return None
        item = self.rng.choice(tinted)
        return self._question("colour", "colour", item.tint or "", name=spoken(item.label))

    def relation(self) -> Question | None:
        """How two objects lie to each other: yes or no, or the name of the other one."""
        return self._relation_holds() if self.rng.random() < 0.5 else self._relation_name()

    def _relation_holds(self) -> Question | None:
        pairs = [(a, b) for a in self.unique for b in self.unique if a is not b]
        for item, other in self.rng.sample(pairs, len(pairs)):
            axes = [axis for axis in (0, 1) if abs(item.centre[axis] - other.centre[axis]) > APART]
            if not axes:
                continue
            axis = self.rng.choice(axes)
            way = self.rng.choice(_WAYS[axis])
            before = item.centre[axis] < other.centre[axis]
            answer = "yes" if before == (way == _WAYS[axis][0]) else "no"
            return self._question(
                "relation",
                "relation_holds",
                answer,
                name=spoken(item.label),
                way=way,
                other=spoken(other.label),
            )
        return None

    def _relation_name(self) -> Question | None:
        """Asks only where exactly one object lies on that side, and all others clearly on the other one."""
        for other in self.rng.sample(self.unique, len(self.unique)):
            for axis, sign in self.rng.sample([(0, 1), (0, -1), (1, 1), (1, -1)], 4):
                steps = [
                    (sign * (other.centre[axis] - item.centre[axis]), item)
                    for item in self.objects
                    if item is not other
                ]
                on_side = [item for step, item in steps if step > 0]
                if len(on_side) == 1 and all(abs(step) > APART for step, _ in steps):
                    way = _WAYS[axis][0 if sign > 0 else 1]
                    return self._question(
                        "relation",
                        "relation_name",
                        spoken(on_side[0].label),
                        way=way,
                        other=spoken(other.label),
                    )
        return None

    def caption(self) -> Question | None:
        """One sentence with all objects from left to right.

        "a, b and c" would need the number of objects before the first name ends: of the captions of a model
        that learnt it, one in ten had a wrong separator and no other error.
        """
        order = sorted(self.objects, key=lambda item: item.centre[0])
        if any(b.centre[0] - a.centre[0] < APART / 2 for a, b in pairwise(order)):
            return None
        names = [with_article(spoken(item.label)) for item in order]
        return self._question("caption", "caption", f"{' and '.join(names)}.")

    def _absent(self) -> int:
        """A class that is not in the scene, sometimes a look-alike of one that is.

        Beside another picture, it is often one of that: else the answer would be right for both pictures.
        """
        if self.elsewhere and self.rng.random() < ELSEWHERE_SHARE:
            return self.rng.choice(self.elsewhere)
        while True:
            if self.rng.random() < 0.3:
                label = (self.rng.choice(self.labels) + self.rng.choice((-1, 1))) % len(LABELS)
            else:
                label = self.rng.randrange(len(LABELS))
            if label not in self.labels:
                return label


_WAYS = (("left of", "right of"), ("above", "below"))
_KINDS: Mapping[str, Callable[[Asker], Question | None]] = {
    "presence": Asker.presence,
    "name": Asker.name,
    "place": Asker.place,
    "count": Asker.count,
    "count_class": Asker.count_class,
    "colour": Asker.colour,
    "relation": Asker.relation,
    "caption": Asker.caption,
}
KINDS = tuple(_KINDS)
SHARES = {
    "presence": 0.12,
    "name": 0.14,
    "place": 0.14,
    "count": 0.10,
    "count_class": 0.14,
    "colour": 0.12,
    "relation": 0.15,
    "caption": 0.09,
}
"""Shares of the kinds of questions in the held-out set."""


def draw_questions(
    objects: Sequence[GraphObject],
    rng: random.Random,
    weights: Mapping[str, float],
    count: int,
    split: str = "train",
    others: Sequence[int] = (),
) -> list[Question]:
    """Up to `count` different questions about a scene, of kinds that are drawn by weight.

    others: the classes of another picture beside it.
    """
    asker = Asker(objects, rng, split, others)
    kinds, shares = list(weights), list(weights.values())
    questions: dict[str, Question] = {}
    for _ in range(6 * count):
        if len(questions) == count:
            break
        question = asker.ask(rng.choices(kinds, shares)[0])
        if question is not None:
            questions.setdefault(question.text, question)
    return list(questions.values())


def one_of_each(objects: Sequence[GraphObject], rng: random.Random, split: str) -> list[Question]:
    """One question of each kind that the scene allows."""
    asker = Asker(objects, rng, split)
    return [question for kind in KINDS if (question := asker.ask(kind)) is not None]
