"""Windows over long texts and the answers chosen from their logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from transformers import BertTokenizer

from ctloss.evaluate.data.questions import Question
from ctloss.evaluate.tasks.windows import Window, Windows, best_answers, likeliest, own_pieces
from ctloss.shared.models import load_tokenizer
from support.tiny_encoder import word_tokenizer

WORDS = [f"w{number}" for number in range(40)]


@pytest.fixture(scope="module")
def tokenizer() -> BertTokenizer:
    return word_tokenizer([*WORDS, "q"])


def asked(words: int, *, question: str = "q q") -> Question:
    return Question("id", question, " ".join(WORDS[:words]), ())


def texts(windows: list[Window], row: Question) -> list[list[str]]:
    """The words of each window, by its offsets."""
    return [[row.context[low:high] for low, high in window.offsets[window.inside]] for window in windows]


@pytest.mark.parametrize(("stride", "step"), [(3, 3), (7, 7), (50, 9)])
def test_windows_start_a_stride_apart_and_leave_no_gap(tokenizer: BertTokenizer, stride: int, step: int) -> None:
    """14 wordpieces less 3 special ones and a question of 2 leave room for 9."""
    row = asked(40)
    windows = list(Windows(tokenizer, 14, stride, 64).of([asked(4), row]))
    assert [window.row for window in windows] == [0] + [1] * (len(windows) - 1)
    assert texts(windows[:1], asked(4)) == [WORDS[:4]]
    found = texts(windows[1:], row)
    assert found == [WORDS[step * number : step * number + 9] for number in range(len(found))]
    assert found[-1][-1] == WORDS[39]
    assert [window.first for window in windows[1:]] == [True] + [False] * (len(found) - 1)
    assert [window.last for window in windows[1:]] == [False] * (len(found) - 1) + [True]
    # Each word is a window's own once.
    owned = [
        word
        for window, words in zip(windows[1:], found, strict=True)
        for word, own in zip(words, window.own[window.inside], strict=True)
        if own
    ]
    assert sorted(owned) == sorted(WORDS)
    for window in windows:
        assert len(window.features["input_ids"]) == len(window.inside) <= 14
        assert not (window.own & ~window.inside).any()


def test_a_long_question_is_cut(tokenizer: BertTokenizer) -> None:
    row = asked(40, question=" ".join(["q"] * 30))
    ids = tokenizer.convert_tokens_to_ids("q")
    for longest, kept in ((4, 4), (64, 8)):
        # At most half of the 17 wordpieces that the special ones leave.
        for window in Windows(tokenizer, 20, 5, longest).of([row]):
            assert (window.features["input_ids"] == ids).sum() == kept
    with pytest.raises(ValueError, match=r"expected a max_length of at least 5, .* got 4; raise it"):
        Windows(tokenizer, 4, 5, 64)


def test_a_wordpiece_belongs_to_the_window_with_most_context() -> None:
    """Against the definition, piece by piece; the last window is shorter."""
    lengths, step = [9, 9, 9, 5], 4
    own = own_pieces(lengths, step)
    for piece in range(3 * step + 5):
        scores = {
            number: min(piece - number * step, number * step + length - 1 - piece) + 0.01 * length
            for number, length in enumerate(lengths)
            if 0 <= piece - number * step < length
        }
        best = max(scores, key=lambda number: scores[number])
        assert [number for number in scores if own[number][piece - number * step]] == [best]


def test_an_answer_cut_by_a_windows_edge_is_not_in_it(tokenizer: BertTokenizer) -> None:
    row = asked(20)
    windows = list(Windows(tokenizer, 14, 5, 64).of([row]))
    assert len(windows) == 4

    def found(first: str, last: str) -> list[list[str] | None]:
        begin, stop = row.context.index(f"{first} "), row.context.index(f"{last} ") + len(last)
        places = [window.places(begin, stop) for window in windows]
        return [
            place and [row.context[a:b] for a, b in window.offsets[place[0] : place[1] + 1]]
            for window, place in zip(windows, places, strict=True)
        ]

    assert found("w7", "w8") == [["w7", "w8"], ["w7", "w8"], None, None]
    assert found("w8", "w10") == [None, ["w8", "w9", "w10"], None, None]
    assert found("w13", "w15") == [None, None, ["w13", "w14", "w15"], None]
    # Part of a word is the word.
    begin = row.context.index("w12") + 1
    assert windows[1].places(begin, begin + 1) == windows[1].places(begin - 1, begin + 2) is not None


def test_an_answers_first_and_last_space_do_not_matter(tokenizer: BertTokenizer) -> None:
    [window] = Windows(tokenizer, 32, 5, 64).of([Question("id", "q", "  w1  w2 ", ())])
    assert window.places(2, 8) == (3, 4)
    assert window.places(0, 2) is None


def answer(
    row: Question, windows: list[Window], *peaks: tuple[int, str, str, float], n_best: int = 20, most: int = 30
) -> str:
    """The best answer where a window's logits are 0 but for half of the given score at a first and a last word."""
    starts, ends = np.zeros((2, len(windows), 64), np.float32)
    # Beyond their ends, and outside the text, nothing counts.
    starts[:, 20:] = ends[:, 20:] = 99
    for index, window in enumerate(windows):
        outside = np.flatnonzero(~window.inside)[0]
        starts[index, outside] = ends[index, outside] = 50
    for index, first, last, score in peaks:
        words = {
            row.context[low:high]: place
            for place, (low, high) in enumerate(windows[index].offsets)
            if windows[index].inside[place]
        }
        starts[index, words[first]] += score / 2
        ends[index, words[last]] += score / 2
    [found] = best_answers(windows, starts, ends, [row], n_best=n_best, max_answer_length=most)
    return found


def test_the_best_span_over_all_windows(tokenizer: BertTokenizer) -> None:
    row = asked(20)
    windows = list(Windows(tokenizer, 14, 5, 64).of([row]))
    assert answer(row, windows, (0, "w1", "w2", 4.0), (2, "w13", "w14", 6.0)) == "w13 w14"
    assert answer(row, windows, (0, "w1", "w2", 7.0), (2, "w13", "w14", 6.0)) == "w1 w2"
    # An end before its start is no span.
    assert answer(row, windows, (2, "w14", "w13", 6.0)) == "w14"
    # At most three words.
    assert answer(row, windows, (2, "w12", "w14", 6.0), (0, "w1", "w1", 5.0), most=3) == "w12 w13 w14"
    assert answer(row, windows, (2, "w12", "w15", 6.0), (0, "w1", "w1", 5.0), most=3) == "w1"
    # A start counts where most of its context shows: w9 is the last word of window 0, and in the middle of window 1.
    assert answer(row, windows, (0, "w8", "w8", 6.0), (1, "w8", "w9", 5.0)) == "w8 w9"


def test_only_the_likeliest_starts_and_ends_are_tried(tokenizer: BertTokenizer) -> None:
    """The likeliest start and end are outside the text: with one of each there is no span."""
    row = asked(8)
    windows = list(Windows(tokenizer, 32, 5, 64).of([row]))
    assert answer(row, windows, (0, "w3", "w4", 6.0), n_best=1) == ""
    assert answer(row, windows, (0, "w3", "w4", 6.0), n_best=2) == "w3 w4"
    assert likeliest(np.array([1.0, 3.0, 3.0, 2.0]), 3).tolist() == [1, 2, 3]


def test_characters_of_chinese_and_arabic_are_counted_as_they_stand(reader: Path) -> None:
    tokenizer = load_tokenizer(reader)
    zh = Question("a", "谁画了桥？", "五月，小明在河边画了一座老桥。", ())
    ar = Question("b", "من رسم الجسر ؟", "رسمت ليلى الجسر القديم في أيار .", ())
    for row, gold in ((zh, "小明"), (zh, "一座老桥"), (ar, "الجسر القديم")):
        [window] = Windows(tokenizer, 64, 8, 64).of([row])
        begin = row.context.index(gold)
        place = window.places(begin, begin + len(gold))
        assert place is not None
        assert row.context[window.offsets[place[0], 0] : window.offsets[place[1], 1]] == gold
