"""The chats of a simulation are those that a load test sends."""

import numpy as np

from foveate.models.zoo.heldout import AskedImage, AskedQuestion
from loadtests.load.chats import ChatRequests, ChatTraffic
from loadtests.simulate.chats.workload import TURN_TOKENS, ChatWorkload, token_count
from loadtests.simulate.workload import RequestClass

IMAGES = tuple(
    AskedImage(
        b"", tuple(AskedQuestion("name", f"what is it {n}?" * (1 + n), "a teacup" * n) for n in range(4))
    )
    for _ in range(30)
)
AT = np.arange(200) / 5


def test_a_workload_has_the_chats_of_a_load_test_with_their_lengths() -> None:
    traffic = ChatTraffic.model_validate({"model": "m", "max_tokens": {"2": 1, "64": 1}})
    workload = ChatWorkload.planned(AT, [RequestClass(0.5)], traffic, IMAGES, 3, 0.2)
    sent = ChatRequests(traffic, IMAGES, AT, 3).chats
    assert [chat.picture for chat in workload.chats] == [chat.image for chat in sent]
    assert [chat.max_tokens for chat in workload.chats] == [chat.max_tokens for chat in sent]
    pictures: set[int] = set()
    for chat, planned in zip(workload.chats, sent, strict=True):
        assert chat.seen == (chat.picture in pictures)
        pictures.add(chat.picture)
        asked = [IMAGES[0].questions[number] for number in planned.questions]
        assert chat.answer_tokens == 1 + token_count(asked[-1].answer)
        assert chat.tokens == min(chat.answer_tokens, chat.max_tokens)
        texts = [each.question for each in asked] + [each.answer for each in asked[:-1]]
        assert chat.text_tokens == TURN_TOKENS * len(asked) + sum(map(token_count, texts))
    assert workload.first_token_s == 0.2 and len(workload) == 200


def test_a_token_has_about_four_characters() -> None:
    assert [token_count("a" * length) for length in (0, 1, 4, 5)] == [0, 1, 1, 2]
