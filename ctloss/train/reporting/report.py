"""What a run leaves to read: the table before and after, the picture of its words, and the model card."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..model.encoder import CCEEncoder
from ..recipe import Recipe
from .probe import Row, Span, embed

Measured = Mapping[str, Mapping[str, float]]

LABELS = {
    "sentence_forth": "sentence retrieval, source → target",
    "sentence_back": "sentence retrieval, target → source",
    "word_forth": "word-translation retrieval, source → target",
    "word_back": "word-translation retrieval, target → source",
    "random_pair_cosine": "random-pair cosine",
}
WORDS = {
    True: "A word looks for translations that were held out of training; its other translations are no candidates.",
    False: "No word translation was held out of training (`held_out_words` 0): a word looks for any of its own.",
}
# t-SNE separates a few dozen points a class; more only cost time.
POINTS = 12


def table(stages: Mapping[str, Measured], languages: str = "mean", *, held_out: bool = True) -> str:
    """Returns a Markdown table of the measures at each stage (``"before"``, ``"after"``), as they are and centred.

    Args:
        stages: measures by language pair, by stage.
        languages: which language pair's measures; ``"mean"`` for the mean of all.
        held_out: whether the words' translations were held out of training.
    """
    header = ["", *stages, *(f"{stage}, centred" for stage in stages)]
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    queries = max((stage[languages].get("word_queries", 0.0) for stage in stages.values()), default=0.0)
    kind = "held-out" if held_out else "all, trained ones included"
    for name, label in LABELS.items():
        if name.startswith("word") and queries:
            label += f", {kind} ({queries:.0f} queries both ways)"
        cells = [
            f"{stages[stage][languages][name + suffix]:.3f}" if name in stages[stage][languages] else "–"
            for suffix in ("", "_centred")
            for stage in stages
        ]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def model_card(recipe: Recipe, stages: Mapping[str, Measured], counts: str, facts: Mapping[str, Any]) -> str:
    """Returns the README of the output folder: how to load the encoder, the recipe, the data and the results."""
    languages = [name for name in stages["after"] if name != "mean"]
    held_out = recipe.data.held_out_words > 0
    parts = [
        "---",
        "library_name: transformers",
        "tags: [cross-lingual, contrastive, ctloss]",
        "---",
        f"# Encoder pretrained with ctloss, recipe `{recipe.name}`",
        "",
        "```python",
        "from transformers import AutoModel, AutoTokenizer",
        "",
        'encoder = AutoModel.from_pretrained(".")',
        'tokenizer = AutoTokenizer.from_pretrained(".")',
        "```",
        "",
        "A sentence's vector is the mean over its tokens, [CLS] and [SEP] included, of the first layer's plus the last "
        "layer's hidden states (`hidden_states[1] + hidden_states[-1]`); a word's is the mean over its wordpieces. The "
        'head of training is in `cce_head.safetensors`; `ctloss.train.CCEEncoder.load(".")` reads encoder and head. '
        "A pooler, where the architecture has one, was not trained.",
        "",
        "## Results",
        "",
        f"Held-out sentences, mean over {', '.join(languages)}. Retrieval is accuracy by cosine; the random-pair "
        "cosine is that of sentences which do not translate each other. Centred: each side's mean taken out. "
        + WORDS[held_out],
        "",
        table(stages, held_out=held_out),
        "",
    ]
    for name in languages if len(languages) > 1 else []:
        parts += [f"### {name}", "", table(stages, name, held_out=held_out), ""]
    parts += ["## Data", "", "```", counts, "```", "", "## Recipe", ""]
    for group, values in recipe.as_dict().items():
        if isinstance(values, dict):
            parts += [f"**{group}**: " + ", ".join(f"{key} `{value}`" for key, value in values.items()), ""]
    parts += ["## Run", "", *(f"- {key}: {value}" for key, value in facts.items()), ""]
    return "\n".join(parts)


def choose_words(rows: Sequence[Row], meanings: int) -> dict[str, dict[str, list[tuple[tuple[int, ...], Span]]]]:
    """Chooses the words of the picture: the source words that most language pairs translate, the commonest first.

    Returns:
        For each meaning, named by its source word, and each language, where the word or its translation stands: the
        sentence's wordpieces and the span; at most a dozen places a language.
    """
    languages: dict[str, set[str]] = {}
    count: Counter[str] = Counter()
    for row in rows:
        for word in row["source_words"]:
            languages.setdefault(word, set()).add(row["target_language"])
            count[word] += 1
    chosen = sorted(count, key=lambda word: (-len(languages[word]), -count[word], word))[:meanings]
    places: dict[str, dict[str, list[tuple[tuple[int, ...], Span]]]] = {word: {} for word in chosen}
    for row in rows:
        for word, (a, b, c, d) in zip(row["source_words"], row["word_pairs"], strict=True):
            if word in places:
                for side, span in (("source", (a, b)), ("target", (c, d))):
                    place = tuple(row[f"{side}_ids"]), span
                    found = places[word].setdefault(row[f"{side}_language"], [])
                    if place not in found and len(found) < POINTS:
                        found.append(place)
    return places


def draw_words(
    encoders: Mapping[str, CCEEncoder], rows: Sequence[Row], path: Path, *, meanings: int, seed: int
) -> bool:
    """Draws t-SNE pictures of word vectors, a panel an encoder: colours are meanings, markers languages.

    After Chen et al. 2022, poster, figure 3.

    Args:
        encoders: by the title of their panel.
        rows: word positioned samples to take the words from.
        path: PNG file to write.
        meanings: how many meanings.
        seed: of t-SNE.

    Returns:
        Whether there were words enough for a picture.
    """
    import matplotlib
    from sklearn.manifold import TSNE

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.lines import Line2D

    places = [
        (word, language, ids, span)
        for word, by_language in choose_words(rows, meanings).items()
        for language, found in by_language.items()
        for ids, span in found
    ]
    if len(places) < 10:
        return False
    words = list(dict.fromkeys(word for word, *_ in places))
    languages = sorted({language for _, language, *_ in places})
    colours = pyplot.get_cmap("tab20")
    markers = "os^DvP*X<>hp"
    figure, axes = pyplot.subplots(1, len(encoders), figsize=(6.5 * len(encoders) + 1.5, 6), squeeze=False)
    for axis, (title, encoder) in zip(axes[0], encoders.items(), strict=True):
        _, vectors = embed(encoder, [ids for _, _, ids, _ in places], [[span] for *_, span in places])
        perplexity = min(30.0, (len(places) - 1) / 3)
        points = TSNE(perplexity=perplexity, metric="cosine", init="random", random_state=seed).fit_transform(
            torch.cat(vectors).numpy()
        )
        for i, (word, language, *_) in enumerate(places):
            colour, marker = colours(words.index(word) % 20), markers[languages.index(language) % len(markers)]
            axis.scatter(*points[i], color=colour, marker=marker, s=22, linewidths=0)
        axis.set(title=title, xticks=[], yticks=[])
    handles = [Line2D([], [], color=colours(i % 20), marker="o", ls="", label=w) for i, w in enumerate(words)]
    handles += [
        Line2D([], [], color="black", marker=markers[i % len(markers)], ls="", label=language)
        for i, language in enumerate(languages)
    ]
    figure.legend(handles=handles, loc="center right", frameon=False, fontsize=8)
    figure.suptitle("Word vectors in held-out sentences: colour is meaning, marker is language")
    figure.tight_layout(rect=(0, 0, 1 - 1.2 / figure.get_figwidth(), 1))
    partial = path.with_name(path.name + ".partial")
    figure.savefig(partial, dpi=110, format="png")
    pyplot.close(figure)
    partial.replace(path)
    return True
