"""The APM as a method: its path, its pictures, its settings from a profile, and a better target than the image's own feature."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from colours import CONFIG, Colour, noise, units
from PIL import Image
from torch import nn

from apm import methods, teachers
from apm.methods import apm as student
from apm.methods import views

SIX = np.arange(6)


def test_it_reports_its_path_its_last_entry_and_its_entry_of_lowest_loss():
    places = np.array([3, 1, 5])
    said = methods.APM(Colour(), CONFIG).predict(noise(), places, seed=0)
    result = methods.adapt_dataset(Colour(), noise(), places, CONFIG, seed=0)
    assert said.path.shape == (3, 13)
    assert said.path.tolist() == result.predictions().tolist()
    assert (said.prediction == said.path[:, -1]).all()
    assert (said.minimum_loss_prediction == said.path[np.arange(3), result.losses.argmin(dim=1)]).all()
    np.testing.assert_allclose([said.first_loss, said.last_loss], result.losses[:, [0, -1]].T)
    assert (said.last_loss < said.first_loss).all()


def test_a_diverging_image_is_minus_one_in_prediction_path_and_minimum_loss():
    said = methods.APM(Colour(), dataclasses.replace(CONFIG, learning_rate=1e20)).predict(noise(), SIX, seed=0)
    assert all(status.startswith("non-finite loss") for status in said.status)
    assert {*said.prediction, *said.minimum_loss_prediction, *said.path[:, -1]} == {-1}


def test_settings_change_with_what_determines_predictions_and_with_nothing_else():
    def settings(**changes: object) -> dict:
        return methods.APM(Colour(), dataclasses.replace(CONFIG, **changes)).settings()

    for change in ({"iterations": 31}, {"learning_rate": 1e-3}, {"normalise_target": False}, {"precision": "bfloat16"}):
        assert settings(**change) != settings(), change
    assert settings(lockstep=3) == settings()


def test_a_squashed_picture_shows_the_whole_image_and_makes_another_student():
    """An image twice as wide as high, black in its outer quarters: the crop shows its white middle alone, the squashed picture all."""
    teacher, data, wide = Colour(), noise(), np.zeros((16, 32, 3), dtype=np.uint8)
    wide[:, 8:24] = 255
    middle = methods.student_pictures(teacher, [wide], 16)
    assert torch.equal(middle, teachers.student_images([wide[:, 8:24]], 16))
    for image, size in ((wide, 16), (data.images[0], 24)):
        by_hand = Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)  # as torchvision's Resize does
        squashed = methods.student_pictures(teacher, [image], size, "squash")
        torch.testing.assert_close(squashed, teachers.student_images([np.asarray(by_hand)], size))
    config = dataclasses.replace(CONFIG, student=dataclasses.replace(CONFIG.student, patch=6))
    losses = [methods.APM(teacher, config, picture=p).predict(data, SIX, 0).first_loss for p in methods.PICTURES]
    assert not np.array_equal(*losses)


def test_profile_values_become_a_training_config_with_the_teachers_width():
    config = methods.training_config(Colour(), {"preset": "mini", "hidden": [64, 32]}, {"iterations": 7})
    assert [config.student.width, config.student.hidden, config.iterations] == [2, (64, 32), 7]
    assert methods.training_config(Colour(), {"column": "tokens"}).student.token_width == 2


@pytest.mark.parametrize(
    ("student", "training", "message"),
    [
        ({"preset": "huge"}, {}, "unknown student preset 'huge'"),
        ({"hiden": [1]}, {}, "unknown field of the student 'hiden'.*Did you mean 'hidden'"),
        ({}, {"lr": 1}, "unknown field of the training 'lr'.*learning_rate"),
        ({"width": 16}, {}, "student's width 16 must be the width 2 of teacher colour"),
        ({"grid": [4, 2], "position_width": 16}, {}, "square sizes"),
    ],
)
def test_a_student_that_is_unknown_or_does_not_fit_is_refused(student, training, message):
    with pytest.raises(ValueError, match=message):
        methods.adapt_dataset(Colour(), noise(), SIX, methods.training_config(Colour(), student, training))


def test_the_target_is_the_mean_over_the_confident_views():
    angles = torch.tensor([0.0, 10.0, 45.0]) * math.pi / 180
    unit = torch.stack([angles.cos(), angles.sin()], dim=-1)
    features, text = unit * torch.tensor([[1.0], [3.0], [5.0]]), torch.eye(2)
    for kept, of in ((unit, True), (features, False)):  # two of three, not the one in between
        target = student.mean_target(features, text, 2.0, 0.67, unit=of)
        torch.testing.assert_close(target, kept[:2].mean(dim=0))


def test_one_view_is_the_apm_of_the_paper_exactly():
    teacher, data = Colour(), noise()
    ours = methods.create("apm-views", teacher, config=CONFIG, views=1).predict(data, SIX, 3)
    theirs = methods.APM(teacher, CONFIG).predict(data, SIX, 3)
    for field in ("prediction", "path", "first_loss", "last_loss", "minimum_loss_prediction", "status"):
        assert np.array_equal(getattr(ours, field), getattr(theirs, field)), field
    assert (ours.extra["teacher_passes"] == 1).all()
    feature = teacher.encode(teacher.transform(data.images)).feature
    expected = (2 * nn.functional.normalize(feature, dim=-1)).softmax(dim=-1)
    np.testing.assert_allclose(ours.extra["target_confidence"], expected.max(dim=-1).values, rtol=1e-5)
    assert ours.extra["target_prediction"].tolist() == expected.argmax(dim=-1).tolist()
    assert (ours.extra["target_milliseconds"] > 0).all()


def test_more_views_give_the_student_another_target():
    teacher, data = Colour(), noise()
    method = methods.create("apm-views", teacher, config=CONFIG, views=10, share=0.3)
    targets, _ = method.targets(data, SIX, 0)
    expected = [one[views.confident(2 * one, 0.3)].mean(dim=0) for one in units(teacher, data, SIX, 10)]
    torch.testing.assert_close(targets, torch.stack(expected))
    said = method.predict(data, SIX, 0)
    assert said.extra["target_prediction"].tolist() == targets.argmax(dim=-1).tolist()
    assert (said.extra["teacher_passes"] == 10).all()
    assert (said.last_loss < said.first_loss).all()
    assert (said.last_loss != methods.APM(teacher, CONFIG).predict(data, SIX, 0).last_loss).all()


@pytest.mark.parametrize("unit", [True, False])
def test_the_mirror_target_is_the_mean_of_image_and_mirror_image(unit):
    class OneEyed(Colour):  # sees the left half
        def transform(self, images):
            return super().transform(images)[..., :4]

    teacher, data, config = OneEyed(), noise(), dataclasses.replace(CONFIG, normalise_target=unit)
    method = methods.create("apm-mirror", teacher, config=config)
    targets, _ = method.targets(data, SIX, 0)
    both = [teacher.encode(teacher.transform(images)).feature for images in (data.images, data.images[:, :, ::-1])]
    expected = sum(nn.functional.normalize(one, dim=-1) if unit else one for one in both) / 2
    torch.testing.assert_close(targets, expected)
    mirrored = dataclasses.replace(data, images=data.images[:, :, ::-1])
    torch.testing.assert_close(method.targets(mirrored, SIX, 0)[0], targets)
    said = method.predict(data, SIX, 0)
    assert said.extra["target_prediction"].tolist() == expected.argmax(dim=-1).tolist()
    assert (said.extra["teacher_passes"] == 2).all()
    assert (said.last_loss < said.first_loss).all()
