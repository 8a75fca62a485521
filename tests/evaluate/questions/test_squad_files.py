"""Where the files of questions lie, how they are read, and what is refused."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ctloss.evaluate import DataError
from ctloss.evaluate.data.labelled import MLQA, TYDIQA, XQUAD, Task, find_files
from ctloss.evaluate.data.questions import check_ids, read_squad
from ctloss.evaluate.data.sources import EVALUATIONS, digest_of_data, find_data, read_split
from ctloss.evaluate.models.options import XTREME_OPTIONS
from support import tiny_tasks
from support.tiny_results import refused

Item = dict[str, Any]
# The second character has two code units in UTF-16, and the third is a letter with a mark of its own.
CONTEXT = "A\U0001f309e\u0301 bridge, an old bridge."


@pytest.fixture(scope="module")
def download(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("download")
    tiny_tasks.write_questions(folder)
    return folder


def squad(*items: Item, context: object = CONTEXT) -> Item:
    return {"version": "1.1", "data": [{"paragraphs": [{"context": context, "qas": list(items)}]}]}


def item(text: object = "bridge", start: object = 5, **changes: object) -> Item:
    return {"id": "a", "question": "What?", "answers": [{"text": text, "answer_start": start}], **changes}


def written(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize("task", [XQUAD, MLQA, TYDIQA], ids=lambda task: task.name)
def test_the_layout_of_xtremes_download(tmp_path: Path, download: Path, task: Task) -> None:
    """Found from the folder of all tasks and from the task's own, compressed or not."""
    [place] = find_data([str(download)], {task.name: XTREME_OPTIONS[task.name]}).values()
    assert Path(place) == download / task.name
    for folder in (download, download / task.name):
        assert sorted(find_files(folder, task, "test")) == ["de", "en"]
        assert len(read_split(folder, task, "test", ["de"])["de"]) == 24
        assert len(read_split(folder, task, "train", ["en"])["en"]) == 192
    before = digest_of_data(EVALUATIONS[task.name], place, XTREME_OPTIONS[task.name])
    shutil.copytree(download, tmp_path / "packed")
    for path in (tmp_path / "packed").rglob("*.json"):
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    packed = tmp_path / "packed" / task.name
    assert read_split(packed, task, "test") == read_split(download, task, "test")
    assert read_split(packed, task, "train", ["en"]) == read_split(download, task, "train", ["en"])
    assert digest_of_data(EVALUATIONS[task.name], str(packed), XTREME_OPTIONS[task.name]) != before


def test_other_names_of_tydiqa_and_other_splits_of_mlqa(tmp_path: Path) -> None:
    for name in ("tydiqa.fi.dev.json", "tydiqa.en.train.json", "dev-context-de-question-de.json"):
        written(tmp_path / name, squad(item()))
    # Question and text in two languages are another task.
    written(tmp_path / "dev-context-de-question-en.json", squad(item()))
    assert find_files(tmp_path, TYDIQA, "test") == {"fi": [tmp_path / "tydiqa.fi.dev.json"]}
    assert find_files(tmp_path, TYDIQA, "train") == {"en": [tmp_path / "tydiqa.en.train.json"]}
    assert list(find_files(tmp_path, MLQA, "dev")) == ["de"]
    assert find_files(tmp_path, XQUAD, "dev") == {}


def test_missing_files_are_named(tmp_path: Path, download: Path) -> None:
    with pytest.raises(DataError, match=r"expected xquad\.fr\.json there or in its folder xquad, got languages de, en"):
        read_split(download, XQUAD, "test", ["fr"])
    shutil.copytree(download / "mlqa", tmp_path / "mlqa")
    with pytest.raises(DataError, match=r"expected squad/train-v1\.1\.json there .*, got no train file"):
        read_split(tmp_path / "mlqa", MLQA, "train", ["en"])
    with pytest.raises(DataError, match=r"tydiqa: expected files tydiqa-goldp-v1\.1-dev/tydiqa\.goldp\.LANGUAGE"):
        find_data([str(tmp_path)], {"tydiqa": XTREME_OPTIONS["tydiqa"]})
    with pytest.raises(DataError, match="expected a split validation, which xquad does not have there"):
        read_split(download, XQUAD, "validation")
    with pytest.raises(ValueError, match="only xnli, pawsx, pos and ner read the hub"):
        find_data(["xquad=hub:x"], {"xquad": XTREME_OPTIONS["xquad"]})


def test_positions_count_code_points_of_the_text_as_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    more = item(id=7, answers=[{"text": "old bridge", "answer_start": CONTEXT.index("old")}] * 2)
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(squad(item(), more)).encode())
    one, other = read_squad(path)
    assert one.context == CONTEXT
    assert (one.id, one.answers) == ("a", (("bridge", 5),))
    assert (other.id, len(other.answers)) == ("7", 2)
    assert other.place == f"{path}, data[0].paragraphs[0].qas[1] (id '7')"


@pytest.mark.parametrize("answers", [[], [{"text": "", "answer_start": 0}], None])
def test_questions_without_answers_are_counted_unless_none_has_any(tmp_path: Path, answers: Any) -> None:
    path = written(tmp_path / "a.json", squad(item(), item(id="b", answers=answers), item(id="c", answers=answers)))
    with pytest.warns(UserWarning, match=r"qas\[1\] \(id 'b'\): 2 of the file's 3 questions.* are left out"):
        assert [row.id for row in read_squad(path)] == ["a"]
    written(path, squad(item(answers=answers), item(id="b", answers=answers)))
    assert [row.answers for row in read_squad(path)] == [(), ()]


def test_questions_of_squad_2_that_are_impossible_have_no_answer(tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", squad(item(), item(id="b", is_impossible=True)))
    with pytest.warns(UserWarning, match="1 of the file's 2 questions"):
        assert len(read_squad(path)) == 1


@pytest.mark.parametrize(
    ("content", "place", "message"),
    [
        ([], "", r"expected an object with data, got '\[\]'"),
        ({"rows": []}, "", r"expected an object with data, got an object without it \(rows\)"),
        ({"data": {}}, ", data", "expected a list, got '{}'"),
        ({"data": []}, "", "expected questions, got none"),
        ({"data": [3]}, ", data[0]", "expected an object with paragraphs, got int"),
        (squad(item(), context=3), ", data[0].paragraphs[0], context", "expected a text, got '3'"),
        (squad(item(), context=" \u200b"), ", data[0].paragraphs[0]", "expected a context, got .* nothing can be seen"),
        (squad({"question": "What?"}), ", data[0].paragraphs[0].qas[0]", "expected an id, got None"),
        (squad(item(question=None)), ", data[0].paragraphs[0].qas[0], question", "expected a text, got 'None'"),
        (squad(item(question="")), ", data[0].paragraphs[0].qas[0] (id 'a')", "expected a question, got ''"),
        (squad(item(answers={"text": ["x"]})), ", data[0].paragraphs[0].qas[0] (id 'a')", "expected a list of answers"),
        (squad(item(start="5")), ", data[0].paragraphs[0].qas[0] (id 'a'), answers[0], answer_start", "whole number"),
        (squad(item(start=True)), ", data[0].paragraphs[0].qas[0] (id 'a'), answers[0], answer_start", "whole number"),
        (
            squad(item(start=6)),
            ", data[0].paragraphs[0].qas[0] (id 'a'), answers[0]",
            r"expected the answer 'bridge' at character 6 of the context, got 'ridge,'; it stands at 5: correct",
        ),
        (squad(item("river", 99)), ", data[0].paragraphs[0].qas[0] (id 'a'), answers[0]", "got ''; it stands nowhere"),
        (squad(item(start=-3)), ", data[0].paragraphs[0].qas[0] (id 'a'), answers[0]", "at character -3"),
        # JSON may hold half of a surrogate pair; tokenizers take no such text.
        (squad(item(), context="ab\ud800"), ", data[0].paragraphs[0], context", r"'\\ud800'\) at character 2"),
        (squad(item(question="\udc00?")), ", data[0].paragraphs[0].qas[0], question", r"'\\udc00'\) at character 0"),
        (
            squad(item("x\ud800")),
            ", data[0].paragraphs[0].qas[0] (id 'a'), answers[0], text",
            "half of a surrogate pair",
        ),
        (squad(item(id="\ud800")), ", data[0].paragraphs[0].qas[0], id", "expected Unicode text, got half of"),
    ],
)
def test_what_is_not_squads_form_is_refused(tmp_path: Path, content: object, place: str, message: str) -> None:
    path = written(tmp_path / "a.json", content)
    with refused(message, where=Path(f"{path}{place}")):
        read_squad(path)


@pytest.mark.parametrize(
    ("content", "line", "message"),
    [
        (b'{"data": [\n{"paragraphs": \n', 3, r"expected JSON .* got something else at column 1 \(Expecting value"),
        (b'{"data": [\n"\xff"]}', 2, "expected UTF-8, got byte 0xff"),
        (b"", 1, "expected JSON"),
        (b'{"data": [1,\n' + b"9" * 5000 + b"]}", 2, "expected numbers of at most 4300 digits, got a longer one"),
    ],
)
def test_what_is_not_json_is_refused(tmp_path: Path, content: bytes, line: int, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with refused(message, where=path, line=line):
        read_squad(path)


def test_ids_that_repeat_are_refused_where_predictions_go_by_them(tmp_path: Path) -> None:
    path = written(tmp_path / "xquad.en.json", squad(item(), item()))
    rows = read_squad(path)
    with pytest.raises(DataError, match=r"qas\[1\] \(id 'a'\): expected an id of its own, got 'a' as at .*qas\[0\]"):
        check_ids(rows)
    with pytest.raises(DataError, match="expected an id of its own"):
        read_split(tmp_path, XQUAD, "test")
    (tmp_path / "squad").mkdir()
    path.rename(tmp_path / "squad" / "train-v1.1.json")
    assert read_split(tmp_path, XQUAD, "train", ["en"])["en"] == rows


@pytest.mark.parametrize("damage", [lambda raw: raw[:-9], lambda raw: b"no archive"])
def test_a_damaged_archive_is_refused(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "a.json.gz"
    path.write_bytes(damage(gzip.compress(json.dumps(squad(item())).encode())))
    with refused(r"expected a whole \.gz file", where=path):
        read_squad(path)
