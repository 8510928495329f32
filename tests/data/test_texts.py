"""Texts: how they are read, numbered, stored and shown, and what is refused in a line."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from core.runtime import Runtime
from data import texts
from data.augment import RandomCrop, WordDropout
from data.dataset import Dataset
from data.files import npz
from data.queries import clinc150, csv_text
from data.spec import Expected, InputSpec
from data.words import known_words, numbered, split_words, vocabulary
from distillers.attacks import PGD
from engine.config import compose, plain
from engine.parts import build_dataset
from generators.losses import TotalVariation
from models.checkpoint import save_network
from models.classifier import Classifier
from models.texts import TextCNN
from tests.texts import write_texts

WORDS = ("<pad>", "<unk>", "a", "b", "c")
TEXT = InputSpec((5, 4), modality="text", words=WORDS)
HOST = torch.device("cpu")


def test_words_of_a_text() -> None:
    said = "Don\N{RIGHT SINGLE QUOTATION MARK}t, please!  CAFE\N{COMBINING ACUTE ACCENT} (no. 42)"
    assert split_words(said) == ["don't", "please", "café", "no", "42"]
    assert split_words("... !?") == []


def test_marks_belong_to_their_word() -> None:
    """Vowel signs, which Python takes for no letters, and the dot of a capital in lower case."""
    hindi = "\u0939\u093f\u0928\u094d\u0926\u0940"
    assert split_words(f"{hindi}, {hindi}!") == [hindi, hindi]
    assert split_words("\u0130stanbul'da") == ["i\u0307stanbul'da"]
    assert split_words("J\u030c \u0301 x") == ["\u01f0", "x"]  # one letter, in lower case alone


def test_the_commonest_words_are_known() -> None:
    words = vocabulary(["b a b", "c b a", "d"], 3)
    assert words == ("<pad>", "<unk>", "b", "a", "c")


def test_numbers_of_words(capsys: pytest.CaptureFixture[str]) -> None:
    rows = numbered(["a zebra b", "c a c a c"], WORDS, 4, "zoo", Runtime("cpu"))
    assert rows.tolist() == [[2, 1, 3, 0], [4, 2, 4, 2]]
    said = capsys.readouterr().out
    assert "data zoo: 1 of 7 words are not in the vocabulary of 5, and become <unk>" in said
    assert "1 of 2 texts are cut to 4 words (data.dataset.length)" in said


def test_a_specification_of_texts() -> None:
    """One mean and std for all words, which normalise nothing, and the words in a file."""
    assert InputSpec(**json.loads(json.dumps(TEXT.to_dict()))) == TEXT
    assert (TEXT.mean, TEXT.std) == ((0.0,), (1.0,))
    x = TEXT.noise(3, HOST)
    assert TEXT.normalize(x) is x
    assert torch.equal(x.sum(1), torch.ones(3, 4))
    assert torch.equal(TEXT.decode(TEXT.encode(x)), x)
    assert TEXT.encode(x).dtype == torch.int16
    assert TEXT.encode(x).shape[1:] == TEXT.stored == (4,)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), r"begins with <pad> and <unk>, not \[\]"),
        (("<pad>", "<unk>", "a"), "a word for each of their 5 channels, but there are 3 words"),
        (("<pad>", "<unk>", "a", "b", "a"), "has 'a' more than once"),
        (("<pad>", "<unk>", "a", "b", 3), "must be a list of words"),
    ],
)
def test_vocabularies_that_do_not_fit(words: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InputSpec((5, 4), modality="text", words=words)
    with pytest.raises(ValueError, match="signals have no words"):
        InputSpec((1, 4), words=WORDS)


def test_synthesized_words_have_the_gradient_of_their_distribution() -> None:
    values = torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(2, 5, 4, dtype=torch.float64)
    x = TEXT.kind.free(values, TEXT)
    assert torch.equal(x.sum(1), torch.ones(2, 4, dtype=torch.float64))
    assert torch.equal(x.argmax(1), values.argmax(1))
    [found] = torch.autograd.grad((x * upstream).sum(), values)
    [exact] = torch.autograd.grad((values.softmax(1) * upstream).sum(), values)
    torch.testing.assert_close(found, exact)
    assert TEXT.kind.limits(values, TEXT) is None


def test_texts_can_be_read() -> None:
    x = TEXT.decode(torch.tensor([[2, 3, 0, 0], [0, 4, 1, 0], [0, 0, 0, 0]]))
    assert TEXT.kind.text(x, TEXT) == "a b\n<pad> c <unk>\n<pad>"
    picture = TEXT.kind.picture(x, TEXT)
    assert picture.shape[0] == 3
    assert picture.shape[2] == 1200
    assert 0 <= picture.min() < 0.5 < picture.max() <= 1  # ink
    assert not torch.equal(picture, TEXT.kind.picture(x.flip(0), TEXT))


def test_their_picture_does_not_need_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    texts._font.cache_clear()
    x = TEXT.decode(torch.tensor([[2, 3, 0, 0]]))
    picture = TEXT.kind.picture(x, TEXT)
    texts._font.cache_clear()
    assert 0 <= picture.min() < 0.5 < picture.max() <= 1


def test_words_drop_out() -> None:
    x = TEXT.decode(torch.tensor([[2, 3, 4, 0]])).expand(400, -1, -1)
    y = TEXT.encode(WordDropout(TEXT, 0.3)(x, torch.Generator().manual_seed(0)))
    assert set(y[:, 0].tolist()) == {1, 2}
    assert 0.2 < (y[:, :3] == 1).double().mean() < 0.4
    assert (y[:, 3] == 0).all()
    with pytest.raises(ValueError, match="is for texts, but the inputs are images"):
        WordDropout(InputSpec((1, 8, 8)))
    with pytest.raises(ValueError, match="no probability"):
        WordDropout(TEXT, 1.0)


def test_what_moves_inputs_a_little_refuses() -> None:
    with pytest.raises(ValueError, match="there is nothing between texts: leave the view out"):
        PGD(TEXT, 0.1)
    with pytest.raises(ValueError, match="is for images and signals, but the inputs are texts"):
        RandomCrop(TEXT, 1)
    assert "texts [5, 4] have no neighbours that are alike" in (TotalVariation(TEXT).note or "")


def test_a_file_of_texts(tmp_path: Path) -> None:
    data = csv_text(write_texts(tmp_path), Runtime("cpu"), length=5, size=6)
    assert data.classes == ("bank", "food", "travel")
    assert data.words[:2] == ("<pad>", "<unk>")
    assert data.spec.shape == data.shape == (len(data.words), 6)
    assert (len(data.open("train")), len(data.open("test"))) == (66, 24)
    assert data.open("test").labels.bincount().tolist() == [8, 8, 8]
    x, y = data.open("test").batch(torch.arange(18))
    kinds = {"bank": "account", "food": "bread", "travel": "train"}
    assert y is not None
    for line, label in zip(data.kind.text(x, data.spec).splitlines(), y.tolist(), strict=True):  # type: ignore[union-attr]
        assert not any(w in line.split() for c, w in kinds.items() if c != data.classes[label])
    with pytest.raises(ValueError, match="would cut texts of 5 places"):
        csv_text(tmp_path / "texts.csv", Runtime("cpu"), length=5, size=4).open("test")


def test_a_test_file_of_ones_own(tmp_path: Path) -> None:
    train, test = tmp_path / "a.csv", tmp_path / "b.csv"
    train.write_text("\N{BYTE ORDER MARK}no;said\n10;one\n9;two\n", encoding="utf-8")
    test.write_text("no;said\n9;three\n", encoding="utf-8")
    columns = {"text": "said", "label": "no", "delimiter": ";", "test_path": test}
    data = csv_text(train, Runtime("cpu"), **columns)  # type: ignore[arg-type]
    assert data.classes == ("9", "10")
    assert data.words == ("<pad>", "<unk>", "one", "two")
    assert data.open("test").labels.tolist() == [0]
    known = Expected({"words": data.words, "classes": ("7", "9", "10")}, {})  # a teacher's
    again = csv_text(train, Runtime("cpu"), expected=lambda: known, **columns)  # type: ignore[arg-type]
    assert again.classes == ("7", "9", "10")
    assert again.open("test").labels.tolist() == [1]
    test.write_text("no;said\n8;one\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"no training row has the label '8', which .*b\.csv has"):
        csv_text(train, Runtime("cpu"), **columns)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"said,label\nhi,a\n", "no column 'text', but: said, label. Name yours with data.data"),
        (b"text,text,label\nhi,a,b\n", "more than one column 'text'"),
        (b"text,label\nhi,a\n...,b\n", r"line 3, column 'text', has no words \('...'\): remove"),
        (b"text,label\nhi,a\nhi,  \n", "line 3, column 'label', is empty"),
        (b"text,label\nhi, there,a\n", "line 2: 3 cells, where the header has 2 .* needs quotes"),
        (b"text,label\nhi,a\n\xe9t\xe9,b\n", "line 3, is not UTF-8 text: save it as UTF-8"),
        (b"\x89PNG\r\n\0\0", "line 1, is not UTF-8"),
        (b"text,label\nhi\0,a\n", "is not text: it has zero bytes"),
        (b'text,label\n"hi,a\n', "is not CSV: unexpected end"),
        (b"text,label\nhi,a\nho,a\n", "has one class, 'a'"),
        (b"text,label\n", "a header and no rows below it"),
        (b"", "is empty: its first line should name the columns"),
    ],
)
def test_files_that_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "file.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        csv_text(path, Runtime("cpu"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"length": 0}, "length is a number of words"),
        ({"vocabulary": 0}, "vocabulary is a number of words from 1 to 32765, not 0"),
        ({"test_fraction": 1.0}, r"test_fraction must be in \(0, 1\)"),
        ({"test_fraction": 0.001}, "are no rows: set data.dataset.test_path"),
        ({"delimiter": ";;"}, "delimiter is one character"),
        ({"path": None}, r"set data\.path"),
        ({"path": "none.csv"}, "none.csv does not exist"),
    ],
)
def test_settings_that_are_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    given = {"path": write_texts(tmp_path), **settings}
    with pytest.raises(ValueError, match=message):
        csv_text(runtime=Runtime("cpu"), **given)


def test_queries(tmp_path: Path) -> None:
    rows = {which: [["pay my bill", "bill", "banking"]] for which in ("train", "val", "test")}
    names = {"domains": ["travel", "banking"], "intents": ["bill", "visa", "card"]}
    path = tmp_path / "clinc150.json.gz"
    path.write_bytes(gzip.compress(json.dumps(rows | names).encode()))
    data = clinc150(path, Runtime("cpu"), length=4)
    assert data.words == ("<pad>", "<unk>", "bill", "my", "pay")
    assert data.open("val").labels.tolist() == [1]
    assert data.open("test").stored(slice(0, 1))[0].tolist() == [[4, 3, 2, 0]]
    assert clinc150(path, Runtime("cpu"), "intent").num_classes == 3
    path.write_text(json.dumps(rows | names | {"val": [["no", "words", "banking"]]}))
    with pytest.raises(ValueError, match=r"a row is not \[text, intent, domain\]"):
        clinc150(path, Runtime("cpu"))
    path.write_bytes(b"\x1f\x8b nothing")
    with pytest.raises(ValueError, match="is not the data of Larson"):
        clinc150(path, Runtime("cpu"))
    with pytest.raises(ValueError, match=r"need data\.path=\.\.\.,.*none is no file"):
        clinc150(tmp_path / "none", Runtime("cpu"))


def test_the_teachers_vocabulary_comes_first() -> None:
    def read() -> list[str]:
        raise AssertionError("training texts are not read where a teacher's file has the words")

    known = Expected({"words": WORDS}, {})
    assert known_words("zoo", 3, lambda: known, read) == WORDS
    with pytest.raises(ValueError, match=r"knows 3 words, but .*vocabulary=2: set .*vocabulary=3"):
        known_words("zoo", 2, lambda: known, read)


def test_numbers_of_words_in_a_file(tmp_path: Path) -> None:
    arrays = {"test_texts": np.array([[2, 4], [3, 0]]), "test_labels": np.array([0, 1])}
    path = tmp_path / "own.npz"
    np.savez(path, words=np.array(WORDS), **arrays)
    data = npz(path, Runtime("cpu"), modality="text")
    assert data.shape == (5, 2)
    assert data.spec.words == WORDS
    np.savez(path, words=np.array(WORDS[:4]), **arrays)
    with pytest.raises(ValueError, match="test has word 4, but there are 4"):
        npz(path, Runtime("cpu"), modality="text").open("test")
    np.savez(path, words=np.array(WORDS[1:]), **arrays)
    with pytest.raises(ValueError, match="a vocabulary begins with <pad> and <unk>"):
        npz(path, Runtime("cpu"), modality="text")


def test_a_teachers_file_says_its_words(tmp_path: Path) -> None:
    """Data that it is used on has them, and a run needs no data at all."""
    spec, path = InputSpec((5, 4), modality="text", words=WORDS), tmp_path / "teacher.safetensors"
    save_network(path, Classifier(TextCNN(5, 3, 4, 4), spec, ["bank", "food", "travel"]), {})
    assert path.read_bytes().count(b"<unk>") == 1  # as plain text
    given = [f"teacher.checkpoint={path}", "device=cpu", "data.dataset.length=4"]
    none = ["data=none", "teacher=text_cnn", "student=text_cnn_small"]
    for data in (none, ["data=csv_text", f"data.path={write_texts(tmp_path)}", given[2]]):
        dataset = build_dataset(plain(compose([*data, *given[:2]])), Runtime("cpu"))
        assert dataset.words == dataset.spec.words == WORDS
        assert dataset.shape == (5, 4)
        dataset.check(spec, 3)


def test_another_vocabulary_is_refused() -> None:
    data = Dataset("zoo", {}, ["x", "y"], Runtime("cpu"), spec=TEXT)
    data.check(TEXT, 2)
    other = InputSpec((5, 4), modality="text", words=("<pad>", "<unk>", "a", "z", "c"))
    with pytest.raises(ValueError, match="word 3 is 'b', and the teacher's is 'z': choose"):
        data.check(other, 2)
    longer = InputSpec((6, 4), modality="text", words=(*WORDS, "d"))
    with pytest.raises(ValueError, match="word 5 ends there, and the teacher's is 'd'"):
        data.check(longer, 2)
