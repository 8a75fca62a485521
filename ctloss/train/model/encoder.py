"""The CCE encoder, for concatenated contextual embeddings (Chen et al. 2022), and what a run starts from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import ctloss

from ...shared.models import load_encoder, mlm_head, quietly, random_like
from ..recipe import ObjectiveChoice, Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

HEAD_FILE = "cce_head.safetensors"
SETTINGS_FILE = "cce.json"


def make_encoders(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> tuple[CCEEncoder, CCEEncoder | None]:
    """Returns the encoder to train and, if it is a given one, another with random weights to compare it with.

    Raises:
        ValueError: the given encoder cannot be used.
    """
    choice, objective = recipe.encoder, recipe.objective
    torch.manual_seed(recipe.training.seed)
    if choice.encoder != "small":
        backbone = load_encoder(choice.encoder, mlm=objective.alpha > 0)
        return _cce(backbone, objective), CCEEncoder(random_like(backbone), levels="sentence", head=False)
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
    return _cce(backbone, objective), None


def _cce(backbone: PreTrainedModel, objective: ObjectiveChoice) -> CCEEncoder:
    joined = objective.levels == "multi"
    return CCEEncoder(backbone, levels=objective.levels, head=objective.head, balance=joined and objective.balance)


def freeze_word_embeddings(backbone: PreTrainedModel) -> None:
    """Keeps the word embeddings of a backbone as they are, and with them the output matrix of an MLM head tied to them.

    The embeddings are most of a multilingual encoder's weights, and words that the corpus lacks do not learn with the
    others. All else, the bias of the output included, is trained as before.
    """
    backbone.get_input_embeddings().weight.requires_grad_(False)


def learnable_temperature(initial: float) -> nn.Module:
    """Returns a module without arguments that is the temperature: its parameter is the logarithm, kept within bounds.

    It is that of ctloss's losses.

    Raises:
        ValueError: the initial temperature is outside the bounds.
    """
    module = ctloss.CZNCELoss(initial, learnable_temperature=True).temperature
    assert isinstance(module, nn.Module)
    return module


class CCEEncoder(nn.Module):
    """A transformer encoder with avg-first-last pooling and the two-layer head of the CCE.

    With h_1 and h_L the hidden states after the first and the last layer, the vector of a set of positions A is

        v(A) = mean_{t in A} h_1[t] + mean_{t in A} h_L[t].

    The sentence is the set of all its tokens, including [CLS] and [SEP]; the word is the set of its wordpieces. With
    both levels the CCE is FC([v(sentence); v(word)]), where FC = Linear(2H, 2H), ReLU, Linear(2H, 2H); at the sentence
    level it is FC(v(sentence)) of width H. With the levels apart, which is ours and not the paper's, the same FC of
    width H maps v(sentence) and v(word) separately. Without a head FC is the identity.

    A balanced encoder joins v(sentence) / |v(sentence)| and v(word) / |v(word)|, which is ours too: a mean over the one
    or two tokens of a word is longer than one over a sentence, so that the word would decide alone.

    Args:
        backbone: a Hugging Face encoder, with or without a masked-language-modelling head.
        levels: ``"multi"`` (sentence and word joined), ``"apart"`` (both, not joined) or ``"sentence"``.
        head: whether there is an FC.
        balance: whether both vectors are normalised before they are joined.

    Attributes:
        temperature: of the contrastive loss if it is learnt, else None; saved with the encoder, as nothing else of the
            objective is.

    Raises:
        ValueError: ``balance`` with other levels than ``"multi"``.
    """

    def __init__(self, backbone: PreTrainedModel, *, levels: str, head: bool, balance: bool = False) -> None:
        super().__init__()
        if balance and levels != "multi":
            raise ValueError(
                f"expected levels 'multi' with balance=True, got {levels!r}, which joins no vectors; leave balance out"
            )
        self.backbone = backbone
        self.levels = levels
        self.balance = balance
        self.temperature: nn.Module | None = None
        width = backbone.config.hidden_size * (2 if levels == "multi" else 1)
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)) if head else None
        # The objective does not use a pooler, and a parameter without gradient stalls distributed training.
        for name, parameter in backbone.named_parameters():
            if "pooler" in name.split("."):
                parameter.requires_grad_(False)

    def first_and_last(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Returns h_1 + h_L in float32 and h_L as computed, both (rows, length, H), for ids and mask (rows, length)."""
        states = self.backbone.base_model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        return states[1].float() + states[-1].float(), states[-1]

    def vectors(self, ids: Tensor, mask: Tensor, spans: Tensor | None = None) -> Tensor:
        """Pools sentences and, if spans are given, words; without the head.

        Args:
            ids: wordpieces (rows, length), int64.
            mask: 1 at tokens and 0 at padding, (rows, length).
            spans: for each row the word's first position and the position after its last, (rows, 2).

        Returns:
            Float32 (rows, H), or with spans (rows, 2, H), the sentence's vector first.
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

        It is float32 (rows, 2H) with both levels joined, (rows, 2, H) with the levels apart, the sentence's first, or
        (rows, H) at the sentence level.
        """
        pooled = self.vectors(ids, mask, None if self.levels == "sentence" else spans)
        if self.balance:
            pooled = functional.normalize(pooled, dim=-1)
        if self.levels == "multi":
            pooled = pooled.flatten(1)
        if self.head is None:
            return pooled
        with torch.autocast(pooled.device.type, enabled=False):
            return self.head(pooled)

    def mlm_logits(self, states: Tensor) -> Tensor:
        """Returns logits over the vocabulary, (k, vocabulary), for k last hidden states (k, H)."""
        return mlm_head(self.backbone)(states)

    def save(self, folder: Path) -> None:
        """Writes the backbone in Hugging Face's format, with head and settings, to an existing folder."""
        from safetensors.torch import save_file

        with quietly():
            self.backbone.save_pretrained(folder)
        settings: dict[str, Any] = {
            "levels": self.levels,
            "head": self.head is not None,
            "pooling": "avg-first-last",
            "balance": self.balance,
        }
        if self.temperature is not None:
            # A float32 survives the way through JSON bit for bit.
            settings["log_temperature"] = next(self.temperature.parameters()).item()
        (folder / SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        if self.head is not None:
            save_file({name: value.contiguous() for name, value in self.head.state_dict().items()}, folder / HEAD_FILE)

    @classmethod
    def load(cls, folder: Path | str) -> CCEEncoder:
        """Reads what ``save`` wrote; nothing is unpickled.

        Raises:
            FileNotFoundError: the folder holds no CCE encoder.
            ValueError: its weights are incomplete, damaged or not finite.
        """
        from safetensors.torch import load_file

        path = Path(folder)
        if not (path / SETTINGS_FILE).is_file():
            raise FileNotFoundError(
                f"expected a folder written by ctloss.train, got {path} without {SETTINGS_FILE}; check the path"
            )
        settings = json.loads((path / SETTINGS_FILE).read_text(encoding="utf-8"))
        architecture = json.loads((path / "config.json").read_text(encoding="utf-8"))["architectures"][0]
        backbone = load_encoder(path, mlm=architecture.endswith("ForMaskedLM"))
        # Encoders were not balanced before there was a choice.
        balance = settings.get("balance", False)
        encoder = cls(backbone, levels=settings["levels"], head=settings["head"], balance=balance)
        if "log_temperature" in settings:
            encoder.temperature = learnable_temperature(1.0)
            with torch.no_grad():
                next(encoder.temperature.parameters()).fill_(settings["log_temperature"])
        if encoder.head is not None:
            encoder.head.load_state_dict(load_file(path / HEAD_FILE))
        return encoder


def small_backbone(
    *, vocabulary: int, layers: int, hidden: int, heads: int, dropout: float, max_length: int, pad: int, mlm: bool
) -> PreTrainedModel:
    """Returns a small BERT with random weights from torch's generator, with an MLM head on request."""
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
