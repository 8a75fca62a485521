"""Our open_clip losses beside open_clip's own, in one process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import peers
from ctloss.integrations import distillation
from ctloss.integrations import open_clip as ours
from support.calls import present
from support.integrations.drop_ins import rows, same_numbers, same_training, value_and_gradients

pytestmark = pytest.mark.numeric


def theirs(name: str, **options: Any) -> Callable[..., Any]:
    return present(peers.loss_class, "open_clip_torch", "open_clip.loss", name)(**options)  # type: ignore[arg-type]


def features(dtype: torch.dtype) -> list[Tensor]:
    return [rows(19, 8, dtype=dtype, seed=seed, unit=True) for seed in (0, 1)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("name", "bias"), [("ClipLoss", None), ("SigLipLoss", -3.0), ("SigLipLoss", None)])
def test_same_numbers(name: str, bias: float | None, dtype: torch.dtype) -> None:
    numbers = [torch.tensor(one, dtype=dtype) for one in (14.0, bias) if one is not None]

    def call(loss: Any) -> Callable[..., Tensor]:
        return lambda x, y, *given: loss(x, y, *given, *([None] if bias is None else []), output_dict=True)[
            "contrastive_loss"
        ]

    same_numbers(call(getattr(ours, name)(cache_labels=True)), call(theirs(name)), *features(dtype), *numbers)


@pytest.mark.parametrize("name", ["ClipLoss", "SigLipLoss"])
def test_numbers_instead_of_tensors(name: str) -> None:
    x, y = features(torch.float32)
    torch.testing.assert_close(getattr(ours, name)()(x, y, 20.0, -4.0), theirs(name)(x, y, 20.0, -4.0))


def test_a_bias_cancels_in_a_softmax_and_keeps_its_place_in_the_graph() -> None:
    x, y = features(torch.float64)
    scale, bias = torch.tensor(14.0).double(), torch.tensor(-10.0).double()
    found = value_and_gradients(ours.ClipLoss(), [x, y, scale, bias])
    torch.testing.assert_close(found, value_and_gradients(theirs("ClipLoss"), [x, y, scale, bias]))
    assert found[-1] == 0


@pytest.mark.parametrize("panel", [256, 7])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("which", ["contrastive_loss", "distill_loss"])
def test_distillation(which: str, dtype: torch.dtype, panel: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both losses, the teacher narrower than the student, its matrix in one panel or in several."""
    monkeypatch.setattr(distillation, "ROWS", panel)
    teacher = [rows(19, 5, dtype=dtype, seed=seed, unit=True) for seed in (2, 3)]
    numbers = torch.tensor(14.0, dtype=dtype), torch.tensor(9.0, dtype=dtype)

    def call(loss: Any) -> Callable[..., Tensor]:
        return lambda x, y, scale: loss(x, y, scale, *teacher, numbers[1], output_dict=True)[which]

    same_numbers(call(ours.DistillClipLoss()), call(theirs("DistillClipLoss")), *features(dtype), numbers[0])


def test_distillation_returns_both_and_ignores_autocast() -> None:
    x, y = features(torch.float32)
    teacher = features(torch.float32)[::-1]
    found = ours.DistillClipLoss()(x, y, 14.0, *teacher, 9.0)
    torch.testing.assert_close(found, theirs("DistillClipLoss")(x, y, 14.0, *teacher, 9.0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ours.DistillClipLoss()(x, y, 14.0, *teacher, 9.0) == found


class Towers(nn.Module):
    """What open_clip's models return: normalised features, a scale from its logarithm, a bias."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        image, text = (nn.functional.normalize(self.encoder(one), dim=1) for one in (x, x + 0.1))
        # Two numbers of the encoder stand for the parameters, so that they are trained too.
        first, last = self.encoder[0].bias[0], self.encoder[2].bias[0]  # type: ignore[index]
        return image, text, (2.0 + first).exp(), last - 5.0


@pytest.mark.parametrize("name", ["ClipLoss", "SigLipLoss"])
def test_same_training(name: str) -> None:
    same_training(getattr(ours, name)(), theirs(name), lambda encoder, x: Towers(encoder)(x))


def test_same_training_with_a_teacher() -> None:
    teacher = [rows(10, 5, seed=seed, unit=True) for seed in (2, 3)]

    def summed(loss: Any) -> Callable[..., Tensor]:
        return lambda x, y, scale, bias: sum(loss(x, y, scale, *teacher, 9.0))

    same_training(
        summed(ours.DistillClipLoss()), summed(theirs("DistillClipLoss")), lambda encoder, x: Towers(encoder)(x)
    )


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ours.ClipLoss(use_horovod=True), "use_horovod: expected False, got True; start.*torchrun"),
        (lambda: ours.ClipLoss(rank=2, world_size=2), "rank: expected 0 to world_size - 1, got 2 of 2"),
        (lambda: ours.SigLipLoss(dist_impl="ring"), "dist_impl: expected one of None, 'bidir'.*got 'ring'"),
        (lambda: ours.ClipLoss()(torch.eye(2), torch.eye(2), -1.0), "logit_scale: expected a positive number, got -1"),
        (
            lambda: ours.DistillClipLoss()(*[torch.eye(2)] * 2, 1.0, *[torch.eye(2, requires_grad=True)] * 2, 1.0),
            "dist_image_features: expected a teacher's tensor without a gradient",
        ),
    ],
)
def test_mistakes_are_told(make: Callable[[], object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


@pytest.mark.parametrize(
    ("teacher", "kind", "said"),
    [
        ((torch.eye(2)[:1], torch.eye(2)[:1], 9.0), ValueError, r"dist_image_features: .*\(2, 2\), got \(1, 2\)"),
        ((torch.eye(2), torch.eye(2)[:, :1], 9.0), ValueError, r"dist_text_features: .*\(2, 2\), got \(2, 1\)"),
        ((torch.eye(2).numpy(), torch.eye(2), 9.0), TypeError, "dist_image_features: .* got ndarray"),
        ((torch.eye(2), torch.eye(2).long(), 9.0), TypeError, "dist_text_features: .* got torch.int64"),
        ((torch.eye(2), torch.eye(2), "9"), TypeError, "dist_logit_scale: expected .* got str"),
        ((torch.eye(2), torch.eye(2), torch.ones(2)), ValueError, r"dist_logit_scale: expected one element, .*\(2,\)"),
        (
            (torch.eye(2), torch.eye(2), torch.tensor(9.0, requires_grad=True)),
            ValueError,
            "dist_logit_scale: .* torch.no_grad",
        ),
    ],
)
def test_a_teacher_that_does_not_fit(teacher: Any, kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        ours.DistillClipLoss()(torch.eye(2), torch.eye(2), 1.0, *teacher)


@pytest.mark.parametrize("name", ["ClipLoss", "SigLipLoss"])
def test_a_scale_has_one_element(name: str) -> None:
    with pytest.raises(ValueError, match=r"logit_scale: expected one element, got shape \(2,\)"):
        getattr(ours, name)()(torch.eye(2), torch.eye(2), torch.ones(2), None)


@pytest.mark.parametrize("name", ["ClipLoss", "SigLipLoss", "DistillClipLoss"])
def test_on_the_meta_device(name: str) -> None:
    x = torch.empty(3, 4, device="meta", requires_grad=True)
    y, scale = torch.empty(3, 4, device="meta"), torch.empty((), device="meta")
    found = getattr(ours, name)()(x, y, scale, *([y, y, scale] if name == "DistillClipLoss" else [None]))
    losses = found if isinstance(found, tuple) else (found,)
    assert [(loss.device.type, loss.shape) for loss in losses] == [("meta", torch.Size())] * len(losses)


@pytest.mark.parametrize(("options", "said"), [({"rank": "0"}, "rank: .*got '0'"), ({"world_size": 1.0}, "world_size")])
def test_ranks_are_integers(options: dict[str, Any], said: str) -> None:
    with pytest.raises(TypeError, match=said):
        ours.SigLipLoss(**options)


def test_ranks_without_a_process_group() -> None:
    with pytest.raises(RuntimeError, match="world_size: expected the 2 ranks given, got a process group of 1"):
        ours.ClipLoss(world_size=2)(torch.eye(2), torch.eye(2), 1.0)
