"""What a text tower can name: words it never read, probes that are never fitted on what they predict, names dealt at random."""

import fakes
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from apm import data as datasets
from apm import methods, teachers
from apm.data import digits
from apm.experiments import naming
from apm.experiments.naming import PROBE, probe, random_namings, unread_words
from apm.runs import records
from apm.teachers import train


class Words:
    """A teacher whose tokens are whole lower-case words and whose text features are given."""

    name = "words"

    def __init__(self, text=None):
        self.vocabulary: dict[str, int] = {}
        self.text = text

    def tokenizer(self, texts):
        ids = [[self.vocabulary.setdefault(w, len(self.vocabulary) + 1) for w in t.lower().split()] for t in texts]
        width = max(map(len, ids))
        return torch.tensor([row + [0] * (width - len(row)) for row in ids])

    def text_features(self, classnames, templates):
        return torch.tensor(self.text)


def test_unread_words_are_those_no_caption_has():
    captions = ["a photo of a seven", "the number five"]
    assert unread_words(Words(), ["number five", "odd number", "Seven or odd"], captions) == ("odd", "or")
    real = teachers.load("mini")
    captions = [text for texts in train.captions(datasets.load("digits-train")) for text in texts]
    assert unread_words(real, digits.NAMES, captions) == ()
    assert unread_words(real, ["7", "even number"], captions) == ("even",)


def test_a_probe_finds_classes_that_are_apart_and_none_in_noise():
    rng, labels = np.random.default_rng(0), np.arange(200) % 2
    assert probe(rng.normal(size=(200, 4)) + 8 * labels[:, None], labels).all()
    # 40 columns of noise separate 50 images perfectly when fitted on them: a probe that saw what it predicts would be right
    assert probe(rng.normal(size=(50, 40)), labels[:50]).mean() < 0.75


@pytest.mark.parametrize("labels", [[0] * 20, [0] * 17 + [1] * 3])
def test_a_probe_needs_enough_images_of_every_class(labels):
    assert probe(np.random.default_rng(0).normal(size=(20, 3)), np.array(labels)) is None


def test_random_namings_by_hand():
    labels = np.array([0, 0, 1, 1, 2, 2])
    assert random_namings(labels, labels, 3) == pytest.approx(100 / 6)  # only the true one of 3! is right everywhere
    # confusion rows: 0 -> 0, 0; 1 -> 2, 2; 2 -> 1, 1. Scores of the six ways: true one 2, swapping 1 and 2 gives 6, the others 0 or 2
    assert random_namings(labels, np.array([0, 0, 2, 2, 1, 1]), 3) == pytest.approx(100 * 4 / 6)
    assert random_namings(labels, np.array([-1] * 6), 3) == 100.0
    labels, rng = np.arange(300) % 10, np.random.default_rng(0)  # sampled, with the true one among them
    fitting = np.where(rng.random(300) < 0.8, labels, rng.integers(0, 10, 300))
    assert 0 < random_namings(labels, fitting, 10) < 0.1
    assert random_namings(labels, rng.integers(0, 10, 300), 10) > 1


def test_naming_by_hand(monkeypatch):
    data = datasets.load("digits-parity").subset(40, seed=0)
    n, label = 40, data.labels
    features = np.random.default_rng(0).normal(size=(n, 3))
    features[:, 0] += 9 * label
    monkeypatch.setattr(teachers, "features", lambda teacher, dataset: features)
    prediction = np.where(np.arange(n) < 30, 1 - label, label)  # 10 of 40 right
    asked = pd.array(prediction, dtype="Int32")
    rows = fakes.records(prediction, dataset=data.name, sample=data.indices, label=label, teacher_prediction=asked)
    teacher = Words([[1.0, 0.0], [0.6, 0.8]])
    row = naming.naming(teacher, [data], rows, ["a photo of a number"]).iloc[0]
    assert [float(row[name]) for name in ("teacher (zero-shot)", "APM, final", PROBE)] == [25.0, 25.0, 100.0]
    assert row["teacher (zero-shot)"].low < 25.0 < row["teacher (zero-shot)"].high
    assert float(row["chance"]) == 100 * np.bincount(label).max() / n
    assert row["above chance"] == "no: below chance"
    assert float(row["random namings as good"]) == 100.0  # the other way round would have 30 of 40 right
    assert float(row["largest cosine of two names"]) == pytest.approx(0.6)
    assert row["words not in the teacher's captions"] == "even, odd"
    assert not any("caption" in column for column in naming.naming(teacher, [data], rows))


def test_an_image_that_cannot_be_read_is_left_out_of_the_probe_and_counted(tmp_path):
    """Through the teacher's own features: their row of an image that cannot be decoded is NaN."""
    data = datasets.load("digits-parity").subset(40, seed=0)
    for i, label in enumerate(data.labels):
        folder = tmp_path / "tree" / data.classnames[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(data.images[i])).save(folder / f"{i:02d}.png")
    broken = sorted(folder.glob("*.png"))[3]
    broken.write_bytes(broken.read_bytes()[:60])
    tree = datasets.load(f"folder:{tmp_path / 'tree'}")
    zero_shot = methods.ZeroShot(teachers.load("mini"))
    rows = records.run(zero_shot, tree, folder=tmp_path / "records", teacher_method=zero_shot, on_error="record")
    table = naming.naming(zero_shot.teacher, [tree], rows)
    assert table["n"].tolist() == [40]
    assert table[PROBE].iloc[0].n == 39
