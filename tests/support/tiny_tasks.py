"""Labelled data that a tiny BERT learns in seconds, in English and in a language with the same words."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

NOUNS = ("cat", "dog", "horse", "queen", "house", "river")
VERBS = ("sees", "finds", "likes", "hears")
NAMES = ("Anna", "Boris", "Clara")
SURNAMES = ("Berg", "Castle", "Dale")
TOWNS = ("Oslo", "Paris", "Quito")
CUES = {"contradiction": "never", "entailment": "indeed", "neutral": "perhaps"}
OTHERS = ("the", "a", "and", "or", "of", "in", "same", "other", "lives", ".", "un", "##known", "long")
VOCABULARY = (
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *(*NOUNS, *VERBS, *NAMES, *SURNAMES, *TOWNS, *CUES.values(), *OTHERS),
)


def save_model(
    folder: Path, *, dropout: float = 0.1, positions: int = 64, vocabulary: Sequence[str] = VOCABULARY
) -> str:
    """Writes a BERT of two layers with random weights and its tokenizer; returns the folder."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=positions,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    numbers = {piece: number for number, piece in enumerate(vocabulary)}
    BertTokenizer(vocab=numbers, do_lower_case=False, strip_accents=False).save_pretrained(folder)
    return str(folder)


def nli_rows(count: int, seed: int) -> list[tuple[str, str, str]]:
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        noun, verb, label = draw.choice(NOUNS), draw.choice(VERBS), draw.choice(sorted(CUES))
        rows.append((f"the {noun} {verb} a dog .", f"the {noun} {CUES[label]} {verb} a dog .", label))
    return rows


def paraphrase_rows(count: int, seed: int) -> list[tuple[str, str, str]]:
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        noun, verb, label = draw.choice(NOUNS), draw.choice(VERBS), draw.choice("01")
        rows.append((f"the {noun} {verb} .", f"the {'same' if label == '1' else 'other'} {noun} {verb} .", label))
    return rows


def pos_sentences(count: int, seed: int) -> list[list[tuple[str, str]]]:
    draw = random.Random(seed)
    return [
        [
            ("the", "DET"),
            (draw.choice(NOUNS), "NOUN"),
            *([("and", "CCONJ"), (draw.choice(NOUNS), "NOUN")] * draw.randrange(3)),
            (draw.choice(VERBS), "VERB"),
            (draw.choice(NAMES), "PROPN"),
            (".", "PUNCT"),
        ]
        for _ in range(count)
    ]


def entity_sentences(count: int, seed: int) -> list[list[tuple[str, str]]]:
    draw = random.Random(seed)
    return [
        [
            (draw.choice(NAMES), "B-PER"),
            (draw.choice(SURNAMES), "I-PER"),
            ("lives", "O"),
            ("in", "O"),
            (draw.choice(TOWNS), "B-LOC"),
            (".", "O"),
        ]
        for _ in range(count)
    ]


def write_pairs(path: Path, rows: list[tuple[str, str, str]], *, labels: bool = True) -> None:
    lines = ("\t".join(row if labels else row[:2]) for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def write_words(path: Path, sentences: list[list[tuple[str, str]]], *, tags: bool = True) -> None:
    blocks = ("".join(f"{word}\t{tag}\n" if tags else f"{word}\n" for word, tag in sentence) for sentence in sentences)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(blocks), encoding="utf-8")


def write_task(data: Path, task: str) -> None:
    """Writes train-en, dev-en, test-en and test-xx of a task in XTREME's layout."""
    for name, count, seed in (("train-en", 192, 1), ("dev-en", 24, 2), ("test-en", 30, 3), ("test-xx", 30, 4)):
        path = data / task / f"{name}.tsv"
        if task in ("xnli", "pawsx"):
            write_pairs(path, (nli_rows if task == "xnli" else paraphrase_rows)(count, seed))
        else:
            write_words(path, (pos_sentences if task == "udpos" else entity_sentences)(count, seed))


def question_rows(count: int, seed: int) -> list[tuple[str, str, str]]:
    """Questions, texts and answers: whether the question asks for a place or a person shows in one word."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        person, town = f"{draw.choice(NAMES)} {draw.choice(SURNAMES)}", draw.choice(TOWNS)
        asked, answer = draw.choice([("in", town), ("same", person)])
        rows.append((f"the {asked} .", f"{person} lives in {town} .", answer))
    return rows


def squad_text(rows: Iterable[tuple[str, str, str]], *, start: str = "q", answers: bool = True) -> str:
    """The rows in SQuAD 1.1's JSON, each in a paragraph of its own; their ids begin with ``start``."""
    paragraphs = []
    for number, (question, context, answer) in enumerate(rows):
        gold = {"text": answer, "answer_start": context.index(answer)} if answers else {"text": "", "answer_start": 0}
        paragraphs.append(
            {"context": context, "qas": [{"id": f"{start}{number}", "question": question, "answers": [gold]}]}
        )
    return json.dumps({"version": "1.1", "data": [{"title": "facts", "paragraphs": paragraphs}]}, ensure_ascii=False)


def write_questions(data: Path) -> None:
    """Writes XQuAD, MLQA and TyDiQA-GoldP in two languages and SQuAD in XTREME's layout."""
    files = {"squad/train-v1.1.json": 1, "tydiqa/tydiqa-goldp-v1.1-train/tydiqa.goldp.en.train.json": 2}
    for number, code in enumerate(("en", "de")):
        files[f"xquad/xquad.{code}.json"] = 10 + number
        files[f"mlqa/MLQA_V1/test/test-context-{code}-question-{code}.json"] = 20 + number
        files[f"tydiqa/tydiqa-goldp-v1.1-dev/tydiqa.goldp.{code}.dev.json"] = 30 + number
    for name, seed in files.items():
        path = data / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(squad_text(question_rows(24 if seed > 2 else 192, seed)), encoding="utf-8")
