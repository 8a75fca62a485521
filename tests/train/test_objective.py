"""L_multi_1 and L_multi_2: assembled by hand, what α = 0 skips, and float32 under autocast."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from torch.nn import functional

import ctloss
from ctloss.train import CCEEncoder
from ctloss.train.model.encoder import small_backbone
from ctloss.train.model.objective import Objective, decays, pull_and_push

pytestmark = pytest.mark.numeric


def objective(
    loss: str = "cz_nce", alpha: float = 0.1, levels: str = "multi", head: bool = True, **options: Any
) -> Objective:
    torch.manual_seed(0)
    backbone = small_backbone(
        vocabulary=40, layers=2, hidden=16, heads=2, dropout=0.0, max_length=12, pad=0, mlm=alpha > 0
    )
    encoder = CCEEncoder(backbone, levels=levels, head=head)
    return Objective(encoder, loss=loss, temperature=0.07, alpha=alpha, **options)


def batch(seed: int = 0, n: int = 4) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made: dict[str, torch.Tensor] = {}
    for side, length in (("source", 6), ("target", 9)):
        ids = torch.randint(5, 40, (n, length), generator=generator)
        lengths = torch.randint(4, length + 1, (n, 1), generator=generator)
        mask = (torch.arange(length) < lengths).long()
        ids = ids * mask
        chosen = (torch.rand(ids.shape, generator=generator) < 0.3) & mask.bool()
        chosen[0, 1] = True
        made |= {
            f"{side}_ids": ids,
            f"{side}_mask": mask,
            f"{side}_span": torch.tensor([[1, 3]] * n),
            f"{side}_masked_ids": torch.where(chosen, 4, ids),
            f"{side}_labels": torch.where(chosen, ids, -100),
        }
    return made


def vectors(model: Objective, made: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = (
        model.encoder(made[f"{side}_ids"], made[f"{side}_mask"], made[f"{side}_span"]) for side in ("source", "target")
    )
    return x, y


def mlm_loss(model: Objective, made: dict[str, torch.Tensor], side: str) -> torch.Tensor:
    logits = model.encoder.backbone(input_ids=made[f"{side}_masked_ids"], attention_mask=made[f"{side}_mask"]).logits
    return functional.cross_entropy(logits.flatten(0, 1), made[f"{side}_labels"].flatten())


def rows_seen(model: Objective) -> list[tuple[int, int]]:
    """Shapes of what the backbone is given from now on."""
    seen: list[tuple[int, int]] = []
    model.encoder.backbone.base_model.register_forward_pre_hook(
        lambda module, positional, named: seen.append(tuple(named["input_ids"].shape)), with_kwargs=True
    )
    return seen


def gradient(model: Objective) -> torch.Tensor:
    """All parameters' gradients as one vector."""
    found = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
    return torch.cat([torch.empty(0) if one is None else one.flatten() for one in found])


def assert_same_gradient(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Sums of the same float32 products in another order: alike in proportion to the whole, not entry by entry."""
    assert found.shape == expected.shape
    assert (found - expected).norm() < 1e-4 * expected.norm()


both_losses = pytest.mark.parametrize("loss", ["cz_nce", "info_nce"])
both_negatives = pytest.mark.parametrize("negatives", ["both", "cross"])


@both_losses
@both_negatives
def test_sum_of_contrastive_loss_and_weighted_mlm(loss: str, negatives: str) -> None:
    model, made = objective(loss, alpha=0.3, negatives=negatives), batch()
    measured = model(**made)
    contrastive = getattr(ctloss, loss)(*vectors(model, made), temperature=0.07, negatives=negatives)
    mlm = (mlm_loss(model, made, "source") + mlm_loss(model, made, "target")) / 2
    torch.testing.assert_close(measured["contrastive"], contrastive)
    torch.testing.assert_close(measured["mlm"], mlm)
    torch.testing.assert_close(measured["loss"], contrastive + 0.3 * mlm)


def test_sides_are_padded_together_only_where_that_costs_nothing() -> None:
    made = batch()
    model = objective()
    seen = rows_seen(model)
    model(**made)
    assert seen == [(4, 6), (4, 9), (4, 6), (4, 9)]
    alike = {**made, **{name: value for name, value in batch(seed=1).items() if name.startswith("target")}}
    for part in ("ids", "mask", "span", "masked_ids", "labels"):
        alike[f"source_{part}"] = made[f"target_{part}"]
    seen.clear()
    model(**alike)
    assert seen == [(8, 9), (8, 9)]


@pytest.mark.parametrize(("cache", "calls"), [(None, 4), (1, 16)])
def test_calls_of_the_encoder_need_not_depend_on_lengths(cache: int | None, calls: int) -> None:
    """Where weights are shared out, each call is one of all processes: another number of them would never end."""
    alike, apart = batch(), batch(seed=1)
    for part in ("ids", "mask", "span", "masked_ids", "labels"):
        alike[f"source_{part}"] = batch(seed=2)[f"target_{part}"]
    found = []
    for made in (alike, apart):
        model = objective(gradient_cache=cache, stack_sides=False)
        seen = rows_seen(model)
        model(**made)["loss"].backward()
        found.append(gradient(model))
        # The cache encodes again in the backward pass.
        assert len(seen) == calls
    stacked = objective(gradient_cache=cache)
    stacked(**alike)["loss"].backward()
    assert_same_gradient(found[0], gradient(stacked))


def test_padding_that_both_sides_share_changes_nothing() -> None:
    made = batch()
    fills = {"ids": 0, "mask": 0, "masked_ids": 0, "labels": -100}
    longer = {
        **made,
        **{
            f"source_{part}": functional.pad(made[f"source_{part}"], (0, 3), value=fill) for part, fill in fills.items()
        },
    }
    one, other = objective(), objective()
    found, expected = one(**longer), other(**made)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
    found["loss"].backward()
    expected["loss"].backward()
    assert_same_gradient(gradient(one), gradient(other))


@pytest.mark.parametrize("size", [1, 3, 8])
def test_cached_sides_of_different_lengths_are_the_plain_step(size: int) -> None:
    found = []
    for cache in (None, size):
        model = objective(alpha=0.3, gradient_cache=cache)
        seen = rows_seen(model)
        model(**batch(n=8))["loss"].backward()
        assert max(rows for rows, _ in seen) == min(8, 2 * (cache or 8))
        found.append(gradient(model))
    assert_same_gradient(*found)


def test_dropout_is_that_of_the_seed_whether_or_not_sides_are_cached() -> None:
    def step(cache: int | None, dropout: float) -> tuple[torch.Tensor, torch.Tensor]:
        model = objective(alpha=0.3, gradient_cache=cache)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = dropout
        torch.manual_seed(3)
        loss = model.train()(**batch(n=8))["loss"]
        loss.backward()
        return loss.detach(), gradient(model)

    loss, expected = step(None, 0.3)
    for cache in (None, 8):
        again, found = step(cache, 0.3)
        torch.testing.assert_close(again, loss)
        assert_same_gradient(found, expected)
    assert not torch.isclose(step(None, 0.0)[0], loss)


IDS = torch.tensor([0, 1, 0, 3])


@both_losses
@both_negatives
def test_words_that_stand_elsewhere_are_no_negatives(loss: str, negatives: Literal["both", "cross"]) -> None:
    function = getattr(ctloss, loss)
    options: dict[str, Any] = {"temperature": 0.07, "negatives": negatives}
    for levels in ("multi", "apart", "sentence"):
        model, made = objective(loss, alpha=0.0, levels=levels, negatives=negatives), batch()
        x, y = vectors(model, made)
        if levels == "multi":
            expected = function(x, y, ids=IDS, **options)
            forces = pull_and_push(x, y, loss=loss, ids=IDS, **options)
        elif levels == "apart":
            sentences, words = (x[:, 0], y[:, 0]), (x[:, 1], y[:, 1])
            expected = (function(*sentences, **options) + function(*words, ids=IDS, **options)) / 2
            pairs = (
                pull_and_push(*sentences, loss=loss, **options),
                pull_and_push(*words, loss=loss, ids=IDS, **options),
            )
            pull, push = ((one + other) / 2 for one, other in zip(*pairs, strict=True))
            forces = pull, push
        else:
            expected = function(x, y, **options)
            forces = pull_and_push(x, y, loss=loss, **options)
        measured = model(**made, word_ids=IDS, forces=True)
        torch.testing.assert_close(measured["contrastive"], expected)
        torch.testing.assert_close(measured["pull"], forces[0])
        torch.testing.assert_close(measured["push"], forces[1])
        if levels != "sentence":
            assert not torch.isclose(measured["contrastive"], model(**made)["contrastive"])


def test_a_row_without_negatives_pulls_and_pushes_nothing() -> None:
    x, y = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    for loss in ("cz_nce", "info_nce"):
        found = pull_and_push(x, y, loss=loss, temperature=0.1, ids=torch.zeros(3, dtype=torch.int64))
        torch.testing.assert_close(torch.stack(found), torch.zeros(2))


@both_losses
def test_learnt_temperature(loss: str) -> None:
    model, made = objective(loss, alpha=0.0, learn_temperature=True), batch()
    assert model.encoder.temperature is not None
    (logarithm,) = model.encoder.temperature.parameters()
    measured = model(**made, forces=True)
    torch.testing.assert_close(measured["temperature"], torch.tensor(0.07))
    assert not measured["temperature"].requires_grad
    torch.testing.assert_close(measured["loss"], objective(loss, alpha=0.0)(**made)["loss"])
    measured["loss"].backward()
    assert logarithm.grad is not None
    # d/d log τ, by differences.
    x, y = (side.detach() for side in vectors(model, made))
    losses = [getattr(ctloss, loss)(x.double(), y.double(), temperature=0.07 * (1 + step)) for step in (1e-4, -1e-4)]
    assert logarithm.grad.item() == pytest.approx(float(losses[0] - losses[1]) / 2e-4, rel=1e-3, abs=1e-5)
    with torch.no_grad():
        logarithm.fill_(-1.0)
    expected = getattr(ctloss, loss)(x, y, temperature=torch.tensor(-1.0).exp())
    torch.testing.assert_close(model(**made)["contrastive"], expected)


def test_one_temperature_serves_both_levels_and_does_not_decay() -> None:
    model = objective(levels="apart", learn_temperature=True)
    named = [name for name, _ in model.named_parameters()]
    assert [name for name in named if not decays(name)] == ["encoder.temperature.log_temperature"]
    again = Objective(model.encoder, loss="cz_nce", temperature=0.5, learn_temperature=True)
    assert again(**batch())["temperature"].item() == pytest.approx(0.07)
    assert "temperature" not in objective()(**batch())
    with pytest.raises(ValueError, match=r"expected a learnable one to start between 0\.001 and 10"):
        Objective(objective().encoder, loss="cz_nce", temperature=20.0, learn_temperature=True)


def test_margins_are_the_same_whichever_loss_reports_them() -> None:
    cz, info = (objective(loss, alpha=0.0)(**batch()) for loss in ("cz_nce", "info_nce"))
    rows = ctloss.cz_nce(*vectors(objective(alpha=0.0), batch()), reduction="none")
    for measured in (cz, info):
        torch.testing.assert_close(measured["z_mean"], rows.mean(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(measured["z_min"], rows.min(), rtol=1e-4, atol=1e-4)
        assert measured["saturated"] == 0


def test_saturated_rows_are_counted() -> None:
    model, made = objective(alpha=0.0), batch()
    model.temperature = 1e-4
    # Pairs of equal sides, but the first two rows have each other's target: those rank their positive last.
    for part in ("ids", "mask", "span"):
        made[f"target_{part}"] = made[f"source_{part}"][[1, 0, 2, 3]]
    rows = ctloss.cz_nce(*vectors(model, made), temperature=1e-4, negatives="both", reduction="none")
    expected = (rows.exp() < 6e-8).float().mean()
    assert expected == 0.5
    torch.testing.assert_close(model(**made)["saturated"], expected)


@both_losses
@both_negatives
@pytest.mark.parametrize("levels", ["multi", "apart"])
def test_rows_without_negatives_count_for_no_margin(loss: str, negatives: str, levels: str) -> None:
    model, made = objective(loss, alpha=0.0, levels=levels, negatives=negatives), batch()
    found = model(**made, word_ids=torch.full((4,), 7))
    expected = {"z_mean": 0.0, "z_min": torch.inf, "saturated": 0.0}
    if levels == "apart":
        # Sentences always have negatives.
        x, y = vectors(model, made)
        z = ctloss.cz_nce(x[:, 0], y[:, 0], temperature=0.07, negatives=negatives, reduction="none").detach()
        expected = {"z_mean": float(z.mean()), "z_min": float(z.min()), "saturated": 0.0}
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value, abs=1e-4), name


def test_without_alpha_masked_copies_are_not_read() -> None:
    model, made = objective(alpha=0.0), batch()
    clean = {name: value for name, value in made.items() if "masked" not in name and "labels" not in name}
    assert "mlm" not in model(**clean)
    assert torch.equal(model(**clean)["loss"], model(**made)["loss"])
    with pytest.raises(ValueError, match="masked copies and labels of both sides"):
        objective(alpha=0.1)(**clean)


def test_contrastive_branch_sees_clean_text() -> None:
    made = batch()
    other = {**made, "source_masked_ids": torch.full_like(made["source_ids"], 4)}
    model = objective(alpha=0.1)
    assert torch.equal(model(**made)["contrastive"], model(**other)["contrastive"])
    assert model(**made)["mlm"] != model(**other)["mlm"]


def test_side_without_masked_wordpieces_adds_nothing() -> None:
    made = batch()
    made["target_labels"] = torch.full_like(made["target_labels"], -100)
    model = objective(alpha=0.1)
    measured = model(**made)
    measured["loss"].backward()
    torch.testing.assert_close(measured["mlm"], mlm_loss(model, made, "source").detach() / 2)


def test_every_trained_parameter_gets_a_gradient() -> None:
    for alpha in (0.0, 0.1):
        model = objective(alpha=alpha)
        model(**batch())["loss"].backward()
        missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert missing == []


def test_sentence_level_needs_no_words() -> None:
    made = {name: value for name, value in batch().items() if "span" not in name}
    assert objective(levels="sentence", alpha=0.0)(**made)["loss"].isfinite()


def test_loss_is_float32_under_autocast() -> None:
    model, made = objective(alpha=0.1), batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        measured = model(**made)
    assert {value.dtype for value in measured.values()} == {torch.float32}
    torch.testing.assert_close(measured["contrastive"], model(**made)["contrastive"], rtol=0.1, atol=0.1)


@pytest.mark.parametrize("head", [False, True])
def test_levels_apart_is_the_mean_of_two_losses(head: bool) -> None:
    model, made = objective(levels="apart", alpha=0.0, head=head), batch()
    x, y = vectors(model, made)
    assert x.shape == (4, 2, 16)
    losses = [ctloss.cz_nce(x[:, level], y[:, level], temperature=0.07, negatives="both") for level in (0, 1)]
    torch.testing.assert_close(model(**made)["contrastive"], sum(losses) / 2)


@both_losses
@both_negatives
def test_pull_and_push_by_the_equations(loss: str, negatives: Literal["both", "cross"]) -> None:
    n, temperature = 5, 0.3
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(2, n, 7, generator=generator, dtype=torch.float64)
    u = functional.normalize(torch.cat([x, y]), dim=1)
    positive = torch.arange(2 * n).roll(n)
    logits = u @ u.T / temperature
    allowed = ~torch.eye(2 * n, dtype=torch.bool)
    allowed[torch.arange(2 * n), positive] = False
    if negatives == "cross":
        allowed[:n, :n] = allowed[n:, n:] = False
    masked = logits.masked_fill(~allowed, -torch.inf)
    z = masked.logsumexp(dim=1) - logits[torch.arange(2 * n), positive]
    w = torch.ones(2 * n, dtype=torch.float64) if loss == "cz_nce" else z.sigmoid()
    weighed = w.unsqueeze(1) * masked.softmax(dim=1)
    pull = (w + w[positive]).unsqueeze(1) * u[positive] / (2 * n * temperature)
    push = (weighed + weighed.T) @ u / (2 * n * temperature)
    found = pull_and_push(x, y, loss=loss, temperature=temperature, negatives=negatives)
    torch.testing.assert_close(torch.stack(found), torch.stack([pull.norm(), push.norm()]))


def test_forces_are_measured_on_request_and_leave_the_gradient_unchanged() -> None:
    with_forces, without = objective(levels="apart"), objective(levels="apart")
    measured = with_forces(**batch(), forces=True)
    measured["loss"].backward()
    without(**batch())["loss"].backward()
    assert measured["pull"] > 0
    assert measured["push"] > 0
    for one, other in zip(with_forces.parameters(), without.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        assert one.grad is None or other.grad is None or torch.equal(one.grad, other.grad)
