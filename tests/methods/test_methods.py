"""What holds for every method: it sees no label and says the same again, an image fails alone, its options are its settings."""

import copy
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from apm import methods
from apm.data import UnreadableImage
from apm.methods import tda, views, zero
from apm.project.identity import code_version
from apm.runs import records

APM_CONFIG = {"grid": [4, 4], "patch": 8, "hidden": [16, 8]}, {"iterations": 3, "learning_rate": 5e-3}
OPTIONS = {
    "zero-shot": {},
    "apm": {},
    "apm as released": {},
    "apm-views": {"views": 10},
    "apm-mirror": {},
    "zero": {"views": 10},
    "mta": {"views": 10},
    "tda": {},
    "tent": {"views": 10},
    "tpt": {"views": 10, "augmix": False},
    "coop": {"shots": 1, "epochs": 2},
}
ONLINE = {"apm as released", "tda"}
EVERY, SIX = pytest.mark.parametrize("name", OPTIONS), np.arange(6)


def build(name, teacher, **changes):
    options, kind = {**OPTIONS[name], **changes}, {"zero-shot": methods.ZeroShot}
    if name.startswith("apm"):
        kind |= {"apm": methods.APM, "apm as released": methods.APM}
        config = methods.training_config(teacher, *APM_CONFIG)
        released = dataclasses.replace(config, protocol="as_released")
        options["config"] = released if name == "apm as released" else config
    return kind[name](teacher, **options) if name in kind else methods.create(name, teacher, **options)


def same(frame, said):
    assert frame["prediction"].tolist() == said.prediction.tolist()
    np.testing.assert_allclose(frame["confidence"], said.extra["confidence"], rtol=1e-5)


def failed(frame, row, reason):
    assert (frame["status"] == "ok").tolist() == [i != row for i in range(6)]
    assert reason in frame["status"][row]
    assert frame["prediction"][row] == -1
    assert np.isnan(frame["confidence"][row])


@EVERY
def test_labels_have_no_influence_and_the_teacher_stays_as_it_was(name, clip, digits):
    before = {key: value.clone() for key, value in clip.model.state_dict().items()}
    first = build(name, clip).predict(digits, SIX, seed=1)
    views.forget()
    relabelled = dataclasses.replace(digits, labels=(digits.labels + 1) % 10)
    second = build(name, clip).predict(relabelled, SIX, seed=1)
    for column in ("prediction", "path", "minimum_loss_prediction", "last_loss"):
        assert np.array_equal(getattr(first, column), getattr(second, column)), column
    assert np.array_equal(first.extra["confidence"], second.extra["confidence"])
    assert first.status == ["ok"] * 6
    assert [first.prediction.dtype, first.extra["confidence"].dtype] == [np.int64, np.float32]
    assert ((first.extra["confidence"] > 0) & (first.extra["confidence"] <= 1)).all()
    assert all(torch.equal(value, before[key]) for key, value in clip.model.state_dict().items())
    assert not clip.model.training
    assert not any(p.requires_grad or p.grad is not None for p in clip.model.parameters())


@pytest.mark.parametrize("name", ["apm", "apm-views", "mta", "zero", "tent", "tpt"])
def test_what_is_drawn_follows_the_seed(name, clip, digits):
    first, second = (build(name, clip).predict(digits, SIX, seed).extra["confidence"] for seed in (0, 1))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("name", sorted(OPTIONS.keys() - {"apm as released"}))
def test_an_image_without_a_feature_fails_alone(name, clip, digits, request, tmp_path):
    white = clip.transform([np.full((32, 32, 3), 255, dtype=np.uint8)])

    def blind(tower, inputs, output):
        return torch.where((inputs[0] == white).all(dim=(1, 2, 3))[:, None], torch.nan, output)

    request.addfinalizer(clip.model.visual.register_forward_hook(blind).remove)
    images, rest = digits.images.copy(), [0, 1, 3, 4, 5]
    images[2] = 255
    data = dataclasses.replace(digits, images=images, fingerprint="a" * 64)
    said = records.run(build(name, clip), data, folder=tmp_path, on_error="record")
    alone = build(name, clip).predict(data, np.array(rest), 0)
    failed(said, 2, "finite")
    same(said.loc[rest], alone)


@pytest.mark.parametrize("name", sorted(ONLINE))
def test_an_unreadable_image_is_left_out_of_a_sequence(name, clip, digits, tmp_path):
    class Broken(list):
        def __getitem__(self, i):
            if i == 4:
                raise UnreadableImage(Path("img4.jpg"), "cut short")
            return super().__getitem__(i)

    method, broken = build(name, clip), dataclasses.replace(digits, images=Broken(digits.images), fingerprint="b" * 64)
    assert method.online
    with pytest.raises(records.RecordError, match=r"failed on image 4 of 'digits-test': UnreadableImage: .*img4.jpg"):
        records.run(method, broken, folder=tmp_path)
    found, others = records.run(method, broken, folder=tmp_path, on_error="record"), np.array([0, 1, 2, 3, 5])
    failed(found, 4, "error: UnreadableImage: cannot read the image img4.jpg")
    same(found.loc[others], method.predict(broken, others, 0))


@EVERY
def test_records_keep_what_a_method_says_whatever_images_are_beside_one(name, clip, digits, tmp_path):
    method = build(name, clip)
    frame = records.run(method, digits, folder=tmp_path, shard_size=2)
    assert frame["shard"].nunique() == (1 if name in ONLINE else 3)
    views.forget()
    expected = method.predict(digits, SIX, 0)
    same(frame, expected)
    paths = [None] * 6 if expected.path is None else expected.path.tolist()
    assert frame["path"].map(list, na_action="ignore").tolist() == paths


@EVERY
def test_every_option_but_the_name_is_in_the_settings(name, clip):
    method = build(name, clip)
    json.dumps(method.settings())
    for field in dataclasses.fields(method):
        changed = copy.copy(method)
        if field.name not in ("teacher", "config", "coop"):  # settings of their own, in their own tests
            setattr(changed, field.name, "another")
            assert (changed.settings() == method.settings()) == (field.name == "name"), field.name


@pytest.mark.parametrize(("changed", "same"), [("mta", True), ("zero", False), ("views", False), ("method", False)])
def test_another_methods_file_does_not_change_the_code_that_a_record_depends_on(changed, same, tmp_path):
    shutil.copytree(Path(methods.__file__).parents[1], tmp_path / "apm", ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "apm" / "methods" / f"{changed}.py").open("a") as file:
        file.write("\nCHANGED = 1\n")
    code_version.cache_clear()
    assert (code_version(zero.Zero.modules, tmp_path / "apm") == code_version(zero.Zero.modules)) == same


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("zeo", {}, "unknown baseline 'zeo'.*Did you mean 'zero'"),
        ("zero", {"veiws": 3}, "unknown option of baseline 'zero' 'veiws'.*Did you mean 'views'"),
        ("zero", {"share": "0.1"}, "Zero: share: expected a number, found '0.1': write it without"),
        ("tda", {"entropy_between": (0.2,)}, "expected a list of 2, each a number"),
        ("tpt", {"coop": {"epochs": 1.5}}, "CoOp: epochs: expected a whole number, found 1.5"),
        ("tpt", {"coop": {"shotz": 1}}, "unknown option of baseline 'coop' 'shotz'"),
        ("tpt", {"coop": "digits-train"}, "expected a mapping or null"),
        ("zero", {"views": 3}, "zero confident views: a share of 0.3 of 3 views is less than one; use at least 4"),
        ("apm-views", {"views": 9}, "zero confident views"),
        ("tda", {"views": 9}, "zero confident views"),
        ("apm-mirror", {"flip": False}, "image and its mirror image: remove views"),
        ("apm-mirror", {"views": 3}, "image and its mirror image: remove views"),
        ("tpt", {"views": 9}, "zero confident views"),
        ("tda", {"positive_shots": 0}, "at least one image per class, found 0 and 2"),
        ("mta", {"views": 1}, "at least 2 views"),
        ("mta", {"lambda_y": 0.0}, "lambda_y must be positive"),
        ("tent", {"steps": -1}, "steps at least 0"),
        ("tent", {"steps": 0, "statistics": "running"}, "changes nothing: it is zero-shot"),
        ("tent", {"statistics": "bach"}, "unknown statistics 'bach'.*Did you mean 'batch'"),
        ("tent", {"layers": "layer"}, "unknown layers 'layer'. Known: all, batch"),
        ("tent", {"scores": "befor"}, "unknown scores 'befor'.*Did you mean 'before'"),
        ("zero", {"prompts": "orginal"}, "unknown prompts 'orginal'.*Did you mean 'original'"),
        ("mta", {"prompts": "original", "templates": ("a {}",)}, "remove one of the two"),
        ("apm-views", {"picture": "crop"}, "unknown picture 'crop'. Known: teacher, squash"),
        ("tpt", {"steps": 0}, "steps must be at least 1"),
        ("coop", {"shots": 0}, "at least 1"),
        ("coop", {"context": 1.5}, "expected text or a whole number, found 1.5"),
    ],
)
def test_what_makes_no_sense_is_refused(name, options, message, clip):
    with pytest.raises(ValueError, match=message):
        build(name, clip, **options) if name.startswith("apm-") else methods.create(name, clip, **options)


def test_a_name_has_one_class():
    with pytest.raises(ValueError, match="'zero' is taken by"):
        methods.register("zero")(tda.TDA)
    assert methods.register("zero")(zero.Zero) is zero.Zero  # loaded twice: no error


@pytest.mark.parametrize("name", ["zero-shot", "apm", "zero", "mta", "tda"])
def test_chosen_prompts_replace_the_datasets_own(name, clip, digits):
    chosen = build(name, clip, templates=("a photo of a {}.",))
    said, own = (method.predict(digits, SIX, 0).extra["confidence"] for method in (chosen, build(name, clip)))
    alone = dataclasses.replace(digits, templates=("a photo of a {}.",))
    assert np.array_equal(said, build(name, clip).predict(alone, SIX, 0).extra["confidence"])
    assert not np.array_equal(said, own)
    assert chosen.prompts_used(digits) == '"a photo of a {}."'
    assert build(name, clip).prompts_used(digits).startswith("8 templates")
    if name in ("zero", "mta"):  # one on every set
        original = build(name, clip, prompts="original")
        assert np.array_equal(said, original.predict(digits, SIX, 0).extra["confidence"])


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", ["apm", "tent", "tpt", "coop"])
def test_methods_that_train_do_so_in_any_mode_of_the_caller(name, mode, clip, digits, monkeypatch, tmp_path):
    def said(method, cache):
        monkeypatch.setenv("APM_CACHE", str(tmp_path / cache))
        views.forget()
        clip._texts.clear()
        return method.predict(digits, SIX[:3], 0).extra["confidence"]

    with mode():
        inside, kept = said(build(name, clip), "inside"), build(name, clip)
    # outside it what was made in that mode serves too
    for method in (build(name, clip), kept):
        np.testing.assert_array_equal(inside, said(method, "outside"))


def test_an_outcome_has_the_probability_of_what_is_predicted_and_fails_where_that_is_no_number():
    probabilities = torch.tensor([[0.2, 0.5, 0.3], [0.4, 0.3, 0.3], [0.2, torch.nan, 0.3], [0.8, 0.1, 0.1]])
    said = methods.outcome(probabilities, teacher_passes=3, status=["ok", "ok", "ok", "lost"])
    assert said.prediction.tolist() == [1, 0, -1, -1]
    assert said.status == ["ok", "ok", "non-finite class scores", "lost"]
    np.testing.assert_allclose(said.extra["confidence"], [0.5, 0.4, np.nan, np.nan])
    assert said.extra["teacher_passes"].tolist() == [3.0] * 4
    other = methods.outcome(probabilities[:2], teacher_passes=1, prediction=torch.tensor([2, 2]))
    np.testing.assert_allclose(other.extra["confidence"], [0.3, 0.3])
