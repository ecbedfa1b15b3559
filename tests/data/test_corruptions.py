"""Corruptions: published constants, reproducible draws, any size from 32 px, clear errors."""

import hashlib
import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from apm.data import Dataset, corruptions
from apm.data.corruptions import CONSTANTS, NAMES, corrupt, corrupted
from apm.data.dataset import Lazy
from apm.project import depends, identity


def picture(height: int = 32, width: int = 32, seed: int = 0) -> np.ndarray:
    """Smooth coloured blobs with some edges: (H, W, 3) uint8 with values over the whole range."""
    rng = np.random.default_rng(seed)
    x = ndimage.gaussian_filter(rng.normal(size=(height, width, 3)), (3, 3, 0))
    x = (x - x.min()) / (x.max() - x.min())
    x[height // 4 : height // 2, width // 4 : width // 2] = (1, 0.5, 0)
    return np.rint(x * 255).astype(np.uint8)


def uniform(value: int, size: int = 32) -> np.ndarray:
    return np.full((size, size, 3), value, dtype=np.uint8)


def made_set(n: int = 6, lazy: bool = False) -> Dataset:
    images = np.stack([picture(seed=seed) for seed in range(n)])
    images, numbers = list(images) if lazy else images, np.arange(n)
    return Dataset("made", images, numbers % 2, ("a", "b"), ("{}",), "f" * 64, numbers, "Made.")


def test_there_are_fifteen_types_and_their_constants_are_the_published_ones():
    assert (len(NAMES), NAMES[0], NAMES[-1]) == (15, "gaussian_noise", "jpeg_compression")
    assert CONSTANTS["cifar-c"]["snow"][3] == [0.25, 0.3, 2.25, 0.6, 12, 6, 0.85]
    assert CONSTANTS["imagenet-c"]["elastic_transform"][1] == [2, 0.08, 0.2]
    found = hashlib.sha256(json.dumps(CONSTANTS).encode()).hexdigest()  # as compared with the authors' scripts
    assert found == "931db84224224a30b0eeadd30bb09fcd351ba881f381a9aa23bf458c74fd099f"


def test_the_regime_follows_the_shorter_side_and_can_be_chosen():
    for side, own, other in ((64, "cifar-c", "imagenet-c"), (65, "imagenet-c", "cifar-c")):
        image = picture(side, 70)
        assert np.array_equal(corrupt(image, "contrast", 1), corrupt(image, "contrast", 1, regime=own))
        assert not np.array_equal(corrupt(image, "contrast", 1), corrupt(image, "contrast", 1, regime=other))
    assert corruptions.elastic_side((224, 224, 3), "imagenet-c") == 244  # as the script has it


# ---- any image, and the same pixels every time


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=8, deadline=None)
@given(height=st.integers(32, 110), width=st.integers(32, 110), severity=st.integers(1, 5), index=st.integers(0, 10**6))
def test_any_size_gives_an_image_of_the_same_size(name, height, width, severity, index):
    image = picture(height, width)
    image.flags.writeable = False
    result = corrupt(image, name, severity, index=index)
    assert (result.dtype, result.shape) == (np.uint8, image.shape)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [32, 100])
def test_black_and_white_give_no_warnings_and_moving_pixels_about_leaves_a_uniform_image_uniform(name, size):
    with np.errstate(all="raise"):
        corrupt(uniform(0, size), name, 5)
        corrupt(uniform(255, size), name, 5)
    if "blur" in name or name in ("elastic_transform", "pixelate"):
        for severity in (1, 5):
            assert np.array_equal(corrupt(uniform(77, size), name, severity), uniform(77, size))


@pytest.mark.parametrize("name", NAMES)
def test_the_result_depends_on_its_arguments_alone_and_on_all_of_them_where_anything_is_drawn(name):
    image = picture(80, 96)[::2, ::-2]
    state = np.random.get_state()[1].tolist()  # noqa: NPY002 - the global generator must not matter
    first = corrupt(image, name, 3, seed=5, index=7)
    for other in NAMES:
        corrupt(image, other, 2, seed=5, index=8)
    assert np.array_equal(corrupt(image, name, np.int64(3), seed=np.int64(5), index=np.int64(7)), first)
    assert np.random.get_state()[1].tolist() == state  # noqa: NPY002
    drawn = name not in {"defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression"}
    for other in ({"index": 1}, {"seed": 1}):
        assert np.any(corrupt(picture(), name, 5) != corrupt(picture(), name, 5, **other)) == drawn


def test_the_draws_of_a_condition_are_the_same_in_every_process():
    pixels = corrupt(uniform(128), "gaussian_noise", 5, seed=2, index=3)[0, :2]
    assert pixels.tolist() == [[69, 112, 121], [129, 86, 179]]


# ---- against direct formulas


def truncated(x: np.ndarray) -> np.ndarray:
    return np.floor(np.clip(x, 0, 255) + 1e-6).astype(np.uint8)


def test_contrast_brightness_pixelate_and_jpeg_by_hand():
    image = np.maximum(picture(128, 128), 1)
    mean, top = image.mean(axis=(0, 1)), image.max(axis=2, keepdims=True).astype(float)
    assert np.array_equal(corrupt(image, "contrast", 2), truncated(0.3 * (image - mean) + mean))
    brighter = image * np.minimum(top + 0.5 * 255, 255) / top
    assert np.array_equal(corrupt(image, "brightness", 5), truncated(brighter))
    assert np.array_equal(corrupt(uniform(0), "brightness", 5), uniform(76))  # 0.3 * 255
    quarter = image.reshape(32, 4, 32, 4, 3).mean(axis=(1, 3)).repeat(4, axis=0).repeat(4, axis=1)
    assert np.abs(corrupt(image, "pixelate", 5) - quarter).max() <= 1  # Pillow rounds after each of its two passes
    Image.fromarray(image).save(file := BytesIO(), "JPEG", quality=10)
    assert np.array_equal(corrupt(image, "jpeg_compression", 4), np.asarray(Image.open(file)))


def test_noise_has_the_published_strength():
    gaussian, shot = (corrupt(uniform(128, 200), f"{name}_noise", 1).astype(float) for name in ("gaussian", "shot"))
    assert gaussian.std() / 255 == pytest.approx(0.08, rel=0.02)
    assert gaussian.mean() == pytest.approx(127.5, abs=0.3)  # truncation takes half a level
    assert shot.std() / 255 == pytest.approx(np.sqrt(128 / 255 / 60), rel=0.02)
    impulse = corrupt(uniform(128, 200), "impulse_noise", 5)
    assert set(np.unique(impulse)) == {0, 128, 255}
    assert [np.mean(impulse == value) for value in (0, 255)] == pytest.approx([0.135, 0.135], abs=0.01)


@pytest.mark.parametrize("regime", corruptions.REGIMES)
def test_defocus_is_the_direct_convolution_with_its_kernel(regime):
    image = picture(70, 90)
    for severity, constants in enumerate(CONSTANTS[regime]["defocus_blur"], start=1):
        kernel = corruptions._disk(*constants)
        brighter = {8: 1.01298, 10: 1.01079}.get(constants[0], 1.0)  # sums of the published kernels
        assert kernel.sum() == pytest.approx(brighter, abs=1e-5)
        direct = ndimage.correlate(image.astype(float), kernel[..., None], mode="mirror")
        lost = np.minimum(direct, 255) - corrupt(image, "defocus_blur", severity, regime=regime)
        assert -1e-5 < lost.min() <= lost.max() < 1


@settings(max_examples=25, deadline=None)
@given(size=st.integers(2, 60), other=st.integers(2, 60), shift=st.integers(1, 4), seed=st.integers(0, 10**6))
def test_glass_blur_equals_the_published_loop_over_pixels(size, other, shift, seed):
    height, width = size + 2 * shift, other + 2 * shift
    image = np.random.default_rng(seed).integers(0, 256, size=(height, width, 3), dtype=np.uint8)
    rows, columns = range(shift + 1, height - shift + 1), range(shift + 1, width - shift + 1)
    dy, dx = np.random.default_rng(seed).integers(-shift, shift, size=(2, len(rows), len(columns)))
    x = image.copy()
    for h in reversed(rows):
        for w in reversed(columns):
            a, b = h + dy[h - rows[0], w - columns[0]], w + dx[h - rows[0], w - columns[0]]
            x[h, w], x[a, b] = x[a, b], x[h, w]  # on views, as published
    assert np.array_equal(corruptions._displaced(image, shift, np.random.default_rng(seed)), x)


def test_motion_blur_makes_the_pixels_that_imagemagick_makes():
    """The expected values are MagickMotionBlurImage's of ImageMagick 6.9.11-60 Q16, read from the PNG that it writes."""
    image = (np.arange(6 * 7).reshape(6, 7) * 89 % 256).astype(np.uint8)
    expected = [
        [45, 131, 119, 56, 139, 120, 50],
        [153, 141, 75, 164, 160, 120, 158],
        [163, 97, 171, 130, 105, 172, 210],
        [119, 193, 152, 130, 126, 86, 124],
        [128, 65, 153, 139, 69, 137, 174],
        [104, 149, 151, 115, 153, 135, 65],
    ]
    coloured = corruptions._moved(image[..., None].repeat(3, axis=2), radius=3, sigma=1.5, angle=30.0)
    assert coloured[..., 1].tolist() == corruptions._moved(image, radius=3, sigma=1.5, angle=30.0).tolist() == expected


@pytest.mark.parametrize(("regime", "size"), [("cifar-c", 32), ("imagenet-c", 224)])
def test_zoom_is_the_published_one_at_the_published_sizes_and_zoom_blur_averages_it(regime, size):
    x = np.random.default_rng(0).uniform(size=size)
    for factor in np.arange(1, *CONSTANTS[regime]["zoom_blur"][4]):
        crop = int(np.ceil(size / factor))
        whole = ndimage.zoom(x[(size - crop) // 2 :][:crop], factor, order=1)  # its default mode, as in the scripts
        expected = whole[(len(whole) - size) // 2 :][:size]
        assert np.allclose(corruptions._zoomed(np.tile(x[:, None], size), factor)[:, 0], expected, atol=1e-9), factor
    image, first = picture(size, size), np.arange(1, *CONSTANTS[regime]["zoom_blur"][0])
    total = image / 255 + sum(corruptions._zoomed(image / 255, f) for f in first)
    assert np.array_equal(corrupt(image, "zoom_blur", 1), truncated(255 * total / (len(first) + 1)))


def test_fog_is_a_map_that_fills_zero_to_one_and_is_smoother_for_a_larger_decay():
    def roughness(decay: float) -> float:
        maps = [corruptions._plasma(50, decay, np.random.default_rng(seed)) for seed in range(10)]
        assert all(m.shape == (64, 64) and m.min() == 0 and m.max() == 1 for m in maps)
        return float(np.mean([np.abs(np.diff(m, n=2, axis=0)).mean() / m.std() for m in maps]))

    assert roughness(1.4) > 3 * roughness(1.75) > 9 * roughness(3)
    image = uniform(0)
    image[0, 0] = 200
    mist = corruptions._plasma(32, 1.75, corruptions._generator(0, "fog", 5, 0))[..., None]
    top = 200 / 255  # the brightest value stays the brightest
    assert np.array_equal(corrupt(image, "fog", 5), truncated(255 * (image / 255 + 1.5 * mist) * top / (top + 1.5)))


def test_frost_is_the_weighted_sum_with_a_crop_of_a_fixed_texture_of_the_stated_colours():
    image = picture(800, 70)  # taller than the textures, which repeat
    result = corrupt(image, "frost", 2).astype(float)  # 0.8 of the image, 0.6 of the frost
    frost = (result - 0.8 * image) / 0.6
    unclipped = np.all(result < 255, axis=2)
    assert np.abs((frost[:160] - frost[640:])[unclipped[:160] & unclipped[640:]]).max() < 2 / 0.6
    for which, (mean, spread) in enumerate(corruptions.FROST_COLOURS):
        texture = corruptions.frost_texture(which)
        assert np.array_equal(texture, corruptions.frost_texture.__wrapped__(which))
        assert np.abs(texture.mean(axis=(0, 1)) - mean).max() < 4
        assert np.abs(texture.std(axis=(0, 1)) - spread).max() < 4


def test_elastic_severity_1_of_small_images_is_the_affine_map_alone():
    """Its published displacement is zero, so a straight ramp stays straight."""
    ramp = np.broadcast_to((np.arange(32) * 4 + 60)[:, None, None], (32, 32, 3)).astype(np.uint8)

    def bend(severity: int) -> float:  # second differences along both axes
        x = corrupt(ramp, "elastic_transform", severity).astype(float)[10:22, 10:22, 0]
        return max(np.abs(np.diff(x, n=2, axis=axis)).max() for axis in (0, 1))

    assert bend(1) <= 2 < bend(5)  # truncation


# Types whose published constants do not move the image further at every step: sigma and passes of glass_blur, equal
# sigmas of motion_blur (3 and 4), zoom of snow (2 and 3), image darkened as frost is added, jitter of elastic_transform
# falling while its shift grows, and blocks that fit 32 px worse at pixelate 1 (30 px) than 2 (28 px).


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"elastic_transform"}))  # its jitter falls while its shift grows
@pytest.mark.parametrize(("regime", "size"), [("cifar-c", 32), ("imagenet-c", 96)])
def test_severity_5_is_further_from_the_clean_image_than_severity_1(name, regime, size):
    images = [picture(size, size, seed) for seed in range(4)] * 6

    def distance(level: int) -> float:
        made = (corrupt(image, name, level, index=i, regime=regime) for i, image in enumerate(images))
        return np.mean([np.abs(a.astype(float) - b).mean() for a, b in zip(made, images, strict=True)])

    assert distance(5) > distance(1)


# ---- errors


def test_unknown_conditions_are_refused():
    for change, error, message in (
        ({"name": "fogg"}, ValueError, r"fogg.*gaussian_noise.*Did you mean 'fog'"),
        ({"regime": "imagenet"}, ValueError, "regime"),
        ({"seed": 0.5}, TypeError, "seed"),
        *(({"severity": level}, ValueError, "from 1 to 5") for level in (0, 6, 2.5, "3", True, None)),
    ):
        for own, first in ((corrupt, {"image": picture()}), (corrupted, {"dataset": made_set()})):
            with pytest.raises(error, match=message):
                own(**{**first, "name": "fog", "severity": 1, **change})


def test_what_is_no_image_is_refused_by_its_number():
    for image, error, message in (
        (picture() / 255, TypeError, r"image 4: expected a uint8 RGB array .*found float64"),
        (picture()[..., 0], TypeError, r"found uint8 \(32, 32\)"),
        (picture().tolist(), TypeError, "found list"),
        (picture(31, 40), ValueError, "image 4: .*32 x 32 px, found 31 x 40"),
    ):
        with pytest.raises(error, match=message):
            corrupt(image, "fog", 1, index=4)


# ---- datasets


@pytest.mark.parametrize("lazy", [False, True])
def test_a_corrupted_set_holds_its_images_corrupted_one_by_one_and_so_does_its_subset(lazy):
    clean = made_set(lazy=lazy)
    result, part = (corrupted(data, "fog", 4, seed=3) for data in (clean, clean.subset([1, 4, 5])))
    assert (result.images[0] is result.images[0]) != lazy  # what is in memory is made once
    assert (result.name, result.corruption, result.severity) == ("made", "fog", 4)
    assert np.array_equal(result.labels, clean.labels)
    expected = np.stack([corrupt(clean.images[i], "fog", 4, seed=3, index=i) for i in range(len(clean))])
    assert np.array_equal(np.stack(list(result.images)), expected)
    assert np.array_equal(np.stack(list(part.images)), expected[[1, 4, 5]])
    assert part.fingerprint == result.fingerprint


def test_fingerprints_and_notes_tell_every_condition_apart():
    clean = made_set(2)
    variants = [corrupted(clean, name, severity) for name in ("fog", "contrast") for severity in (1, 2)]
    variants += [clean, corrupted(clean, "fog", 1, seed=1), corrupted(clean, "fog", 1, regime="imagenet-c")]
    assert len({d.fingerprint for d in variants}) == len(variants)
    assert corrupted(clean, "fog", 1).notes == f"Made. {corruptions.NOTE}"
    assert corrupted(clean, "frost", 1).notes.endswith(corruptions.FROST_NOTE)
    with pytest.raises(ValueError, match=r"made is corrupted already \(fog, severity 1\)"):
        corrupted(variants[0], "snow", 1)


def test_sequences_are_read_on_access_only():
    read: list[int] = []
    images = Lazy(range(50), lambda i: read.append(i) or picture(40 + i % 7, 50, i))  # of differing sizes
    numbers = np.arange(50)
    made = corrupted(Dataset("many", images, numbers % 2, ("a", "b"), ("{}",), "0" * 64, numbers), "fog", 2)
    assert read == []
    assert np.array_equal(made.images[40], corrupt(picture(45, 50, 40), "fog", 2, index=40))
    assert read == [40]


def test_facts_beside_a_module_count_as_its_code(tmp_path: Path):
    def version(facts: str) -> str:
        (tmp_path / "m.yaml").write_text(facts)
        identity.code_version.cache_clear()
        return identity.code_version(("m",), tmp_path)

    (tmp_path / "m.py").write_text("A = 1")
    assert version("a: [1, 2]") == version("a: [1, 2]  # said") != version("a: [1, 3]")
    identity.code_version.cache_clear()
    assert depends.PACKAGE / "data" / "corruptions.yaml" in depends.closure({"data.corruptions"})
