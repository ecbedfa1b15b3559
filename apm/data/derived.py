"""Sets made from the held-out digits and from CIFAR-10's test split: other renditions of the images, other names for the classes.

A rendition is a shift with the same classes (Table 1), a label space (derived.yaml) one that a teacher was not taught (Table 3),
without a further download. `indices` are positions in the set that they are made from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from apm.data import layouts, prompts
from apm.data.dataset import Dataset, Lazy, fingerprint
from apm.data.digits import NAMES, SIDE, handwritten
from apm.data.files import PHOTOGRAPHS, photograph
from apm.project import facts, sha256_of

LABEL_SPACES: dict[str, dict[str, Any]] = facts(__file__)


def names() -> list[str]:
    return [*DIGIT_RENDITIONS, "digits-hard", *RENDITIONS, *LABEL_SPACES]


def base(name: str) -> str:
    """The set from which one is made."""
    return "digits-test" if name.startswith("digits") else "cifar10"


def load(name: str, root: Path | str | None, *, seed: int = 0, partial: bool = False) -> Dataset:
    """A set made from another. seed: of the digits' split and of random renditions. root, partial, raises: as `layouts.load` for CIFAR-10."""
    if name in DIGIT_RENDITIONS:
        return _digit_rendition(name, seed)
    if name == "digits-hard":
        return _hard_digits(seed)
    if base(name) == "digits-test":
        return _relabelled(name, handwritten("test", seed))
    whole = layouts.load("cifar10", root, partial=partial)
    return _rendition(name, whole) if name in RENDITIONS else _relabelled(name, whole)


def _relabelled(name: str, whole: Dataset) -> Dataset:
    space = LABEL_SPACES[name]
    classes: dict[str, Sequence[int]] = space["classes"]
    label_of = {member: label for label, members in enumerate(classes.values()) for member in members}
    part = whole.subset(np.flatnonzero(np.isin(whole.labels, list(label_of))))
    labels = np.array([label_of[int(label)] for label in part.labels], dtype=np.int64)
    labels.flags.writeable = False
    identity = sha256_of({"parent": whole.fingerprint, "classes": classes})
    return replace(
        part,
        name=name,
        origin=whole.name,
        labels=labels,
        classnames=tuple(classes),
        templates=prompts.templates(space["prompts"]),
        fingerprint=fingerprint(np.asarray(part.images), labels, tuple(classes)) if _digits(whole) else identity,
        notes=_notes(whole, space["what"]),
    )


def _digits(whole: Dataset) -> bool:
    return whole.name == "digits-test"


def _notes(whole: Dataset, what: str) -> str:
    return (
        f"The digits of {whole.name}, {what}."
        if _digits(whole)
        else f"The images of {whole.name}, {what}. {whole.notes}"
    )


def _uint8(values: np.ndarray) -> np.ndarray:
    """Numbers 0..255, (H, W) or (H, W, 3), as uint8 RGB."""
    pixels = np.rint(np.clip(values, 0, 255)).astype(np.uint8)
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=-1)


# ------------------------------------------------------------- CIFAR-10: uint8 (H, W, 3) -> numbers 0..255, when it is read


def _grey(image: np.ndarray) -> np.ndarray:
    return image @ np.array([0.299, 0.587, 0.114])  # luma of ITU-R BT.601


def _negative(image: np.ndarray) -> np.ndarray:
    return 255 - image


def _edges(image: np.ndarray) -> np.ndarray:
    from skimage.feature import canny

    return 255.0 * ~canny(_grey(image) / 255, sigma=1.0)


def _flat(image: np.ndarray) -> np.ndarray:
    from skimage.restoration import denoise_tv_chambolle

    smooth = denoise_tv_chambolle(image / 255, weight=0.1, channel_axis=-1)
    return 255 * np.rint(smooth * 4) / 4


def _coarse(image: np.ndarray) -> np.ndarray:
    h, w = image.shape[0] // 2, image.shape[1] // 2
    halved = image[: 2 * h, : 2 * w].reshape(h, 2, w, 2, 3).mean(axis=(1, 3))
    return halved.repeat(2, axis=0).repeat(2, axis=1)


# name -> the change, what it is in words. Raise the number where a change is changed: it is part of the fingerprint.
RENDITIONS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], int, str]] = {
    "cifar10-grey": (_grey, 1, "without colour"),
    "cifar10-negative": (_negative, 1, "as negatives"),
    "cifar10-coarse": (_coarse, 1, "at half the resolution, every 2 x 2 px their mean"),
    "cifar10-flat": (_flat, 1, "as flat drawings: total-variation smoothing (weight 0.1), five levels of each colour"),
    "cifar10-edges": (_edges, 1, "as line drawings: Canny edges (sigma 1 px), black on white"),
}


def _rendition(name: str, whole: Dataset) -> Dataset:
    change, version, what = RENDITIONS[name]
    return replace(
        whole,
        name=name,
        origin=whole.name,
        images=Lazy(whole.images, partial(_changed, change)),
        fingerprint=sha256_of({"parent": whole.fingerprint, "rendition": name, "version": version}),
        notes=_notes(whole, what),
    )


def _changed(change: Callable[[np.ndarray], np.ndarray], image: np.ndarray) -> np.ndarray:
    return _uint8(change(np.asarray(image)))


# ------------------------------------------- the digits: grey (H, W) in 0..1, generator -> (H, W) or (H, W, 3) in 0..1, at once


def _canny(grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    from skimage.feature import canny

    return canny(grey, sigma=1.0)


def _thick(grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    from skimage.morphology import dilation, disk

    return dilation(grey, disk(2))


def _thin(grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    from skimage.filters import gaussian
    from skimage.morphology import skeletonize

    line = skeletonize(grey > grey.max() / 2).astype(np.float64)
    return 2.5 * gaussian(line, sigma=1.0)  # 2.5: a straight line is white in its middle again


def _coloured(grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    paper, ink = rng.uniform(0, 0.3, size=3), rng.uniform(0.7, 1, size=3)
    return paper + grey[..., None] * (ink - paper)


@cache
def _photographs() -> list[np.ndarray]:
    return [photograph(name) for name in PHOTOGRAPHS]


def _over_photograph(grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    background = np.zeros(0)
    while not background.size or background.std() < 0.05:  # a black sky would leave the digit as it is
        photo = _photographs()[rng.integers(len(PHOTOGRAPHS))]
        y, x = (rng.integers(side - SIDE) for side in photo.shape[:2])
        background = photo[y : y + SIDE, x : x + SIDE] / 255
    return np.abs(background - grey[..., None])


DIGIT_RENDITIONS: dict[str, tuple[Callable[[np.ndarray, np.random.Generator], np.ndarray], str]] = {
    "digits-inverted": (lambda grey, rng: 1 - grey, "black on white"),
    "digits-edges": (_canny, "as line drawings: Canny edges (sigma 1 px) of the stroke, white on black"),
    "digits-thick": (_thick, "strokes thickened by 2 px on each side (grey dilation)"),
    "digits-thin": (
        _thin,
        "reduced to the centre line of the stroke and redrawn with a soft pen (Gaussian, sigma 1 px)",
    ),
    "digits-coloured": (_coloured, "in a random light colour (channels 0.7 to 1) on a random dark one (0 to 0.3)"),
    "digits-photo": (
        _over_photograph,
        f"each over a {SIDE} x {SIDE} px piece of one of {len(PHOTOGRAPHS)} photographs, as the absolute difference (the recipe of MNIST-M)",
    ),
}


def _digit_rendition(name: str, seed: int) -> Dataset:
    change, what = DIGIT_RENDITIONS[name]
    whole = handwritten("test", seed)
    grey = np.asarray(whole.images)[..., 0] / 255
    pixels = np.stack([_uint8(255 * change(x, np.random.default_rng([seed, i]))) for i, x in enumerate(grey)])
    pixels.flags.writeable = False
    return replace(
        whole,
        name=name,
        origin=whole.name,
        images=pixels,
        fingerprint=fingerprint(pixels, whole.labels, whole.classnames),
        notes=_notes(whole, what),
    )


def _hard_digits(seed: int) -> Dataset:
    """Chosen as ImageNet-A was: real images that another classifier gets wrong. Here the nearest class mean of pixels."""
    train, test = handwritten("train", seed), handwritten("test", seed)
    seen, flat = (np.asarray(d.images)[..., 0].reshape(len(d), -1).astype(np.float64) for d in (train, test))
    means = np.stack([seen[train.labels == label].mean(axis=0) for label in range(len(NAMES))])  # (10, H * W)
    nearest = ((flat[:, None] - means) ** 2).sum(axis=2).argmin(axis=1)
    part = test.subset(np.flatnonzero(nearest != test.labels))
    return replace(
        part,
        name="digits-hard",
        origin=test.name,
        fingerprint=fingerprint(np.asarray(part.images), part.labels, part.classnames),
        notes=f"The {len(part)} digits of digits-test that a classifier by the nearest class mean of pixels, fitted on "
        "digits-train, gets wrong.",
    )
