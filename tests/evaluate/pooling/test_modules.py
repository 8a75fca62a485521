"""Folders of sentence-transformers: the modules that are applied, and those that are refused rather than left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ctloss.evaluate import Encoder, VectorOptions, run
from support.tiny_encoder import saved, write

pytestmark = pytest.mark.numeric

PIECES = ["the", "dog", "##s", "red", "house", "sleep", "query", ":", "a"]
TEXTS = ["the red house", "dogs", "the dogs sleep the red dog", "a"]
TYPES = "sentence_transformers.models."


def put(folder: Path, name: str, settings: Any, **weights: torch.Tensor) -> None:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(settings))
    if weights:
        save_file({key.replace("__", "."): value for key, value in weights.items()}, path.parent / "model.safetensors")


def modules(folder: Path, *paths: str, types: str = TYPES) -> Path:
    listed = [("", "Transformer"), *((path, path.partition("_")[2]) for path in paths)]
    put(
        folder,
        "modules.json",
        [{"idx": i, "name": str(i), "path": p, "type": types + kind} for i, (p, kind) in enumerate(listed)],
    )
    return folder


def dense(width: int = 16, out: int = 5, seed: int = 0, bias: bool = True, **settings: Any) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(seed)
    weights = {"linear__weight": torch.randn(out, width, generator=draw)}
    if bias:
        weights["linear__bias"] = torch.randn(out, generator=draw)
    return {"settings": {"in_features": width, "out_features": out, "bias": bias, **settings}, **weights}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """LaBSE's layout without its later modules: the first token's hidden state."""
    path = saved(tmp_path / "model", PIECES)
    put(path, "1_Pooling/config.json", {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False})
    return modules(path, "1_Pooling")


def test_dense_layers_and_normalisation_are_applied(folder: Path) -> None:
    """As in LaBSE (tanh, normalised) and distiluse (fewer dimensions)."""
    bare = Encoder(folder, pooling="model").sentences(TEXTS)
    first, second = dense(activation_function="torch.nn.modules.activation.Tanh"), dense(5, 3, 1, bias=False)
    second["settings"]["activation_function"] = "torch.nn.modules.linear.Identity"
    put(folder, "2_Dense/config.json", **first)
    put(folder, "3_Dense/config.json", **second)
    modules(folder, "1_Pooling", "2_Dense", "3_Dense", "4_Normalize", types="sentence_transformers.base.modules.any.")
    encoder = Encoder(folder, pooling="model")
    found = encoder.sentences(TEXTS)
    hidden = np.tanh(bare @ first["linear__weight"].numpy().T + first["linear__bias"].numpy())
    expected = hidden @ second["linear__weight"].numpy().T
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert found.shape == (4, 3)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert encoder.sentences([]).shape == (0, 3)
    # Words are compared by the hidden states below those layers.
    assert encoder.pieces([["dogs"]])[0].vectors.shape == (2, 16)
    np.testing.assert_allclose(Encoder(folder, pooling="cls").sentences(TEXTS), bare, atol=1e-6)


def test_hidden_states_are_weighted(folder: Path) -> None:
    """layer_start leaves the first hidden states out; the weights need not sum to 1."""
    put(
        folder,
        "1_WeightedLayerPooling/config.json",
        {"word_embedding_dimension": 16, "layer_start": 1, "num_hidden_layers": 3},
        layer_weights=torch.tensor([3.0, 0.0, 1.0]),
    )
    put(folder, "2_Pooling/config.json", {"pooling_mode": "mean"})
    modules(folder, "1_WeightedLayerPooling", "2_Pooling")
    encoder = Encoder(folder, pooling="model")
    one, three = (Encoder(folder, pooling="layer", layer=layer) for layer in (1, 3))
    expected = (3 * one.sentences(TEXTS) + three.sentences(TEXTS)) / 4
    np.testing.assert_allclose(encoder.sentences(TEXTS), expected, atol=1e-5)
    states = (3 * one.pieces([["dogs"]])[0].vectors + three.pieces([["dogs"]])[0].vectors) / 4
    np.testing.assert_allclose(encoder.pieces([["dogs"]])[0].vectors, states, atol=1e-5)
    put(folder, "1_WeightedLayerPooling/config.json", {"layer_start": 0}, layer_weights=torch.ones(3))
    with pytest.raises(ValueError, match="expected a weight for each of 4 hidden states, got 3"):
        Encoder(folder, pooling="model").sentences(TEXTS)


def test_its_length_case_and_prompt_are_kept(folder: Path) -> None:
    put(folder, "sentence_roberta_config.json", {"max_seq_length": 4, "do_lower_case": True})
    put(folder, "config_sentence_transformers.json", {"prompts": {"q": "a "}, "default_prompt_name": "q"})
    with pytest.warns(UserWarning, match="1 of 1 sentences have more than 4 tokens"):
        found = Encoder(folder, pooling="model").sentences(["The RED house"])
    np.testing.assert_allclose(found, Encoder(folder, pooling="cls").sentences(["a the"]), atol=1e-6)
    asked = Encoder(folder, pooling="model", prefix="query: ", max_length=9).sentences(["The RED house"])
    np.testing.assert_allclose(asked, Encoder(folder, pooling="cls").sentences(["query: the red house"]), atol=1e-6)


def test_sentence_transformers_agrees(folder: Path, tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    parts = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    torch.manual_seed(1)
    stages = [
        parts.Transformer(str(folder)),
        parts.Pooling(16, pooling_mode="mean"),
        parts.Dense(16, 6, activation_function=torch.nn.GELU()),
        parts.Normalize(),
    ]
    theirs = library.SentenceTransformer(modules=stages, device="cpu")
    theirs.save(str(tmp_path / "saved"))
    found = Encoder(tmp_path / "saved", pooling="model").sentences(TEXTS)
    np.testing.assert_allclose(found, theirs.encode(TEXTS), atol=1e-5)


@pytest.mark.parametrize("change", ["weights", "normalise"])
def test_results_of_other_modules_are_not_taken_for_these(folder: Path, tmp_path: Path, change: str) -> None:
    data = str(write(tmp_path / "data", x__en=TEXTS, x__fr=TEXTS) / "x")
    put(folder, "2_Dense/config.json", **dense())
    modules(folder, "1_Pooling", "2_Dense")
    options: dict[str, Any] = {"vectors": VectorOptions(pooling="model", device="cpu")}
    kept = run(str(folder), {"pairs": data}, tmp_path / "out", **options)
    assert run(str(folder), {"pairs": data}, tmp_path / "out", **options) == kept
    if change == "weights":
        put(folder, "2_Dense/config.json", **dense(seed=1))
    else:
        modules(folder, "1_Pooling", "2_Dense", "3_Normalize")
    with pytest.raises(
        ValueError, match=r"expected a result with pooling 'cls, 2_Dense .*, got one with 'cls, 2_Dense "
    ):
        run(str(folder), {"pairs": data}, tmp_path / "out", **options)


@pytest.mark.parametrize(
    ("paths", "got"),
    [
        (["1_Pooling", "2_LayerNorm"], "LayerNorm"),
        (["1_Pooling", "2_LSTM"], "LSTM"),
        (["1_Pooling", "2_Pooling"], "Transformer, Pooling, Pooling"),
        (["2_Dense", "1_Pooling"], "Transformer, Dense, Pooling"),
        (["2_Dense"], "Transformer, Dense"),
    ],
)
def test_modules_that_would_be_left_out_are_refused(folder: Path, paths: list[str], got: str) -> None:
    modules(folder, *paths)
    with pytest.raises(
        ValueError, match=rf"and then Dense or Normalize, got {got} in its modules\.json; .* choose one of"
    ):
        Encoder(folder, pooling="model")
    assert Encoder(folder, pooling="mean").sentences(TEXTS).shape == (4, 16)


def test_modules_from_elsewhere_are_refused(folder: Path) -> None:
    modules(folder, "1_Pooling", "2_Dense", types="custom_code.")
    with pytest.raises(ValueError, match=r"got custom_code\.Transformer in its modules\.json"):
        Encoder(folder, pooling="model")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"activation_function": "os.system"}, "got 2_Dense with the activation os.system"),
        ({"activation_function": "torch.nn.modules.activation.MultiheadAttention"}, "got 2_Dense with the activation"),
        ({"use_residual": True}, "got 2_Dense with a residual connection"),
        ({"module_input_name": "token_embeddings"}, "or for something other than the sentence's vector"),
        ({"out_features": 6}, r"expected linear.bias, linear.weight of shape \(6, 16\) in 2_Dense"),
        ({"bias": False}, r"expected linear.weight of shape \(5, 16\) in 2_Dense"),
    ],
)
def test_dense_layers_that_cannot_be_applied_are_refused(folder: Path, settings: dict[str, Any], message: str) -> None:
    made = dense()
    made["settings"] |= settings
    put(folder, "2_Dense/config.json", **made)
    modules(folder, "1_Pooling", "2_Dense")
    with pytest.raises(ValueError, match=message):
        Encoder(folder, pooling="model")


def test_weights_are_whole_and_read_from_safetensors_only(folder: Path) -> None:
    put(folder, "2_Dense/config.json", **dense())
    modules(folder, "1_Pooling", "2_Dense")
    weights = folder / "2_Dense" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"2_Dense/model\.safetensors: expected whole weights"):
        Encoder(folder, pooling="model")
    weights.unlink()
    torch.save({}, folder / "2_Dense" / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"expected the weights of 2_Dense as safetensors, got .* convert them"):
        Encoder(folder, pooling="model")
    broken = dense()
    broken["linear__weight"][0, 0] = torch.nan
    put(folder, "2_Dense/config.json", **broken)
    with pytest.raises(ValueError, match="expected finite weights, got NaN or infinity in 2_Dense"):
        Encoder(folder, pooling="model")
    (folder / "modules.json").write_text("[")
    with pytest.raises(ValueError, match=r"modules\.json: expected JSON, got something else"):
        Encoder(folder, pooling="model")


@pytest.mark.parametrize("file", ["cce.json", "modules.json", "sentence_bert_config.json"])
@pytest.mark.parametrize("content", ["3", "[3]", '"s"'])
def test_settings_of_another_kind_are_damage(tmp_path: Path, file: str, content: str) -> None:
    folder = saved(tmp_path, PIECES)
    if file == "sentence_bert_config.json":
        modules(folder, "1_Pooling")
        put(folder, "1_Pooling/config.json", {"word_embedding_dimension": 8, "pooling_mode_mean_tokens": True})
    (folder / file).write_text(content)
    with pytest.raises(ValueError, match=f"{file}: expected settings, got"):
        Encoder(str(folder), pooling="model")
