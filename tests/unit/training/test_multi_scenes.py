"""Scenes of several objects."""

import numpy as np

from training.labels import LABELS
from training.multi_scenes import (
    GAP,
    MOST_OBJECTS,
    NOTHING,
    PARTLY,
    SIDE,
    SIZES,
    draw_multi,
    object_from_json,
    tinted_sprites,
    visible_tints,
)

SCENES = [draw_multi("train", number) for number in range(60)]


def test_the_number_and_the_split_decide_the_scene() -> None:
    again = draw_multi("train", 7)
    np.testing.assert_array_equal(again.image, SCENES[7].image)
    assert again.objects == SCENES[7].objects
    assert not np.array_equal(draw_multi("heldout", 7).image, again.image)


def test_objects_are_apart_and_of_the_stated_sizes() -> None:
    for scene in SCENES:
        assert 1 <= len(scene.objects) <= MOST_OBJECTS
        boxes = [item.box for item in scene.objects]
        for number, (left, top, right, bottom) in enumerate(boxes):
            assert left >= 0 <= top and right <= SIDE >= bottom
            # A turned square is up to 1.42 times as wide as the upright one; round corners are narrower.
            assert 0.8 * SIZES[0] * SIDE < max(right - left, bottom - top) < 1.42 * SIZES[1] * SIDE
            for other in boxes[number + 1 :]:
                gap = max(left - other[2], other[0] - right, top - other[3], other[1] - bottom)
                assert gap >= GAP - 2  # boxes of visible pixels lie within those that were kept apart


def test_scenes_have_each_number_of_objects_repeated_classes_and_colours() -> None:
    assert {len(scene.objects) for scene in SCENES} == {1, 2, 3, 4}
    labels = [[item.label for item in scene.objects] for scene in SCENES]
    assert any(len(set(row)) < len(row) for row in labels)
    tints = [item.tint for scene in SCENES for item in scene.objects]
    assert 0.2 < sum(tint is not None for tint in tints) / len(tints) < 0.5


def test_owners_say_which_object_covers_a_patch() -> None:
    for scene in SCENES[:20]:
        for index, item in enumerate(scene.objects):
            rows, columns = np.divmod(np.flatnonzero(scene.owners == index), 14)
            left, top, right, bottom = (v / 16 for v in item.box)
            assert (rows + 1 > top).all() and (rows < bottom).all()
            assert (columns + 1 > left).all() and (columns < right).all()
        assert {NOTHING, PARTLY} <= set(scene.owners.tolist())


def test_a_tint_changes_the_colours_and_not_the_shape() -> None:
    label = "elephant"
    own, red = tinted_sprites(label, None)[0], tinted_sprites(label, "red")[0]
    np.testing.assert_array_equal(own[..., 3], red[..., 3])
    opaque = own[..., 3] > 0.9
    mean = red[..., :3][opaque].mean(0)
    assert mean[0] > 1.5 * max(mean[1], mean[2])
    assert "red" in visible_tints(label) and "grey" not in visible_tints(label)
    counts = [len(visible_tints(label)) for label in LABELS if not label.endswith("apple")]
    assert min(counts) >= 1 and np.mean(counts) > 5


def test_objects_are_read_back() -> None:
    for item in SCENES[5].objects:
        assert object_from_json(item.to_json()) == item
