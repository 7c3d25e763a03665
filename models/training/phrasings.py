"""The wordings of questions: those of the training, and those that the training never shows.

A held-out wording has words of the training's wordings, in an order of its own.
"""

from collections.abc import Mapping

TRAIN: Mapping[str, tuple[str, ...]] = {
    "presence": (
        "is there {a}?",
        "is there {a} in the picture?",
        "can you see {a}?",
        "do you see {a} here?",
        "does the picture show {a}?",
        "is {a} in this image?",
        "does this image contain {a}?",
        "are there any {many} here?",
    ),
    "name_alone": (
        "what is this?",
        "what is in the picture?",
        "what does the image show?",
        "which object do you see here?",
        "name the object.",
    ),
    "name": (
        "what is {side}?",
        "what is {side} of the picture?",
        "which object is {side}?",
        "what do you see {side}?",
        "name the object {side}.",
        "what is the object {side} of the image?",
    ),
    "place": (
        "where is the {name}?",
        "in which part of the picture is the {name}?",
        "where in the image is the {name}?",
        "where can you see the {name}?",
        "what is the place of the {name}?",
        "where do you see the {name} in this picture?",
    ),
    "count": (
        "how many objects are there?",
        "how many things can you see?",
        "how many objects are in the picture?",
        "how many things does the image show?",
        "what is the number of objects?",
        "count the objects.",
    ),
    "count_class": (
        "how many {many} are there?",
        "how many {many} can you see?",
        "how many {many} are in the picture?",
        "how many {many} does the image show?",
        "what is the number of {many}?",
        "count the {many}.",
    ),
    "colour": (
        "what colour is the {name}?",
        "which colour does the {name} have?",
        "what is the colour of the {name}?",
        "what colour does the {name} have in the picture?",
        "name the colour of the {name}.",
        "what color is the {name}?",
    ),
    "relation_holds": (
        "is the {name} {way} the {other}?",
        "is the {name} {way} the {other} in the picture?",
        "can you see the {name} {way} the {other}?",
        "in this image, is the {name} {way} the {other}?",
        "do you see the {name} {way} the {other} here?",
    ),
    "relation_name": (
        "what is {way} the {other}?",
        "which object is {way} the {other}?",
        "what do you see {way} the {other}?",
        "name the object {way} the {other}.",
        "which thing is {way} the {other} in the picture?",
    ),
    "caption": (
        "describe the picture.",
        "what can you see from left to right?",
        "describe the image.",
        "name all objects from left to right.",
        "what is in the picture, from left to right?",
        "list all things that you see.",
    ),
}
HELDOUT: Mapping[str, tuple[str, ...]] = {
    "presence": (
        "does the image show {a}?",
        "do you see {a} in the picture?",
        "can you see any {many} in this image?",
    ),
    "name_alone": ("what do you see in the image?", "which object is in the picture?"),
    "name": (
        "what can you see {side}?",
        "which thing is {side} of the image?",
        "name the thing {side}.",
    ),
    "place": (
        "where in the picture is the {name}?",
        "in which part of the image do you see the {name}?",
        "where is the {name} in this image?",
    ),
    "count": (
        "how many objects can you see?",
        "how many things are in the image?",
        "what is the number of things in the picture?",
    ),
    "count_class": (
        "how many {many} do you see?",
        "how many {many} are in the image?",
        "what is the number of {many} in the picture?",
    ),
    "colour": (
        "which colour is the {name}?",
        "what is the colour of the {name} in the image?",
        "what color does the {name} have?",
    ),
    "relation_holds": (
        "is the {name} {way} the {other} in this image?",
        "in the picture, is the {name} {way} the {other}?",
    ),
    "relation_name": (
        "which object do you see {way} the {other}?",
        "what is the object {way} the {other}?",
        "which thing is {way} the {other} in the image?",
    ),
    "caption": (
        "describe this picture.",
        "list all objects from left to right.",
        "name all things that you see.",
    ),
}
WORDINGS = {"train": TRAIN, "heldout": HELDOUT}
