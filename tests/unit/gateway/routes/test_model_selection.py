"""The choice of the model: by name, by clip model, and by the kind of media."""

from dataclasses import replace

import pytest

from foveate.core.errors import UnknownModel, UnsupportedMedia
from foveate.core.model import ModelCard
from foveate.gateway.routes.model_selection import ModelSelector
from tests.support.fake_runner import FakeRunner


def card(name: str, frames: int = 0, clip_model: str = "") -> ModelCard:
    """A model of images, or of videos if it has frames."""
    return replace(FakeRunner(name).card, frames=frames, clip_model=clip_model)


PLAIN, PAIRED = card("plain"), card("paired", clip_model="paired-clip")
CLIP, PAIRED_CLIP = card("clip", frames=8), card("paired-clip", frames=4)
ALL = ModelSelector("classify", {each.name: each for each in (PLAIN, PAIRED, CLIP, PAIRED_CLIP)})
IMAGES = ModelSelector("classify", {"plain": PLAIN})


@pytest.mark.parametrize(
    ("name", "video", "chosen"),
    [
        (None, False, PLAIN),
        (None, True, CLIP),
        ("paired", False, PAIRED),
        ("paired", True, PAIRED_CLIP),
        ("plain", True, PLAIN),
        ("clip", False, CLIP),
    ],
)
def test_model_by_name(name: str | None, video: bool, chosen: ModelCard) -> None:
    assert ALL.by_name(name, video) is chosen


def test_first_model_answers_if_none_takes_the_media_yet() -> None:
    assert IMAGES.by_name(None, video=True) is PLAIN


def test_unknown_model_is_refused_with_the_names_of_the_others() -> None:
    with pytest.raises(
        UnknownModel, match="'gpt' is served; the models are plain, paired, clip, paired-clip"
    ):
        ALL.by_name("gpt", video=False)
    with pytest.raises(UnknownModel, match=r"no model 'plane' is served; did you mean plain\?$"):
        ALL.by_name("plane", video=False)
    with pytest.raises(UnknownModel, match="no model of task classify is served; GET /models"):
        ModelSelector("classify", {}).by_name(None, video=False)


def test_models_of_other_tasks_are_named_with_their_route() -> None:
    segmenter = replace(card("seg"), task="segment", click_model="seg-clicks")
    clicks = replace(card("seg-clicks"), task="clicks")
    served = {each.name: each for each in (PLAIN, segmenter, clicks)}
    classify, segment = ModelSelector("classify", served), ModelSelector("segment", served)
    assert classify.by_name(None, video=False) is PLAIN
    assert segment.by_name(None, video=False) is segmenter
    with pytest.raises(UnknownModel, match=r"^seg is served under /segment, not under /classify$"):
        classify.by_name("seg", video=False)
    with pytest.raises(UnknownModel, match=r"^plain is served under /classify, not under /segment$"):
        segment.by_name("plain", video=False)
    for selector in (classify, segment):
        with pytest.raises(
            UnknownModel, match=r"^seg-clicks answers points: .* /segment, with the model seg$"
        ):
            selector.by_name("seg-clicks", video=False)
    with pytest.raises(UnknownModel, match=r"^plain is served under /classify, not under /segment$"):
        ModelSelector("segment", {"plain": PLAIN}).by_name("plain", video=False)
    with pytest.raises(UnknownModel, match=r"'gpt' is served; GET /models lists the models"):
        ModelSelector("segment", {"plain": PLAIN}).by_name("gpt", video=False)


def test_medium_may_replace_a_model_that_the_client_did_not_name() -> None:
    assert ALL.for_medium(PLAIN, video=False, named=True) is PLAIN
    assert ALL.for_medium(PLAIN, video=True, named=False) is CLIP
    assert ALL.for_medium(CLIP, video=False, named=False) is PLAIN
    assert ALL.for_medium(PAIRED, video=True, named=True) is PAIRED_CLIP


def test_medium_that_no_allowed_model_takes_is_refused() -> None:
    with pytest.raises(UnsupportedMedia, match="plain takes images, and the request has a clip"):
        ALL.for_medium(PLAIN, video=True, named=True)
    with pytest.raises(UnsupportedMedia, match="clip takes clips, and the request has an image"):
        ALL.for_medium(CLIP, video=False, named=True)
    with pytest.raises(UnsupportedMedia, match="plain takes images"):
        IMAGES.for_medium(PLAIN, video=True, named=False)
