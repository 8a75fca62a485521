"""Word translation and word alignment: by hand, against scikit-learn, and on faulty files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import precision_score, recall_score

from ctloss.evaluate import (
    AlignmentOptions,
    DataError,
    Encoder,
    LexiconOptions,
    evaluate_alignment,
    evaluate_words,
    held_out_lines,
)
from ctloss.evaluate.data.parallel import AlignedWords, read_alignments, read_lexicon
from ctloss.evaluate.models.encoder import Pieces
from ctloss.evaluate.tasks.words import align, alignment_error
from support.tiny_encoder import Table, saved, write
from support.tiny_results import refused, value

pytestmark = pytest.mark.numeric

# dog is nearest to chien, cat to chien, taxi to taxi; chien to dog, chat to cat.
WORDS = Table({"dog": [1.0, 0.0], "cat": [0.9, 0.4], "taxi": [0.0, 1.0], "chien": [1.0, 0.1], "chat": [0.6, 0.7]})


def test_words_by_hand(tmp_path: Path) -> None:
    write(tmp_path, en__txt=["dog", "cat", "taxi"], fr_uni__txt=["chien", "chat", "taxi"])
    outcome = evaluate_words(WORDS, tmp_path)
    # cat: cosine .950 to chien, .903 to chat.
    assert value(outcome, "en-fr", "accuracy") == pytest.approx(2 / 3)
    assert value(outcome, "en-fr", "accuracy_respelled") == pytest.approx(1 / 2)
    assert value(outcome, "fr-en", "accuracy") == 1
    assert value(outcome, "mean", "accuracy") == pytest.approx(5 / 6)


def test_words_of_other_lines_are_no_candidates(tmp_path: Path) -> None:
    """Line 2 repeats dog with chat, line 0 gives cat its nearest word as a trained translation."""
    write(tmp_path, en__txt=["dog, cat", "cat", "dog", "dog"], fr__txt=["chien", "chat", "chat", "chien"])
    held = evaluate_words(WORDS, tmp_path, ["en", "fr"], LexiconOptions(lines=[1]))
    assert value(held, "en-fr", "accuracy") == 1
    assert value(evaluate_words(WORDS, tmp_path, options=LexiconOptions(lines=[1, 2])), "en-fr", "accuracy") == 1
    # dog-chien stands in line 0 too, so line 3 by itself asks for nothing.
    with pytest.raises(DataError, match="expected translations from 'en' to 'fr' on the lines asked for, got none"):
        evaluate_words(WORDS, tmp_path, options=LexiconOptions(lines=[3]))


def test_words_of_several_pieces_and_of_none(tmp_path: Path) -> None:
    write(tmp_path, en__txt=["dog cat", "nothing"], fr__txt=["chien+chat", "taxi"])
    assert value(evaluate_words(WORDS, tmp_path), "en-fr", "accuracy") == 1


def test_pivot_chooses_the_pairs(tmp_path: Path) -> None:
    write(tmp_path, en__txt=["dog"], fr__txt=["chien"], de__txt=["chat"])
    languages = {score.language for score in evaluate_words(WORDS, tmp_path).scores}
    assert languages == {"de-en", "en-de", "en-fr", "fr-en", "mean"}
    every = evaluate_words(WORDS, tmp_path, options=LexiconOptions(pivot=None))
    assert {score.language for score in every.scores} == languages | {"de-fr", "fr-de"}
    with pytest.raises(DataError, match="expected words of the pivot 'en', got de, fr"):
        evaluate_words(WORDS, tmp_path, ["de", "fr"])


def test_held_out_lines_are_a_function_of_the_seed() -> None:
    chosen = held_out_lines(100, 0.2, seed=4)
    assert chosen == held_out_lines(100, 0.2, seed=4) != held_out_lines(100, 0.2, seed=5)
    assert len(chosen) == 20
    assert chosen < set(range(100))


def pieces(vectors: list[list[float]], words: list[int]) -> Pieces:
    return Pieces(np.array(vectors, dtype=np.float32), words)


def test_mutual_nearest_pieces_are_linked() -> None:
    x = pieces([[1, 0], [0, 1], [0.6, 0.5]], [0, 1, 1])
    y = pieces([[0, 3], [2, 0.1], [1, 1]], [0, 1, 2])
    # Piece 0 and 1 are each other's nearest, so are 1 and 0, and 2 and 2.
    assert align(x, y, AlignmentOptions()) == {(0, 1), (1, 0), (1, 2)}
    assert align(x, pieces([], []), AlignmentOptions()) == set()


def test_softmax_links_what_exceeds_the_threshold_both_ways() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(7, 4)), rng.normal(size=(9, 4))
    products = x @ y.T
    forth = np.exp(products) / np.exp(products).sum(axis=1, keepdims=True)
    back = np.exp(products) / np.exp(products).sum(axis=0, keepdims=True)
    expected = {(i, j) for i in range(7) for j in range(9) if forth[i, j] > 0.2 and back[i, j] > 0.2}
    found = align(Pieces(x, list(range(7))), Pieces(y, list(range(9))), AlignmentOptions("softmax", 0.2))
    assert found == expected
    assert expected


def test_error_rate_agrees_with_scikit_learn_where_links_are_sure() -> None:
    """With S = P the AER is 1 - F1, and precision and recall are those of a yes or no in each cell of the table."""
    rng = np.random.default_rng(1)
    gold, guess = rng.random((5, 6, 7)) < 0.3, rng.random((5, 6, 7)) < 0.4
    tables = [frozenset(map(tuple, np.argwhere(table).tolist())) for table in gold]
    pairs = [AlignedWords(["a"] * 6, ["b"] * 7, links, links) for links in tables]
    found = alignment_error([set(map(tuple, np.argwhere(table).tolist())) for table in guess], pairs)
    precision, recall = (judge(gold.ravel(), guess.ravel()) for judge in (precision_score, recall_score))
    assert found["precision"] == pytest.approx(precision)
    assert found["recall"] == pytest.approx(recall)
    assert found["aer"] == pytest.approx(1 - 2 * precision * recall / (precision + recall))


def test_error_rate_by_hand() -> None:
    # |A| = 3, |S| = 2, |A ∩ S| = 1, |A ∩ P| = 2: 1 - 3/5.
    gold = AlignedWords(["a"] * 3, ["b"] * 3, frozenset({(0, 0), (1, 1)}), frozenset({(0, 0), (1, 1), (2, 2)}))
    found = alignment_error([{(0, 0), (2, 2), (0, 2)}], [gold])
    assert found == {"aer": pytest.approx(0.4), "precision": pytest.approx(2 / 3), "recall": 0.5}
    assert alignment_error([set()], [gold]) == {"aer": 1.0, "precision": 0.0, "recall": 0.0}


def test_alignment_end_to_end(tmp_path: Path) -> None:
    words = [f"w{i}" for i in range(12)]
    text = [f"{' '.join(words[i : i + 4])} ||| {' '.join(words[i : i + 4])}" for i in range(8)]
    data = write(tmp_path / "data", en___fr__txt=text, en___fr__gold=["0-0 1-1 2-2 3p3"] * 8)
    encoder = Encoder(saved(tmp_path / "model", words), layer=1)
    outcome = evaluate_alignment(encoder, data)
    assert value(outcome, "en-fr", "aer") == value(outcome, "mean", "aer") == 0
    assert value(outcome, "en-fr", "precision") == value(outcome, "en-fr", "recall") == 1


def test_alignment_refusals(tmp_path: Path) -> None:
    with refused("expected files such as en-fr.txt", where=tmp_path):
        evaluate_alignment(WORDS, tmp_path)
    write(tmp_path, en___fr__txt=["a b ||| c", "d ||| e"], en___fr__gold=["0-0 1-0"])
    with refused("'en-de', got no such file; the folder has en-fr", where=tmp_path / "en-de.gold"):
        evaluate_alignment(WORDS, tmp_path, ["en-de"])
    with refused("expected 2 lines as in en-fr.txt, got 1", where=tmp_path / "en-fr.gold", line=2):
        read_alignments(tmp_path / "en-fr")
    for wrong in ("1-0", "0-1", "0x0", "0-"):
        write(tmp_path, en___fr__gold=["0-0 1-0", f"0-0 {wrong}"])
        with refused(f"the numbers of words\\), got '{wrong}'", where=tmp_path / "en-fr.gold", line=2):
            read_alignments(tmp_path / "en-fr")
    for wrong in ("a b c", "a ||| b ||| c", "a |||"):
        write(tmp_path, en___fr__txt=["a b ||| c", wrong], en___fr__gold=["0-0", "0-0"])
        with refused(r"expected SOURCE \|\|\| TARGET with words on both sides", where=tmp_path / "en-fr.txt", line=2):
            read_alignments(tmp_path / "en-fr")
    write(tmp_path, en___fr__txt=["dog ||| chien"], en___fr__gold=["0p0"])
    with pytest.raises(DataError, match=r"expected sure links \(i-j\)"):
        evaluate_alignment(WORDS, tmp_path)
    with pytest.raises(ValueError, match="method: expected one of argmax, softmax, got 'itermax'"):
        AlignmentOptions("itermax")


def test_lexicon_refusals(tmp_path: Path) -> None:
    write(tmp_path, en__txt=["dog", "cat"])
    with refused("expected word lists of at least two languages", where=tmp_path):
        read_lexicon(tmp_path)
    write(tmp_path, fr__txt=["chien"])
    with refused("expected 2 lines as in en.txt, got 1", where=tmp_path / "fr.txt", line=2):
        read_lexicon(tmp_path)
    with refused("the words of 'de', got no such file; the folder has en, fr", where=tmp_path / "de.txt"):
        read_lexicon(tmp_path, ["en", "de"])
    write(tmp_path, fr__txt=["", ""])
    with refused("expected words, got only empty lines", where=tmp_path / "fr.txt", line=1):
        read_lexicon(tmp_path)
    write(tmp_path, fr_uni__txt=["chien", "chat"])
    with refused("expected one word list per language, got fr.txt too", where=tmp_path / "fr_uni.txt"):
        read_lexicon(tmp_path)


@pytest.mark.data
def test_real_files_are_read(real_data: Path) -> None:
    sizes = {path.stem: len(read_alignments(path.with_suffix(""))) for path in (real_data / "align").glob("*.gold")}
    assert (sizes["en-fr"], sizes["ro-en"], sizes["zh-en"], len(sizes)) == (447, 248, 450, 9)
    assert {len(lines) for lines in read_lexicon(real_data / "lexicon").values()} == {4243}
