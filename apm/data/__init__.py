"""Images with labels and class names, and what is published: datasets by name, corruptions, prompts, published numbers.

    load("digits-test")            made here: handwritten (scikit-learn) and printed digits (`digits`), other renditions (`derived`)
    load("imagenet-sample")        20 labelled photographs that a package carries (`samples`)
    load("imagenet-a", root=DATA)  a published benchmark, read from disk (`published_sets`, `layouts`)
    load("folder:/data/imagenet")  any tree with one folder of images per class

Uses `project`. Images are uint8 RGB arrays; every model applies its own preprocessing to them (`apm.teachers`). Further modules:
`corruptions`, `prompts`, `published` (the paper's numbers) and `check` (which sets are on disk). Nothing here imports torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from apm.data import derived, digits, files, layouts, published_sets, samples
from apm.data.dataset import Dataset, Lazy, UnreadableImage, fingerprint
from apm.data.files import photograph, read_image
from apm.project import data_dir, unknown

OWN: dict[str, Callable[..., Dataset]] = {}


def register(name: str) -> Callable[[Callable[..., Dataset]], Callable[..., Dataset]]:
    """Decorator: makes `load(name)` call the function with `root` (Path or None) and `seed`."""

    def add(loader: Callable[..., Dataset]) -> Callable[..., Dataset]:
        OWN[name] = loader
        return loader

    return add


def names() -> list[str]:
    """Names that `load` knows, besides "folder:PATH"."""
    return sorted([*OWN, *digits.SETS, *samples.SETS, *derived.names(), *published_sets.names()])


def load(name: str, *, root: str | Path | None = None, seed: int = 0, partial: bool = False) -> Dataset:
    """The dataset of that name.

    root: folder of datasets on disk, default: $DATA; a relative PATH of "folder:PATH" starts there. seed: of the handwritten digits'
    split and the printed ones' jitter. partial: take a published set of which images or classes are missing, and say so in its notes;
    $PARTIAL=1 does the same. Raises ValueError for an unknown name and for a published set with other counts than its authors',
    FileNotFoundError for a missing folder.
    """
    base = data_dir() if root is None else Path(root)
    partial = partial or os.environ.get("PARTIAL") == "1"
    if name in OWN:
        return OWN[name](root=base, seed=seed)
    if name in digits.SETS:
        return digits.SETS[name](seed)
    if name in samples.SETS:
        return samples.load(name)
    if name in derived.names():
        return derived.load(name, base, seed=seed, partial=partial)
    if name.split("/")[0] in published_sets.SETS:
        return layouts.load(name, base, partial=partial)
    if name.startswith("folder:"):
        return files.class_folders(name, base)
    raise unknown("dataset", name, [*names(), "folder:PATH"])
