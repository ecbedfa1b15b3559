"""Sets made from CIFAR-10's test split: other renditions of its images, other names for its classes.

They do for natural images what the domains and label spaces of the handwritten digits do in `apm.data.datasets`: a shift with the same
classes (Table 1), and label spaces that a teacher was not taught (Table 3), without a further download. Images are changed
when they are read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from apm.data import prompts
from apm.data.datasets import Dataset
from apm.data.datasets import load as load_dataset
from apm.project import sha256_of, unknown

BASE = "cifar10"
Change = Callable[[np.ndarray], np.ndarray]  # uint8 (H, W, 3) -> numbers 0..255, (H, W) or (H, W, 3)


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
RENDITIONS: dict[str, tuple[Change, int, str]] = {
    "cifar10-grey": (_grey, 1, "without colour"),
    "cifar10-negative": (_negative, 1, "as negatives"),
    "cifar10-coarse": (_coarse, 1, "at half the resolution, every 2 x 2 px their mean"),
    "cifar10-flat": (_flat, 1, "as flat drawings: total-variation smoothing (weight 0.1), five levels of each colour"),
    "cifar10-edges": (_edges, 1, "as line drawings: Canny edges (sigma 1 px), black on white"),
}

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_VEHICLES, _ANIMALS = (0, 1, 8, 9), (2, 3, 4, 5, 6, 7)

# name -> class name: its CIFAR-10 classes; prompts; what it is in words
LABEL_SPACES: dict[str, tuple[dict[str, Sequence[int]], tuple[str, ...], str]] = {
    "cifar10-vehicles": ({CLASSES[c]: (c,) for c in _VEHICLES}, prompts.CIFAR, "the four vehicles only"),
    "cifar10-animals": ({CLASSES[c]: (c,) for c in _ANIMALS}, prompts.CIFAR, "the six animals only"),
    "cifar10-four-legs": ({CLASSES[c]: (c,) for c in (3, 4, 5, 7)}, prompts.CIFAR, "cat, deer, dog and horse only"),
    "cifar10-synonyms": (
        {
            name: (c,)
            for c, name in enumerate(
                ("plane", "car", "songbird", "kitten", "stag", "puppy", "toad", "pony", "boat", "lorry")
            )
        },
        prompts.CIFAR,
        "all ten under other names",
    ),
    "cifar10-lists": (
        {
            "airplane, automobile, ship or truck": _VEHICLES,
            "bird, cat, deer, dog, frog or horse": _ANIMALS,
        },
        prompts.GENERAL,
        "two classes, each named by the list of its members",
    ),
    "cifar10-kinds": (
        {"vehicle": _VEHICLES, "animal": _ANIMALS},
        prompts.GENERAL,
        "two classes: vehicle and animal",
    ),
}


def names() -> list[str]:
    """Names that `load` knows."""
    return [*RENDITIONS, *LABEL_SPACES]


def load(name: str, root: Path | str | None, *, partial: bool = False) -> Dataset:
    """A set made from CIFAR-10's test split; `indices` are positions in that.

    Raises ValueError for an unknown name and for a base whose classes are not CIFAR-10's, and as loading the base does.
    """
    if name not in names():
        raise unknown("derived set", name, names())
    base = load_dataset(BASE, root=root, partial=partial)
    if base.classnames != CLASSES:
        raise ValueError(f"{name} is made from CIFAR-10: expected the classes {CLASSES}, found {base.classnames}")
    if name in RENDITIONS:
        change, version, what = RENDITIONS[name]
        return replace(
            base,
            name=name,
            origin=BASE,
            images=Changed(base.images, change),
            fingerprint=sha256_of({"parent": base.fingerprint, "rendition": name, "version": version}),
            notes=f"The images of {BASE}, {what}. {base.notes}",
        )
    classes, templates, what = LABEL_SPACES[name]
    label_of = {member: label for label, members in enumerate(classes.values()) for member in members}
    part = base.subset(np.flatnonzero(np.isin(base.labels, list(label_of))))
    labels = np.array([label_of[int(c)] for c in part.labels], dtype=np.int64)
    labels.flags.writeable = False
    return replace(
        part,
        name=name,
        origin=BASE,
        labels=labels,
        classnames=tuple(classes),
        templates=templates,
        fingerprint=sha256_of({"parent": base.fingerprint, "classes": {k: list(v) for k, v in classes.items()}}),
        notes=f"The images of {BASE}, {what}. {base.notes}",
    )


@dataclass(frozen=True)
class Changed(Sequence[np.ndarray]):
    """Images (H, W, 3) uint8, each changed when it is read."""

    images: Sequence[np.ndarray] | np.ndarray
    change: Change

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: Any) -> Any:
        image = np.asarray(self.images[int(i)])
        changed = np.rint(np.clip(self.change(image), 0, 255)).astype(np.uint8)
        return changed if changed.ndim == 3 else np.repeat(changed[..., None], 3, axis=-1)
