"""Walks on the trigger column: the identity with blended pixels, distances by hand, and a repeatable animation."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from bars import CONFIG, STUDENT, problem
from PIL import Image

from apm import teachers
from apm.experiments import answers, field, walks


def ends() -> tuple[np.ndarray, torch.Tensor]:
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    return images, teachers.student_images(images, 8)


@pytest.mark.parametrize("kernels", [1, 3])
def test_interpolated_columns_are_the_columns_of_interpolated_pixels(kernels: int) -> None:
    student = replace(STUDENT, kernels=kernels)
    trained = field.train(replace(problem(), student=student), replace(CONFIG, student=student))
    images, pixels = ends()
    walk = walks.interpolate(trained, pixels, steps=5)
    assert walk.difference < 1e-5
    np.testing.assert_allclose(walk.shares, [0, 0.25, 0.5, 0.75, 1])
    # the identity in full: the walk's third picture is what the network decodes from the blended image
    middle = field.look(trained, pixels.mean(dim=0, keepdim=True))
    np.testing.assert_allclose(walk.decoded[2], middle.colours[0], atol=1e-5)
    np.testing.assert_allclose(walk.features[2], middle.features[0], atol=1e-5)
    means = images[0].reshape(4, 2, 4, 2, 3).mean(axis=(1, 3)) / 255
    np.testing.assert_allclose(walk.blend[0], means, atol=1e-6)
    with pytest.raises(ValueError, match="at least 2 steps"):
        walks.interpolate(trained, pixels, steps=1)


def test_pairs_are_of_different_classes_and_use_an_image_once() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2])
    found = walks.pairs(labels, 2)
    assert found.shape == (2, 2)
    assert len(np.unique(found)) == 4
    assert (labels[found[:, 0]] != labels[found[:, 1]]).all()
    with pytest.raises(ValueError, match=r"expected 2 pairs .* found 0 .*labelled_train"):
        walks.pairs(np.zeros(9, dtype=int), 2)


def test_distances_along_a_walk_by_hand() -> None:
    data = problem()
    trained = field.train(data, replace(CONFIG, precision="float64"))
    known = data.colours.reshape(24, -1)
    linear = answers.ridge(answers.column(trained), data, "colours")
    which = np.array([[2 * i, 2 * i + 1] for i in range(12)])
    crossing = walks.cross(trained, data, which, data, linear, 3)
    assert set(crossing["picture"]) == {walks.DECODED, walks.BLEND, "control: ridge from T", *walks.decoders(data)}
    assert crossing["difference"].max() < 1e-14  # of the identity, which float32 holds to 1e-7 only
    kinds = {name: rows.pivot(index="pair", columns="share") for name, rows in crossing.groupby("picture")}
    blend = kinds[walks.BLEND]
    np.testing.assert_allclose(blend["distance"][[0.0, 1.0]], 0, atol=1e-5)  # the ends are training images
    half = (known[0] + known[1]) / 2
    by_hand = min(np.sqrt(np.square(half - image).mean()) for image in known)
    assert blend["distance"].loc[0, 0.5] == pytest.approx(by_hand, rel=1e-3, abs=1e-6)
    contrast = half.std() / np.mean([known[0].std(), known[1].std()])
    assert blend["contrast"].loc[0, 0.5] == pytest.approx(contrast, rel=1e-4)
    # T is affine in the pixels, so the ridge gives the blend of what it gives at the ends
    np.testing.assert_allclose(kinds["control: ridge from T"]["distance"], blend["distance"], atol=0.05)


def test_decoders_without_a_field_stand_beside_it() -> None:
    decoders, colours = walks.decoders(problem()), problem().colours.reshape(24, -1)
    # on one line, but for 8 bits
    np.testing.assert_allclose(decoders["control: PCA-10 of the pixels"](colours), colours, atol=5e-3)
    curve = decoders["control: contrast curve"]
    np.testing.assert_allclose(curve(np.array([0.0, 0.25, 0.5, 1.0])), [0, 0.15625, 0.5, 1])
    pulled = decoders["control: three tenths towards the mean"](colours)
    np.testing.assert_allclose(pulled - colours.mean(axis=0), 0.7 * (colours - colours.mean(axis=0)), atol=1e-6)


def test_the_animation_is_the_walk_there_and_back_with_the_same_bytes_each_time() -> None:
    walk = walks.interpolate(field.untrained(CONFIG), ends()[1], steps=4)
    gif, again = (walks.animation({"RGB": walk.decoded, "pixels": walk.blend}, walk.shares) for _ in range(2))
    assert gif == again
    with Image.open(io.BytesIO(gif)) as opened:
        assert opened.n_frames == 6  # 4 there, 2 back
        assert opened.info["loop"] == 0
        opened.seek(3)
        shown = {tuple(colour) for colour in np.asarray(opened.convert("RGB")).reshape(-1, 3) // 8}
    for colour in np.rint(255 * walk.blend[3]).astype(int).reshape(-1, 3):  # 256 colours in all
        assert min(np.abs(np.array(c) * 8 + 4 - colour).max() for c in shown) < 24
