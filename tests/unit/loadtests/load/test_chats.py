"""The chats of a run: what they ask, how often pictures repeat, and how conversations go on."""

import base64
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from foveate.core.errors import SetupError
from foveate.models.zoo.heldout import AskedImage, AskedQuestion
from loadtests.load.chats import ChatRequests, ChatTraffic, asked_images, chat_traffic

IMAGES = tuple(
    AskedImage(
        b"jpeg %d" % image,
        tuple(
            AskedQuestion(kind, f"{kind} of {image}?", f"{kind} {image}")
            for kind in ("name", "count", "place")
        ),
    )
    for image in range(50)
)
AT = np.arange(400) / 10


def requests(seed: int = 0, **fields: object) -> ChatRequests:
    return ChatRequests(ChatTraffic.model_validate({"model": "m", **fields}), IMAGES, AT, seed)


def test_traffic_is_a_model_json_or_a_json_file(tmp_path: Path) -> None:
    given = {"model": "m", "max_tokens": {"4": 3, "64": 1}, "repeated": 0.5}
    (tmp_path / "chats.json").write_text(json.dumps(given))
    traffic = chat_traffic(json.dumps(given))
    assert traffic == chat_traffic(str(tmp_path / "chats.json"))
    assert traffic.max_tokens == {4: 3.0, 64: 1.0}
    assert chat_traffic("vit-t-chat") == ChatTraffic(model="vit-t-chat")
    assert chat_traffic('{"model": "m", "max_tokens": 8}').max_tokens == {8: 1.0}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "the chats are invalid at the text: Invalid JSON"),
        ("{}", "the chats are invalid at model: Field required"),
        ('{"model": "m", "repeated": 2}', "at repeated: Input should be less than or equal to 1"),
        ('{"model": "m", "max_tokens": {"0": 1}}', "at max_tokens.0"),
        ('{"model": "m", "colour": 1}', "at colour: Extra"),
        ("nowhere.json", r"cannot read the chats nowhere\.json: No such file"),
    ],
)
def test_invalid_traffic_is_an_error_of_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(SetupError, match=sentence):
        chat_traffic(text)


def test_shares_are_those_of_the_traffic() -> None:
    chats = requests(follow_ups=0.3, repeated=0.5, max_tokens={"4": 3, "64": 1}).chats
    assert abs(np.mean([len(chat.questions) > 1 for chat in chats]) - 0.3) < 0.07
    first = [chat for chat in chats if len(chat.questions) == 1]
    assert abs(np.mean([chat.repeated for chat in first]) - 0.5) < 0.35, "50 pictures run out"
    assert abs(np.mean([chat.max_tokens == 4 for chat in chats]) - 0.75) < 0.08
    again = requests(follow_ups=0.3, repeated=0.5, max_tokens={"4": 3, "64": 1}).chats
    assert chats == again != requests(1, follow_ups=0.3, repeated=0.5).chats


def test_a_picture_is_new_until_a_conversation_was_about_it() -> None:
    seen: set[int] = set()
    for chat in requests(follow_ups=0, repeated=0.3).chats:
        assert chat.repeated == (chat.image in seen)
        seen.add(chat.image)
    assert not any(chat.repeated for chat in requests(follow_ups=0, repeated=0).chats[:50])


def test_a_conversation_goes_on_after_a_pause_and_asks_nothing_twice() -> None:
    made = requests(follow_ups=1.0, repeated=0, turns=3, pause_s=1.0, idle_s=3.0).chats[:100]
    last_at: dict[tuple[int, tuple[int, ...]], float] = {}
    for at, chat in zip(AT, made, strict=False):
        assert len(set(chat.questions)) == len(chat.questions) <= 3
        if len(chat.questions) > 1:
            assert 1.0 <= at - last_at[chat.image, chat.questions[:-1]] <= 3.0
        last_at[chat.image, chat.questions] = at
    assert Counter(len(chat.questions) for chat in made)[3] > 10


def test_kinds_of_questions_have_weights() -> None:
    made = requests(kinds={"name": 3, "count": 1}, follow_ups=0)
    kinds = Counter(record.kind for record in (made.chat(n, None) for n in range(len(AT))))
    assert abs(kinds["name"] / len(AT) - 0.75) < 0.08 and not kinds["place"]
    with pytest.raises(SetupError, match="no questions of kind smell; there are count, name, place"):
        requests(kinds={"smell": 1})


def test_a_body_is_a_chat_of_openai_without_extras() -> None:
    made = requests(follow_ups=1.0, pause_s=0.1, detail="low")
    index = next(n for n, chat in enumerate(made.chats) if len(chat.questions) == 2)
    chat, body = made.chats[index], json.loads(made.body(index))
    first, second = (IMAGES[chat.image].questions[n] for n in chat.questions)
    url = f"data:image/jpeg;base64,{base64.b64encode(IMAGES[chat.image].jpeg).decode()}"
    assert body == {
        "model": "m",
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": url, "detail": "low"}},
                    {"type": "text", "text": first.question},
                ],
            },
            {"role": "assistant", "content": first.answer},
            {"role": "user", "content": second.question},
        ],
        "max_tokens": 32,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert made.label(index) == second.answer
    record = made.chat(index, 0.5)
    assert (record.kind, record.turn, record.first_token_by_s) == (second.kind, 1, 0.5)


def test_an_image_without_questions_of_the_kinds_is_not_used() -> None:
    images = (AskedImage(b"none", ()), *IMAGES[:1])
    made = ChatRequests(ChatTraffic(model="m"), images, AT[:9], 0)
    assert {chat.image for chat in made.chats} == {1}
    with pytest.raises(SetupError, match="no picture has a question"):
        ChatRequests(ChatTraffic(model="m"), images[:1], AT, 0)


def test_the_catalogue_is_bounded_by_the_held_out_pictures() -> None:
    assert asked_images(3, 1) == asked_images(0, 1)[:3]
    with pytest.raises(SetupError, match="--catalogue must be 0 to 640"):
        asked_images(10**6, 0)
