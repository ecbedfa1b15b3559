"""A labelled set of images, in memory or made when they are read. Knows no set by name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from apm.data import prompts
from apm.project import unknown


class UnreadableImage(ValueError):
    """An image file that cannot be decoded. `path` says which."""

    def __init__(self, path: Path, reason: object) -> None:
        super().__init__(f"cannot read the image {path}: {reason}. Replace or remove the file")
        self.path = path


@dataclass(frozen=True)
class Lazy(Sequence[np.ndarray]):
    """Images made when they are read: image i is `read(items[i])`, each time or, with `keep`, once. Can be pickled where the two can."""

    items: Sequence[Any] | np.ndarray
    read: Callable[[Any], np.ndarray]
    keep: bool = False
    kept: dict[int, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: Any) -> Any:
        if not self.keep:
            return self.read(self.items[i])
        if i not in self.kept:
            self.kept[i] = self.read(self.items[i])
            self.kept[i].flags.writeable = False
        return self.kept[i]


@dataclass(frozen=True, eq=False)
class Dataset:
    """N images with labels, or without: then every label is -1. Shapes: images[i] (H, W, 3) uint8 RGB, labels (N,) int64, indices (N,) int64.

    Raises ValueError on construction when counts, labels or class names do not fit each other.
    """

    name: str
    images: Sequence[np.ndarray] | np.ndarray = field(repr=False)
    labels: np.ndarray = field(repr=False)
    classnames: tuple[str, ...]
    templates: tuple[str, ...]  # prompts, each with one "{}"
    fingerprint: str  # sha256 over pixels (or the files' bytes), labels and class names of the full set
    indices: np.ndarray = field(repr=False)  # position of each image in the full set, kept by `subset`
    notes: str = ""  # where it comes from, its licence, what it stands for
    corruption: str = "none"
    severity: int = 0
    groups: tuple[str, ...] | None = field(default=None, repr=False)  # one per image: sub-populations (font families)
    origin: str = ""  # the set whose images these are, changed or renamed: `indices` are positions in that one
    remark: str = ""  # how these images differ from the published ones; stands under every table made of them

    def __post_init__(self) -> None:
        counts = {"images": len(self.images), "labels": len(self.labels), "indices": len(self.indices)}
        if self.groups is not None:
            counts["groups"] = len(self.groups)
        if len(set(counts.values())) != 1:
            raise ValueError(f"dataset {self.name}: expected equal counts, found {counts}")
        if not len(self.labels):
            raise ValueError(f"dataset {self.name}: expected at least one image, found none")
        low, high = int(self.labels.min()), int(self.labels.max())
        if (low < 0 or high >= len(self.classnames)) and self.labelled:
            raise ValueError(
                f"dataset {self.name}: labels must lie in 0..{len(self.classnames) - 1} "
                f"({len(self.classnames)} class names), found {low}..{high}"
            )
        prompts.check(self.templates)

    @property
    def in_memory(self) -> bool:
        """Whether reading an image twice costs nothing: no files."""
        return isinstance(self.images, np.ndarray) or (isinstance(self.images, Lazy) and self.images.keep)

    @property
    def labelled(self) -> bool:
        """Whether anybody said what the images show."""
        return bool((self.labels != -1).any())

    def label(self, i: int) -> str:
        """The class name of image i; "" without labels."""
        return self.classnames[self.labels[i]] if self.labelled else ""

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        condition = f", {self.corruption} {self.severity}" if self.severity else ""
        sizes = f"{len(self)} images, {len(self.classnames)} classes, {len(self.templates)} prompt{'s' * (len(self.templates) > 1)}"
        return f"Dataset {self.name}{condition}: {sizes}. {self.notes}".strip()

    def subset(self, which: int | Sequence[int] | np.ndarray, seed: int | None = None) -> Dataset:
        """Some of the images, with the same fingerprint and the matching `indices`.

        which: positions in this dataset, kept in the given order; or a count n, for a stratified choice in the set's order, which
        contains the one for every smaller n. Raises ValueError for a count outside 1..N and for positions outside 0..N-1 or given twice.
        """
        if isinstance(which, int | np.integer):
            positions = self._stratified(int(which), seed or 0)
        else:
            positions = np.asarray(which, dtype=np.int64)
            inside = positions.ndim == 1 and len(positions) and positions.min() >= 0 and positions.max() < len(self)
            if not inside or len(np.unique(positions)) < len(positions):
                raise ValueError(
                    f"dataset {self.name}: expected positions in 0..{len(self) - 1}, each once, found {positions.tolist()}"
                )
        images: Sequence[np.ndarray] | np.ndarray
        if isinstance(self.images, np.ndarray):
            images = self.images[positions]
        else:
            images = Lazy(positions.tolist(), self.images.__getitem__, keep=self.in_memory)
        return replace(
            self,
            images=images,
            labels=self.labels[positions],
            indices=self.indices[positions],
            groups=None if self.groups is None else tuple(self.groups[i] for i in positions),
        )

    def _stratified(self, n: int, seed: int) -> np.ndarray:
        """n positions, sorted: each image gets its place (rank + 1/2) / count within its shuffled class; lowest n win."""
        if not 1 <= n <= len(self):
            raise ValueError(f"dataset {self.name}: a subset needs 1..{len(self)} images, found {n}")
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(self))  # also breaks ties between classes without favouring the first
        place = np.empty(len(self))
        for label in np.unique(self.labels):
            members = order[self.labels[order] == label]
            place[members] = (np.arange(len(members)) + 0.5) / len(members)
        return np.sort(order[np.argsort(place[order], kind="stable")][:n])

    def positions(self, samples: int | str, seed: int = 0) -> np.ndarray:
        """(n,) positions of `subset(samples, seed)`; all of them for "all" and for more than there are."""
        everything = samples == "all" or int(samples) >= len(self)
        return np.arange(len(self)) if everything else self._stratified(int(samples), seed)

    def take(self, samples: int | str, seed: int = 0) -> Dataset:
        """The dataset at `positions(samples, seed)`: a profile's number of samples, or "all"."""
        chosen = self.positions(samples, seed)
        return self if len(chosen) == len(self) else self.subset(chosen)

    def halves(self, seed: int = 0) -> tuple[Dataset, Dataset]:
        """Two disjoint halves, stratified by class: to train on and to hold out. Raises ValueError below two images."""
        if len(self) < 2:
            raise ValueError(f"dataset {self.name}: two halves need at least 2 images, found {len(self)}")
        first = self._stratified(len(self) // 2, seed)
        return self.subset(first), self.subset(np.setdiff1d(np.arange(len(self)), first))

    def readable(self, on_error: str = "raise", most: int | None = None) -> Dataset:
        """The images that can be read, the first `most` of them. on_error: what one that cannot be read does: "raise" UnreadableImage;
        "record": it is left out. Raises ValueError for another on_error and where no image is left."""
        if on_error not in ("raise", "record"):
            raise unknown("on_error", on_error, ("raise", "record"))
        found: list[int] = []
        for i in range(len(self)):
            if len(found) == most:
                break
            try:
                self.images[i]
            except UnreadableImage:
                if on_error == "raise":
                    raise
            else:
                found.append(i)
        if not found:
            raise ValueError(f"none of the {len(self)} images of {self.name} can be read")
        return self if len(found) == len(self) else self.subset(found)


def fingerprint(images: np.ndarray, labels: np.ndarray, classnames: Sequence[str]) -> str:
    """sha256 over pixels (N, H, W, 3), labels (N,) and class names."""
    digest = hashlib.sha256()
    digest.update(json.dumps([list(images.shape), str(images.dtype), list(classnames)]).encode())
    digest.update(np.ascontiguousarray(images).tobytes())
    digest.update(np.ascontiguousarray(labels, dtype="<i8").tobytes())
    return digest.hexdigest()


def made(images: np.ndarray, labels: np.ndarray, **fields: Any) -> Dataset:
    """A whole set in memory, uint8 (N, H, W, 3), read-only; its fingerprint is over its pixels, labels and class names."""
    labels = np.asarray(labels, dtype=np.int64)
    images.flags.writeable = labels.flags.writeable = False
    own = {"indices": np.arange(len(labels)), **fields}
    return Dataset(images=images, labels=labels, fingerprint=fingerprint(images, labels, fields["classnames"]), **own)
