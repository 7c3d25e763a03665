"""The family of photographs: its labels, and its answers to the example photographs."""

from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

from foveate.core.default_models import PHOTO_MODEL
from foveate.core.outcome import Result
from foveate.gateway.media.image import decode_image
from foveate.models.loading.loader import LoadOptions
from foveate.models.loading.photo_models import PhotoLoader
from foveate.models.opaque import photo_family
from foveate.models.opaque.runner import OpaqueRunner
from tests.support.photo_packages import needs_photo_weights

EXAMPLES = Path(__file__).parents[4] / "examples"
CATS = {"Egyptian cat", "tabby", "tiger cat"}


@pytest.fixture(scope="module")
def runner() -> OpaqueRunner:
    return PhotoLoader().load_unprofiled(PHOTO_MODEL, LoadOptions(precision="fp32", threads=1)).runner


def answers(runner: OpaqueRunner, data: bytes) -> set[str]:
    """The best class under every plan of the family."""
    assert runner.card.input is not None
    pixels = decode_image(data, runner.card.input, runner.full.image_size, 10**7)
    results = [runner.run(runner.stack([pixels], plan), plan)[0] for plan in runner.candidates()]
    assert len(results) == 15
    return {runner.card.labels[int(r.scores.argmax())] for r in results if isinstance(r, Result)}


@needs_photo_weights
def test_example_photographs_are_named_right_at_every_rung(runner: OpaqueRunner) -> None:
    assert answers(runner, (EXAMPLES / "espresso.jpg").read_bytes()) == {"espresso"}
    assert answers(runner, (EXAMPLES / "cat.jpg").read_bytes()) <= CATS


@needs_photo_weights
@pytest.mark.parametrize(("file", "label"), [("camera.png", "tripod"), ("motorcycle_left.png", "moped")])
def test_photographs_of_scikit_image_are_named_right_at_every_rung(
    runner: OpaqueRunner, file: str, label: str
) -> None:
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        pytest.skip("scikit-image is not installed")
    assert answers(runner, (Path(spec.origin).parent / "data" / file).read_bytes()) == {label}


@needs_photo_weights
def test_full_is_the_largest_member_and_members_run_alone() -> None:
    assert photo_family.members(PHOTO_MODEL)[0] == "efficientnet-lite2"
    assert photo_family.members("efficientnet-lite0") == ("efficientnet-lite0",)
    assert photo_family.members("vit-t") == ()
    member = photo_family.read("efficientnet-lite1")
    assert (member.image_size, member.sizes) == (240, (128, 160, 192, 224))


def test_each_class_has_a_name_of_its_own() -> None:
    labels = photo_family.labels()
    assert len(labels) == len(set(labels)) == 1000
    assert (labels[0], labels[285], labels[872], labels[967]) == (
        "tench",
        "Egyptian cat",
        "tripod",
        "espresso",
    )
    assert all(label == label.strip() and "," not in label for label in labels)


def test_example_photographs_are_small() -> None:
    # A drawn scene among them would be what a newcomer sends first, and no class of these models.
    assert {path.stem for path in EXAMPLES.glob("*.jpg")} == {"espresso", "cat"}
    for name in ("espresso", "cat"):
        with Image.open(EXAMPLES / f"{name}.jpg") as image:
            assert image.format == "JPEG"
        assert (EXAMPLES / f"{name}.jpg").stat().st_size < 150_000
