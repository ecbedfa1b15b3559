"""Augmented views of an image, what the teacher says about them, and which of them it is sure of.

Methods after TPT (Shu et al., NeurIPS 2022) share its views: the image itself and 63 random crops (`AugMixAugmenter` in
data/datautils.py of github.com/azshue/TPT). Here they depend on (seed, pixels of the image) alone, and the first k of n are the k views.
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from apm.data import Dataset
from apm.teachers import Teacher
from apm.ttt import image_seed

VIEWS = 64  # the image and 63 crops: --batch-size in tpt_classification.py of TPT
AREA = (0.08, 1.0)  # share of the image that a crop covers, and the aspect of the crop: defaults of torchvision's
ASPECT = (3 / 4, 4 / 3)  # RandomResizedCrop, with which get_preaugment of TPT cuts
ATTEMPTS = 10  # tries to draw a crop that fits before the central one is taken, as RandomResizedCrop does
CHAINS = 3  # AugMix (Hendrycks et al., ICLR 2020, section 3): three chains
DEPTH = (1, 3)  # of one to three operations each; weights ~ Dirichlet(1, 1, 1), mixed with the crop by m ~ Beta(1, 1)
SEVERITY = 1  # TPT calls AugMix's operations with severity 1
CACHE_BYTES = 512 * 2**20  # features of views kept in memory, per process


# ----------------------------------------------------------------------------------------------------------- the views


def views(
    image: np.ndarray,
    n: int,
    *,
    seed: int,
    augmix: bool = False,
    flip: bool = True,
    bicubic: bool = False,
    size: int | None = None,
) -> list[np.ndarray]:
    """n views of an image (H, W, 3) uint8: the image itself, and n - 1 random crops (size, size, 3) uint8 of it.

    A crop covers 8 to 100 % of the image, is 3/4 to 4/3 as wide as high, resized to `size` (default: the image's shorter side) and
    mirrored with probability 1/2. augmix: through AugMix's chains, as TPT does on its fine-grained sets (rounded to 8 bits here). flip:
    False where the mirror image is another class or none; the crops stay the same. bicubic: as CoOp's configurations have, else bilinear.
    Raises ValueError for n < 1 and for anything but uint8 (H, W, 3).
    """
    if n < 1:
        raise ValueError(f"the number of views must be at least 1, the image itself, found {n}")
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise ValueError(f"expected an image uint8 (H, W, 3), found {image.dtype} {image.shape}")
    side = min(image.shape[:2]) if size is None else int(size)
    # one stream for the crops and one for AugMix, so that the crops are the same with and without it
    crops, chains = np.random.default_rng(image_seed(seed, torch.from_numpy(image.copy()))).spawn(2)
    picture = Image.fromarray(image)
    result = [image]
    for _ in range(n - 1):
        view = _crop(picture, side, crops, flip, Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR)
        result.append(_augmix(view, chains) if augmix else np.asarray(view))
    return result


def _crop(
    picture: Image.Image, side: int, rng: np.random.Generator, flip: bool, resampling: Image.Resampling
) -> Image.Image:
    """torchvision's RandomResizedCrop and RandomHorizontalFlip with draws from rng."""
    width, height = picture.size
    left, top, w, h = _central(width, height)
    for _ in range(ATTEMPTS):
        area = width * height * rng.uniform(*AREA)
        aspect = math.exp(rng.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        tried = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < tried[0] <= width and 0 < tried[1] <= height:
            w, h = tried
            top, left = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
            break
    mirrored = rng.random() < 0.5  # drawn in any case, so that the next crop does not depend on flip
    # cropped before it is resized: `resize(box=...)` would let pixels outside the crop in at its border
    view = picture.crop((left, top, left + w, top + h)).resize((side, side), resampling)
    return ImageOps.mirror(view) if flip and mirrored else view


def _central(width: int, height: int) -> tuple[int, int, int, int]:
    """(left, top, width, height) of the largest central crop whose aspect is allowed."""
    w, h = width, height
    if width / height < ASPECT[0]:
        h = round(width / ASPECT[0])
    elif width / height > ASPECT[1]:
        w = round(height * ASPECT[1])
    return (width - w) // 2, (height - h) // 2, w, h


# ------------------------------------------------------------------------------------------------------------- AugMix


def _augmix(view: Image.Image, rng: np.random.Generator) -> np.ndarray:
    """m * view + (1 - m) * (mixture of three chains of operations), (S, S, 3) uint8: `augmix` in TPT's data/datautils.py."""
    weights, m = rng.dirichlet([1.0] * CHAINS), rng.beta(1.0, 1.0)
    mixture = np.zeros((*view.size[::-1], 3))
    for weight in weights:
        changed = view
        for _ in range(rng.integers(DEPTH[0], DEPTH[1] + 1)):
            changed = OPERATIONS[rng.integers(len(OPERATIONS))](changed, rng)
        mixture += weight * np.asarray(changed)
    return np.rint(m * np.asarray(view) + (1 - m) * mixture).clip(0, 255).astype(np.uint8)


def _level(rng: np.random.Generator, limit: float) -> float:
    """Strength of an operation: `limit` is what AugMix would use at severity 10 (`sample_level`, `float_parameter`)."""
    return float(rng.uniform(0.1, SEVERITY)) * limit / 10


def _signed(rng: np.random.Generator, limit: float) -> float:
    return _level(rng, limit) * (-1 if rng.random() > 0.5 else 1)


def _affine(view: Image.Image, coefficients: tuple[float, ...]) -> Image.Image:
    return view.transform(view.size, Image.Transform.AFFINE, coefficients, resample=Image.Resampling.BILINEAR)


# `augmentations` in TPT's data/augmix_ops.py: AugMix's operations without those that ImageNet-C tests
OPERATIONS: tuple[Callable[[Image.Image, np.random.Generator], Image.Image], ...] = (
    lambda view, rng: ImageOps.autocontrast(view),
    lambda view, rng: ImageOps.equalize(view),
    lambda view, rng: ImageOps.posterize(view, 4 - int(_level(rng, 4))),
    lambda view, rng: view.rotate(int(_signed(rng, 30)), resample=Image.Resampling.BILINEAR),
    lambda view, rng: ImageOps.solarize(view, 256 - int(_level(rng, 256))),
    lambda view, rng: _affine(view, (1, _signed(rng, 0.3), 0, 0, 1, 0)),  # shear along x
    lambda view, rng: _affine(view, (1, 0, 0, _signed(rng, 0.3), 1, 0)),  # and y
    lambda view, rng: _affine(view, (1, 0, int(_signed(rng, view.width / 3)), 0, 1, 0)),  # shift along x
    lambda view, rng: _affine(view, (1, 0, 0, 0, 1, int(_signed(rng, view.width / 3)))),  # and y
)


# ------------------------------------------------------------------------------------------------ what the teacher says


def view_pixels(teacher: Teacher, image: np.ndarray, n: int, **drawn: Any) -> Tensor:
    """(n, 3, S, S) float32 on the CPU: `views` of an image through the teacher's preprocessing, crops of size S at once, as in TPT."""
    whole, *crops = views(image, n, size=teacher.image_size, **drawn)
    # the image first and by itself: it may have another size
    return torch.cat([teacher.transform(part) for part in ([whole], crops) if part])


class Encoded(NamedTuple):
    """The teacher's features of n views of N images."""

    features: Tensor  # (N, n, D) float32 on the teacher's device, not normalised
    saved_milliseconds: np.ndarray  # (N,) float32: what drawing and encoding took when another call did it, else 0


def encoded(teacher: Teacher, dataset: Dataset, positions: np.ndarray | Sequence[int], n: int, **drawn: Any) -> Encoded:
    """The teacher's features of n `views` of the images at N positions. Raises as `views` and the dataset do.

    Every image's views are one batch: rounding does not depend on other images. Features stay in memory, up to CACHE_BYTES.
    """
    rows, saved = [], np.zeros(len(positions), dtype=np.float32)
    for row, position in enumerate(positions):
        # Everything that a view's feature is made from; a fingerprint is that of the full set, so the image's place in it too.
        key = (
            *(teacher.hash, teacher.precision, str(teacher.device)),
            *(dataset.fingerprint, dataset.corruption, dataset.severity, int(dataset.indices[position])),
            *(n, *sorted(drawn.items())),
        )
        found = _KEPT.get(key)
        if found is None:
            start = time.perf_counter()
            pixels = view_pixels(teacher, dataset.images[int(position)], n, **drawn)
            features = teacher.encode(pixels).feature.cpu()
            _KEPT.put(key, features, 1e3 * (time.perf_counter() - start))
        else:
            features, saved[row] = found
        rows.append(features)
    stacked = torch.stack(rows) if rows else torch.empty(0, n, teacher.width)
    return Encoded(stacked.to(teacher.device), saved)


class _Kept:
    """Features (n, D) by key and the milliseconds they took; the least recently used go first."""

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0
        self.entries: OrderedDict[tuple[Any, ...], tuple[Tensor, float]] = OrderedDict()
        self.lock = threading.Lock()  # shards may be computed by several threads of one process

    def get(self, key: tuple[Any, ...]) -> tuple[Tensor, float] | None:
        with self.lock:
            if key in self.entries:
                self.entries.move_to_end(key)
            return self.entries.get(key)

    def put(self, key: tuple[Any, ...], features: Tensor, milliseconds: float) -> None:
        with self.lock:
            if key not in self.entries:
                self.entries[key] = (features, milliseconds)
                self.used += features.nbytes
            while self.used > self.limit:
                self.used -= self.entries.popitem(last=False)[1][0].nbytes


_KEPT = _Kept(CACHE_BYTES)


def forget() -> None:
    """Empty the features kept in memory, to measure a method's own time."""
    global _KEPT
    _KEPT = _Kept(CACHE_BYTES)


# ------------------------------------------------------------------------------------------------------ which are sure


def entropy(scores: Tensor) -> Tensor:
    """(...,) entropy in nats of softmax(scores) for logits (..., C)."""
    logs = scores.log_softmax(dim=-1)
    return -(logs.exp() * logs).sum(dim=-1)


def confident(scores: Tensor, share: float) -> Tensor:
    """Indices (k,) int64 of the k = floor(n * share) views of lowest entropy, most confident first, ties in their order.

    scores: (n, C) logits. `select_confident_samples` in TPT's tpt_classification.py. Raises ValueError as `kept`, and for other shapes.
    """
    if scores.ndim != 2:
        raise ValueError(f"expected scores (views, classes), found {tuple(scores.shape)}")
    return entropy(scores).argsort(stable=True)[: kept(len(scores), share)]


def kept(n: int, share: float) -> int:
    """How many of n views `confident` selects. Raises ValueError for none, and for a share outside (0, 1]."""
    if not 0 < share <= 1:
        raise ValueError(f"the share of confident views must lie in (0, 1], found {share}")
    count = math.floor(n * share + 1e-9)  # 100 * 0.29 is 28.999999999999996
    if count < 1:
        raise ValueError(
            f"zero confident views: a share of {share} of {n} view{'s' * (n != 1)} is less than one; use at least "
            f"{math.ceil(1 / share - 1e-9)} views or a larger share"
        )
    return count
