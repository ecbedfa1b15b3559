"""Views depend on seed and pixels alone; the confident share is counted and chosen by hand."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from colours import Colour, noise

from apm.methods import views

PHOTO = np.random.default_rng(7).integers(0, 256, (40, 60, 3), dtype=np.uint8)
AUGMIX = pytest.mark.parametrize("augmix", [False, True])


def same(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@AUGMIX
def test_the_image_comes_first_and_the_rest_are_crops_of_one_size(augmix):
    seen = views.views(PHOTO, 6, seed=0, augmix=augmix, size=16)
    assert np.array_equal(seen[0], PHOTO)
    assert [(v.shape, v.dtype) for v in seen[1:]] == [((16, 16, 3), np.uint8)] * 5
    assert len({v.tobytes() for v in seen}) == 6
    assert views.views(PHOTO, 2, seed=0, augmix=augmix)[1].shape == (40, 40, 3)  # the shorter side


@AUGMIX
def test_views_follow_from_seed_and_pixels_and_the_first_of_many_are_the_few(augmix):
    eight = views.views(PHOTO, 8, seed=3, augmix=augmix)
    assert same(eight, views.views(PHOTO.copy(), 8, seed=3, augmix=augmix))
    assert same(eight[:3], views.views(PHOTO, 3, seed=3, augmix=augmix))
    assert not same(eight, views.views(PHOTO, 8, seed=4, augmix=augmix))
    other = PHOTO.copy()
    other[0, 0, 0] ^= 1  # one bit of one pixel: other crops
    assert not same([v[5:] for v in eight[1:]], [v[5:] for v in views.views(other, 8, seed=3, augmix=augmix)[1:]])


def test_without_flip_the_crops_are_the_same_and_none_is_mirrored():
    flipped, straight = (views.views(PHOTO, 33, seed=0, flip=flip)[1:] for flip in (True, False))
    assert all(np.array_equal(a, b) or np.array_equal(a, b[:, ::-1]) for a, b in zip(flipped, straight, strict=True))
    mirrored = sum(not np.array_equal(a, b) for a, b in zip(flipped, straight, strict=True))
    assert 8 <= mirrored <= 24  # about half of 32


def test_crops_cover_what_random_resized_crop_covers():
    """Red holds the column and green the row of a pixel, so the corners of a view tell where it was cut."""
    rows, columns = np.mgrid[0:200, 0:200].astype(np.uint8)
    seen = np.array(views.views(np.stack([columns, rows, rows], axis=-1), 200, seed=1, flip=False, size=100)[1:])
    seen = seen.astype(float) * 100 / 99
    width, height = seen[:, 50, -1, 0] - seen[:, 50, 0, 0], seen[:, -1, 50, 1] - seen[:, 0, 50, 1]
    area, aspect = width * height / 200**2, width / height
    assert 0.06 < area.min() < 0.15
    assert 0.9 < area.max() < 1.05
    assert abs(area.mean() - 0.54) < 0.08  # uniform in 0.08..1
    assert 0.7 < aspect.min() < 0.8
    assert 1.25 < aspect.max() < 1.45


@pytest.mark.parametrize(
    ("shape", "left", "top", "wide", "high"), [((30, 100), 30, 0, 40, 30), ((100, 30), 0, 30, 30, 40)]
)
def test_an_image_too_long_for_any_crop_falls_back_to_the_central_one(shape, left, top, wide, high, monkeypatch):
    monkeypatch.setattr(views, "ATTEMPTS", 0)
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    (crop,) = views.views(image, 2, seed=0, flip=False)[1:]
    (expected,) = views.views(np.ascontiguousarray(image[top : top + high, left : left + wide]), 2, seed=0, flip=False)[
        1:
    ]
    assert np.array_equal(crop, expected)


def test_augmix_mixes_what_its_operations_make_and_leaves_the_image_alone():
    """Mixtures are convex: black stays black where nothing brightens it."""
    black = np.zeros((16, 16, 3), dtype=np.uint8)
    assert max(v.max() for v in views.views(black, 20, seed=0, augmix=True)) == 0
    plain, mixed = (views.views(PHOTO, 9, seed=0, augmix=augmix) for augmix in (False, True))
    changed = [(a != b).any() for a, b in zip(plain, mixed, strict=True)]
    assert not changed[0]
    assert sum(changed) >= 5  # weak operations round to nothing now and then


def test_the_teacher_is_asked_once_per_image_seed_count_and_condition(monkeypatch):
    teacher, data, passes = Colour(), noise(), []
    encode = teacher.encode
    monkeypatch.setattr(teacher, "encode", lambda images: passes.append(len(images)) or encode(images), raising=False)
    first, again = (views.encoded(teacher, data, positions, 4, seed=0) for positions in ([2, 0], [0, 2]))
    assert passes == [4, 4]  # one batch per image
    assert torch.equal(first.features.flip(0), again.features)
    assert (first.saved_milliseconds == 0).all()
    assert (again.saved_milliseconds > 0).all()
    means = torch.from_numpy(data.images[[2, 0]][..., :2].mean(axis=(1, 2)) / 255).float()
    torch.testing.assert_close(first.features[:, 0], means)  # the image itself comes first
    worse = dataclasses.replace(data, images=255 - data.images, corruption="inverted", severity=1)
    for changes in ({"seed": 1}, {"n": 5}, {"augmix": True}, {"flip": False}, {"bicubic": True}, {"dataset": worse}):
        before = len(passes)
        views.encoded(**{"teacher": teacher, "dataset": data, "positions": [0], "n": 4, "seed": 0, **changes})
        assert len(passes) == before + 1, changes


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
