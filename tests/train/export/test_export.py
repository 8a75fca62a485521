"""A run's encoder as sentence-transformers, transformers, this package's evaluation and the hub read it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard

from ctloss.evaluate import Encoder
from ctloss.train import CCEEncoder, tiny
from ctloss.train.model.encoder import small_backbone
from ctloss.train.model.export import export, push
from ctloss.train.reporting.card import languages_of, model_card
from ctloss.train.text.tokenizer import read_tokenizer, train_wordpiece
from support.tiny_encoder import tiny_bert, word_tokenizer

pytestmark = pytest.mark.numeric

TEXTS = ["The red HOUSE", "le chien rouge dort", "a", "the " * 40]
STAGES = {"after": {"en-fr": {"sentence_forth": 0.5}, "en-pt-br": {"sentence_forth": 0.7}, "mean": {}}}


def vectors(encoder: CCEEncoder, tokenizer: Any, texts: list[str]) -> np.ndarray:
    batch = tokenizer(texts, padding=True, truncation=True, max_length=16, return_tensors="pt")
    with torch.no_grad():
        return encoder.eval().vectors(batch["input_ids"], batch["attention_mask"]).numpy()


def small(folder: Path, layers: int) -> tuple[CCEEncoder, Any]:
    tokenizer = train_wordpiece(TEXTS, vocabulary=100, lower_case=True, max_length=16)
    backbone = small_backbone(
        vocabulary=len(tokenizer), layers=layers, hidden=16, heads=2, dropout=0.1, max_length=16, pad=0, mlm=layers > 1
    )
    return CCEEncoder(backbone, levels="multi", head=True), tokenizer


def given(folder: Path) -> tuple[CCEEncoder, Any]:
    """An encoder of transformers' own whose tokenizer the recipe makes lower-case."""
    words = ["the", "red", "house", "le", "chien", "a", "sentence", "another", "one", "."]
    word_tokenizer(words).save_pretrained(folder)
    tokenizer = read_tokenizer(str(folder), lower_case=True)
    return CCEEncoder(tiny_bert(len(tokenizer), positions=16), levels="sentence", head=False), tokenizer


@pytest.fixture(scope="module", params=["one layer", "three layers", "given"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A run's folder, and the vectors that its encoder gave before it was saved."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    kind = request.param
    encoder, tokenizer = given(folder) if kind == "given" else small(folder, 1 if kind == "one layer" else 3)
    expected = vectors(encoder, tokenizer, TEXTS)
    encoder.save(folder)
    tokenizer.save_pretrained(folder)
    export(folder)
    return folder, expected


def test_sentence_transformers_gives_the_same_vectors(run: tuple[Path, np.ndarray]) -> None:
    library = pytest.importorskip("sentence_transformers")
    folder, expected = run
    model = library.SentenceTransformer(str(folder), device="cpu")
    np.testing.assert_allclose(model.encode(TEXTS), expected, atol=1e-5)
    assert model.max_seq_length == 16
    assert model.similarity_fn_name == "cosine"


def test_saved_again_by_sentence_transformers_it_is_pooled_as_before(
    run: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    """Its folder then lacks our own file, and names its modules as this version of the library does."""
    library = pytest.importorskip("sentence_transformers")
    folder, expected = run
    library.SentenceTransformer(str(folder), device="cpu").save(str(tmp_path))
    assert not (tmp_path / "cce.json").exists()
    with pytest.warns(UserWarning, match="cut there"):
        found = Encoder(tmp_path, pooling="model").sentences(TEXTS)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_evaluation_reads_it_as_before(run: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    folder, expected = run
    with pytest.warns(UserWarning, match="cut there"):
        found = Encoder(folder, pooling="model").sentences(TEXTS)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    for path in folder.iterdir():
        if path.name != "cce.json":
            (tmp_path / path.name).symlink_to(path)
    with pytest.warns(UserWarning, match="cut there"):
        without = Encoder(tmp_path, pooling="model").sentences(TEXTS)
    np.testing.assert_allclose(without, expected, atol=1e-5)


def test_its_files_have_the_usual_mode(run: tuple[Path, np.ndarray]) -> None:
    folder, _ = run
    (folder / "plain").touch()
    usual = (folder / "plain").stat().st_mode
    (folder / "plain").unlink()
    (folder / "model.safetensors").chmod(0o600)
    export(folder)
    assert {path.stat().st_mode for path in folder.rglob("*") if path.is_file()} == {usual}


def blocks(card: str) -> Iterator[str]:
    yield from re.findall(r"```python\n(.*?)```", card, re.DOTALL)


def test_the_card_says_what_gives_the_vectors(run: tuple[Path, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its examples, run in the folder, give the vectors of evaluation."""
    folder, _ = run
    monkeypatch.chdir(folder)
    expected = Encoder(folder, pooling="model").sentences(["A sentence.", "Another one."])
    first, second = blocks(model_card(tiny(), STAGES, "train: 3 rows", {"steps": 4}))
    for code in [second, first] if _has_sentence_transformers() else [second]:
        scope: dict[str, Any] = {}
        exec(code, scope)
        np.testing.assert_allclose(scope["vectors"], expected, atol=1e-5)


def _has_sentence_transformers() -> bool:
    try:
        import sentence_transformers  # noqa: F401
    except ImportError:
        return False
    return True


def test_the_cards_data_are_complete(tmp_path: Path) -> None:
    recipe = tiny().override(corpus=("hub:owner/text", "local.tsv"), encoder="owner/model")
    text = model_card(recipe, STAGES, "train: 3 rows", {"steps": 4}, name="me/mine")
    path = tmp_path / "README.md"
    path.write_text(text, encoding="utf-8")
    card = ModelCard.load(path)
    assert card.data.to_dict() == {
        "language": ["en", "fr", "pt"],
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "base_model": "owner/model",
        "datasets": ["owner/text"],
        "tags": ["sentence-transformers", "sentence-similarity", "feature-extraction", "cross-lingual", "ctloss"],
    }
    for part in ("train: 3 rows", "- steps: 4", f"- torch: {torch.__version__.partition('+')[0]}", '("me/mine")'):
        assert part in card.text
    assert "cce_head.safetensors" in card.text
    for group, values in recipe.as_dict().items():
        assert isinstance(values, str) or f"**{group}**" in card.text


@pytest.mark.parametrize(
    ("options", "base", "word"),
    [({"head": False}, None, "head"), ({"encoder": "/models/ours"}, "ours", "random weights")],
)
def test_the_card_names_nothing_that_is_not_there(options: dict[str, Any], base: str | None, word: str) -> None:
    card = ModelCard(model_card(tiny().override(**options), STAGES, "", {}, languages=["eng_Latn", "zho_Hans"]))
    data = card.data.to_dict()
    assert (data.get("base_model"), data["language"]) == (base, ["en", "zh"])
    assert not {"license", "datasets"} & data.keys()
    assert word not in card.text.partition("## Recipe")[0]


def test_pairs_of_languages_with_regions_are_told_apart() -> None:
    assert languages_of(["en-fr", "en-zho_Hans", "fr-pt-br", "en-zh-tw"]) == ["en", "fr", "zho_Hans", "pt-br", "zh-tw"]


class Hub:
    """Stands for the hub: keeps what it was told."""

    def __init__(self, token: str | None) -> None:
        assert token == "secret"

    def create_repo(self, repo_id: str, **options: Any) -> Any:
        assert options == {"private": True, "exist_ok": True, "repo_type": "model"}
        return type("Made", (), {"repo_id": f"me/{repo_id}"})

    def upload_folder(self, *, repo_id: str, folder_path: Path, allow_patterns: list[str], **other: Any) -> str:
        assert other.keys() == {"commit_message", "revision"}
        files = (path.relative_to(folder_path).as_posix() for path in folder_path.rglob("*") if path.is_file())
        found = sorted(name for name in files if any(fnmatch(name, pattern) for pattern in allow_patterns))
        return json.dumps([repo_id, found])


def test_push_uploads_the_model_and_nothing_else(
    run: tuple[Path, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    folder, _ = run
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    there = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    for name in (
        "checkpoints/checkpoint-1/model.safetensors",
        "data/train/tokenizer.arrow",
        "metrics.jsonl",
        "run.json",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    (tmp_path / "README.md").write_text("card")
    # Links to folders are not followed by rglob: the folders of modules are looked for where they lie.
    repo_id, found = json.loads(push(tmp_path, "mine", private=True, token="secret"))
    _, whole = json.loads(push(folder, "mine", private=True, token="secret"))
    assert repo_id == "me/mine"
    assert found == sorted(["README.md", *(name for name in there if "/" not in name)])
    assert whole == there


def test_pushes_that_fail_say_so(run: tuple[Path, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    folder, _ = run
    with pytest.raises(ValueError, match=r"expected to upload to 'me/mine' on the Hugging Face hub, got .*offline"):
        push(folder, "me/mine")
    with pytest.raises(ValueError, match="expected a name such as 'name' or 'organisation/name' on the hub, got 'a b'"):
        push(folder, "a b")
    with pytest.raises(ValueError, match=r"expected the folder of a finished run, got .* without modules\.json"):
        push(tmp_path, "me/mine")
