"""The 15 corruption types of ImageNet-C / CIFAR-10-C at severities 1 to 5, for uint8 RGB images of any size from 32 px.

    corrupt(image, "fog", 3)             one image, (H, W, 3) uint8 in and out
    corrupted(dataset, "fog", 3)         a Dataset of corrupted images: at once for arrays, on access for image files

Source: Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019. The severity
constants (corruptions.yaml) are those of github hendrycks/robustness, `ImageNet-C/create_c/make_cifar_c.py` (size regime "cifar-c", 32 px)
and `make_imagenet_c.py` ("imagenet-c", 224 px); Tables 2 and 10-14 of the APM paper use the sets made with them.

Sizes. Images whose shorter side is at most 64 px use "cifar-c", others "imagenet-c", unless `regime` says otherwise. Constants in pixels
are used as published whatever the size, so a larger image is corrupted more finely. Two follow the image: the elastic transform's are
multiples of the shorter side (`elastic_side`), and the fog's map has the next power of two of the longer side.

Not pixel-identical to the published downloads, and no library is: the random draws differ, frost textures are made here (FROST_NOTE), and
the published ImageNet-C files are JPEGs of quality 85. Kept from the scripts because they change the images: values are truncated, not
rounded, to 8 bits, also by ImageMagick, which they call for motion blur and snow (its arithmetic is repeated here, to the same pixels);
and glass blur copies pixels (its swap runs on array views, so the second half of the exchange does nothing).

Why no library: the one that is alive, imagecorruptions-imaug, needs numba and an OpenCV that links libGL, has the ImageNet-C constants
alone and another elastic transform.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage, signal
from skimage.color import hsv2rgb, rgb2hsv
from skimage.util import random_noise

from apm.data.dataset import Dataset, Lazy
from apm.project import facts, sha256_of, unknown
from apm.project.identity import code_version, libraries

_TABLE: dict[str, dict[str, list[Any]]] = facts(__file__)
NAMES: tuple[str, ...] = tuple(_TABLE)  # the order of the paper's tables
REGIMES = ("cifar-c", "imagenet-c")
CONSTANTS: dict[str, dict[str, list[Any]]] = {r: {name: row[r] for name, row in _TABLE.items()} for r in REGIMES}
SEVERITIES = (1, 2, 3, 4, 5)
SMALLEST = 32  # pixels of the shorter side
REGIME_LIMIT = 64  # pixels of the shorter side up to which the constants of CIFAR-10-C apply

NOTE = (
    "Corruptions made by apm.data.corruptions with the published severity constants (github hendrycks/robustness); "
    "not pixel-identical to the published -C downloads."
)
FROST_NOTE = "Frost textures are made procedurally, in place of the five photographs of the published sets."

# Changes when this code and its table do: part of every corrupted set's fingerprint, so nothing cached for other pixels is used.
CODE_VERSION = code_version(("data.corruptions",))[:16]


# ------------------------------------------------------------------------------------------------------ entry points


def corrupt(
    image: np.ndarray, name: str, severity: int, *, regime: str | None = None, seed: int = 0, index: int = 0
) -> np.ndarray:
    """One corrupted image, (H, W, 3) uint8 RGB like the given one, which is left as it is.

    severity: 1 to 5. regime: "cifar-c", "imagenet-c" or None, by size. index: the image's number in its dataset. The result depends on
    the arguments alone: not on the order of calls, the process or numpy's global generator. Raises ValueError for an unknown name or
    regime, a severity outside 1..5 and images below 32 px, TypeError for anything but a uint8 array (H, W, 3).
    """
    _check_condition(name, severity, regime, seed)
    pixels = _checked(image, index)
    chosen = regime or regime_of(pixels.shape)
    constants = CONSTANTS[chosen][name][severity - 1]
    rng = _generator(seed, name, severity, index)
    if name == "elastic_transform":
        return _elastic_transform(pixels, constants, rng, side=elastic_side(pixels.shape, chosen))
    if name == "frost":
        return _frost(pixels, constants, rng, step=FROST_STEP[chosen])
    return _FUNCTIONS[name](pixels, constants, rng)


def corrupted(dataset: Dataset, name: str, severity: int, *, seed: int = 0, regime: str | None = None) -> Dataset:
    """The dataset with every image corrupted; same name, labels, indices and groups, `corruption` and `severity` set.

    Image i is corrupted with its `indices[i]`, so a subset of the corrupted set is the corrupted subset. Each is corrupted
    when it is read; those of a set in memory stay there. Raises as `corrupt`, and ValueError for a dataset that is corrupted already.
    """
    _check_condition(name, severity, regime, seed)
    if dataset.severity:
        raise ValueError(
            f"dataset {dataset.name} is corrupted already ({dataset.corruption}, severity {dataset.severity}): "
            "corrupt the clean dataset instead"
        )
    read = partial(_corrupted, dataset, name, int(severity), seed, regime)
    images = Lazy(range(len(dataset)), read, keep=dataset.in_memory)
    identity = {
        "parent": dataset.fingerprint,
        "corruption": name,
        "severity": int(severity),
        "seed": int(seed),
        "regime": regime or "by size",
        "crop": None,
        "code": CODE_VERSION,
        "libraries": libraries(("numpy", "scipy", "scikit-image", "pillow")),
    }
    notes = [dataset.notes, NOTE, FROST_NOTE if name == "frost" else ""]
    return replace(
        dataset,
        images=images,
        corruption=name,
        severity=int(severity),
        fingerprint=sha256_of(identity),
        notes=" ".join(part for part in notes if part),
    )


def _corrupted(dataset: Dataset, name: str, severity: int, seed: int, regime: str | None, i: int) -> np.ndarray:
    return corrupt(dataset.images[i], name, severity, regime=regime, seed=seed, index=int(dataset.indices[i]))


def selection(
    names: str | Sequence[str] = "all", severities: str | Sequence[int] = "all"
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Corruption names and severities from a profile's values; "all": the 15 types, 1 to 5. Raises ValueError for others."""
    chosen = NAMES if names == "all" else tuple([names] if isinstance(names, str) else names)
    levels = SEVERITIES if severities == "all" else tuple([severities] if isinstance(severities, int) else severities)
    for name in chosen:
        for level in levels:
            _check_condition(name, level, None, 0)  # type: ignore[arg-type]
    return chosen, levels  # type: ignore[return-value]


def regime_of(shape: Sequence[int]) -> str:
    """The size regime of an image (H, W, ...): "cifar-c" where the shorter side is at most 64 px, else "imagenet-c"."""
    return "cifar-c" if min(shape[:2]) <= REGIME_LIMIT else "imagenet-c"


def elastic_side(shape: Sequence[int], regime: str) -> float:
    """Pixels that multiply the elastic transform's constants: the shorter side of an image (H, W, ...); of "imagenet-c" 244/224 of it,
    because make_imagenet_c.py has 244 where 224 was meant, and its images were made so."""
    side = min(shape[:2])
    return side * 244 / 224 if regime == "imagenet-c" else float(side)


def _check_condition(name: str, severity: int, regime: str | None, seed: int) -> None:
    if name not in NAMES:
        raise unknown("corruption", name, NAMES)
    if isinstance(severity, bool) or not isinstance(severity, int | np.integer) or severity not in SEVERITIES:
        raise ValueError(f"severity must be a whole number from 1 to 5, found {severity!r}")
    if regime is not None and regime not in CONSTANTS:
        raise unknown("size regime", regime, REGIMES)
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        raise TypeError(f"seed must be a whole number, found {seed!r}")


def _checked(image: np.ndarray, index: int) -> np.ndarray:
    found = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise TypeError(f"image {index}: expected a uint8 RGB array (H, W, 3) with values 0..255, found {found}")
    if min(image.shape[:2]) < SMALLEST:
        raise ValueError(
            f"image {index}: corruptions need at least {SMALLEST} x {SMALLEST} px, "
            f"found {image.shape[0]} x {image.shape[1]} (H x W): enlarge the images first"
        )
    return image


def _generator(seed: int, name: str, severity: int, index: int) -> np.random.Generator:
    digest = hashlib.sha256(f"{int(seed)}/{name}/{int(severity)}/{int(index)}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def _uint8(x: np.ndarray) -> np.ndarray:
    """Values in 0..1 as 0..255, truncated as published; 1e-6 keeps whole numbers whole under rounding error."""
    return (np.clip(x, 0, 1) * 255 + 1e-6).astype(np.uint8)


# ------------------------------------------------------------------------------------------------------------- noise
# Every corruption below: pixels (H, W, 3) uint8, constants c of one severity, generator -> (H, W, 3) uint8.


def _gaussian_noise(pixels: np.ndarray, c: float, rng: np.random.Generator) -> np.ndarray:
    return _uint8(pixels / 255 + rng.normal(scale=c, size=pixels.shape))


def _shot_noise(pixels: np.ndarray, c: float, rng: np.random.Generator) -> np.ndarray:
    return _uint8(rng.poisson(pixels / 255 * c) / c)


def _impulse_noise(pixels: np.ndarray, c: float, rng: np.random.Generator) -> np.ndarray:
    return _uint8(random_noise(pixels / 255, mode="s&p", amount=c, rng=rng))


# -------------------------------------------------------------------------------------------------------------- blur


def _defocus_blur(pixels: np.ndarray, c: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    kernel = _disk(*c)
    x = pixels / 255
    if len(kernel) <= 5:
        return _uint8(ndimage.correlate(x, kernel[..., None], mode="mirror"))
    margin = len(kernel) // 2
    padded = np.pad(x, ((margin, margin), (margin, margin), (0, 0)), mode="reflect")
    return _uint8(signal.fftconvolve(padded, kernel[..., None], mode="valid", axes=(0, 1)))  # the kernel is symmetric


@lru_cache(maxsize=32)
def _disk(radius: float, alias: float) -> np.ndarray:
    """Disk kernel (k, k), k odd, smoothed by 3 taps of a Gaussian (5 above radius 8), empty borders cut off. As published, its sum is
    1.013 and 1.011 at radius 8 and 10, where it touches the edge of its grid and the smoothing mirrors; else 1."""
    reach = max(8, int(radius))
    line = np.arange(-reach, reach + 1)
    disk = (line**2 + line[:, None] ** 2 <= radius**2).astype(float)
    disk /= disk.sum()
    taps = np.arange(-1, 2) if radius <= 8 else np.arange(-2, 3)
    smoothing = np.exp(-(taps**2) / (2 * alias**2))
    smoothing /= smoothing.sum()
    for axis in (0, 1):
        disk = ndimage.correlate1d(disk, smoothing, axis=axis, mode="mirror")
    empty = int(np.argmax(disk.max(axis=0) > 1e-12))
    return disk[empty : len(disk) - empty, empty : len(disk) - empty]


def _glass_blur(pixels: np.ndarray, c: tuple[float, int, int], rng: np.random.Generator) -> np.ndarray:
    sigma, shift, passes = c
    x = _smoothed(pixels, sigma)
    for _ in range(passes):
        x = _displaced(x, shift, rng)
    return _smoothed(x, sigma)


def _smoothed(pixels: np.ndarray, sigma: float) -> np.ndarray:
    return _uint8(ndimage.gaussian_filter(pixels / 255, (sigma, sigma, 0), mode="nearest", truncate=4))


def _displaced(pixels: np.ndarray, shift: int, rng: np.random.Generator) -> np.ndarray:
    """One pass of the published loop over rows and columns from the last to the first: x[h, w] = x[h + dy, w + dx], dx and dy drawn
    from -shift..shift - 1. A pixel that copies from one already replaced gets that one's new value, so copies form chains; following
    all chains at once, twice as far each round, gives exactly the sequential result."""
    height, width = pixels.shape[:2]
    rows, columns = np.mgrid[shift + 1 : height - shift + 1, shift + 1 : width - shift + 1]
    dy, dx = rng.integers(-shift, shift, size=(2, *rows.shape))
    target = (rows * width + columns).ravel()
    origin = ((rows + dy) * width + columns + dx).ravel()

    n = height * width
    visited = np.zeros(n, dtype=bool)
    visited[target] = True
    replaced = visited[origin] & (origin > target)  # the loop runs backwards: higher positions come first
    link = np.concatenate([np.arange(n), np.arange(n)])  # 0..n-1: values before the pass, n..2n-1: values after it
    link[n + target] = np.where(replaced, n + origin, origin)
    while True:
        further = link[link]
        if np.array_equal(further, link):
            return pixels.reshape(n, -1)[link[n:]].reshape(pixels.shape)
        link = further


def _motion_blur(pixels: np.ndarray, c: tuple[int, float], rng: np.random.Generator) -> np.ndarray:
    return _moved(pixels, *c, angle=rng.uniform(-45, 45))


def _moved(pixels: np.ndarray, radius: int, sigma: float, angle: float) -> np.ndarray:
    """ImageMagick's motion blur of uint8 (H, W) or (H, W, C): one-sided Gaussian at angle (degrees), edges repeated. Pixel for pixel
    that of version 6.9 with 16-bit quanta: 257 a grey level, sums rounded to whole quanta, results truncated to 8 bits."""
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights /= weights.sum()
    dx = np.ceil(steps * np.cos(np.deg2rad(angle)) - 0.5).astype(int)
    dy = np.ceil(steps * np.sin(np.deg2rad(angle)) - 0.5).astype(int)
    height, width = pixels.shape[:2]
    margin = 2 * radius
    padding = ((margin, margin), (margin, margin), (0, 0))[: pixels.ndim]
    padded = np.pad(pixels, padding, mode="edge").astype(float) * 257
    quanta = np.zeros(pixels.shape)
    for weight, x, y in zip(weights, margin + dx, margin + dy, strict=True):
        quanta += weight * padded[y : y + height, x : x + width]
    return (np.rint(quanta).astype(int) // 257).astype(np.uint8)


def _zoom_blur(pixels: np.ndarray, c: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    x = pixels / 255
    factors = np.arange(1, *c)
    total = x.copy()
    for factor in factors:
        total += _zoomed(x, float(factor))
    return _uint8(total / (len(factors) + 1))


def _zoomed(x: np.ndarray, factor: float) -> np.ndarray:
    """The centre of x (H, W, ...) enlarged by a factor >= 1 to H x W: scipy.ndimage.zoom(order=1), an axis at a time; scipy's own turns
    the last row black at some sizes (not 32 or 224), where its position is rounded past the edge."""
    for axis in (0, 1):
        low, weight = _zoom_grid(x.shape[axis], factor)
        weight = weight.reshape([-1 if a == axis else 1 for a in range(x.ndim)])
        x = x.take(low, axis) * (1 - weight) + x.take(low + 1, axis) * weight
    return x


@lru_cache(maxsize=512)
def _zoom_grid(n: int, factor: float) -> tuple[np.ndarray, np.ndarray]:
    """Lower neighbour (n,) and weight of the upper one (n,) for n output positions."""
    crop = int(np.ceil(n / factor))
    enlarged = round(crop * factor)
    position = (np.arange(n) + (enlarged - n) // 2) * ((crop - 1) / (enlarged - 1))
    low = np.minimum(position.astype(int), crop - 2)
    return low + (n - crop) // 2, position - low


# ----------------------------------------------------------------------------------------------------------- weather


def _snow(pixels: np.ndarray, c: tuple[float, ...], rng: np.random.Generator) -> np.ndarray:
    mean, spread, zoom, threshold, radius, sigma, kept = c
    layer = _zoomed(rng.normal(mean, spread, size=pixels.shape[:2]), zoom)
    layer[layer < threshold] = 0
    flakes = _moved(_uint8(layer), int(radius), sigma, angle=rng.uniform(-135, -45))[..., None] / 255  # (H, W, 1)
    x = pixels / 255
    grey = x @ np.array([0.299, 0.587, 0.114])
    whitened = kept * x + (1 - kept) * np.maximum(x, grey[..., None] * 1.5 + 0.5)
    return _uint8(whitened + flakes + flakes[::-1, ::-1])


# make_cifar_c.py shrinks its photographs to a fifth, by leaving out pixels
FROST_STEP = {"cifar-c": 5, "imagenet-c": 1}
FROST_SIDE = 640  # pixels of a texture, which repeats beyond its edges
# mean and standard deviation of R, G, B of each texture, as in the five photographs of the published scripts
FROST_COLOURS = (
    ((78, 149, 166), (27, 16, 15)),
    ((201, 205, 214), (21, 22, 23)),
    ((201, 205, 214), (21, 22, 23)),
    ((138, 153, 165), (28, 28, 30)),
    ((112, 123, 135), (44, 43, 42)),
)


def _frost(pixels: np.ndarray, c: tuple[float, float], rng: np.random.Generator, step: int) -> np.ndarray:
    texture = frost_texture(int(rng.integers(len(FROST_COLOURS))))[step // 2 :: step, step // 2 :: step]
    side = len(texture)
    top, left = rng.integers(side, size=2)
    rows = (top + np.arange(pixels.shape[0])) % side
    columns = (left + np.arange(pixels.shape[1])) % side
    return _uint8((c[0] * pixels + c[1] * texture[rows[:, None], columns]) / 255)


@lru_cache(maxsize=len(FROST_COLOURS))
def frost_texture(which: int) -> np.ndarray:
    """Ice crystals on a pane, (640, 640, 3) uint8, the same for every seed; opposite edges fit. Feathers (a spine with branches at 60
    degrees) of many lengths and directions over noise whose power falls as frequency^-2.2, in the colours of FROST_COLOURS[which]."""
    rng = np.random.default_rng([20190107, which])
    n, feathers, points = FROST_SIDE, 320, 160
    centre = rng.uniform(0, n, size=(feathers, 1, 1, 2))
    heading = rng.uniform(0, 2 * np.pi, size=(feathers, 1, 1))
    length = rng.gamma(2, 35, size=(feathers, 1, 1)) + 20
    along = np.linspace(0, 1, points)
    # where each leaves the spine; the first is the spine
    branches = np.concatenate([[0], np.repeat(np.linspace(0.1, 0.9, 9), 2)])
    turn = np.concatenate([[0], np.tile([-1, 1], 9)]) * np.pi / 3
    reach = np.concatenate([[1], 0.4 * (1 - branches[1:])])
    direction = (heading + turn[:, None])[..., None]  # (feathers, strokes, 1, 1)
    start = (branches[:, None] * length)[..., None] * _unit(heading[..., None])
    stroke = (reach[:, None] * length * along)[..., None] * _unit(direction)
    place = (np.floor(centre + start + stroke) % n).astype(int)  # (feathers, strokes, points, 2)
    ink = np.broadcast_to(
        length / points * reach[:, None] * rng.uniform(0.2, 1, size=(feathers, 1, 1)), place.shape[:3]
    )
    crystals = np.bincount((place[..., 0] * n + place[..., 1]).ravel(), ink.ravel(), minlength=n * n).reshape(n, n)
    crystals = np.sqrt(ndimage.gaussian_filter(crystals, 0.8, mode="wrap"))

    frequency = np.hypot(np.fft.fftfreq(n)[:, None], np.fft.rfftfreq(n)[None])
    frequency[0, 0] = np.inf
    cloud = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(n, n))) * frequency**-1.1, s=(n, n))
    mixed = _standardised(_standardised(crystals) + _standardised(cloud))
    mean, spread = (np.array(part) for part in FROST_COLOURS[which])
    texture = np.rint(np.clip(mean + spread * mixed[..., None], 0, 255)).astype(np.uint8)
    texture.flags.writeable = False
    return texture


def _unit(angle: np.ndarray) -> np.ndarray:
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=-1)


def _standardised(x: np.ndarray) -> np.ndarray:
    return (x - x.mean()) / x.std()


def _fog(pixels: np.ndarray, c: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    strength, decay = c
    height, width = pixels.shape[:2]
    x = pixels / 255
    top = x.max()
    mist = _plasma(max(height, width), decay, rng)[:height, :width, None]
    return _uint8((x + strength * mist) * top / (top + strength))


def _plasma(side: int, decay: float, rng: np.random.Generator) -> np.ndarray:
    """Diamond-square height map in 0..1 on a torus; its side is the next power of two >= side. Each halving of the scale sets the middle
    of every square, then of every edge, to the mean of its four neighbours plus uniform noise, which falls by decay^2 per halving
    (the published scripts apply their amplitude twice)."""
    grid, amplitude = np.zeros((1, 1)), 1.0
    while len(grid) < side:
        n = len(grid)
        right, below = np.roll(grid, -1, axis=1), np.roll(grid, -1, axis=0)
        noise = rng.uniform(-amplitude, amplitude, size=(3, n, n))
        middle = (grid + right + below + np.roll(below, -1, axis=1)) / 4 + noise[0]
        finer = np.empty((2 * n, 2 * n))
        finer[::2, ::2] = grid
        finer[1::2, 1::2] = middle
        finer[::2, 1::2] = (grid + right + middle + np.roll(middle, 1, axis=0)) / 4 + noise[1]
        finer[1::2, ::2] = (grid + below + middle + np.roll(middle, 1, axis=1)) / 4 + noise[2]
        grid, amplitude = finer, amplitude / decay**2
    grid -= grid.min()
    return grid / grid.max()


def _brightness(pixels: np.ndarray, c: float, rng: np.random.Generator) -> np.ndarray:
    hsv = rgb2hsv(pixels / 255)
    hsv[..., 2] = np.clip(hsv[..., 2] + c, 0, 1)
    return _uint8(hsv2rgb(hsv))


# ----------------------------------------------------------------------------------------------------------- digital


def _contrast(pixels: np.ndarray, c: float, rng: np.random.Generator) -> np.ndarray:
    x = pixels / 255
    mean = x.mean(axis=(0, 1))
    return _uint8((x - mean) * c + mean)


def _elastic_transform(
    pixels: np.ndarray, c: tuple[float, float, float], rng: np.random.Generator, side: float
) -> np.ndarray:
    """A random affine map (three corners jittered), then a smooth random displacement, both linearly interpolated."""
    shift, sigma, jitter = (side * value for value in c)
    height, width = pixels.shape[:2]
    grid = np.mgrid[:height, :width].astype(float)  # (2, H, W): y, x

    centre, third = np.array([height // 2, width // 2]), min(height, width) // 3
    corners = centre + third * np.array([[1, 1], [-1, 1], [-1, -1]])  # (3, 2): y, x
    moved = corners + rng.uniform(-jitter, jitter, size=corners.shape)
    affine = np.linalg.solve(np.column_stack([moved, np.ones(3)]), corners)  # (3, 2): where output pixels come from
    source = np.einsum("chw,cd->dhw", grid, affine[:2]) + affine[2][:, None, None]
    x = _sampled(pixels / 255, source, mode="mirror")
    if shift > 0:
        field = rng.uniform(-1, 1, size=(2, height, width))
        x = _sampled(
            x, grid + shift * ndimage.gaussian_filter(field, (0, sigma, sigma), mode="reflect", truncate=3), "reflect"
        )
    return _uint8(x)


def _sampled(x: np.ndarray, where: np.ndarray, mode: str) -> np.ndarray:
    """x (H, W, 3) at positions (2, H, W) = y, x by linear interpolation, mirrored at the edges as scipy's mode says."""
    channels = [ndimage.map_coordinates(x[..., channel], where, order=1, mode=mode) for channel in range(x.shape[2])]
    return np.stack(channels, axis=-1)


def _pixelate(pixels: np.ndarray, c: float, rng: np.random.Generator) -> np.ndarray:
    height, width = pixels.shape[:2]
    small = Image.fromarray(pixels).resize((int(width * c), int(height * c)), Image.Resampling.BOX)
    return np.array(small.resize((width, height), Image.Resampling.BOX))


def _jpeg_compression(pixels: np.ndarray, c: int, rng: np.random.Generator) -> np.ndarray:
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=c)
    return np.array(Image.open(file))


_FUNCTIONS: dict[str, Callable[[np.ndarray, Any, np.random.Generator], np.ndarray]] = {
    function.__name__[1:]: function
    for function in (
        *(
            _gaussian_noise,
            _shot_noise,
            _impulse_noise,
            _defocus_blur,
            _glass_blur,
            _motion_blur,
            _zoom_blur,
            _snow,
            _fog,
        ),
        *(_brightness, _contrast, _pixelate, _jpeg_compression),
    )
}
