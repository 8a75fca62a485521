"""The model card: how to use what a run trained, what it was trained on, and how well it did."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping, Sequence
from importlib import metadata as metadata_of_packages
from pathlib import Path
from typing import Any

from ...shared.languages import is_language, primary
from ..recipe import Recipe
from .report import WORDS, Measured, table

# A name on the hub, with or without that of its owner; other names of an encoder are paths.
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
USE = """\
```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{name}")
vectors = model.encode(["A sentence.", "Another one."])
similarities = model.similarity(vectors, vectors)
```

The same vectors without sentence-transformers:

```python
import torch
from transformers import AutoModel, AutoTokenizer

tokenizer, encoder = AutoTokenizer.from_pretrained("{name}"), AutoModel.from_pretrained("{name}").eval()
inputs = tokenizer(["A sentence.", "Another one."], padding=True, truncation=True, return_tensors="pt")
with torch.no_grad():
    states = encoder(**inputs, output_hidden_states=True).hidden_states
mask = inputs["attention_mask"].unsqueeze(2)
vectors = ((states[1] + states[-1]) * mask).sum(dim=1) / mask.sum(dim=1)
```

A sentence's vector is the mean over its tokens, including [CLS] and [SEP], of the sum of the first and the last layer's
hidden states; a word's is the mean of that sum over its wordpieces. Vectors are compared by cosine. A pooler, if the
architecture has one, was not trained."""
HEAD = (
    'The head, used only in training, is in `cce_head.safetensors`; `ctloss.train.CCEEncoder.load("{name}")` reads '
    "encoder and head."
)


def model_card(
    recipe: Recipe,
    stages: Mapping[str, Measured],
    counts: str,
    facts: Mapping[str, Any],
    *,
    languages: Sequence[str] | None = None,
    name: str = ".",
) -> str:
    """Returns the README of the output folder: how to use the encoder, its results, data and recipe.

    Args:
        stages: measures by stage, language pair and name; ``"after"`` is among the stages.
        counts: what of the data was kept and skipped, as text.
        facts: of the run, by name.
        languages: codes of the corpus; by default those of the language pairs in ``stages``.
        name: what the examples load: a folder, or the model's name on the hub.
    """
    pairs = [pair for pair in stages["after"] if pair != "mean"]
    held_out = recipe.data.held_out_words > 0
    given = None if recipe.encoder.encoder == "small" else recipe.encoder.encoder
    codes = languages_of(pairs) if languages is None else languages
    origin = "a small BERT with random weights" if given is None else f"`{given}`"
    parts = [
        f"---\n{metadata(recipe, codes)}\n---",
        f"# Encoder pretrained with ctloss, recipe `{recipe.name}`",
        "",
        f"A multilingual sentence encoder for {', '.join(codes)}, trained on parallel text from {origin} by "
        "contrastive learning at the sentence"
        + (" and word level" if recipe.objective.levels != "sentence" else " level")
        + (", with masked language modelling." if recipe.objective.alpha > 0 else "."),
        "",
        "## Use",
        "",
        USE.format(name=name),
        "",
    ]
    if recipe.objective.head:
        parts += [HEAD.format(name=name), ""]
    parts += ["## Results", ""]
    if pairs:
        parts += [
            f"Held-out sentences, mean over {', '.join(pairs)}. Retrieval is accuracy by cosine; the random-pair "
            "cosine is that of sentences that do not translate each other. Centred: each side's mean is subtracted. "
            + WORDS[held_out],
            "",
        ]
    parts += [table(stages, held_out=held_out), ""]
    for pair in pairs if len(pairs) > 1 else []:
        parts += [f"### {pair}", "", table(stages, pair, held_out=held_out), ""]
    parts += ["## Data", "", "```", counts, "```", "", "## Recipe", ""]
    for group, values in recipe.as_dict().items():
        if isinstance(values, dict):
            parts += [f"**{group}**: " + ", ".join(f"{key} `{value}`" for key, value in values.items()), ""]
    parts += ["## Run", "", *(f"- {key}: {value}" for key, value in facts.items()), "", "## Framework versions", ""]
    parts += [*(f"- {library}: {version}" for library, version in versions().items()), ""]
    return "\n".join(parts)


def metadata(recipe: Recipe, languages: Sequence[str]) -> str:
    """Returns the card's YAML, by which the Hugging Face hub knows the model.

    A licence is nothing that a run knows: none is named. An encoder from a folder is named by the folder's own name.
    """
    from huggingface_hub import ModelCardData

    given = recipe.encoder.encoder
    corpora = [place.removeprefix("hub:") for place in recipe.data.corpus if place.startswith("hub:")]
    return ModelCardData(
        language=list(dict.fromkeys(map(primary, languages))) or None,
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        base_model=None if given == "small" else given if HUB_NAME.fullmatch(given) else Path(given).resolve().name,
        datasets=corpora or None,
        tags=["sentence-transformers", "sentence-similarity", "feature-extraction", "cross-lingual", "ctloss"],
    ).to_yaml()


def languages_of(pairs: Sequence[str]) -> list[str]:
    """Returns the language codes in names of language pairs, each once.

    Example:
        >>> languages_of(["en-fr", "en-pt-br"])
        ['en', 'fr', 'pt-br']
    """
    found: dict[str, None] = {}
    for pair in pairs:
        parts = pair.split("-")
        halves = (("-".join(parts[:cut]), "-".join(parts[cut:])) for cut in range(1, len(parts)))
        found |= dict.fromkeys(next((two for two in halves if is_language(two[0]) and is_language(two[1])), ()))
    return list(found)


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the libraries that a run depends on."""
    found = {"Python": platform.python_version()}
    for library in ("ctloss", "torch", "transformers", "tokenizers", "datasets", "accelerate"):
        try:
            found[library] = metadata_of_packages.version(library)
        except metadata_of_packages.PackageNotFoundError:
            continue
    return found
