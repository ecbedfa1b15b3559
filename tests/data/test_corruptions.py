"""Corruptions: published constants, reproducible draws, any size from 32 px, clear errors."""

import hashlib
import os
import subprocess
import sys
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


def global_state() -> np.ndarray:
    return np.array(np.random.get_state()[1])  # noqa: NPY002


def made_set(n: int = 6, size: int = 32, lazy: bool = False) -> Dataset:
    images = np.stack([picture(size, size, seed) for seed in range(n)])
    return Dataset(
        name="made",
        images=list(images) if lazy else images,
        labels=np.arange(n) % 2,
        classnames=("a", "b"),
        templates=("a photo of {}",),
        fingerprint="f" * 64,
        indices=np.arange(n),
        notes="Made.",
    )


# --------------------------------------------------------------------------------------------------------- constants


def test_there_are_fifteen_types_of_five_constants_in_both_regimes() -> None:
    assert (len(NAMES), NAMES[0], NAMES[-1]) == (15, "gaussian_noise", "jpeg_compression")
    for rows in CONSTANTS.values():
        assert tuple(rows) == NAMES
        for row in rows.values():
            assert len(row) == 5
            assert len({len(c) if isinstance(c, list) else 1 for c in row}) == 1


@pytest.mark.parametrize(
    ("regime", "name", "severity", "expected"),
    [
        ("cifar-c", "gaussian_noise", 5, 0.10),
        ("cifar-c", "shot_noise", 4, 75),
        ("cifar-c", "defocus_blur", 4, [1, 0.2]),
        ("cifar-c", "glass_blur", 5, [0.4, 1, 2]),
        ("cifar-c", "snow", 4, [0.25, 0.3, 2.25, 0.6, 12, 6, 0.85]),
        ("cifar-c", "elastic_transform", 2, [0.05, 0.2, 0.07]),
        ("cifar-c", "jpeg_compression", 3, 58),
        ("imagenet-c", "gaussian_noise", 5, 0.38),
        ("imagenet-c", "motion_blur", 5, [20, 15]),
        ("imagenet-c", "zoom_blur", 5, [1.31, 0.03]),
        ("imagenet-c", "snow", 5, [0.55, 0.3, 2.5, 0.85, 12, 12, 0.55]),
        ("imagenet-c", "elastic_transform", 2, [2, 0.08, 0.2]),
        ("imagenet-c", "pixelate", 5, 0.25),
    ],
)
def test_constants_are_the_published_ones(regime: str, name: str, severity: int, expected: object) -> None:
    assert CONSTANTS[regime][name][severity - 1] == expected


def test_the_regime_follows_the_shorter_side_and_can_be_chosen() -> None:
    image = picture(64, 70)
    assert np.array_equal(corrupt(image, "contrast", 1), corrupt(image, "contrast", 1, regime="cifar-c"))
    assert not np.array_equal(corrupt(image, "contrast", 1), corrupt(image, "contrast", 1, regime="imagenet-c"))
    image = picture(65, 70)
    assert np.array_equal(corrupt(image, "contrast", 1), corrupt(image, "contrast", 1, regime="imagenet-c"))
    assert corruptions.elastic_side((224, 224, 3), "imagenet-c") == 244  # as the script has it
    assert corruptions.elastic_side((32, 32, 3), "cifar-c") == 32


# ------------------------------------------------------------------------------------------------------- any image


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=8, deadline=None)
@given(height=st.integers(32, 110), width=st.integers(32, 110), severity=st.integers(1, 5), index=st.integers(0, 10**6))
def test_any_size_gives_an_image_of_the_same_size(
    name: str, height: int, width: int, severity: int, index: int
) -> None:
    image = picture(height, width)
    before = image.copy()
    result = corrupt(image, name, severity, index=index)
    assert result.dtype == np.uint8
    assert result.shape == image.shape
    assert np.array_equal(image, before), "the given image was changed"


@pytest.mark.parametrize("value", [0, 255])
@pytest.mark.parametrize("name", NAMES)
def test_black_and_white_images_give_no_warnings(name: str, value: int) -> None:
    with np.errstate(all="raise"):
        for size in (32, 100):
            corrupt(np.full((size, size, 3), value, dtype=np.uint8), name, 5)


@pytest.mark.parametrize(
    "name", ["defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "elastic_transform", "pixelate"]
)
@pytest.mark.parametrize("size", [32, 100])
def test_moving_pixels_about_leaves_a_uniform_image_uniform(name: str, size: int) -> None:
    for severity in (1, 3, 5):
        for value in (1, 77, 255):
            image = np.full((size, size, 3), value, dtype=np.uint8)
            assert np.array_equal(corrupt(image, name, severity), image)


# ---------------------------------------------------------------------------------------------------- reproducibility


@pytest.mark.parametrize("name", NAMES)
def test_the_result_depends_on_nothing_but_its_arguments(name: str) -> None:
    image = picture(80, 96)
    image.flags.writeable = False
    image = image[::2, ::-2]
    np.random.seed(1)  # noqa: NPY002 - the point is that the global generator does not matter
    state = global_state()
    first = corrupt(image, name, 3, seed=5, index=7)
    assert np.array_equal(global_state(), state), "the global generator was used"
    for other in NAMES:
        corrupt(image, other, 2, seed=5, index=8)
    assert np.array_equal(corrupt(image, name, 3, seed=5, index=7), first)
    assert np.array_equal(corrupt(image, name, np.int64(3), seed=np.int64(5), index=np.int64(7)), first)


@pytest.mark.parametrize("name", NAMES)
def test_index_and_seed_each_give_other_draws_where_anything_is_drawn(name: str) -> None:
    drawn = name not in {"defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression"}
    first = corrupt(picture(), name, 5)
    for other in ({"index": 1}, {"seed": 1}):
        assert np.any(first != corrupt(picture(), name, 5, **other)) == drawn


def test_another_process_makes_the_same_pixels(tmp_path: Path) -> None:
    np.save(tmp_path / "image.npy", picture(70, 90))
    code = (
        "import sys, hashlib, numpy as np; from apm.data import corruptions as c; x = np.load(sys.argv[1]);"
        "made = [c.corrupt(x, n, 4, seed=2, index=3).tobytes() for n in reversed(c.NAMES)];"
        "print(hashlib.sha256(b''.join(made)).hexdigest())"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "image.npy")]
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    pixels = [corrupt(picture(70, 90), name, 4, seed=2, index=3).tobytes() for name in reversed(NAMES)]
    assert output.strip() == hashlib.sha256(b"".join(pixels)).hexdigest()


# ------------------------------------------------------------------------------------------- against direct formulas


def truncated(x: np.ndarray) -> np.ndarray:
    return np.floor(np.clip(x, 0, 255) + 1e-6).astype(np.uint8)


def test_contrast_shrinks_each_channel_about_its_mean() -> None:
    image = picture()
    mean = image.mean(axis=(0, 1))
    assert np.array_equal(corrupt(image, "contrast", 2), truncated(0.5 * (image - mean) + mean))


def test_brightness_scales_rgb_so_that_the_maximum_rises_by_the_constant() -> None:
    image = np.maximum(picture(), 1)
    top = image.max(axis=2, keepdims=True).astype(float)
    expected = image * np.minimum(top + 0.3 * 255, 255) / top
    assert np.array_equal(corrupt(image, "brightness", 5), truncated(expected))
    assert np.array_equal(corrupt(np.zeros_like(image), "brightness", 5), np.full_like(image, 76))  # black: 0.3 * 255


def test_pixelate_averages_blocks_and_repeats_them() -> None:
    image = picture(128, 128)  # imagenet-c, severity 5: a quarter of the side, so blocks of 4 x 4
    means = image.reshape(32, 4, 32, 4, 3).mean(axis=(1, 3))
    expected = np.repeat(np.repeat(means, 4, axis=0), 4, axis=1)
    assert np.abs(corrupt(image, "pixelate", 5) - expected).max() <= 1  # Pillow rounds after each of its two passes


def test_jpeg_is_the_file_of_that_quality_decoded() -> None:
    image = picture(100, 120)
    file = BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=10)
    assert np.array_equal(corrupt(image, "jpeg_compression", 4), np.asarray(Image.open(file)))


def test_noise_has_the_published_strength() -> None:
    image = np.full((200, 200, 3), 128, dtype=np.uint8)
    gaussian = corrupt(image, "gaussian_noise", 1).astype(float)
    assert gaussian.std() / 255 == pytest.approx(0.08, rel=0.02)
    assert gaussian.mean() == pytest.approx(127.5, abs=0.3)  # truncation takes half a level
    shot = corrupt(image, "shot_noise", 1).astype(float)
    assert shot.std() / 255 == pytest.approx(np.sqrt(128 / 255 / 60), rel=0.02)
    impulse = corrupt(image, "impulse_noise", 5)
    assert np.mean(impulse != 128) == pytest.approx(0.27, abs=0.01)
    assert set(np.unique(impulse)) == {0, 128, 255}
    assert np.mean(impulse == 0) == pytest.approx(0.135, abs=0.01)


@pytest.mark.parametrize("regime", corruptions.REGIMES)
def test_defocus_is_the_direct_convolution_with_its_kernel(regime: str) -> None:
    image = picture(70, 90)
    for severity, constants in enumerate(CONSTANTS[regime]["defocus_blur"], start=1):
        kernel = corruptions._disk(*constants)
        brighter = {8: 1.01298, 10: 1.01079}.get(constants[0], 1.0)  # sums of the published kernels
        assert kernel.sum() == pytest.approx(brighter, abs=1e-5)
        direct = ndimage.correlate(image.astype(float), kernel[..., None], mode="mirror")
        lost = np.minimum(direct, 255) - corrupt(image, "defocus_blur", severity, regime=regime)
        assert lost.min() > -1e-5
        assert lost.max() < 1


@settings(max_examples=25, deadline=None)
@given(size=st.integers(2, 60), other=st.integers(2, 60), shift=st.integers(1, 4), seed=st.integers(0, 10**6))
def test_glass_blur_equals_the_published_loop_over_pixels(size: int, other: int, shift: int, seed: int) -> None:
    height, width = size + 2 * shift, other + 2 * shift
    image = np.random.default_rng(seed).integers(0, 256, size=(height, width, 3), dtype=np.uint8)
    result = corruptions._displaced(image, shift, np.random.default_rng(seed))

    rows, columns = range(shift + 1, height - shift + 1), range(shift + 1, width - shift + 1)
    dy, dx = np.random.default_rng(seed).integers(-shift, shift, size=(2, len(rows), len(columns)))
    x = image.copy()
    for h in reversed(rows):
        for w in reversed(columns):
            a, b = h + dy[h - rows[0], w - columns[0]], w + dx[h - rows[0], w - columns[0]]
            x[h, w], x[a, b] = x[a, b], x[h, w]  # on views, as published
    assert np.array_equal(result, x)


def test_motion_blur_makes_the_pixels_that_imagemagick_makes() -> None:
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
    assert corruptions._moved(image, radius=3, sigma=1.5, angle=30.0).tolist() == expected
    coloured = corruptions._moved(image[..., None].repeat(3, axis=2), radius=3, sigma=1.5, angle=30.0)
    assert np.array_equal(coloured[..., 1], expected)


@pytest.mark.parametrize(("regime", "size"), [("cifar-c", 32), ("imagenet-c", 224)])
def test_zoom_is_the_published_one_at_the_published_sizes(regime: str, size: int) -> None:
    x = np.random.default_rng(0).uniform(size=size)
    factors = {float(f) for c in CONSTANTS[regime]["zoom_blur"] for f in np.arange(1, *c)}
    for factor in sorted(factors | {float(c[2]) for c in CONSTANTS[regime]["snow"]}):
        crop = int(np.ceil(size / factor))
        whole = ndimage.zoom(x[(size - crop) // 2 :][:crop], factor, order=1)  # its default mode, as in the scripts
        expected = whole[(len(whole) - size) // 2 :][:size]
        assert np.allclose(corruptions._zoomed(np.tile(x[:, None], size), factor)[:, 0], expected, atol=1e-9), factor


def test_zoom_blur_averages_the_published_factors() -> None:
    image = picture(64, 64)
    factors = np.arange(1, 1.06, 0.01)
    total = image / 255 + sum(corruptions._zoomed(image / 255, f) for f in factors)
    assert np.array_equal(corrupt(image, "zoom_blur", 1), truncated(255 * total / (len(factors) + 1)))


def test_fog_map_is_smoother_for_a_larger_decay_and_fills_zero_to_one() -> None:
    def roughness(decay: float) -> float:
        maps = [corruptions._plasma(50, decay, np.random.default_rng(seed)) for seed in range(10)]
        assert all(m.shape == (64, 64) and m.min() == 0 and m.max() == 1 for m in maps)
        return float(np.mean([np.abs(np.diff(m, n=2, axis=0)).mean() / m.std() for m in maps]))

    assert roughness(1.4) > 3 * roughness(1.75) > 4 * roughness(2) > 5 * roughness(3)


def test_fog_lightens_black_and_keeps_the_brightest_value() -> None:
    image = np.zeros((32, 32, 3), dtype=np.uint8)
    image[0, 0] = 200
    result = corrupt(image, "fog", 5)
    mist = corruptions._plasma(32, 1.75, corruptions._generator(0, "fog", 5, 0))[..., None]
    top = 200 / 255
    assert np.array_equal(result, truncated(255 * (image / 255 + 1.5 * mist) * top / (top + 1.5)))
    assert result.max() <= 200


def test_frost_is_the_weighted_sum_with_a_crop_of_a_texture() -> None:
    image = picture(800, 70)  # taller than the textures, which repeat
    result = corrupt(image, "frost", 2).astype(float)  # 0.8 of the image, 0.6 of the frost
    frost = (result - 0.8 * image) / 0.6
    unclipped = np.all(result < 255, axis=2)
    assert np.abs((frost[:160] - frost[640:])[unclipped[:160] & unclipped[640:]]).max() < 2 / 0.6


def test_frost_textures_are_fixed_seamless_and_of_the_stated_colours() -> None:
    for which, (mean, spread) in enumerate(corruptions.FROST_COLOURS):
        texture = corruptions.frost_texture(which)
        again = corruptions.frost_texture.__wrapped__(which)
        assert np.array_equal(texture, again)
        assert np.abs(texture.mean(axis=(0, 1)) - mean).max() < 4
        assert np.abs(texture.std(axis=(0, 1)) - spread).max() < 4
        grey = texture.mean(axis=2)
        inner = np.abs(np.diff(grey, axis=0)).mean()
        assert np.abs(grey[0] - grey[-1]).mean() < 1.3 * inner
        assert np.abs(grey[:, 0] - grey[:, -1]).mean() < 1.3 * inner


def test_elastic_severity_1_of_small_images_is_the_affine_map_alone() -> None:
    """Its published displacement is zero, so straight lines stay straight."""
    ramp = np.broadcast_to((np.arange(32) * 4 + 60)[:, None, None], (32, 32, 3)).astype(np.uint8)
    x = corrupt(ramp, "elastic_transform", 1).astype(float)[10:22, 10:22, 0]
    rows, columns = np.mgrid[:12, :12]
    design = np.column_stack([rows.ravel(), columns.ravel(), np.ones(144)])
    fitted = design @ np.linalg.lstsq(design, x.ravel(), rcond=None)[0]
    assert np.abs(x.ravel() - fitted).max() < 1.01  # truncation
    bent = corrupt(ramp, "elastic_transform", 5).astype(float)[10:22, 10:22, 0]
    fitted = design @ np.linalg.lstsq(design, bent.ravel(), rcond=None)[0]
    assert np.abs(bent.ravel() - fitted).max() > 2


# ------------------------------------------------------------------------------------------------------- severities

# Types whose published constants do not move the image further at every step: sigma and passes of glass_blur, equal
# sigmas of motion_blur (3 and 4), zoom of snow (2 and 3), image darkened as frost is added, jitter of elastic_transform
# falling while its shift grows, and blocks that fit 32 px worse at pixelate 1 (30 px) than 2 (28 px). JPEG, noise, fog
# and the others do.
UNEVEN = {
    "cifar-c": {"glass_blur", "motion_blur", "frost", "elastic_transform", "pixelate"},
    "imagenet-c": {"glass_blur", "snow", "frost", "elastic_transform"},
}


@pytest.mark.parametrize(("regime", "size"), [("cifar-c", 32), ("imagenet-c", 96)])
def test_distance_to_the_clean_image_grows_with_severity(regime: str, size: int) -> None:
    images = [picture(size, size, seed) for seed in range(6)]
    for name in NAMES:
        copies = 40 if name in {"fog", "frost"} else 4  # one map or texture per image: the mean scatters
        distance = [
            np.mean(
                [
                    np.abs(corrupt(image, name, severity, index=index, regime=regime).astype(float) - image).mean()
                    for image in images[: 3 if copies == 40 else None]
                    for index in range(copies)
                ]
            )
            for severity in corruptions.SEVERITIES
        ]
        if name not in UNEVEN[regime]:
            assert np.all(np.diff(distance) > 0), (name, distance)
        if name != "elastic_transform":
            assert distance[4] > distance[0], (name, distance)


# ----------------------------------------------------------------------------------------------------------- errors


def test_an_unknown_name_lists_the_known_ones_and_guesses() -> None:
    with pytest.raises(ValueError, match=r"fogg.*gaussian_noise.*fog") as error:
        corrupt(picture(), "fogg", 1)
    assert "Did you mean 'fog'" in str(error.value)
    with pytest.raises(ValueError, match="regime"):
        corrupt(picture(), "fog", 1, regime="imagenet")
    with pytest.raises(TypeError, match="seed"):
        corrupt(picture(), "fog", 1, seed=0.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("severity", [0, 6, -1, 2.5, "3", True, None])
def test_a_severity_outside_one_to_five_is_refused(severity: object) -> None:
    with pytest.raises(ValueError, match="from 1 to 5"):
        corrupt(picture(), "fog", severity)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="from 1 to 5"):
        corrupted(made_set(), "fog", severity)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("image", "found"),
    [
        (picture().astype(float) / 255, "float64"),
        (picture()[..., 0], r"\(32, 32\)"),
        (np.zeros((32, 32, 4), dtype=np.uint8), r"\(32, 32, 4\)"),
        (picture().tolist(), "list"),
    ],
)
def test_anything_but_uint8_rgb_is_refused(image: object, found: str) -> None:
    with pytest.raises(TypeError, match=rf"image 4: expected a uint8 RGB array .*found.*{found}"):
        corrupt(image, "fog", 1, index=4)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(31, 32), (64, 8), (1, 1)])
def test_images_below_32_px_are_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=rf"image 9: .*32 x 32 px, found {shape[0]} x {shape[1]}"):
        corrupt(np.zeros((*shape, 3), dtype=np.uint8), "gaussian_noise", 1, index=9)


# ---------------------------------------------------------------------------------------------------------- datasets


@pytest.mark.parametrize("name", NAMES)
def test_a_corrupted_set_holds_its_images_corrupted_one_by_one(name: str) -> None:
    clean = made_set()
    result = corrupted(clean, name, 4, seed=3)
    assert isinstance(result.images, np.ndarray)
    assert (result.name, result.corruption, result.severity) == ("made", name, 4)
    assert np.array_equal(result.labels, clean.labels)
    for i in range(len(clean)):
        assert np.array_equal(result.images[i], corrupt(clean.images[i], name, 4, seed=3, index=i))
    lazy = corrupted(made_set(lazy=True), name, 4, seed=3)
    assert np.array_equal(np.stack(list(lazy.images)), result.images)


@pytest.mark.parametrize("lazy", [False, True])
def test_a_subset_of_the_corrupted_is_the_corrupted_subset(lazy: bool) -> None:
    clean = made_set(10, lazy=lazy)
    one = corrupted(clean, "gaussian_noise", 5).subset([7, 2])
    other = corrupted(clean.subset([2, 5, 7]), "gaussian_noise", 5).subset([2, 0])
    assert all(np.array_equal(a, b) for a, b in zip(one.images, other.images, strict=True))
    assert np.array_equal(one.indices, other.indices)
    assert one.fingerprint == other.fingerprint


def test_fingerprints_and_notes_tell_every_condition_apart() -> None:
    clean = made_set(2)
    variants = [
        clean,
        *(corrupted(clean, name, severity) for name in ("fog", "contrast") for severity in (1, 2)),
        corrupted(clean, "fog", 1, seed=1),
        corrupted(clean, "fog", 1, regime="imagenet-c"),
    ]
    assert len({d.fingerprint for d in variants}) == len(variants)
    assert corrupted(clean, "fog", 1).fingerprint == corrupted(made_set(2), "fog", 1).fingerprint
    assert corrupted(clean, "fog", 1).notes == f"Made. {corruptions.NOTE}"
    assert corrupted(clean, "frost", 1).notes.endswith(corruptions.FROST_NOTE)


def test_sequences_are_read_on_access_only() -> None:
    read: list[int] = []
    n = 50_000  # images of differing sizes that exist only while they are read
    images = Lazy(range(n), lambda i: read.append(i) or picture(40 + i % 7, 50, i))  # type: ignore[func-returns-value]
    clean = Dataset("many", images, np.arange(n) % 2, ("a", "b"), ("{}",), "0" * 64, np.arange(n))
    made = corrupted(clean, "glass_blur", 2)
    assert read == []
    expected = corrupt(picture(40 + 40_000 % 7, 50, 40_000), "glass_blur", 2, index=40_000)
    assert np.array_equal(made.images[40_000], expected)
    assert read == [40_000]
    assert np.array_equal(made.images[-1], made.images[n - 1])
    assert made.subset([5, 49_999]).images[1].shape == (40 + 49_999 % 7, 50, 3)
    with pytest.raises(IndexError):
        made.images[n]


def test_what_cannot_be_corrupted_is_refused_with_its_name() -> None:
    once = corrupted(made_set(2), "fog", 1)
    with pytest.raises(ValueError, match=r"made is corrupted already \(fog, severity 1\)"):
        corrupted(once, "snow", 1)
    with pytest.raises(ValueError, match="Known"):
        corrupted(made_set(2), "rain", 1)


def test_facts_beside_a_module_count_as_its_code(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text("A = 1")
    versions = []
    for facts in ("", "a: [1, 2]", "a: [1, 2]  # said", "a: [1, 3]"):
        (tmp_path / "m.yaml").write_text(facts)
        identity.code_version.cache_clear()
        versions.append(identity.code_version(("m",), tmp_path))
    assert versions[1] == versions[2]
    assert len(set(versions)) == 3
    identity.code_version.cache_clear()
    assert depends.PACKAGE / "data" / "corruptions.yaml" in depends.closure({"data.corruptions"})
