"""Views depend on seed and pixels alone; the confident share is counted and chosen by hand."""

import dataclasses
import math
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from colours import Colour, noise

from apm.methods import views

PHOTO = np.random.default_rng(7).integers(0, 256, (40, 60, 3), dtype=np.uint8)
AUGMIX = pytest.mark.parametrize("augmix", [False, True])


def seen(n=8, image=PHOTO, **options):
    return views.views(image, n, **{"seed": 0, **options})


@AUGMIX
def test_the_image_comes_first_and_the_rest_are_crops_of_one_size(augmix):
    image, *crops = seen(6, augmix=augmix, size=16)
    assert np.array_equal(image, PHOTO)
    assert [(v.shape, v.dtype) for v in crops] == [((16, 16, 3), np.uint8)] * 5
    assert len({v.tobytes() for v in crops}) == 5
    assert seen(2, augmix=augmix)[1].shape == (40, 40, 3)  # the shorter side


@AUGMIX
def test_views_follow_from_seed_and_pixels_and_the_first_of_many_are_the_few(augmix):
    other = PHOTO.copy()
    other[0, 0, 0] ^= 1  # one bit of one pixel: other crops
    changes = {"seed": 0}, {"image": PHOTO.copy()}, {"seed": 4}, {"image": other}
    eight, again, seed, bit = ([v.tobytes() for v in seen(augmix=augmix, **change)[1:]] for change in changes)
    assert eight == again
    assert eight[:2] == [v.tobytes() for v in seen(3, augmix=augmix)[1:]]
    assert not {*eight} & {*seed, *bit}


def test_without_flip_the_crops_are_the_same_and_none_is_mirrored():
    pairs = list(zip(seen(33)[1:], seen(33, flip=False)[1:], strict=True))
    assert all(np.array_equal(a, b) or np.array_equal(a, b[:, ::-1]) for a, b in pairs)
    assert 8 <= sum(not np.array_equal(a, b) for a, b in pairs) <= 24  # about half of 32


def test_crops_cover_what_random_resized_crop_covers():
    """Red holds the column and green the row of a pixel, so the corners of a view tell where it was cut."""
    rows, columns = np.mgrid[0:200, 0:200].astype(np.uint8)
    found = np.array(seen(200, np.stack([columns, rows, rows], axis=-1), flip=False, size=100)[1:]) * (100 / 99)
    width, height = found[:, 50, -1, 0] - found[:, 50, 0, 0], found[:, -1, 50, 1] - found[:, 0, 50, 1]
    area, aspect = width * height / 200**2, width / height
    assert [area.min(), area.mean(), area.max()] == pytest.approx([0.08, 0.54, 1.0], abs=0.08)  # uniform in 0.08..1
    assert [aspect.min(), aspect.max()] == pytest.approx([3 / 4, 4 / 3], abs=0.1)


@pytest.mark.parametrize(
    ("shape", "middle"), [((30, 100), np.s_[:, 30:70]), ((100, 30), np.s_[30:70])], ids=["wide", "high"]
)
def test_an_image_too_long_for_any_crop_falls_back_to_the_central_one(shape, middle, monkeypatch):
    monkeypatch.setattr(views, "ATTEMPTS", 0)
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    crop, expected = (seen(2, np.ascontiguousarray(one), flip=False)[1] for one in (image, image[middle]))
    assert np.array_equal(crop, expected)


def test_augmix_mixes_what_its_operations_make_and_leaves_the_image_alone():
    """Mixtures are convex: black stays black where nothing brightens it."""
    assert not np.any(seen(20, np.zeros((16, 16, 3), dtype=np.uint8), augmix=True))
    changed = [(a != b).any() for a, b in zip(seen(9), seen(9, augmix=True), strict=True)]
    assert not changed[0]
    assert sum(changed) >= 5  # weak operations round to nothing now and then


def test_the_teacher_is_asked_once_per_image_seed_count_and_condition(monkeypatch):
    teacher, data = Colour(), noise()
    monkeypatch.setattr(teacher, "encode", Mock(wraps=teacher.encode), raising=False)
    first, again = (views.encoded(teacher, data, positions, 4, seed=0) for positions in ([2, 0], [0, 2]))
    assert [len(call.args[0]) for call in teacher.encode.mock_calls] == [4, 4]  # one batch per image
    assert torch.equal(first.features.flip(0), again.features)
    assert (first.saved_milliseconds == 0).all()
    assert (again.saved_milliseconds > 0).all()
    means = torch.from_numpy(data.images[[2, 0]][..., :2].mean(axis=(1, 2)) / 255).float()
    torch.testing.assert_close(first.features[:, 0], means)  # the image itself comes first
    worse = dataclasses.replace(data, images=255 - data.images, corruption="inverted", severity=1)
    options = {"teacher": teacher, "dataset": data, "positions": [0], "n": 4, "seed": 0}
    changes = {"seed": 1}, {"n": 5}, {"augmix": True}, {"flip": False}, {"bicubic": True}, {"dataset": worse}
    for count, change in enumerate(changes, start=3):
        views.encoded(**{**options, **change})
        assert teacher.encode.call_count == count, change


def test_memory_for_features_is_bounded_and_the_least_recently_used_go_first():
    cache = views._Kept(limit=2 * 8)
    for key in ("a", "b"):
        cache.put((key,), torch.zeros(2), 1.0)
    assert cache.get(("a",)) is not None
    cache.put(("c",), torch.zeros(2), 1.0)
    assert [cache.get((key,)) is not None for key in "abc"] == [True, False, True]
    assert cache.used == 16


def test_entropy_and_the_views_where_it_is_lowest_by_hand():
    scores = torch.tensor([[0.0, 0.0], [math.log(3), 0.0], [1e4, 0.0]])
    expected = [math.log(2), -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)), 0.0]
    torch.testing.assert_close(views.entropy(scores), torch.tensor(expected))
    scores = torch.tensor([[0.0, 0.1], [5.0, 0.0], [0.0, 1.0], [0.0, 9.0], [2.0, 0.0]])
    assert views.confident(scores, 0.4).tolist() == [3, 1]
    assert views.confident(scores, 1.0).tolist() == [3, 1, 4, 2, 0]
    assert views.confident(torch.zeros(64, 3), 0.1).tolist() == [0, 1, 2, 3, 4, 5]  # 6 of 64, ties in order
    assert views.kept(100, 0.29) == 29


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: views.confident(torch.zeros(9, 2), 0.1), r"zero confident views: a share of 0.1 of 9 views.*at least 10"),
        (lambda: views.confident(torch.zeros(1, 2), 0.5), "of 1 view is"),
        (lambda: views.confident(torch.zeros(9, 2), 0.0), r"must lie in \(0, 1\], found 0.0"),
        (lambda: views.confident(torch.zeros(9), 0.5), r"expected scores \(views, classes\)"),
        (lambda: views.views(PHOTO, 0, seed=0), "at least 1, the image itself, found 0"),
        (lambda: views.views(PHOTO.astype(float), 2, seed=0), r"uint8 \(H, W, 3\), found float64"),
        (lambda: views.views(PHOTO[..., 0], 2, seed=0), r"found uint8 \(40, 60\)"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_in_words(call, message):
    with pytest.raises(ValueError, match=message):
        call()
