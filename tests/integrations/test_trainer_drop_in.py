"""transformers' Trainer with our losses: training by hand ends with the same weights, however steps accumulate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

import ctloss
from ctloss.integrations.transformers import ContrastiveTrainer, PairCollator, PairLoss
from support.integrations.drop_ins import rows
from support.tiny_encoder import tiny_bert, word_tokenizer

pytestmark = [pytest.mark.numeric, pytest.mark.filterwarnings("ignore:'pin_memory' argument")]
BATCH, STEPS, TAU = 4, 3, 0.2


class Towers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right = nn.Linear(8, 5), nn.Linear(8, 5)

    def forward(self, image: Tensor, text: Tensor) -> dict[str, Tensor]:
        return {"image_embeds": self.left(image), "text_embeds": self.right(text)}


def arguments(folder: Path, accumulation: int, **options: Any) -> TrainingArguments:
    settings: dict[str, Any] = {
        "per_device_train_batch_size": BATCH,
        "per_device_eval_batch_size": BATCH,
        "gradient_accumulation_steps": accumulation,
        "max_steps": STEPS,
        "optim": "sgd",
        "learning_rate": 0.1,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "train_sampling_strategy": "sequential",
        "report_to": [],
        "disable_tqdm": True,
        "save_strategy": "no",
        "use_cpu": True,
    }
    return TrainingArguments(str(folder), **(settings | options))


def pairs(accumulation: int, labels: bool) -> list[dict[str, Any]]:
    x, y = (rows(BATCH * accumulation * STEPS, 8, dtype=torch.float32, seed=seed) for seed in (0, 1))
    made: list[dict[str, Any]] = [{"image": one, "text": other} for one, other in zip(x, y, strict=True)]
    return [row | {"labels": number // 2} for number, row in enumerate(made)] if labels else made


def by_hand(accumulation: int, labels: bool) -> list[Tensor]:
    """SGD on the mean of the accumulated micro-batches' losses."""
    model, data = Towers(), pairs(accumulation, labels)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(STEPS):
        optimizer.zero_grad()
        for part in range(accumulation):
            micro = data[(step * accumulation + part) * BATCH :][:BATCH]
            found = model(*(torch.stack([row[name] for row in micro]) for name in ("image", "text")))
            ids = torch.tensor([row["labels"] for row in micro]) if labels else None
            loss = ctloss.info_nce(found["image_embeds"], found["text_embeds"], temperature=TAU, ids=ids)
            (loss / accumulation).backward()
        optimizer.step()
    return [one.detach() for one in model.parameters()]


@pytest.mark.parametrize("way", ["PairLoss", "ContrastiveTrainer"])
@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_same_weights_as_by_hand(way: str, labels: bool, accumulation: int, tmp_path: Path) -> None:
    options: dict[str, Any] = {"label_names": ["labels"]} if labels and way == "PairLoss" else {}
    if labels:
        options["remove_unused_columns"] = False
    model, data = Towers(), pairs(accumulation, labels)
    given: dict[str, Any] = {"args": arguments(tmp_path, accumulation, **options), "train_dataset": data}
    if way == "PairLoss":
        loss = PairLoss("image_embeds", "text_embeds", temperature=TAU, accumulation_steps=accumulation)
        if labels:
            loss.accumulation_steps = None
        Trainer(model, compute_loss_func=loss, **given).train()
    else:
        outputs = ("image_embeds", "text_embeds")
        ContrastiveTrainer(model, outputs=outputs, loss_options={"temperature": TAU}, **given).train()
    torch.testing.assert_close([one.detach() for one in model.parameters()], by_hand(accumulation, labels))


class Shifted(Towers):
    """Trainer counts the labels of such a model without the first of each micro-batch."""

    loss_type = "ForCausalLM"


@pytest.mark.parametrize("accumulation", [1, 2])
def test_given_steps_win_over_a_count_of_shifted_labels(accumulation: int, tmp_path: Path) -> None:
    settings = arguments(tmp_path, accumulation, label_names=["labels"], remove_unused_columns=False)

    def end(steps: int | None) -> list[Tensor]:
        model = Shifted()
        loss = PairLoss("image_embeds", "text_embeds", temperature=TAU, accumulation_steps=steps)
        Trainer(model, settings, train_dataset=pairs(accumulation, True), compute_loss_func=loss).train()
        return [one.detach() for one in model.parameters()]

    torch.testing.assert_close(end(accumulation), by_hand(accumulation, True))
    if accumulation == 1:
        with pytest.raises(
            ValueError, match=r"num_items_in_batch: expected at least the 4 rows .* accumulation_steps="
        ):
            end(None)


def test_evaluation_is_the_mean_whatever_the_steps() -> None:
    sides = {"a": torch.eye(2), "b": torch.eye(2)}
    with torch.no_grad():
        found = [PairLoss("a", "b", accumulation_steps=steps)(sides, torch.arange(2), 2) for steps in (None, 1, 3)]
    torch.testing.assert_close(found, [ctloss.info_nce(torch.eye(2), torch.eye(2))] * 3)


SIDES = ("query", "document", "hard")
TEXTS = [
    {"query": "a b", "document": "c d e", "hard": ["f", "g h"]},
    {"query": "b", "document": "c e", "hard": ["a c"]},
    {"query": "h", "document": "e", "hard": []},
    {"query": "g f", "document": "a a b", "hard": ["h"]},
]


def encoder() -> tuple[Any, Any]:
    tokenizer = word_tokenizer("abcdefgh")
    model = tiny_bert(len(tokenizer), layers=1)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model, tokenizer


@pytest.mark.parametrize("pooling", ["mean", "cls", lambda outputs, inputs: outputs.last_hidden_state[:, 1]])
def test_one_encoder_of_several_columns(pooling: Any, tmp_path: Path) -> None:
    """Each column alone through the model, tokens pooled, the third as hard negatives; evaluation gives embeddings."""
    model, tokenizer = encoder()
    trainer = ContrastiveTrainer(
        model,
        arguments(tmp_path, 1, remove_unused_columns=False),
        train_dataset=TEXTS,
        eval_dataset=TEXTS,
        data_collator=PairCollator(tokenizer, SIDES),
        sides=SIDES,
        pooling=pooling,
        loss_options={"temperature": TAU, "negatives": "cross", "directions": "x"},
    )
    predicted = trainer.predict(TEXTS)

    def embedded(texts: Sequence[str]) -> Tensor:
        states = []
        for text in texts:
            with torch.no_grad():
                (hidden,) = model.eval()(**tokenizer(text, return_tensors="pt")).last_hidden_state
            states.append(hidden.mean(0) if pooling == "mean" else hidden[0 if pooling == "cls" else 1])
        return torch.stack(states)

    columns = [[row[side] for row in TEXTS] for side in SIDES[:2]] + [[text for row in TEXTS for text in row["hard"]]]
    x, y, hard = map(embedded, columns)
    for found, wanted in zip(predicted.predictions, (x, y, hard), strict=True):
        torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=1e-4, atol=1e-5)
    expected = ctloss.info_nce(x, y, candidates=hard, negatives="cross", directions="x", temperature=TAU)
    assert predicted.metrics is not None
    assert predicted.metrics["test_loss"] == pytest.approx(expected.item(), rel=1e-4)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before


def test_one_column_twice_is_two_views() -> None:
    _, tokenizer = encoder()
    batch = PairCollator(tokenizer, ("query", "query"), max_length=3)([row | {"label": 3} for row in TEXTS])
    assert set(batch) >= {"query_input_ids", "query_attention_mask", "labels"}
    assert batch["query_input_ids"].shape == (4, 3)
    assert batch["labels"].tolist() == [3, 3, 3, 3]


def made(tmp_path: Path, **options: Any) -> Any:
    settings = {"remove_unused_columns": False, **options.pop("settings", {})}
    return ContrastiveTrainer(Towers(), arguments(tmp_path, 1, **settings), **options)


def collated(*batch: dict[str, Any]) -> object:
    return PairCollator(encoder()[1], ("query",))(batch)


@pytest.mark.parametrize(
    ("wrong", "error", "said"),
    [
        (lambda path: made(path, sides=("query",)), ValueError, "sides: expected those of anchors and positives"),
        (lambda path: made(path, outputs="image"), ValueError, "outputs: expected those of anchors and positives"),
        (lambda path: made(path, pooling="max"), ValueError, "pooling: expected one of mean, cls, pooler"),
        (lambda path: made(path, compute_loss_func=PairLoss()), ValueError, "compute_loss_func: expected none"),
        (
            lambda path: made(path, settings={"remove_unused_columns": True}),
            ValueError,
            "remove_unused_columns: expected False, got True",
        ),
        (
            lambda path: made(path, loss=ctloss.InfoNCELoss(learnable_temperature=True)),
            TypeError,
            "loss: expected one without parameters",
        ),
        (lambda path: made(path, loss="info_nce"), TypeError, "loss: expected a function, got 'info_nce'"),
        (lambda path: made(path, loss_options=[1]), TypeError, r"loss_options: expected a dict .*, got \[1\]"),
        (lambda path: PairCollator(None), TypeError, "tokenizer: expected one of transformers, got None"),
        (
            lambda path: PairLoss(accumulation_steps=2.5),
            TypeError,
            r"accumulation_steps: expected an integer, got 2\.5",
        ),
        (lambda path: PairLoss(accumulation_steps=0), ValueError, "accumulation_steps: expected at least 1, got 0"),
        (
            lambda path: PairLoss("a", "b")({"a": torch.eye(2), "b": torch.eye(2)}, None),
            ValueError,
            "accumulation_steps=arguments.gradient_accumulation_steps",
        ),
        (lambda path: PairLoss("a", "b")({"a": torch.eye(2)}, None), KeyError, "expected embeddings under 'b'"),
        (
            lambda path: PairLoss()((torch.eye(2), torch.eye(2)), torch.eye(2)),
            TypeError,
            "labels: expected one integer for each of 2 rows",
        ),
        (
            lambda path: PairLoss()((torch.eye(2), torch.eye(2)), torch.tensor([3, -100]), 1),
            ValueError,
            "labels: expected ids other than -100, .* got it for row 1",
        ),
        (
            lambda path: made(path).compute_loss(Towers(), {"image": torch.eye(2)}),
            KeyError,
            "expected inputs such as query_input_ids, got image",
        ),
        (lambda path: PairCollator(encoder()[1])([{"query": "a"}]), KeyError, "expected a column 'document'"),
        (lambda path: collated({"query": "a"}, {"query": [1]}), TypeError, "query: expected texts, got 1 in row 1"),
        (lambda path: collated({"query": "a"}, {"query": None}), TypeError, "query: expected texts, got None in row 1"),
        (lambda path: collated({"query": ["a", 3.5]}), TypeError, r"query: expected texts, got 3\.5 in row 0"),
        (lambda path: collated({"query": {"a": "b"}}), TypeError, "query: expected texts, got {'a': 'b'} in row 0"),
        (lambda path: collated({"query": []}), ValueError, "query: expected texts, got 1 rows without one"),
        (
            lambda path: collated({"query": "a", "label": 1}, {"query": "b", "label": "x"}),
            TypeError,
            "label: expected an integer, got 'x' in row 1",
        ),
        (
            lambda path: collated({"query": "a"}, {"query": "b", "label": 1}),
            KeyError,
            "expected a 'label' in each row, got none in row 0",
        ),
    ],
)
def test_mistakes_are_told(wrong: Callable[[Path], object], error: type[Exception], said: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=said):
        wrong(tmp_path)


def test_smoothed_labels_are_refused(tmp_path: Path) -> None:
    class Configured(Towers):
        config = type("Config", (), {"problem_type": None})()

    settings = arguments(tmp_path, 1, label_smoothing_factor=0.1, remove_unused_columns=False)
    with pytest.raises(ValueError, match=r"label_smoothing_factor: expected 0, got 0\.1"):
        ContrastiveTrainer(Configured(), settings)


def test_a_column_of_the_batch_that_no_side_names_is_refused(tmp_path: Path) -> None:
    model, tokenizer = encoder()
    batch = PairCollator(tokenizer, SIDES)(TEXTS)
    trainer = made(tmp_path)
    with pytest.raises(ValueError, match="sides: expected the columns of the batch, query, document, hard, got"):
        trainer.compute_loss(model, batch)


def test_a_tokenizer_makes_the_collator(tmp_path: Path) -> None:
    model, tokenizer = encoder()
    settings = arguments(tmp_path, 1, remove_unused_columns=False)
    given: dict[str, Any] = {"train_dataset": TEXTS, "eval_dataset": TEXTS, "sides": SIDES}
    alone = ContrastiveTrainer(model, settings, processing_class=tokenizer, **given)
    both = ContrastiveTrainer(model, settings, PairCollator(tokenizer, SIDES, 1), processing_class=tokenizer, **given)
    named = ContrastiveTrainer(model, settings, data_collator=PairCollator(tokenizer, SIDES), **given)
    assert both.data_collator.max_length == 1
    assert alone.evaluate()["eval_loss"] == named.evaluate()["eval_loss"]
    without = ContrastiveTrainer(model, settings, **given)
    for call in (without.train, without.evaluate):
        with pytest.raises(TypeError, match="data_collator: expected one that tokenizes the column 'query', got none"):
            call()
    # Rows that are tokenized already need none.
    ready = [{f"{side}_input_ids": [2, 5, 3], f"{side}_attention_mask": [1] * 3} for side in SIDES[:2]]
    rows_of_tokens = [{**ready[0], **ready[1]}] * 4
    trainer = ContrastiveTrainer(model, settings, eval_dataset=rows_of_tokens)
    assert trainer.evaluate()["eval_loss"] > 0
