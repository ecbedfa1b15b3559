"""TPT and CoOp on a small CLIP: prompts as functions of vectors, one step and one schedule by hand, and no tested image trained on."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from colours import units

from apm import data as datasets
from apm import methods, teachers
from apm.data import Dataset, corruptions
from apm.methods import prompt_tuning, views
from apm.methods.prompt_tuning import CoOp, Prompts
from apm.runs import records

NAMES, TEMPLATE = ("ant", "bee", "sea_lion"), ("a photo of a {}.",)
TOY = {"train": "toy-train", "shots": 3, "epochs": 20, "rate": 0.05}


def noise(n: int = 6, name: str = "toy", seed: int = 5) -> Dataset:
    images = np.random.default_rng(seed).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
    return datasets.dataset.made(images, np.arange(n) % 3, name=name, classnames=NAMES, templates=TEMPLATE)


@pytest.fixture
def loads(monkeypatch) -> list[Dataset]:
    """What of the set toy-train was loaded."""
    found: list[Dataset] = []
    made = lambda root, seed: found.append(noise(9, "toy-train", 6)) or found[-1]  # noqa: E731
    monkeypatch.setitem(datasets.OWN, "toy-train", made)
    return found


def create(name: str, teacher, coop: dict | None = None):
    """CoOp with these options, or TPT that starts from it."""
    options = (coop or {}) if name == "coop" else {"views": 10, "augmix": False, "coop": coop}
    return methods.create(name, teacher, **options)


EITHER = pytest.mark.parametrize("name", ["coop", "tpt"])


def test_vectors_stand_where_the_words_stood(clip):
    own, other = Prompts(clip, NAMES, "a photo of a"), Prompts(clip, NAMES, "the big red new")
    expected = clip.text_features([name.replace("_", " ") for name in NAMES], TEMPLATE)
    torch.testing.assert_close(own.features(own.start), expected)
    torch.testing.assert_close(own.features(other.start), other.features(other.start))
    assert not torch.allclose(own.features(own.start), other.features(other.start), atol=1e-3)
    torch.testing.assert_close(clip.text_features(["bee"], TEMPLATE)[0], expected[1])  # the tower is left as it was
    assert Prompts(clip, NAMES, 7).start.shape == (7, 64)  # a number of places instead of words


def test_towers_without_token_embeddings_and_long_prompts_are_refused(clip):
    with pytest.raises(ValueError, match="expected context vectors"):
        Prompts(clip, NAMES, "a photo of a").features(torch.zeros(3, 64))
    with pytest.raises(ValueError, match=r"has \d+ tokens, the text tower reads 24"):
        Prompts(clip, ["word " * 30], "a photo of a")
    bare = teachers.Teacher.__new__(teachers.Teacher)
    bare.name, bare.model, bare.tokenizer, bare.device = "bare", torch.nn.Linear(2, 2), None, torch.device("cpu")
    with pytest.raises(
        ValueError, match=r"teacher bare has no words that could be tuned: .*a network that reads no texts"
    ):
        Prompts(bare, NAMES, "a photo of a")


def test_one_step_by_hand(clip):
    own, scale, rate = Prompts(clip, NAMES, "a photo of a"), 50.0, 5e-3
    seen = F.normalize(torch.randn(10, 64, generator=torch.Generator().manual_seed(1)), dim=-1)
    tuned = prompt_tuning.tune(own, own.start, seen, scale, share=0.2, steps=1, rate=rate)
    vectors = own.start.clone().requires_grad_()
    probabilities = (scale * seen @ own.features(vectors).T).softmax(dim=-1)
    entropies = -(probabilities * probabilities.log()).sum(dim=-1)
    mean = probabilities[entropies.argsort()[:2]].mean(dim=0)  # 20 % of 10 views
    (gradient,) = torch.autograd.grad(-(mean * mean.log()).sum(), vectors)
    # the first step of Adam has m / sqrt(v) = sign; AdamW first shrinks the weights by rate x 0.01
    expected = own.start * (1 - rate * 0.01) - rate * gradient / (gradient.abs() + 1e-8)
    torch.testing.assert_close(tuned, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("coop", [None, TOY])
def test_it_predicts_by_the_tuned_prompt_and_starts_from_words_or_what_coop_learned(clip, loads, coop):
    data, own = noise(), Prompts(clip, NAMES, "a photo of a")
    method = create("tpt", clip, coop)
    said = method.predict(data, np.arange(6), seed=0)
    start = own.start if coop is None else CoOp(clip, **coop).vectors(data)
    for row, seen in enumerate(units(clip, data, np.arange(6), 10)):
        vectors = prompt_tuning.tune(own, start, seen, clip.logit_scale, share=0.1, steps=1, rate=5e-3)
        probabilities = (clip.logit_scale * own.features(vectors) @ seen[0]).softmax(dim=-1)
        assert said.prediction[row] == int(probabilities.argmax())
        assert said.extra["confidence"][row] == pytest.approx(float(probabilities.max()), rel=1e-4)
    assert {*said.extra["teacher_passes"]} == {10}
    assert {*said.extra["prompts_read"]} == {6}
    assert (method.settings() == create("tpt", clip).settings()) == (coop is None)
    assert (method.data_identity(data) is None) == (coop is None)


def test_learning_rate_warms_up_one_epoch_and_then_is_half_a_cosine():
    rates = [prompt_tuning.learning_rate(epoch, 50, 2e-3) for epoch in range(50)]
    assert rates[:2] == [1e-5, 2e-3]
    assert rates[26] == pytest.approx(1e-3)
    assert rates[49] == pytest.approx(1e-3 * (1 + math.cos(math.pi * 48 / 50)))


def test_few_shots_of_every_class():
    labels = np.repeat([0, 1, 2], [30, 2, 30])
    chosen = prompt_tuning.few_shots(labels, 16, seed=0)
    assert np.bincount(labels[chosen]).tolist() == [16, 2, 16]
    again, other = (prompt_tuning.few_shots(labels, 16, seed=seed) for seed in (0, 1))
    assert np.array_equal(chosen, again)
    assert not np.array_equal(chosen, other)
    with pytest.raises(ValueError, match="class 1 of the training split has no image"):
        prompt_tuning.few_shots(np.array([0, 2]), 1, seed=0)


@pytest.mark.parametrize("n", [5, 40], ids=["fewer than a batch", "a batch of 32, 8 left over"])
def test_the_first_epoch_by_hand(clip, n):
    own = Prompts(clip, NAMES, "a photo of a")
    features = F.normalize(torch.randn(1, n, 64, generator=torch.Generator().manual_seed(2)), dim=-1)
    labels, seen = torch.arange(n) % 3, torch.randperm(n, generator=torch.Generator().manual_seed(0))[:32]
    learned = prompt_tuning.learn(own, own.start, features, labels, 20.0, epochs=1, rate=2e-3, seed=0)
    vectors = own.start.clone().requires_grad_()
    loss = F.cross_entropy(20.0 * features[0, seen] @ own.features(vectors).T, labels[seen])
    (gradient,) = torch.autograd.grad(loss, vectors)
    # one batch, the warm-up's rate, weight decay in the gradient
    torch.testing.assert_close(learned, own.start - 1e-5 * (gradient + 5e-4 * own.start), rtol=1e-5, atol=1e-7)


def test_coop_fits_its_shots_and_is_learned_once(clip, loads, tmp_path):
    data, own = noise(), Prompts(clip, NAMES, "a photo of a")
    learned = CoOp(clip, **TOY).vectors(data)
    (file,) = (tmp_path / "cache" / "prompts").glob("coop-*.safetensors")
    written = file.stat().st_mtime_ns
    assert torch.equal(CoOp(clip, **TOY).vectors(data), learned)
    assert file.stat().st_mtime_ns == written
    crops = F.normalize(views.encoded(clip, loads[0], np.arange(9), 21, seed=0, bicubic=True).features, dim=-1)[:, 1:]

    def loss(vectors: torch.Tensor) -> float:
        scores = clip.logit_scale * crops @ own.features(vectors).T
        return float(F.cross_entropy(scores.flatten(0, 1), torch.tensor(loads[0].labels).repeat_interleave(20)))

    assert loss(learned) < loss(own.start)


def test_a_set_without_a_training_split_is_refused(clip):
    with pytest.raises(ValueError, match=r"dataset lonely has no training split .*name one by train:"):
        methods.create("coop", clip).predict(noise(name="lonely"), np.arange(6), 0)


@EITHER
@pytest.mark.parametrize("tested", ["digits-test", "digits-hard", "digits-inverted", "digits-numerals", "corrupted"])
def test_coop_is_not_trained_on_images_of_the_tested_set_as_they_are_changed_or_renamed(clip, tested, name):
    digits = datasets.load("digits-test")
    data = corruptions.corrupted(digits, "fog", 5) if tested == "corrupted" else datasets.load(tested)
    method = create(name, clip, {"train": "digits-test", "shots": 1, "epochs": 1})
    for call in (method.data_identity, method.prepare, lambda data: method.predict(data, np.arange(2), 0)):
        with pytest.raises(ValueError, match="trained on the images that it is tested on"):
            call(data)
    if tested == "digits-inverted":
        with pytest.raises(ValueError, match="trained on the images that it is tested on"):
            create(name, clip, {"train": tested}).prepare(digits)


def test_vectors_learned_where_that_is_allowed_do_not_hide_the_tested_images(clip, loads):
    method = create("coop", clip, {"train": "toy-train", "shots": 1, "epochs": 1})
    method.prepare(noise())
    with pytest.raises(ValueError, match="trained on the images that it is tested on"):
        method.predict(loads[0], np.arange(9), 0)


@EITHER
def test_the_training_split_is_read_once_and_never_by_predict(clip, name, loads, monkeypatch, tmp_path):
    method = create(name, clip, {"train": "toy-train", "shots": 1, "epochs": 2})
    frame = records.run(method, noise(), folder=tmp_path / "records", shard_size=2)
    assert [frame["shard"].nunique(), len(loads)] == [3, 1]
    prompt_tuning._load.cache_clear()
    # another process, which gets the method with what it has learned
    monkeypatch.setitem(datasets.OWN, "toy-train", None)
    coop = method if name == "coop" else method._coop
    sent = copy.copy(coop)
    sent.teacher = None
    learned, *_ = pickle.loads(pickle.dumps(sent))._learned["toy-train"]
    assert torch.equal(learned, coop.vectors(noise()).cpu())
    np.testing.assert_allclose(method.predict(noise(), np.arange(6), 0).extra["confidence"], frame["confidence"], 1e-5)


@EITHER
def test_other_training_images_are_another_identity(clip, name, monkeypatch):
    def found(of):
        prompt_tuning._load.cache_clear()
        monkeypatch.setitem(datasets.OWN, "toy-train", lambda root, seed: noise(9, "toy-train", of))
        method = create(name, clip, {"train": "toy-train", "shots": 1, "epochs": 2})
        return method.data_identity(noise()), method.settings()

    (first, settings), (second, same) = map(found, (6, 7))
    assert first != second
    assert settings == same  # nothing else tells them apart
