"""Methods see images and class names, never labels; what they say fits the records."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from colours import stored_features
from fakes import FakeTeacher
from PIL import Image

from apm import methods, teachers, ttt
from apm.data import Dataset, UnreadableImage
from apm.model import APMConfig
from apm.runs import records
from apm.ttt import TTTConfig

CLASSES = ("ant", "bee", "cow")


@pytest.fixture
def teacher(monkeypatch: pytest.MonkeyPatch) -> FakeTeacher:
    stored_features(monkeypatch, lambda teacher, dataset: teacher.features(dataset))
    return FakeTeacher()


@pytest.fixture
def data() -> Dataset:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
    labels = np.arange(12) % 3
    return Dataset("toy", images, labels, CLASSES, ("a {}", "the {}"), "f" * 64, np.arange(12))


CONFIG = TTTConfig(APMConfig(grid=(4, 4), patch=4, hidden=(32, 16), width=12), iterations=30, learning_rate=5e-3)


def test_the_released_protocol_leaves_an_unreadable_image_out_of_its_sequence(
    teacher: FakeTeacher, data: Dataset, tmp_path: Path
) -> None:
    class Broken(list):
        def __getitem__(self, i):
            if i == 4:
                raise UnreadableImage(Path("img4.jpg"), "cut short")
            return super().__getitem__(i)

    config = dataclasses.replace(CONFIG, protocol="as_released", decay_every=40)
    method, broken = methods.APM(teacher, config), dataclasses.replace(data, images=Broken(data.images))
    with pytest.raises(records.RecordError, match=r"failed on image 4 of 'toy': UnreadableImage: .*img4.jpg"):
        records.run(method, broken, folder=tmp_path)
    found = records.run(method, broken, folder=tmp_path, on_error="record")
    others = np.array([i for i in range(12) if i != 4])
    expected = method.predict(data, others, 0)  # the sequence without it
    assert found["status"][4].startswith("error: UnreadableImage: cannot read the image img4.jpg")
    assert found["prediction"][4] == -1
    assert np.isnan(found["last_loss"][4])
    assert np.isnan(found["confidence"][4])
    assert found["path"][others].map(list).tolist() == expected.path.tolist()
    assert np.array_equal(found["last_loss"][others], expected.last_loss)
    assert np.array_equal(found["confidence"][others], expected.extra["confidence"])


def test_zero_shot_takes_the_class_of_largest_cosine(teacher: FakeTeacher, data: Dataset) -> None:
    features, text = teacher.features(data), teacher.text_features(CLASSES, data.templates).numpy()
    expected = [int(np.argmax([f @ t / np.linalg.norm(f) / np.linalg.norm(t) for t in text])) for f in features]
    assert methods.ZeroShot(teacher).predict(data, np.arange(12), 0).prediction.tolist() == expected


def test_chosen_templates_replace_the_datasets_own(teacher: FakeTeacher, data: Dataset) -> None:
    one = methods.ZeroShot(teacher, templates=("a {}",))
    assert torch.equal(
        one.scores(data, np.arange(2)),
        ttt.cosine_scores(torch.as_tensor(teacher.features(data)[:2]), teacher.text_features(CLASSES, ("a {}",))),
    )


def test_apm_reports_its_path_its_final_entry_and_its_entry_of_lowest_loss(teacher: FakeTeacher, data: Dataset) -> None:
    predictions = methods.APM(teacher, CONFIG).predict(data, np.array([3, 1, 7]), seed=0)
    result = methods.adapt_dataset(teacher, data, np.array([3, 1, 7]), CONFIG, seed=0)
    assert predictions.path.shape == (3, 31)
    assert (predictions.prediction == predictions.path[:, -1]).all()
    lowest = result.losses.argmin(dim=1).numpy()
    assert (predictions.minimum_loss_prediction == predictions.path[np.arange(3), lowest]).all()
    np.testing.assert_allclose(predictions.first_loss, result.losses[:, 0].numpy())
    np.testing.assert_allclose(predictions.last_loss, result.losses[:, -1].numpy())
    assert (predictions.last_loss < predictions.first_loss).all()


def test_labels_have_no_influence_on_any_prediction(teacher: FakeTeacher, data: Dataset) -> None:
    relabelled = dataclasses.replace(data, labels=(data.labels + 1) % 3)
    for method in (methods.ZeroShot(teacher), methods.APM(teacher, CONFIG)):
        first, second = (method.predict(d, np.arange(4), seed=1) for d in (data, relabelled))
        assert (first.prediction == second.prediction).all()
        if first.path is not None:
            assert (first.path == second.path).all()


def test_a_diverging_image_is_minus_one_in_prediction_path_and_minimum_loss(
    teacher: FakeTeacher, data: Dataset
) -> None:
    wild = dataclasses.replace(CONFIG, learning_rate=1e20)
    predictions = methods.APM(teacher, wild).predict(data, np.arange(3), seed=0)
    assert all(status.startswith("non-finite loss") for status in predictions.status)
    assert (predictions.prediction == -1).all()
    assert (predictions.minimum_loss_prediction == -1).all()


def test_records_of_both_methods_are_paired_on_the_same_images(teacher: FakeTeacher, data: Dataset, tmp_path) -> None:
    zero_shot, apm = methods.ZeroShot(teacher), methods.APM(teacher, CONFIG)
    rows = records.run_all([zero_shot, apm], [data], folder=tmp_path, shard_size=5, teacher_method=zero_shot)
    assert rows.groupby("method")["sample"].apply(list).to_dict() == {
        "APM": list(range(12)),
        "zero-shot": list(range(12)),
    }
    assert (rows["label"].to_numpy() == np.tile(data.labels, 2)).all()
    of_apm = rows[rows["method"] == "APM"]
    assert (
        of_apm["teacher_prediction"].to_numpy() == rows[rows["method"] == "zero-shot"]["prediction"].to_numpy()
    ).all()


def test_shards_of_other_sizes_give_the_same_predictions(teacher: FakeTeacher, data: Dataset, tmp_path) -> None:
    apm = methods.APM(teacher, CONFIG)
    whole, parts = (records.run(apm, data, folder=tmp_path / str(n), shard_size=n) for n in (12, 5))
    assert whole["prediction"].equals(parts["prediction"])
    np.testing.assert_allclose(whole["last_loss"], parts["last_loss"], rtol=1e-3, atol=1e-9)


def test_settings_are_plain_json_and_change_with_what_determines_predictions(teacher: FakeTeacher) -> None:
    base = methods.APM(teacher, CONFIG).settings()
    json.dumps(base)
    for change in ({"iterations": 31}, {"learning_rate": 1e-3}, {"normalise_target": False}, {"precision": "bfloat16"}):
        assert methods.APM(teacher, dataclasses.replace(CONFIG, **change)).settings() != base
    assert methods.APM(teacher, CONFIG, templates=("a {}",)).settings() != base


def test_a_squashed_picture_shows_the_whole_image_and_makes_other_records(teacher: FakeTeacher, data: Dataset) -> None:
    """An image twice as wide as high, black in its outer quarters: the crop shows its white middle alone, the squashed picture all."""
    wide = np.zeros((16, 32, 3), dtype=np.uint8)
    wide[:, 8:24] = 255
    middle = methods.student_pictures(teacher, [wide], 16)
    assert torch.equal(middle, teachers.student_images([wide[:, 8:24]], 16))
    whole = methods.student_pictures(teacher, [wide], 16, "squash")[0, 0]
    black, white = ((value - teachers.IMAGENET_MEAN[0]) / teachers.IMAGENET_STD[0] for value in (0.0, 1.0))
    assert whole[:, [0, 2, 13, 15]].unique().item() == pytest.approx(black)
    assert whole[:, [5, 8, 10]].unique().item() == pytest.approx(white)
    by_hand = Image.fromarray(data.images[0]).resize(
        (24, 24), Image.Resampling.BILINEAR
    )  # as torchvision's Resize does
    expected = (np.asarray(by_hand)[..., 0] / 255 - teachers.IMAGENET_MEAN[0]) / teachers.IMAGENET_STD[0]
    squashed = methods.student_pictures(teacher, [data.images[0]], 24, "squash")[0, 0]
    np.testing.assert_allclose(squashed, expected, atol=1e-6)

    config = dataclasses.replace(CONFIG, student=dataclasses.replace(CONFIG.student, patch=6))
    as_teacher, squash = (methods.APM(teacher, config, picture=picture) for picture in methods.PICTURES)
    losses = [method.predict(data, np.arange(2), 0).first_loss for method in (as_teacher, squash)]
    assert not np.array_equal(*losses)
    assert as_teacher.settings() != squash.settings()
    with pytest.raises(ValueError, match=r"unknown picture 'crop'. Known: teacher, squash"):
        methods.APM(teacher, CONFIG, picture="crop")


def test_profile_values_become_a_training_config_with_the_teachers_width(teacher: FakeTeacher) -> None:
    config = methods.training_config(teacher, {"preset": "mini", "hidden": [64, 32]}, {"iterations": 7})
    assert config.student.width == 12
    assert config.student.hidden == (64, 32)
    assert config.iterations == 7


@pytest.mark.parametrize(
    ("student", "training", "message"),
    [
        ({"preset": "huge"}, {}, "unknown student preset 'huge'"),
        ({"hiden": [1]}, {}, "unknown field of the student 'hiden'.*Did you mean 'hidden'"),
        ({}, {"lr": 1}, "unknown field of the training 'lr'.*learning_rate"),
    ],
)
def test_unknown_profile_values_list_the_known_fields(
    teacher: FakeTeacher, student: dict, training: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        methods.training_config(teacher, student, training)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 16}, "student's width 16 must be the width 12 of teacher fake"),
        ({"grid": (4, 2), "position_width": 16}, "square sizes"),
    ],
)
def test_a_student_that_does_not_fit_teacher_or_images_is_refused(
    teacher: FakeTeacher, data: Dataset, change: dict, message: str
) -> None:
    config = dataclasses.replace(CONFIG, student=dataclasses.replace(CONFIG.student, **change))
    with pytest.raises(ValueError, match=message):
        methods.adapt_dataset(teacher, data, np.arange(2), config)


# ------------------------------------------------------------------------------------------------ how sure, and at what cost


def test_an_outcome_has_the_probability_of_what_is_predicted_and_fails_where_that_is_no_number() -> None:
    probabilities = torch.tensor([[0.2, 0.5, 0.3], [0.4, 0.3, 0.3], [0.2, torch.nan, 0.3], [0.8, 0.1, 0.1]])
    said = methods.outcome(probabilities, teacher_passes=3, status=["ok", "ok", "ok", "lost"], prediction=None)
    assert said.prediction.tolist() == [1, 0, -1, -1]
    assert said.status == ["ok", "ok", "non-finite class scores", "lost"]
    np.testing.assert_allclose(said.extra["confidence"], [0.5, 0.4, np.nan, np.nan])
    assert said.extra["teacher_passes"].tolist() == [3.0] * 4
    other = methods.outcome(probabilities[:2], teacher_passes=1, prediction=torch.tensor([2, 2]))
    np.testing.assert_allclose(other.extra["confidence"], [0.3, 0.3])
