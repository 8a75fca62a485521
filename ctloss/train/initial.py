"""What training starts from: the tokenizer and the encoder that a recipe names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .encoder import CCEEncoder, load_backbone, positions, random_backbone, small_backbone
from .options import require
from .prepare import Corpus, texts
from .recipe import Recipe
from .tokenizer import load_tokenizer, train_wordpiece

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def make_tokenizer(recipe: Recipe, corpus: Corpus) -> PreTrainedTokenizerBase:
    """Returns the encoder's tokenizer, or one trained on the training sentences for the small encoder."""
    choice = recipe.encoder
    if choice.encoder != "small":
        most, asked = positions(choice.encoder), recipe.data.max_length
        require(
            most is None or asked <= most, "max_length", f"at most {most}, as {choice.encoder} has", asked, "lower it"
        )
        return load_tokenizer(choice.encoder, lower_case=choice.lower_case)
    return train_wordpiece(
        texts(corpus.parts["train"]),
        vocabulary=choice.vocabulary,
        lower_case=choice.lower_case,
        max_length=recipe.data.max_length,
    )


def make_encoders(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> tuple[CCEEncoder, CCEEncoder | None]:
    """Returns the encoder to train, and beside a given one another with random weights, to compare with."""
    choice, objective = recipe.encoder, recipe.objective
    torch.manual_seed(recipe.bookkeeping.seed)
    if choice.encoder == "small":
        backbone = small_backbone(
            vocabulary=len(tokenizer),
            layers=choice.layers,
            hidden=choice.hidden,
            heads=choice.heads,
            dropout=choice.dropout,
            max_length=recipe.data.max_length,
            pad=tokenizer.pad_token_id,
            mlm=objective.alpha > 0,
        )
        return CCEEncoder(backbone, levels=objective.levels, head=objective.head), None
    backbone = load_backbone(choice.encoder, mlm=objective.alpha > 0)
    encoder = CCEEncoder(backbone, levels=objective.levels, head=objective.head)
    return encoder, CCEEncoder(random_backbone(backbone), levels="sentence", head=False)
