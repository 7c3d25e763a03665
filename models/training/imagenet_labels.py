"""Write the names of ImageNet's classes: `python -m training.imagenet_labels`. It needs timm.

Each class gets one name: the first lemma of its WordNet synset, or the replacement below. The source are
timm's `imagenet_synsets.txt` and `imagenet_synset_to_lemma.txt`.
"""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from training.ship import ZOO

LABELS = ZOO.parent / "opaque" / "imagenet_labels.txt"
NOTICE = """\
# The names of ImageNet-1k's classes, in the order of the logits: the first lemma of each WordNet synset, or a
# name that says more. Written by `python -m training.imagenet_labels`.
# WordNet 3.0 Copyright 2006 by Princeton University. All rights reserved. Princeton University permits to
# use, copy, modify and distribute this database for any purpose and without fee or royalty, with this notice.
# It is provided "as is", without any warranty (https://wordnet.princeton.edu/license-and-commercial-use).
"""
REPLACED = {
    "n01608432": "kite (bird)",
    "n01601694": "dipper",
    "n01664065": "loggerhead turtle",
    "n02012849": "crane (bird)",
    "n02096585": "Boston terrier",
    "n02108089": "boxer (dog)",
    "n02111277": "Newfoundland dog",
    "n02112137": "chow chow",
    "n02113023": "Pembroke Welsh corgi",
    "n02113186": "Cardigan Welsh corgi",
    "n02134084": "polar bear",
    "n02190166": "fly (insect)",
    "n02229544": "cricket (insect)",
    "n02231487": "stick insect",
    "n02276258": "admiral (butterfly)",
    "n02277742": "ringlet (butterfly)",
    "n02279972": "monarch butterfly",
    "n02389026": "sorrel (horse)",
    "n02493509": "titi monkey",
    "n02509815": "red panda",
    "n02536864": "coho salmon",
    "n02655020": "pufferfish",
    "n02747177": "trash can",
    "n02814533": "station wagon",
    "n02879718": "bow (weapon)",
    "n02892201": "memorial brass",
    "n02930766": "taxi",
    "n02992529": "mobile phone",
    "n03126707": "crane (machine)",
    "n03337140": "filing cabinet",
    "n03459775": "radiator grille",
    "n03673027": "ocean liner",
    "n03710721": "tank suit",
    "n03793489": "computer mouse",
    "n03832673": "notebook computer",
    "n03854065": "pipe organ",
    "n03929660": "plectrum",
    "n03954731": "carpenter's plane",
    "n03991062": "flowerpot",
    "n04037443": "racing car",
    "n04118776": "ruler",
    "n04243546": "slot machine",
    "n04493381": "vat",
    "n04515003": "upright piano",
    "n10148035": "bridegroom",
    "n12620546": "rose hip",
    "n13133613": "ear of corn",
}
"""Names of classes whose first lemma is shared with another class, or is mostly the word of another thing."""


def names(synsets: Sequence[str], lemmas: Mapping[str, str]) -> list[str]:
    """A name for each synset. lemmas: of each synset, separated by commas."""
    return [REPLACED.get(synset) or lemmas[synset].split(", ")[0] for synset in synsets]


def main() -> None:
    spec = find_spec("timm")
    if spec is None or spec.origin is None:
        raise SystemExit("timm is not installed: pip install 'foveate[timm]'")
    folder = Path(spec.origin).parent / "data" / "_info"
    rows = (folder / "imagenet_synset_to_lemma.txt").read_text("utf-8").splitlines()
    lemmas = dict(row.split("\t", 1) for row in rows)
    labels = names((folder / "imagenet_synsets.txt").read_text().split(), lemmas)
    LABELS.write_text(NOTICE + "\n".join(labels) + "\n", "utf-8")


if __name__ == "__main__":
    main()
