"""Test-time training as a module: loops written for other models get the accuracy that records give."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import apm
from apm import methods
from apm.data import load
from apm.runs import records

FEW = {"iterations": 6, "learning_rate": 2e-3}  # so few updates that students do not yet say what their teacher says


def clean_accuracy(model, x, y, batch_size: int = 100, device=None) -> float:
    """In the convention of RobustBench's `clean_accuracy` (Croce et al. 2021)."""
    device = device or x.device
    right = 0.0
    with torch.no_grad():
        for i in range(math.ceil(x.shape[0] / batch_size)):
            part = slice(i * batch_size, (i + 1) * batch_size)
            right += (model(x[part].to(device)).max(1)[1] == y[part].to(device)).float().sum().item()
    return right / x.shape[0]


@pytest.fixture
def model(clip, digits) -> apm.TestTimeTrained:
    config = methods.training_config(clip, training=FEW)
    return apm.TestTimeTrained(clip, digits.classnames, config, digits.templates)


@pytest.fixture
def images(digits) -> torch.Tensor:
    return torch.from_numpy(digits.images.copy()).permute(0, 3, 1, 2).float() / 255


def test_a_loop_written_for_other_models_gets_the_accuracy_of_records(model, clip, tmp_path: Path) -> None:
    data = load("digits-test").subset(40, seed=0)
    rows = records.run(methods.APM(clip, model.config), data, folder=tmp_path, teacher_method=methods.ZeroShot(clip))
    assert (rows["prediction"] != rows["teacher_prediction"]).any()  # else the teacher alone would do
    x = torch.from_numpy(data.images.copy()).permute(0, 3, 1, 2).float() / 255
    y = torch.from_numpy(data.labels)
    assert model.eval()(x).argmax(dim=1).tolist() == rows["prediction"].tolist()
    assert clean_accuracy(model, x, y, batch_size=16) == pytest.approx((rows["prediction"] == rows["label"]).mean())


def test_it_trains_in_any_grad_mode_and_no_gradient_reaches_its_images(model, images) -> None:
    with torch.no_grad():
        expected = model(images)
    assert expected.shape == (6, 10)
    with torch.inference_mode():
        torch.testing.assert_close(model(images.clone()), expected)
    found = model(images.clone().requires_grad_())
    torch.testing.assert_close(found, expected)
    assert not found.requires_grad
    alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(alone, expected, rtol=1e-3, atol=1e-3)


def test_scores_are_the_teachers_logits_of_the_students_features(model, clip, digits, images) -> None:
    result = methods.adapt_dataset(clip, digits, np.arange(6), model.config)
    torch.testing.assert_close(model(images), clip.logit_scale * result.scores[:, -1], rtol=1e-3, atol=1e-3)
    assert apm.TestTimeTrained(clip, digits.classnames).config.iterations == 50
    every = methods.training_config(clip, training={**FEW, "loss_grid": 1.0, "loss_rgb": 1.0})
    with_tokens = apm.TestTimeTrained(clip, digits.classnames, every, digits.templates)(images)
    assert not torch.allclose(with_tokens, model(images), atol=1e-2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: (255 * x).byte(), r"expected float images \(N, 3, H, W\), found torch.uint8"),
        (lambda x: x[0], r"expected float images \(N, 3, H, W\), found torch.float32 \(3, "),
        (lambda x: (x - 0.5) / 0.2, r"expected images in \[0, 1\]"),
        (lambda x: x * torch.nan, r"expected images in \[0, 1\]"),
    ],
)
def test_images_that_cannot_be_meant_are_refused(model, images, change, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model(change(images))


def test_what_scores_cannot_say_is_an_error(model, clip, digits, images) -> None:
    model.config = dataclasses.replace(model.config, learning_rate=1e20)
    with pytest.raises(ValueError, match=r"training failed on images \{0: 'non-finite loss at iteration"):
        model(images)
    carried = methods.training_config(clip, training={"protocol": "as_released"})
    with pytest.raises(ValueError, match="carries state from image to image"):
        apm.TestTimeTrained(clip, digits.classnames, carried)
