"""The classes beside those that they replace: arguments and their order, subclasses, compiled steps."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import ctloss.integrations.lightly as of_lightly
import ctloss.integrations.open_clip as of_open_clip
from benchmarks import peers
from support.calls import present
from support.integrations.drop_ins import rows

REPLACED = [
    (of_lightly, "lightly", "lightly.loss.ntx_ent_loss", "NTXentLoss"),
    (of_lightly, "lightly", "lightly.loss.dcl_loss", "DCLLoss"),
    (of_lightly, "lightly", "lightly.loss.dcl_loss", "DCLWLoss"),
    *((of_open_clip, "open_clip_torch", "open_clip.loss", f"{name}Loss") for name in ("Clip", "SigLip", "DistillClip")),
    (of_open_clip, "open_clip_torch", "open_clip.loss", "CoCaLoss"),
]


def arguments(method: Callable[..., Any]) -> list[tuple[str, object, object]]:
    return [(one.name, one.default, one.kind) for one in inspect.signature(method).parameters.values()]


@pytest.mark.parametrize(("ours", "distribution", "module", "name"), REPLACED, ids=[one[3] for one in REPLACED])
def test_arguments_are_theirs_in_their_order(ours: Any, distribution: str, module: str, name: str) -> None:
    theirs: Any = present(peers.loss_class, distribution, module, name)  # type: ignore[arg-type]
    for method in ("__init__", "forward"):
        assert arguments(getattr(getattr(ours, name), method)) == arguments(getattr(theirs, method))


def of_sentence_transformers(name: str) -> Any:
    pytest.importorskip("sentence_transformers")
    import ctloss.integrations.sentence_transformers as ours

    return getattr(ours, name)


def of_metric_learning(name: str) -> Any:
    pytest.importorskip("pytorch_metric_learning")
    import ctloss.integrations.pytorch_metric_learning as ours

    return getattr(ours, name)


@pytest.mark.parametrize(
    ("get", "method"),
    [
        (lambda: of_lightly.DCLLoss, "_loss"),
        (lambda: of_lightly.DCLWLoss, "_loss"),
        (lambda: of_open_clip.ClipLoss, "get_logits"),
        (lambda: of_open_clip.CoCaLoss, "get_ground_truth"),
        (lambda: of_open_clip.DistillClipLoss, "dist_loss"),
        (lambda: of_open_clip.SigLipLoss, "_loss"),
        (lambda: of_metric_learning("NTXentLoss"), "_compute_loss"),
        (lambda: of_metric_learning("SupConLoss"), "mat_based_loss"),
        (lambda: of_sentence_transformers("GISTEmbedLoss"), "sim_matrix"),
        (lambda: of_sentence_transformers("CachedGISTEmbedLoss"), "sim_matrix"),
        (lambda: of_sentence_transformers("CachedMultipleNegativesRankingLoss"), "embed_minibatch"),
    ],
)
def test_an_override_without_effect_is_refused(get: Callable[[], Any], method: str) -> None:
    """Also where it comes from another parent; a subclass that changes the call is welcome, with what else it has."""
    loss = get()
    type("Own", (loss,), {loss.entry: lambda self: None})
    type("Own", (loss,), {loss.entry: lambda self: None, method: lambda self: None})
    other = type("Other", (), {method: lambda self: None})
    message = rf"Own: expected a subclass without {method}, .*; override {loss.entry}, or"
    for parents, members in (((loss,), {method: lambda self: None}), ((other, loss), {})):
        with pytest.raises(TypeError, match=message):
            type("Own", parents, members)


@pytest.mark.numeric
@pytest.mark.filterwarnings("error:Dynamo detected")
def test_a_compiled_step_with_a_memory_bank() -> None:
    """The backward reads the rows of its forward, also by a compiler that leaves out copies, as inductor does."""

    def without_copies(graph: Any, _: object) -> Any:
        for node in list(graph.graph.nodes):
            if node.target == "clone" or node.kwargs.get("copy"):
                node.replace_all_uses_with(node.args[0])
                graph.graph.erase_node(node)
        graph.recompile()
        return graph.forward

    found = []
    for wrap in (lambda step: step, partial(torch.compile, backend=without_copies)):
        torch.manual_seed(0)
        loss = of_lightly.NTXentLoss(temperature=0.2, memory_bank_size=(12, 6))
        step, gradients = wrap(lambda x, y, loss=loss: loss(x, y)), []
        for number in range(2):
            x, y = (rows(5, 6, dtype=torch.float32, seed=2 * number + side) for side in (0, 1))
            x.requires_grad_()
            step(x, y).backward()
            gradients.append(x.grad)
        found.append([*gradients, loss.memory_bank.bank])
    torch.testing.assert_close(found[1], found[0])


def test_only_what_a_class_has_is_refused() -> None:
    type("Own", (of_open_clip.ClipLoss,), {"_loss": lambda self: None, "dist_loss": lambda self: None})


@pytest.mark.numeric
@pytest.mark.filterwarnings("error:Dynamo detected")
def test_a_compiled_step_with_labels() -> None:
    """Nothing of SupCon is recorded that inductor would write C++ for which does not compile: ``frexp``."""
    loss, labels = of_metric_learning("SupConLoss")(), torch.tensor([0, 1, 0, 2, 0, 1])
    recorded: list[str] = []

    def backend(graph: Any, _: object) -> Any:
        recorded.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    x = rows(6, 3, dtype=torch.float32)
    compiled = torch.compile(lambda a: loss(torch.sin(a), labels), backend=backend)(x)
    torch.testing.assert_close(compiled, loss(torch.sin(x), labels))
    assert any("sin" in one for one in recorded)
    assert not any("frexp" in one for one in recorded)


@pytest.mark.numeric
@pytest.mark.parametrize("weight", [2.0, 0.0])
def test_coca(weight: float) -> None:
    x, y = (rows(7, 5, seed=seed, unit=True) for seed in (0, 1))
    words, labels = rows(7, 4, 9, seed=2), torch.randint(9, (7, 4), generator=torch.Generator().manual_seed(0))
    theirs: Any = present(peers.loss_class, "open_clip_torch", "open_clip.loss", "CoCaLoss")  # type: ignore[arg-type]

    def call(made: Any) -> list[Tensor]:
        leaves = [one.clone().requires_grad_() for one in (x, y, words, torch.tensor(14.0).double())]
        both = made(*leaves[:3], labels, leaves[3], output_dict=True)
        loss = both["contrastive_loss"] + both["caption_loss"]
        wanted = leaves if weight else leaves[2:3]
        values = [one.detach().double() for one in both.values()]
        return [*values, *torch.autograd.grad(loss, wanted)]

    assert list(of_open_clip.CoCaLoss(3.0, weight)(x, y, words, labels, 14.0, output_dict=True)) == [
        "contrastive_loss",
        "caption_loss",
    ]
    torch.testing.assert_close(call(of_open_clip.CoCaLoss(3.0, weight)), call(theirs(3.0, weight)))
