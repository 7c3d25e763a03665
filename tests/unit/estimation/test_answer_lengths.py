"""The expected lengths of answers."""

from foveate.estimation.answer_lengths import MIN_ANSWERS, WINDOW, AnswerLengths


def test_unknown_answers_take_all_that_they_may() -> None:
    lengths = AnswerLengths()
    for _ in range(MIN_ANSWERS - 1):
        lengths.record(3)
    assert not lengths.known
    assert (lengths.mean(64), lengths.high(64)) == (64.0, 64)
    lengths.record(3)
    assert lengths.known
    assert (lengths.mean(64), lengths.high(64), lengths.high(2)) == (3.0, 3, 2)


def test_the_high_estimate_covers_most_answers() -> None:
    lengths = AnswerLengths()
    for number in range(100):
        lengths.record(number + 1)
    assert lengths.mean(1000) == 50.5
    assert lengths.high(1000) == 95
    assert lengths.high(80) == 80


def test_an_answer_that_goes_on_is_compared_with_longer_ones() -> None:
    lengths = AnswerLengths()
    for number in range(100):
        lengths.record(50 if number % 10 == 0 else 4)
    assert lengths.high(1000) == 50
    assert lengths.high(1000, generated=10) == 50
    assert lengths.high(1000, generated=50) == 100  # longer than all
    assert lengths.high(60, generated=50) == 60


def test_the_mean_is_that_of_answers_that_are_as_long_already() -> None:
    lengths = AnswerLengths()
    for number in range(100):
        lengths.record(44 if number % 10 == 0 else 4)
    assert lengths.mean(1000) == 8.0
    assert lengths.mean(1000, generated=4) == 44.0
    assert lengths.mean(1000, generated=44) == 88.0
    # The deviation of one answer is 12 tokens, and that of the mean of 16 answers is 3.
    assert lengths.mean(1000, among=16) == 14.0
    assert lengths.mean(10, among=16) == 10.0


def test_old_answers_are_forgotten() -> None:
    lengths = AnswerLengths()
    for tokens in (100, 5):
        for _ in range(WINDOW):
            lengths.record(tokens)
    assert lengths.mean(1000) == lengths.high(1000) == 5
