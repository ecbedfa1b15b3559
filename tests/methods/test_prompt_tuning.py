"""TPT and CoOp on a small CLIP with random weights: prompts as functions of vectors, one step and one schedule by hand."""

import copy
import dataclasses
import math
import pickle
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from colours import units

from apm import data as datasets
from apm import methods as baselines
from apm import teachers
from apm.data import Dataset, corruptions
from apm.methods import method as room
from apm.methods import prompt_tuning, views
from apm.methods.prompt_tuning import CoOp, Prompts
from apm.runs import records

NAMES = ("ant", "bee", "sea_lion")
TEMPLATE = ("a photo of a {}.",)


@pytest.fixture(scope="module")
def teacher() -> teachers.Teacher:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.create_model("apm-mini")
    tokenizer = open_clip.get_tokenizer("apm-mini")
    return teachers.Teacher("random", model, tokenizer, open_clip.factory.get_model_config("apm-mini"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("APM_CACHE", str(tmp_path))
    views.forget()
    prompt_tuning._load.cache_clear()


def noise(n: int = 6, name: str = "toy", seed: int = 5) -> Dataset:
    images = np.random.default_rng(seed).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
    print_of = f"{hash(images.tobytes()):x}"
    return Dataset(name, images, np.arange(n) % 3, NAMES, TEMPLATE, print_of, np.arange(n))


def known(monkeypatch: pytest.MonkeyPatch, name: str, load) -> None:
    """A data set of that name exists, and is what load() returns."""
    other, names = datasets.load, datasets.names()
    monkeypatch.setattr(
        datasets, "load", lambda wanted, **options: load() if wanted == name else other(wanted, **options)
    )
    monkeypatch.setattr(datasets, "names", lambda: [*names, name])
    prompt_tuning._load.cache_clear()


@pytest.fixture
def toy_train(monkeypatch: pytest.MonkeyPatch) -> Dataset:
    split = noise(9, "toy-train", seed=6)
    known(monkeypatch, "toy-train", lambda: split)
    return split


# --------------------------------------------------------------------------------------------------------------- prompts


def test_untouched_vectors_give_the_features_of_the_words(teacher: teachers.Teacher) -> None:
    own = Prompts(teacher, NAMES, "a photo of a")
    assert own.places == 4
    expected = teacher.text_features([name.replace("_", " ") for name in NAMES], TEMPLATE)
    torch.testing.assert_close(own.features(own.start), expected)
    # and the tower is left as it was
    torch.testing.assert_close(teacher.text_features(["bee"], TEMPLATE)[0], expected[1])


def test_vectors_stand_where_the_words_stood(teacher: teachers.Teacher) -> None:
    own, other = Prompts(teacher, NAMES, "a photo of a"), Prompts(teacher, NAMES, "the big red new")
    torch.testing.assert_close(own.features(other.start), other.features(other.start))
    assert not torch.allclose(own.features(own.start), other.features(other.start), atol=1e-3)


def test_a_number_of_places_instead_of_words(teacher: teachers.Teacher) -> None:
    assert Prompts(teacher, NAMES, 7).start.shape == (7, 64)


def test_towers_without_token_embeddings_and_long_prompts_are_refused(teacher: teachers.Teacher) -> None:
    with pytest.raises(ValueError, match="expected context vectors"):
        Prompts(teacher, NAMES, "a photo of a").features(torch.zeros(3, 64))
    with pytest.raises(ValueError, match=r"has \d+ tokens, the text tower reads 24"):
        Prompts(teacher, ["word " * 30], "a photo of a")
    bare = teachers.Teacher.__new__(teachers.Teacher)
    bare.name, bare.model, bare.tokenizer, bare.device = "bare", torch.nn.Linear(2, 2), None, torch.device("cpu")
    with pytest.raises(ValueError, match="teacher bare has no token embeddings that prompts could be tuned in"):
        Prompts(bare, NAMES, "a photo of a")


# ------------------------------------------------------------------------------------------------------------------- TPT


def test_the_loss_is_the_entropy_of_the_mean_and_not_the_mean_entropy() -> None:
    certain = torch.tensor([[100.0, 0.0], [0.0, 100.0]])  # each view is sure, together they are torn
    assert float(prompt_tuning.average_entropy(certain)) == pytest.approx(math.log(2))
    assert float(views.entropy(certain).mean()) == pytest.approx(0.0, abs=1e-6)
    three = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])  # 3/4 and 1/2: mean 5/8
    by_hand = -(5 / 8 * math.log(5 / 8) + 3 / 8 * math.log(3 / 8))
    assert float(prompt_tuning.average_entropy(three)) == pytest.approx(by_hand)


def test_one_step_of_tpt_by_hand(teacher: teachers.Teacher) -> None:
    own, scale, rate = Prompts(teacher, NAMES, "a photo of a"), 50.0, 5e-3
    seen = F.normalize(torch.randn(10, 64, generator=torch.Generator().manual_seed(1)), dim=-1)
    tuned = prompt_tuning.tune(own, own.start, seen, scale, share=0.2, steps=1, rate=rate)

    vectors = own.start.clone().requires_grad_()
    probabilities = (scale * seen @ own.features(vectors).T).softmax(dim=-1)
    entropies = -(probabilities * probabilities.log()).sum(dim=-1)
    two = entropies.argsort()[:2]  # 20 % of 10 views
    mean = probabilities[two].mean(dim=0)
    (gradient,) = torch.autograd.grad(-(mean * mean.log()).sum(), vectors)
    # the first step of Adam has m / sqrt(v) = sign; AdamW first shrinks the weights by rate x 0.01
    expected = own.start * (1 - rate * 0.01) - rate * gradient / (gradient.abs() + 1e-8)
    torch.testing.assert_close(tuned, expected, rtol=1e-4, atol=1e-6)
    after = (scale * seen[two] @ own.features(tuned).T).detach()
    assert prompt_tuning.average_entropy(after) < -(mean * mean.log()).sum()


def test_tpt_predicts_by_the_tuned_prompt_and_forgets_it(teacher: teachers.Teacher) -> None:
    data = noise()
    method = baselines.create("tpt", teacher, views=10, augmix=False)
    said = method.predict(data, np.arange(6), seed=0)
    own = Prompts(teacher, NAMES, "a photo of a")
    for row in (0, 3):
        seen = units(teacher, data, [row], 10)[0]
        vectors = prompt_tuning.tune(own, own.start, seen, teacher.logit_scale, share=0.1, steps=1, rate=5e-3)
        probabilities = (teacher.logit_scale * own.features(vectors) @ seen[0]).softmax(dim=-1)
        assert said.prediction[row] == int(probabilities.argmax())
        assert said.extra["confidence"][row] == pytest.approx(float(probabilities.max()), rel=1e-4)
    alone = method.predict(data, np.array([3]), seed=0)  # episodic: no image before it
    assert alone.extra["confidence"][0] == pytest.approx(said.extra["confidence"][3], rel=1e-5)
    assert (said.extra["teacher_passes"] == 10).all()
    assert (said.extra["prompts_read"] == 6).all()
    assert not any(p.requires_grad or p.grad is not None for p in teacher.model.parameters())


def test_an_image_without_a_feature_fails_alone(teacher: teachers.Teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    true = views.encoded

    def broken(*arguments, **options):
        seen = true(*arguments, **options)
        seen.features[1, 4] = torch.nan
        return seen

    monkeypatch.setattr(room, "encoded", broken)
    said = baselines.create("tpt", teacher, views=10, augmix=False).predict(noise(3), np.arange(3), 0)
    assert said.prediction[1] == -1
    assert said.status[1] == "non-finite class scores"
    assert said.status[0] == said.status[2] == "ok"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("tpt", {"views": 9}, "zero confident views"),
        ("tpt", {"steps": 0}, "steps must be at least 1"),
        ("tpt", {"coop": {"shotz": 1}}, "unknown option of baseline 'coop' 'shotz'"),
        ("coop", {"shots": 0}, "at least 1"),
        ("coop", {"context": 1.5}, "expected text or a whole number, found 1.5"),
    ],
)
def test_options_that_make_no_sense_are_refused(teacher, name: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        baselines.create(name, teacher, **options)


# ------------------------------------------------------------------------------------------------------------------ CoOp


def test_learning_rate_warms_up_one_epoch_and_then_is_half_a_cosine() -> None:
    rates = [prompt_tuning.learning_rate(epoch, 50, 2e-3) for epoch in range(50)]
    assert rates[:2] == [1e-5, 2e-3]
    assert rates[26] == pytest.approx(1e-3)
    assert rates[49] == pytest.approx(1e-3 * (1 + math.cos(math.pi * 48 / 50)))


def test_few_shots_of_every_class() -> None:
    labels = np.array([0] * 30 + [1] * 2 + [2] * 30)
    chosen = prompt_tuning.few_shots(labels, 16, seed=0)
    assert np.bincount(labels[chosen]).tolist() == [16, 2, 16]
    assert np.array_equal(chosen, prompt_tuning.few_shots(labels, 16, seed=0))
    assert not np.array_equal(chosen, prompt_tuning.few_shots(labels, 16, seed=1))
    with pytest.raises(ValueError, match="class 1 of the training split has no image"):
        prompt_tuning.few_shots(np.array([0, 2]), 1, seed=0)


@pytest.mark.parametrize("n", [5, 40], ids=["fewer than a batch", "a batch of 32, 8 left over"])
def test_the_first_epoch_of_coop_by_hand(teacher: teachers.Teacher, n: int) -> None:
    own = Prompts(teacher, NAMES, "a photo of a")
    features = F.normalize(torch.randn(1, n, 64, generator=torch.Generator().manual_seed(2)), dim=-1)
    labels = torch.arange(n) % 3
    seen = torch.randperm(n, generator=torch.Generator().manual_seed(0))[:32]
    learned = prompt_tuning.learn(own, own.start, features, labels, 20.0, epochs=1, rate=2e-3, seed=0)
    vectors = own.start.clone().requires_grad_()
    logs = (20.0 * features[0, seen] @ own.features(vectors).T).log_softmax(dim=-1)
    (gradient,) = torch.autograd.grad(-logs[torch.arange(len(seen)), labels[seen]].mean(), vectors)
    # one batch, the warm-up's rate, weight decay in the gradient
    torch.testing.assert_close(learned, own.start - 1e-5 * (gradient + 5e-4 * own.start), rtol=1e-5, atol=1e-7)


def test_coop_fits_its_shots_and_is_learned_once(teacher, toy_train: Dataset, tmp_path) -> None:
    method = baselines.create("coop", teacher, shots=3, epochs=20, rate=0.05)
    data = noise()
    first = method.predict(data, np.arange(6), 0)
    files = list((tmp_path / "prompts").glob("coop-*.safetensors"))
    assert len(files) == 1
    written = files[0].stat().st_mtime_ns
    again = baselines.create("coop", teacher, shots=3, epochs=20, rate=0.05).predict(data, np.arange(6), 0)
    assert files[0].stat().st_mtime_ns == written
    assert np.array_equal(first.extra["confidence"], again.extra["confidence"])
    assert (first.extra["teacher_passes"] == 1).all()

    own = Prompts(teacher, NAMES, "a photo of a")
    crops = F.normalize(views.encoded(teacher, toy_train, np.arange(9), 21, seed=0, bicubic=True).features, dim=-1)[
        :, 1:
    ]

    def loss(vectors: torch.Tensor) -> float:
        scores = teacher.logit_scale * crops @ own.features(vectors).T
        return float(F.cross_entropy(scores.flatten(0, 1), torch.tensor(toy_train.labels).repeat_interleave(20)))

    assert loss(method.vectors(data)) < loss(own.start)


def test_coop_never_sees_labels_of_the_tested_images(teacher, toy_train: Dataset) -> None:
    data = noise()
    method = baselines.create("coop", teacher, shots=1, epochs=2)
    first = method.predict(data, np.arange(6), 0)
    second = method.predict(dataclasses.replace(data, labels=data.labels[::-1].copy()), np.arange(6), 0)
    assert np.array_equal(first.extra["confidence"], second.extra["confidence"])


def test_coop_without_a_training_split_or_on_its_own_test_images(teacher, toy_train: Dataset) -> None:
    with pytest.raises(ValueError, match=r"dataset lonely has no training split .*name one by train:"):
        baselines.create("coop", teacher).predict(noise(name="lonely"), np.arange(6), 0)
    with pytest.raises(ValueError, match="trained on the images that it is tested on"):
        baselines.create("coop", teacher, train="toy-train").predict(toy_train, np.arange(9), 0)


@pytest.mark.parametrize("tested", ["digits-test", "digits-hard", "digits-inverted", "digits-numerals", "corrupted"])
@pytest.mark.parametrize("name", ["coop", "tpt"])
def test_coop_is_not_trained_on_changed_or_renamed_images_of_the_tested_set(teacher, tested: str, name: str) -> None:
    data = (
        corruptions.corrupted(datasets.load("digits-test"), "fog", 5)
        if tested == "corrupted"
        else datasets.load(tested)
    )
    own = {"train": "digits-test", "shots": 1, "epochs": 1}
    method = baselines.create(name, teacher, **(own if name == "coop" else {"coop": own}))
    for call in (method.data_identity, method.prepare):
        with pytest.raises(ValueError, match="trained on the images that it is tested on"):
            call(data)
    with pytest.raises(ValueError, match="trained on the images that it is tested on"):
        method.predict(data, np.arange(2), 0)
    # the other direction: a set made from the tested one as training split
    if tested == "digits-inverted":
        other = baselines.create("coop", teacher, train=tested, shots=1, epochs=1)
        with pytest.raises(ValueError, match="digits-inverted and digits-test are both made from the images of digits"):
            other.prepare(datasets.load("digits-test"))


def test_vectors_of_another_set_do_not_hide_the_tested_images(teacher, toy_train: Dataset) -> None:
    method = baselines.create("coop", teacher, train="toy-train", shots=1, epochs=1)
    method.prepare(noise())  # learned for a set where that is allowed
    with pytest.raises(ValueError, match="trained on the images that it is tested on"):
        method.predict(dataclasses.replace(toy_train, fingerprint="e" * 64), np.arange(9), 0)


@pytest.mark.parametrize("name", ["coop", "tpt"])
def test_the_training_split_is_read_once_and_never_by_predict(
    teacher, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    split, loads = noise(9, "toy-train", seed=6), []
    known(monkeypatch, "toy-train", lambda: loads.append(1) or split)
    own = {"train": "toy-train", "shots": 1, "epochs": 2}
    options = own if name == "coop" else {"views": 10, "augmix": False, "coop": own}
    method = baselines.create(name, teacher, **options)
    frame = records.run(method, noise(), folder=tmp_path / "records", shard_size=2)
    assert frame["shard"].nunique() == 3
    assert len(loads) == 1

    known(monkeypatch, "toy-train", None)  # as in another process, which gets the method with what it has learned
    clone = copy.copy(method)
    clone.teacher = None
    coop = clone if name == "coop" else clone._coop
    coop = copy.copy(coop)
    coop.teacher = None
    learned = pickle.loads(pickle.dumps(coop))._learned
    assert torch.equal(
        learned["toy-train"].vectors, (method if name == "coop" else method._coop).vectors(noise()).cpu()
    )
    again = method.predict(noise(), np.arange(6), 0)
    np.testing.assert_allclose(again.extra["confidence"], frame["confidence"], rtol=1e-5)


@pytest.mark.parametrize("name", ["coop", "tpt"])
def test_other_training_images_are_another_identity(teacher, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"train": "toy-train", "shots": 1, "epochs": 2}
    found = []
    for seed in (6, 7):
        split = noise(9, "toy-train", seed=seed)
        known(monkeypatch, "toy-train", lambda split=split: split)
        method = baselines.create(name, teacher, **(own if name == "coop" else {"coop": own}))
        found.append((method.data_identity(noise()), method.settings()))
    assert found[0][0] != found[1][0]
    assert found[0][1] == found[1][1]  # nothing else tells them apart
    assert baselines.create("tpt", teacher).data_identity(noise()) is None


def test_tpt_starts_from_what_coop_learned(teacher, toy_train: Dataset) -> None:
    options = {"shots": 3, "epochs": 20, "rate": 0.05}
    data = noise()
    both = baselines.create("tpt", teacher, views=10, augmix=False, coop={"train": "toy-train", **options})
    plain = baselines.create("tpt", teacher, views=10, augmix=False)
    assert both.settings() != plain.settings()
    said = both.predict(data, np.arange(2), seed=0)
    start = CoOp(teacher, train="toy-train", **options).vectors(data)
    own = Prompts(teacher, NAMES, "a photo of a")
    seen = units(teacher, data, [1], 10)[0]
    vectors = prompt_tuning.tune(own, start, seen, teacher.logit_scale, share=0.1, steps=1, rate=5e-3)
    probabilities = (teacher.logit_scale * own.features(vectors) @ seen[0]).softmax(dim=-1)
    assert said.extra["confidence"][1] == pytest.approx(float(probabilities.max()), rel=1e-4)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("tpt", {"views": 10, "augmix": False}),
        ("coop", {"train": "toy-train", "shots": 2, "epochs": 2}),
        ("tent", {"views": 4}),
    ],
)
def test_methods_that_train_do_so_in_any_mode_of_the_caller(
    teacher: teachers.Teacher, toy_train: Dataset, tmp_path: Path, name: str, options: dict, mode: type
) -> None:
    def said() -> np.ndarray:
        for file in (tmp_path / "prompts").glob("*"):
            file.unlink()
        views.forget()
        teacher._texts.clear()
        return baselines.create(name, teacher, **options).predict(noise(3), np.arange(3), 0).extra["confidence"]

    with mode():
        inside = said()
        kept = baselines.create(name, teacher, **options)
    np.testing.assert_array_equal(inside, said())
    kept.predict(noise(3), np.arange(3), 0)  # what was made in that mode serves outside it
