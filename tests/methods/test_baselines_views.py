"""Views depend on seed and pixels alone; the confident share is counted and chosen by hand."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from apm.data import Dataset
from apm.methods import views
from apm.teachers import Encoding


class Colour:
    """A teacher whose feature is the mean of the red and green channels (n, 2), in 0..1."""

    name, width, hash, precision, image_size = "colour", 2, "0" * 64, "fp32", 8
    device, logit_scale = torch.device("cpu"), 2.0

    def __init__(self) -> None:
        self.passes: list[int] = []

    def transform(self, images):
        return torch.stack([torch.from_numpy(i.copy()).permute(2, 0, 1)[:, :8, :8].float() / 255 for i in images])

    def encode(self, images):
        self.passes.append(len(images))
        return Encoding(images[:, :2].mean(dim=(2, 3)))


def toy(n: int = 4, side: int = 8) -> Dataset:
    images = np.random.default_rng(0).integers(0, 256, (n, side, side, 3), dtype=np.uint8)
    return Dataset("toy", images, np.arange(n) % 2, ("ant", "bee"), ("a {}",), "f" * 64, np.arange(n))


@pytest.fixture(autouse=True)
def nothing_kept():
    views.forget()
    yield
    views.forget()


PHOTO = np.random.default_rng(7).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def same(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("augmix", [False, True])
def test_the_image_comes_first_and_the_rest_are_crops_of_one_size(augmix: bool) -> None:
    seen = views.views(PHOTO, 6, seed=0, augmix=augmix, size=16)
    assert np.array_equal(seen[0], PHOTO)
    assert [v.shape for v in seen[1:]] == [(16, 16, 3)] * 5
    assert all(v.dtype == np.uint8 for v in seen)
    assert len({v.tobytes() for v in seen}) == 6
    assert views.views(PHOTO, 2, seed=0)[1].shape == (40, 40, 3)  # the shorter side


@pytest.mark.parametrize("augmix", [False, True])
def test_views_follow_from_seed_and_pixels_and_the_first_of_many_are_the_few(augmix: bool) -> None:
    eight = views.views(PHOTO, 8, seed=3, augmix=augmix)
    assert same(eight, views.views(PHOTO.copy(), 8, seed=3, augmix=augmix))
    assert same(eight[:3], views.views(PHOTO, 3, seed=3, augmix=augmix))
    assert not same(eight, views.views(PHOTO, 8, seed=4, augmix=augmix))
    other = PHOTO.copy()
    other[0, 0, 0] ^= 1  # one bit of one pixel: other crops
    assert not same([v[5:] for v in eight[1:]], [v[5:] for v in views.views(other, 8, seed=3, augmix=augmix)[1:]])


def test_without_flip_the_crops_are_the_same_and_none_is_mirrored() -> None:
    flipped, straight = views.views(PHOTO, 33, seed=0), views.views(PHOTO, 33, seed=0, flip=False)
    mirrored = 0
    for a, b in zip(flipped[1:], straight[1:], strict=True):
        assert np.array_equal(a, b) or np.array_equal(a, b[:, ::-1])
        mirrored += not np.array_equal(a, b)
    assert 8 <= mirrored <= 24  # about half of 32


def test_crops_cover_what_random_resized_crop_covers() -> None:
    """Red holds the column and green the row of a pixel, so the corners of a view tell where it was cut."""
    rows, columns = np.mgrid[0:200, 0:200].astype(np.uint8)
    image = np.stack([columns, rows, rows], axis=-1)
    extents = []
    for view in views.views(image, 200, seed=1, flip=False, size=100)[1:]:
        v = view.astype(float)
        extents.append([(v[50, -1, 0] - v[50, 0, 0]) * 100 / 99, (v[-1, 50, 1] - v[0, 50, 1]) * 100 / 99])
    width, height = np.array(extents).T
    area, aspect = width * height / 200**2, width / height
    assert 0.06 < area.min() < 0.15
    assert 0.9 < area.max() < 1.05
    assert abs(area.mean() - 0.54) < 0.08  # uniform in 0.08..1
    assert 0.7 < aspect.min() < 0.8
    assert 1.25 < aspect.max() < 1.45


def test_a_long_image_falls_back_to_the_central_crop() -> None:
    assert views._central(100, 30) == (30, 0, 40, 30)  # 4/3 as wide as high
    assert views._central(30, 100) == (0, 30, 30, 40)  # 3/4
    assert views._central(40, 40) == (0, 0, 40, 40)
    assert len(views.views(PHOTO[:2], 10, seed=0)) == 10


def test_augmix_mixes_what_its_operations_make_and_leaves_the_image_alone() -> None:
    """Mixtures are convex: black stays black where nothing brightens it."""
    black = np.zeros((16, 16, 3), dtype=np.uint8)
    assert max(v.max() for v in views.views(black, 20, seed=0, augmix=True)) == 0
    changed = [
        (a != b).any()
        for a, b in zip(views.views(PHOTO, 9, seed=0), views.views(PHOTO, 9, seed=0, augmix=True), strict=True)
    ]
    assert not changed[0]  # the image itself is left alone
    assert sum(changed) >= 5  # weak operations round to nothing now and then


def test_features_are_of_unit_length_and_those_of_the_image_come_first() -> None:
    teacher, data = Colour(), toy()
    seen = torch.nn.functional.normalize(views.encoded(teacher, data, [2, 0], 5, seed=0).features, dim=-1)
    assert seen.shape == (2, 5, 2)
    torch.testing.assert_close(seen.norm(dim=-1), torch.ones(2, 5))
    for row, position in enumerate((2, 0)):
        mean = torch.from_numpy(data.images[position][..., :2].reshape(-1, 2) / 255).float().mean(dim=0)
        torch.testing.assert_close(seen[row, 0], mean / mean.norm())
    assert teacher.passes == [5, 5]  # one batch per image


def test_the_teacher_is_asked_once_per_seed_count_and_condition() -> None:
    teacher, data = Colour(), toy()
    first = views.encoded(teacher, data, [0, 1], 4, seed=0)
    again = views.encoded(teacher, data, [1, 0], 4, seed=0)
    assert torch.equal(first.features.flip(0), again.features)
    assert teacher.passes == [4, 4]
    assert (first.saved_milliseconds == 0).all()
    assert (again.saved_milliseconds > 0).all()
    for change in ({"seed": 1}, {"n": 5}, {"augmix": True}, {"flip": False}):
        before = len(teacher.passes)
        options = {"n": 4, "seed": 0, **change}
        views.encoded(teacher, data, [0], **options)
        assert len(teacher.passes) == before + 1, change
    worse = dataclasses.replace(data, images=255 - data.images, corruption="inverted", severity=1)
    assert not torch.equal(views.encoded(teacher, worse, [0, 1], 4, seed=0).features, first.features)


def test_memory_for_features_is_bounded_and_the_least_recently_used_go_first() -> None:
    cache = views._Kept(limit=2 * 8)
    for key in ("a", "b"):
        cache.put((key,), torch.zeros(2), 1.0)
    assert cache.get(("a",)) is not None
    cache.put(("c",), torch.zeros(2), 1.0)
    assert cache.get(("b",)) is None
    assert cache.get(("a",)) is not None
    assert cache.get(("c",)) is not None
    assert cache.used == 16


def test_entropy_by_hand() -> None:
    scores = torch.tensor([[0.0, 0.0], [math.log(3), 0.0], [1e4, 0.0]])
    expected = [math.log(2), -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)), 0.0]
    torch.testing.assert_close(views.entropy(scores), torch.tensor(expected))


def test_the_confident_views_are_those_of_lowest_entropy_most_confident_first() -> None:
    scores = torch.tensor([[0.0, 0.1], [5.0, 0.0], [0.0, 1.0], [0.0, 9.0], [2.0, 0.0]])
    assert views.confident(scores, 0.4).tolist() == [3, 1]
    assert views.confident(scores, 1.0).tolist() == [3, 1, 4, 2, 0]
    assert views.confident(torch.zeros(64, 3), 0.1).tolist() == [0, 1, 2, 3, 4, 5]  # 6 of 64, ties in order
    assert views.kept(100, 0.29) == 29


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: views.confident(torch.zeros(9, 2), 0.1),
            r"zero confident views: a share of 0.1 of 9 views.*at least 10",
        ),
        (lambda: views.confident(torch.zeros(1, 2), 0.5), "of 1 view is"),
        (lambda: views.confident(torch.zeros(9, 2), 0.0), r"must lie in \(0, 1\], found 0.0"),
        (lambda: views.confident(torch.zeros(9), 0.5), r"expected scores \(views, classes\)"),
        (lambda: views.views(PHOTO, 0, seed=0), "at least 1, the image itself, found 0"),
        (lambda: views.views(PHOTO.astype(float), 2, seed=0), r"uint8 \(H, W, 3\), found float64"),
        (lambda: views.views(PHOTO[..., 0], 2, seed=0), r"found uint8 \(40, 60\)"),
    ],
)
def test_bad_input_is_refused_in_words(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
