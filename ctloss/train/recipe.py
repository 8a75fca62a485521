"""What a pretraining run is: its data, encoder, objective and training arguments, in one frozen value."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from transformers import TrainingArguments

from ..shared.options import Group, OptionError, field_types, near, option, require
from .arguments import LISTED, Training, every_name

# A recipe that asks for something that cannot be run.
RecipeError = OptionError


# Beyond them float32 loses the loss: the least temperature divides rounding errors of cosines, 6e-8, to 6e-5.
TEMPERATURES = 0.001, 10.0
ALPHA = 1e6


@dataclass(frozen=True)
class Data(Group):
    """Which parallel text is read, and what becomes a training pair."""

    prepared: str | None = option(
        None,
        "folder made by 'python -m ctloss.train prepare'",
        shown="the corpus is prepared once, in a cache",
    )
    corpus: tuple[str, ...] = option(
        ("embedded",),
        "'embedded', or parallel text: prefixes of line-aligned files (PREFIX.en PREFIX.fr ...), TSV, JSON lines, "
        "parquet, Moses zips or hub:NAME; files may be compressed (.gz, .bz2, .xz, .zst)",
    )
    languages: tuple[str, ...] = option(
        (), "languages of the corpus; the first is paired with each of the others", shown="all, English first"
    )
    validation: tuple[str, ...] = option(
        (), "validation pairs, as for --corpus", shown="chosen from the corpus by a hash of the sentence"
    )
    test: tuple[str, ...] = option((), "test pairs, as for --corpus", shown="as for --validation")
    evaluation_pairs: int = option(500, "at most this many sentence pairs per language pair in validation, and in test")
    lexicon: tuple[str, ...] = option(
        (),
        "word-translation lexicons: TSV or MUSE files, or folders of line-aligned files; one, or one per language pair",
        shown="words are aligned by co-occurrence",
    )
    alignments: tuple[str, ...] = option(
        (), "word alignments of the corpus in Pharaoh format (i-j ...), one file per language pair"
    )
    align: str | None = option(
        None,
        "name or folder of a Hugging Face encoder whose hidden states align the words",
        shown="words are aligned by co-occurrence",
    )
    stop_words: Literal["short", "iso"] = option(
        "short", "words that are never a word pair: our short lists of function words, or those of stopwords-iso"
    )
    max_length: int = option(128, "longest sentence in wordpieces, including [CLS] and [SEP]; longer pairs are skipped")
    max_pairs: int | None = option(
        None, "at most this many training pairs, chosen by a hash of the sentence", shown="all"
    )
    max_bad_lines: int = option(0, "skip up to this many lines that cannot be read; more are refused")
    mixing: tuple[str, ...] = option(
        (), "how often an epoch sees a pair, by language pair or file: en-fr=2 en-zh=.5", shown="once"
    )
    held_out_words: float = option(
        0.1, "share of the word translations never used as training positives, on which word retrieval is measured"
    )
    only_with_words: bool = option(
        False, "at sentence level too, train only on pairs with a word pair, so that all levels see the same pairs"
    )

    def check(self) -> None:
        require(bool(self.corpus), "corpus", "'embedded', or parallel text", self.corpus, "name one")
        codes = self.languages
        require(len(codes) != 1, "languages", "none, or at least two", codes, "add the other languages")
        require(len(set(codes)) == len(codes), "languages", "distinct codes", codes, "drop one")
        sources = [name for name in ("lexicon", "alignments", "align") if getattr(self, name)]
        require(
            len(sources) < 2,
            sources[-1] if sources else "",
            "one of lexicon, alignments and align",
            " and ".join(sources),
            "drop the others",
        )
        for name in ("corpus", "validation", "test", "lexicon", "alignments"):
            require("" not in getattr(self, name), name, "files", "", "name one, or leave it out")
        for name in ("prepared", "align"):
            require(getattr(self, name) != "", name, "a name", "", "give one, or leave it out")
        self.at_least(4, "max_length")
        self.at_least(2, "evaluation_pairs")
        self.at_least(1, "max_pairs")
        self.at_least(0, "max_bad_lines")
        self.fraction("held_out_words")


@dataclass(frozen=True)
class EncoderChoice(Group):
    """Which encoder is trained: one from Hugging Face, or a small BERT created for the corpus."""

    encoder: str = option("small", "'small' (a BERT of the sizes below), or name or folder of a Hugging Face encoder")
    layers: int = option(2, "small encoder: transformer layers")
    hidden: int = option(128, "small encoder: width")
    heads: int = option(2, "small encoder: attention heads")
    vocabulary: int = option(8000, "small encoder: wordpieces, trained on the corpus")
    dropout: float = option(0.1, "small encoder: dropout")
    lower_case: bool = option(True, "lower-case the text")

    def check(self) -> None:
        require(bool(self.encoder), "encoder", "'small', a name or a folder", self.encoder, "name one")
        self.at_least(1, "layers", "hidden", "heads")
        self.at_least(100, "vocabulary")
        require(self.hidden % self.heads == 0, "hidden", f"a multiple of heads={self.heads}", self.hidden, "change one")
        self.fraction("dropout")


@dataclass(frozen=True)
class ObjectiveChoice(Group):
    """What is minimised: Chen et al. 2022, eq. (3) with infoNCE or eq. (7) with CZ-NCE."""

    loss: Literal["cz_nce", "info_nce"] = option("cz_nce", "contrastive loss: eq. (4) or eq. (1)")
    levels: Literal["multi", "sentence", "apart"] = option(
        "multi",
        "what is contrasted: sentence and word vectors concatenated, sentence vectors only, or both separately: "
        "sentences with sentences and words with words, the mean of two losses (ours)",
    )
    head: bool = option(True, "two-layer head between the encoder's vectors and the loss (used only in training)")
    temperature: float = option(0.07, "temperature of the contrastive loss, or that at the start if it is learnt")
    learn_temperature: bool = option(False, "learn the temperature, within bounds")
    negatives: Literal["both", "cross"] = option(
        "both", "negatives of a row: the other rows of both languages, or those of the other language"
    )
    negatives_across: Literal["ranks", "own"] = option(
        "ranks", "with several processes, negatives of a row: the rows of all processes, or those of its own"
    )
    same_words: Literal["mask", "keep"] = option(
        "keep",
        "rows of a batch whose word, on either side, is also another row's: no negatives of that row, or negatives all "
        "the same; at the sentence level there are none",
    )
    balance: bool = option(
        True, "levels multi: sentence and word vectors are brought to one length before they are joined (ours)"
    )
    alpha: float = option(0.1, "weight of masked language modelling; 0 skips it and its cost")
    mlm_probability: float = option(0.15, "share of the wordpieces to predict (80 % of them masked, 10 % random)")

    @property
    def needs_words(self) -> bool:
        """Whether every training pair needs a word pair."""
        return self.levels != "sentence"

    def check(self) -> None:
        self.positive("temperature")
        self.at_least(0, "alpha")
        least, most = TEMPERATURES
        temperature, alpha = self.temperature, self.alpha
        hint = "choose one there; Chen et al. have 0.07"
        require(least <= temperature <= most, "temperature", f"a number from {least} to {most:g}", temperature, hint)
        require(0 <= alpha <= ALPHA, "alpha", f"a number from 0 to {ALPHA:g}", alpha, "choose one there; usual is 0.1")
        self.fraction("mlm_probability")
        require(
            self.alpha == 0 or self.mlm_probability > 0,
            "mlm_probability",
            "a share above 0 when alpha is above 0",
            self.mlm_probability,
            "raise it, or set alpha to 0",
        )


@dataclass(frozen=True)
class Recipe:
    """A pretraining run: its name in the output folder and on the model card, and its parts.

    ``training`` holds what is chosen of Trainer's arguments and of our own. It also takes ready arguments, ours or
    transformers' own, see :meth:`Training.of`.

    Raises:
        RecipeError: an option has a value other than its default although the rest of the recipe ignores it.

    Example:
        >>> tiny().override(batch_size=32).training.per_device_train_batch_size
        32
        >>> tiny().override(temperature=0.0)
        Traceback (most recent call last):
        ...
        ctloss.shared.options.OptionError: temperature: expected a number above 0, got 0.0; raise it
    """

    name: str
    data: Data = Data()
    encoder: EncoderChoice = EncoderChoice()
    objective: ObjectiveChoice = ObjectiveChoice()
    training: Training = field(default_factory=Training)

    def __post_init__(self) -> None:
        if isinstance(self.training, TrainingArguments):
            object.__setattr__(self, "training", Training.of(self.training))
        sizes = ("layers", "hidden", "heads", "vocabulary", "dropout")
        given = self.encoder.encoder != "small"
        levels, needs_words, no_mlm = self.objective.levels, self.objective.needs_words, self.objective.alpha == 0
        for ignored, part, names, why in (
            (given, self.encoder, sizes, "a given encoder has its own; leave it out, or choose the encoder 'small'"),
            (no_mlm, self.objective, ["mlm_probability"], "alpha is 0; leave it out, or raise alpha"),
            (needs_words, self.data, ["only_with_words"], f"levels {levels} does so anyway; drop it"),
        ):
            for name in names if ignored else ():
                value, default = getattr(part, name), getattr(type(part), name)
                require(not value or value == default, name, f"its default {default!r}", value, why)

    @staticmethod
    def groups() -> dict[str, type[Group]]:
        """Returns the parts that are groups of options by name, in the order of the help and the model card."""
        return {"data": Data, "encoder": EncoderChoice, "objective": ObjectiveChoice}

    def override(self, **values: Any) -> Recipe:
        """Returns the recipe with the named fields of its parts replaced, by their present or former names.

        ``training`` replaces all training arguments, by choices or by ready arguments; other fields of them that are
        named count on top.

        Raises:
            RecipeError: no part has a field of that name, or the value is refused.
        """
        parts: dict[str, Any] = {}
        for part, group in self.groups().items():
            chosen = {name: values.pop(name) for name in field_types(group) if name in values}
            if chosen:
                parts[part] = replace(getattr(self, part), **chosen)
        training = values.pop("training", self.training)
        if isinstance(training, TrainingArguments):
            training = Training.of(training)
        require(isinstance(training, Training), "training", "training arguments", training, "give TrainingArguments")
        for name in values:
            if name not in every_name():
                names = [*every_name(), *(name for group in self.groups().values() for name in field_types(group))]
                raise RecipeError(f"recipe: expected a field, got {name}; {near(name, names, LISTED)}")
        return replace(self, **parts, training=training.replace(**values))

    def prepared_with(self, settings: Mapping[str, Any], given: Collection[str] = ()) -> Recipe:
        """Returns the recipe with the fields of data and encoder that a prepared folder was made with.

        Args:
            settings: values by field.
            given: fields that must not be replaced, as someone asked for them; others that differ from their defaults
                and the recipe's must not be either.

        Raises:
            RecipeError: a field that must not be replaced has another value.
        """
        parts: dict[str, dict[str, Any]] = {}
        recipe = RECIPES.get(self.name, tiny)()
        for part, group in (("data", Data), ("encoder", EncoderChoice)):
            present, start = getattr(self, part), getattr(recipe, part)
            for name in field_types(group):
                value, there = getattr(present, name), settings.get(name, getattr(present, name))
                there = tuple(there) if isinstance(there, list) else there
                if value != there:
                    usual = name not in given and value in (getattr(group, name), getattr(start, name))
                    hint = "leave it out, or prepare the corpus again with it"
                    require(
                        usual, name, f"{there!r}, as the folder {self.data.prepared} was prepared with", value, hint
                    )
                    parts.setdefault(part, {})[name] = there
        return replace(self, **{part: replace(getattr(self, part), **values) for part, values in parts.items()})

    def as_dict(self) -> dict[str, Any]:
        """Returns the recipe as JSON gives it back: nested dictionaries, lists for tuples."""
        groups = {part: asdict(getattr(self, part)) for part in self.groups()}
        document: dict[str, Any] = json.loads(json.dumps({"name": self.name, **groups}))
        return {**document, "training": self.training.as_dict()}


def tiny() -> Recipe:
    """The default run: embedded corpus, a BERT of 2 layers × 128 from random weights, minutes on two CPU cores."""
    return Recipe("tiny", objective=ObjectiveChoice(alpha=0.0))


def paper() -> Recipe:
    """The run of Chen et al. 2022: mBERT, τ 0.07, α 0.1, batch 64, Adam at 2e-6 falling × 0.1 at 1/3, 2/3 and 5/6."""
    return Recipe(
        "paper",
        data=Data(stop_words="iso", held_out_words=0.0),
        encoder=EncoderChoice(encoder="bert-base-multilingual-cased"),
        objective=ObjectiveChoice(balance=False),
        training=Training(
            # Without weight decay AdamW is Adam.
            weight_decay=0.0,
            learning_rate=2e-6,
            lr_scheduler_type="thirds",
            warmup_steps=0,
            max_grad_norm=0.0,
            logging_steps=100,
            eval_steps=5000,
            save_steps=5000,
        ),
    )


RECIPES = {"tiny": tiny, "paper": paper}
