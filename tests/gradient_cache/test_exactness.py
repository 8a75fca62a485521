"""Embeddings and gradients of a cache are those of the whole batch at once."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import ctloss

pytestmark = pytest.mark.numeric

ROWS = 24


def transformer(dropout: float = 0.0, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(1)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).to(dtype)


def sentences(seed: int, rows: int = ROWS) -> Tensor:
    return torch.randn(rows, 3, 8, generator=torch.Generator().manual_seed(seed))


def pooled(encoder: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda rows: encoder(rows)[:, 0]


def in_parts(encode: Callable[[Tensor], Tensor], rows: Tensor, chunk: int) -> Tensor:
    """With the graphs of all chunks kept: what a cache replays."""
    return torch.cat([encode(part) for part in rows.split(chunk)])


def at_once(encode: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    return encode(rows)


def assert_close(found: Tensor, expected: Tensor, tolerance: float = 1e-6) -> None:
    """In norm: single entries may be what large ones leave when they cancel."""
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    assert torch.linalg.vector_norm(found - expected) <= tolerance * torch.linalg.vector_norm(expected)


def gradients(*modules: nn.Module) -> Tensor:
    """Of all parameters, as one vector, after which they have none."""
    found = []
    for module in modules:
        for parameter in module.parameters():
            assert parameter.grad is not None
            found.append(parameter.grad.flatten())
            parameter.grad = None
    return torch.cat(found)


Embed = Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]


@pytest.mark.parametrize("chunk", [1, 7, ROWS, 100])
def test_whole_batch(chunk: int) -> None:
    """One tower for anchors and positives, another for hard negatives, a learnt temperature."""
    tower, other = transformer(), transformer()
    criterion = ctloss.InfoNCELoss(learnable_temperature=True)
    x, y, hard = sentences(1), sentences(2), sentences(3, 10)

    def loss(embed: Embed) -> Tensor:
        left, right = embed(pooled(tower), x), embed(pooled(tower), y)
        found: Tensor = criterion(left, right, candidates=embed(pooled(other), hard))
        return found

    expected = loss(at_once)
    expected.backward()
    wanted = gradients(tower, other, criterion)
    found = loss(ctloss.GradientCache(chunk))
    assert_close(found, expected)
    found.backward()
    assert_close(gradients(tower, other, criterion), wanted)


def test_one_call() -> None:
    tower, other, x, y = transformer(), transformer(), sentences(1), sentences(2)
    loss = partial(ctloss.cz_nce, temperature=0.2)
    loss(pooled(tower)(x), pooled(other)(y)).backward()
    wanted = gradients(tower, other)
    ctloss.cached(pooled(tower), x, pooled(other), y, loss, chunk=5).backward()
    assert_close(gradients(tower, other), wanted)


def rematerialised(encoder: nn.Module) -> Callable[[Tensor], Tensor]:
    def encode(rows: Tensor) -> Tensor:
        found: Tensor = checkpoint(pooled(encoder), rows, use_reentrant=False)
        return found

    return encode


@pytest.mark.parametrize("kind", [pooled, rematerialised])
@pytest.mark.parametrize("autocast", [False, True])
def test_dropout(kind: Callable[[nn.Module], Callable[[Tensor], Tensor]], autocast: bool) -> None:
    """The masks of the second run are those of the first, and the generator goes on as if there were no second."""
    encoder = transformer(dropout=0.3)
    encode = kind(encoder)

    def run(embed: Embed, nested: bool) -> tuple[Tensor, Tensor, Tensor]:
        torch.manual_seed(7)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            x, y = embed(encode, sentences(1)), embed(encode, sentences(2))
            loss = ctloss.info_nce(x.float(), y.float())
            if nested:
                loss.backward()
        drawn = torch.rand(3)
        if not nested:
            loss.backward()
        assert not torch.equal(torch.rand(3), drawn)
        return loss, gradients(encoder), drawn

    loss, wanted, drawn = run(partial(in_parts, chunk=5), False)
    for nested in (False, True):
        found, formed, after = run(ctloss.GradientCache(5), nested)
        assert torch.equal(found, loss)
        assert torch.equal(after, drawn)
        # The chunks in parts share a bfloat16 copy of each weight, at which their gradients are added up in bfloat16.
        assert_close(formed, wanted, 1e-2 if autocast else 1e-6)


class OwnMask(nn.Module):
    """Dropout whose mask depends on nothing but the row."""

    def forward(self, rows: Tensor, names: Tensor) -> Tensor:
        masks = [torch.rand(rows.shape[1:], generator=torch.Generator().manual_seed(one)) for one in names.tolist()]
        return rows * (torch.stack(masks) > 0.3) / 0.7


def test_dropout_of_rows() -> None:
    """With masks that do not depend on the chunks, dropout on is the whole batch at once too."""
    encoder, mask = transformer(), OwnMask()
    inputs = {"rows": sentences(1), "names": torch.arange(ROWS)}

    def encode(batch: dict[str, Tensor]) -> Tensor:
        found: Tensor = encoder(mask(batch["rows"], batch["names"])).mean(1)
        return found

    ctloss.info_nce(encode(inputs), sentences(2)[:, 0]).backward()
    wanted = gradients(encoder)
    ctloss.info_nce(ctloss.GradientCache(5)(encode, inputs), sentences(2)[:, 0]).backward()
    assert_close(gradients(encoder), wanted)


def test_inputs_that_learn() -> None:
    """Inputs computed from something that learns, given once, twice and whole."""
    table, prompt_of = nn.Embedding(50, 8).double(), nn.Linear(4, 8).double()
    encoder = transformer(dtype=torch.float64)
    ids, seed = torch.randint(50, (ROWS, 3)), torch.randn(4, dtype=torch.float64)

    def encode(batch: tuple[Tensor, list[Tensor]], prompt: Tensor) -> Tensor:
        rows, (again,) = batch
        found: Tensor = encoder(rows * again + prompt)[:, 0]
        return found

    def run(embed: Callable[..., Tensor]) -> Tensor:
        rows = table(ids)
        left = embed(encode, (rows, [rows]), prompt_of(seed))
        ctloss.info_nce(left, left.flip(1)).backward()
        return gradients(table, prompt_of, encoder)

    wanted = run(lambda function, *arguments: function(*arguments))
    assert_close(run(ctloss.GradientCache(5)), wanted, 1e-12)


def test_gradcheck() -> None:
    weight = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    rows = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)

    def function(rows: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        found = ctloss.GradientCache(2)(lambda part: ((part @ weight).tanh(), part.exp()), rows)
        return found[0], found[1]

    assert torch.autograd.gradcheck(function, (rows, weight))


def test_unused_outputs() -> None:
    """What the loss does not use has no gradient, and neither has what only it depends on."""
    first, second = nn.Linear(3, 2), nn.Linear(3, 2)
    x, _ = ctloss.GradientCache(2)(lambda rows: (first(rows), second(rows)), torch.randn(5, 3))
    x.sum().backward()
    assert first.weight.grad is not None
    assert second.weight.grad is None


def test_several_outputs() -> None:
    """Sentences and words, only one of which goes through the first layer."""
    first, second = nn.Linear(8, 8), nn.Linear(8, 8)
    rows = sentences(1)

    def encode(part: Tensor) -> dict[str, Any]:
        hidden = first(part)
        return {"sentence": hidden.mean(1), "words": second(part), "width": 8, "nothing": None}

    found = ctloss.GradientCache(5)(encode, rows)
    whole = encode(rows)
    assert found["width"] == 8
    assert found["nothing"] is None
    for name in ("sentence", "words"):
        assert_close(found[name], whole[name])
    (whole["sentence"].square().sum() + whole["words"].exp().sum()).backward()
    wanted = gradients(first, second)
    (found["sentence"].square().sum() + found["words"].exp().sum()).backward()
    assert_close(gradients(first, second), wanted)


def test_backward_twice() -> None:
    encoder = transformer()
    loss = ctloss.GradientCache(5)(pooled(encoder), sentences(1)).square().sum()
    loss.backward(retain_graph=True)
    once = gradients(encoder)
    loss.backward()
    assert_close(gradients(encoder), once)


def test_gradients_that_are_asked_for() -> None:
    encoder = transformer()
    parameters = list(encoder.parameters())
    pooled(encoder)(sentences(1)).square().sum().backward()
    wanted = gradients(encoder)
    loss = ctloss.GradientCache(5)(pooled(encoder), sentences(1)).square().sum()
    found = torch.autograd.grad(loss, parameters)
    assert_close(torch.cat([one.flatten() for one in found]), wanted)
    assert all(parameter.grad is None for parameter in parameters)


def test_hooks_see_one_sum() -> None:
    """Hooks of parameters, an optimiser in the backward pass among them, run once and on the whole gradient."""
    encoder = nn.Linear(8, 4)
    seen: list[Tensor] = []
    steps: list[Tensor] = []

    def halve(gradient: Tensor) -> Tensor:
        seen.append(gradient.clone())
        return 0.5 * gradient

    handle = encoder.weight.register_hook(halve)
    encoder.weight.register_post_accumulate_grad_hook(lambda weight: steps.append(weight.grad.clone()))
    rows = sentences(1)[:, 0]
    ctloss.GradientCache(5)(encoder, rows).sum().backward()
    whole = rows.sum(0).expand(4, 8)
    assert len(seen) == len(steps) == 1
    assert_close(seen[0], whole)
    assert_close(steps[0], 0.5 * whole)
    handle.remove()
    assert not encoder.weight._backward_hooks
    assert encoder.bias._backward_hooks is None


def test_sums_in_a_narrow_dtype() -> None:
    """Added up in bfloat16, 600 ones are 256."""
    weight = torch.ones(1, dtype=torch.bfloat16, requires_grad=True)
    ctloss.GradientCache(1)(lambda rows: rows * weight, torch.ones(600, 1, dtype=torch.bfloat16)).sum().backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.bfloat16
    assert weight.grad.item() == 600


def test_sparse_gradients() -> None:
    table = nn.Embedding(10, 2, sparse=True)
    ctloss.GradientCache(2)(table, torch.tensor([1, 1, 3])).sum().backward()
    assert table.weight.grad is not None
    assert table.weight.grad.is_sparse
    expected = torch.zeros(10, 2)
    expected[1], expected[3] = 2.0, 1.0
    assert torch.equal(table.weight.grad.to_dense(), expected)


def test_scaler() -> None:
    """A scaler's factor goes through, and so does what overflows."""
    encoder = nn.Linear(8, 4)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1)
    rows = sentences(1)[:, 0]
    for factor, scale in ((1.0, 2.0**10), (float("inf"), 2.0**9)):
        before = encoder.weight.detach().clone()
        optimizer.zero_grad()
        loss = factor * ctloss.GradientCache(5)(encoder, rows).sum()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        assert scaler.get_scale() == scale
        moved = (before - encoder.weight).detach()
        assert_close(moved, 0.1 * rows.sum(0).expand(4, 8) if factor == 1.0 else torch.zeros(4, 8), 1e-5)


def test_compiled() -> None:
    encoder = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 4))
    rows = sentences(1)[:, 0]
    encoder(rows).square().sum().backward()
    wanted = gradients(encoder)
    compiled = torch.compile(encoder, backend="aot_eager", dynamic=True)
    ctloss.GradientCache(8)(compiled, rows).square().sum().backward()
    assert_close(gradients(encoder), wanted)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(mode: Callable[[], Any]) -> None:
    encoder = transformer().eval()
    with mode():
        found = ctloss.GradientCache(5)(pooled(encoder), sentences(1))
    assert not found.requires_grad
    assert_close(found, pooled(encoder)(sentences(1)).detach())


def test_frozen_encoder() -> None:
    encoder = transformer().requires_grad_(False)
    assert not ctloss.GradientCache(5)(pooled(encoder), sentences(1)).requires_grad


class Packed:
    """What autograd keeps for the backward pass; counted as long as it lives."""

    alive = 0
    most = 0

    def __init__(self, tensor: Tensor) -> None:
        # Without its history, which would hold what holds this.
        self.tensor = tensor.detach()
        Packed.alive += tensor.numel()
        Packed.most = max(Packed.most, Packed.alive)
        weakref.finalize(self, self.forget, tensor.numel())

    @staticmethod
    def forget(size: int) -> None:
        Packed.alive -= size


def test_memory_is_that_of_one_chunk() -> None:
    def most(encode: Callable[[], Tensor]) -> int:
        Packed.alive = Packed.most = 0
        with torch.autograd.graph.saved_tensors_hooks(Packed, lambda packed: packed.tensor):
            encode().backward(torch.ones(()))
        return Packed.most

    encoder, rows = pooled(transformer()), sentences(1)
    one = most(lambda: encoder(rows[:4]).sum())
    assert most(lambda: ctloss.GradientCache(4)(encoder, rows).sum()) == one
    assert most(lambda: encoder(rows).sum()) > 3 * one


def test_embeddings_hold_no_activations() -> None:
    """A first column of all hidden states would keep them all."""
    found = ctloss.GradientCache(5)(pooled(transformer()), sentences(1))
    assert found.untyped_storage().nbytes() == found.numel() * found.element_size()


def test_leaves_that_encode_makes() -> None:
    """As under adapters: frozen embeddings that are told to want a gradient are not kept."""
    frozen, adapter, rows = nn.Linear(8, 8).requires_grad_(False), nn.Linear(8, 4), sentences(1)[:, 0]
    made: list[weakref.ref[Tensor]] = []

    def encode(part: Tensor) -> Tensor:
        hidden = frozen(part).requires_grad_()
        made.append(weakref.ref(hidden))
        found: Tensor = adapter(hidden)
        return found

    encode(rows).exp().sum().backward()
    wanted = gradients(adapter)
    found = ctloss.GradientCache(5)(encode, rows)
    assert all(reference() is None for reference in made)
    found.exp().sum().backward()
    assert_close(gradients(adapter), wanted)
    adapter.requires_grad_(False)
    assert not ctloss.GradientCache(5)(encode, rows).requires_grad


def test_no_rows_take_part() -> None:
    """As on a rank that has none: parameters get gradients, of zero."""
    encoder = nn.Linear(3, 2)
    found = ctloss.GradientCache(4)(encoder, torch.zeros(0, 3))
    assert found.shape == (0, 2)
    found.sum().backward()
    assert all(one.grad is not None and not one.grad.any() for one in encoder.parameters())
