"""The CCE encoder: concatenated contextual embeddings of a sentence and one of its words (Chen et al. 2022)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..options import require
from ..recipe import Recipe
from ..text.tokenizer import load_tokenizer, train_wordpiece

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

HEAD_FILE = "cce_head.safetensors"
SETTINGS_FILE = "cce.json"


def make_tokenizer(recipe: Recipe, texts: Iterable[str]) -> PreTrainedTokenizerBase:
    """Returns the given encoder's own tokenizer, or for the small encoder one trained on the texts."""
    choice = recipe.encoder
    if choice.encoder != "small":
        most, asked = positions(choice.encoder), recipe.data.max_length
        require(
            most is None or asked <= most, "max_length", f"at most {most}, as {choice.encoder} has", asked, "lower it"
        )
        return load_tokenizer(choice.encoder, lower_case=choice.lower_case)
    return train_wordpiece(
        texts,
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


class CCEEncoder(nn.Module):
    """A transformer encoder with avg-first-last pooling and the two-layer head of the CCE.

    With h_1 and h_L the hidden states after the first and the last layer, the vector of a set of positions A is

        v(A) = mean_{t in A} h_1[t] + mean_{t in A} h_L[t].

    The sentence is the set of all its tokens, [CLS] and [SEP] included; the word is the set of its wordpieces. At both
    levels the CCE is FC([v(sentence); v(word)]) with FC = Linear(2H, 2H), ReLU, Linear(2H, 2H); at the sentence level
    it is FC(v(sentence)) of width H. With the levels apart, which is ours and not the paper's, the same FC of width H
    maps v(sentence) and v(word) each by itself. Without a head FC is the identity.

    Args:
        backbone: a Hugging Face encoder, with or without a masked-language-modelling head.
        levels: ``"multi"`` (sentence and word joined), ``"apart"`` (both, not joined) or ``"sentence"``.
        head: whether FC is there.
    """

    def __init__(self, backbone: PreTrainedModel, *, levels: str, head: bool) -> None:
        super().__init__()
        self.backbone = backbone
        self.levels = levels
        width = backbone.config.hidden_size * (2 if levels == "multi" else 1)
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)) if head else None
        # A pooler takes no part in the objective, and a parameter without gradient stalls distributed training.
        for name, parameter in backbone.named_parameters():
            if "pooler" in name.split("."):
                parameter.requires_grad_(False)

    def first_and_last(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Returns h_1 + h_L in float32 and h_L as computed, (rows, length, H) both, of ids and mask (rows, length)."""
        states = self.backbone.base_model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        return states[1].float() + states[-1].float(), states[-1]

    def vectors(self, ids: Tensor, mask: Tensor, spans: Tensor | None = None) -> Tensor:
        """Pools sentences, and words where spans are given, without the head.

        Args:
            ids: wordpieces (rows, length), int64.
            mask: 1 at tokens and 0 at padding, (rows, length).
            spans: for each row the word's first position and the position after its last, (rows, 2).

        Returns:
            Float32 (rows, H), or (rows, 2, H) with the sentence's vector first where spans are given.
        """
        sets = mask.bool().unsqueeze(1)
        if spans is not None:
            position = torch.arange(ids.shape[1], device=ids.device)
            word = (position >= spans[:, :1]) & (position < spans[:, 1:])
            sets = torch.cat([sets, word.unsqueeze(1)], dim=1)
        states, _ = self.first_and_last(ids, mask)
        with torch.autocast(states.device.type, enabled=False):
            pooled = torch.bmm(sets / sets.sum(dim=2, keepdim=True), states)
        return pooled[:, 0] if spans is None else pooled

    def forward(self, ids: Tensor, mask: Tensor, spans: Tensor | None = None) -> Tensor:
        """Returns the CCE of what ``vectors`` pools.

        Returns:
            Float32 (rows, 2H) with both levels joined, (rows, 2, H) with them apart, the sentence's first, or (rows, H)
            at the sentence level.
        """
        pooled = self.vectors(ids, mask, None if self.levels == "sentence" else spans)
        if self.levels == "multi":
            pooled = pooled.flatten(1)
        if self.head is None:
            return pooled
        with torch.autocast(pooled.device.type, enabled=False):
            return self.head(pooled)

    def mlm_logits(self, states: Tensor) -> Tensor:
        """Returns the vocabulary's logits, (k, vocabulary), of k last hidden states (k, H)."""
        model: Any = self.backbone
        if hasattr(model, "cls"):
            return model.cls(states)
        if hasattr(model, "lm_head"):
            return model.lm_head(states)
        if hasattr(model, "predictions"):
            return model.predictions(states)
        if hasattr(model, "vocab_projector"):
            return model.vocab_projector(model.vocab_layer_norm(model.activation(model.vocab_transform(states))))
        return model.decoder(model.head(states))

    def save(self, folder: Path) -> None:
        """Writes the backbone as Hugging Face does, and the head and settings beside it, into an existing folder."""
        from safetensors.torch import save_file
        from transformers.utils import logging

        shown = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        self.backbone.save_pretrained(folder)
        if shown:
            logging.enable_progress_bar()
        settings = {"levels": self.levels, "head": self.head is not None, "pooling": "avg-first-last"}
        (folder / SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        if self.head is not None:
            save_file({name: value.contiguous() for name, value in self.head.state_dict().items()}, folder / HEAD_FILE)

    @classmethod
    def load(cls, folder: Path | str) -> CCEEncoder:
        """Reads what ``save`` wrote; nothing is unpickled.

        Raises:
            FileNotFoundError: the folder holds no CCE encoder.
        """
        from safetensors.torch import load_file

        path = Path(folder)
        if not (path / SETTINGS_FILE).is_file():
            raise FileNotFoundError(f"expected a folder written by ctloss.train, got {path} without {SETTINGS_FILE}")
        settings = json.loads((path / SETTINGS_FILE).read_text(encoding="utf-8"))
        architecture = json.loads((path / "config.json").read_text(encoding="utf-8"))["architectures"][0]
        backbone = load_backbone(str(path), mlm=architecture.endswith("ForMaskedLM"))
        encoder = cls(backbone, levels=settings["levels"], head=settings["head"])
        if encoder.head is not None:
            encoder.head.load_state_dict(load_file(path / HEAD_FILE))
        return encoder


def small_backbone(
    *, vocabulary: int, layers: int, hidden: int, heads: int, dropout: float, max_length: int, pad: int, mlm: bool
) -> PreTrainedModel:
    """Returns a small BERT with random weights (drawn from torch's generator), with an MLM head where asked."""
    from transformers import BertConfig, BertForMaskedLM, BertModel

    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        max_position_embeddings=max_length,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        pad_token_id=pad,
    )
    return BertForMaskedLM(config) if mlm else BertModel(config, add_pooling_layer=False)


def positions(name: str) -> int | None:
    """Returns how many wordpieces, special tokens included, a Hugging Face encoder takes at most; None if unlimited."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(name)
    most = getattr(config, "max_position_embeddings", None)
    if most and ("roberta" in config.model_type or config.model_type in ("camembert", "mpnet", "xmod")):
        # RoBERTa and what follows it number positions from after the padding token's id.
        most -= (config.pad_token_id or 0) + 1
    return most


def load_backbone(name: str, *, mlm: bool) -> PreTrainedModel:
    """Returns a Hugging Face encoder by name or folder, in float32, with its MLM head where asked.

    Nothing is unpickled: weights are read from safetensors alone.

    Raises:
        ValueError: the model is no encoder, has no weights as safetensors, or has no MLM head of a kind known here.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

    config = AutoConfig.from_pretrained(name)
    if getattr(config, "is_encoder_decoder", False) or not hasattr(config, "hidden_size"):
        raise ValueError(f"expected a transformer encoder, got {name!r} ({config.model_type}); choose another")
    try:
        if mlm:
            model = AutoModelForMaskedLM.from_pretrained(name, dtype=torch.float32, use_safetensors=True)
        else:
            try:
                return AutoModel.from_pretrained(
                    name, add_pooling_layer=False, dtype=torch.float32, use_safetensors=True
                )
            except TypeError:
                return AutoModel.from_pretrained(name, dtype=torch.float32, use_safetensors=True)
    except OSError as error:
        raise ValueError(
            f"expected an encoder with its weights as safetensors, got {name!r} without "
            f"({str(error).splitlines()[0]}); convert them: "
            "load the model where you trust its pickled weights, and write it with save_pretrained"
        ) from error
    known = ("cls", "lm_head", "predictions", "vocab_projector")
    if not (any(hasattr(model, part) for part in known) or (hasattr(model, "head") and hasattr(model, "decoder"))):
        raise ValueError(
            f"expected an MLM head as in BERT, RoBERTa, ALBERT, DistilBERT or ModernBERT, got "
            f"{type(model).__name__}; set alpha to 0 to train without masked language modelling"
        )
    return model


def random_backbone(backbone: PreTrainedModel) -> PreTrainedModel:
    """Returns an encoder of the same kind and size with random weights (drawn from torch's generator)."""
    try:
        return type(backbone)(backbone.config, add_pooling_layer=False)
    except TypeError:
        return type(backbone)(backbone.config)
