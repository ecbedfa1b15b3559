"""Tiny trees of the published sets in their true layouts, for tests of the loaders and for the rehearsal of profile `paper`.

    write(folder)                  # every set that the profile needs or can use, some ten images each
    imagenet_tree(folder / "val")  # one layout
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from apm import corruptions, published_sets
from apm.corruptions import NAMES as CORRUPTIONS
from apm.corruptions import SEVERITIES
from apm.published_sets import SETS

TENCH, RETRIEVER, TABBY, TISSUE = "n01440764", "n02099601", "n02123045", "n15075141"  # labels 0, 207, 281, 999
FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG"}
Painter = Callable[[Path, int], object]  # (file, number of the image) -> whatever; writes the file


def picture(path: Path, value: int = 0) -> Path:
    """A tiny image whose colour is the value, in the format of its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 5), (value, value, value)).save(path, format=FORMATS[path.suffix.lower()])
    return path


def pattern(number: int, size: tuple[int, int]) -> np.ndarray:
    """A smooth coloured pattern (H, W, 3) uint8, another one for every number. size: (W, H) in pixels."""
    seeds = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(seeds).resize(size, Image.Resampling.BICUBIC))


def photograph(path: Path, number: int = 0) -> Path:
    """An image as large as corruptions need it, in the format of its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pattern(number, (48, 40))).save(path, format=FORMATS[path.suffix.lower()])
    return path


def thumbnail(path: Path, number: int = 0) -> Path:
    """An image of CIFAR's size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pattern(number, (32, 32))).save(path, format=FORMATS[path.suffix.lower()])
    return path


# --------------------------------------------------------------------------------------------------------------- layouts


def imagenet_tree(
    folder: Path, classes: Iterable[str] = (TABBY, TENCH, TISSUE), per_class: int = 2, paint: Painter = picture
) -> None:
    """ImageNet's validation images in class folders; their numbers run against the order of the classes."""
    numbers = iter(range(50, 0, -1))
    for wnid in classes:
        for _ in range(per_class):
            number = next(numbers)
            paint(folder / wnid / f"ILSVRC2012_val_{number:08d}.JPEG", number)


def class_tree(
    folder: Path, classes: Iterable[str], per_class: int, paint: Painter, name: str = "{:04d}.png", first: int = 0
) -> None:
    """One folder per class."""
    for place, label in enumerate(classes):
        for i in range(per_class):
            number = first + place * per_class + i
            paint(folder / label / name.format(number), number)


def cifar_c(folder: Path, rows: int = 3, names: Iterable[str] = ("fog",)) -> tuple[np.ndarray, np.ndarray]:
    """CORRUPTION.npy, five severities of `rows` images one after the other, and labels.npy. Returns the last pixels, and labels."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    labels = np.tile(np.arange(rows) % 10, 5)
    np.save(folder / "labels.npy", labels)
    for name in names:
        pixels = rng.integers(0, 256, (5 * rows, 32, 32, 3), dtype=np.uint8)
        np.save(folder / f"{name}.npy", pixels)
    return pixels, labels


# how the paths in CoOp's split files look: class, number of the image -> path
COOP_PATHS: dict[str, str] = {
    "flowers102": "image_{number:05d}.jpg",
    "dtd": "{label}/{label}_{number:04d}.jpg",
    "pets": "{label}_{number}.jpg",
    "ucf101": "{label}/v_{label}_g01_c{number:02d}.jpg",
    "caltech101": "{label}/image_{number:04d}.jpg",
    "food101": "{label}/{number}.jpg",
    "sun397": "{letter}/{label}/sun_{number}.jpg",
    "eurosat": "{label}/{label}_{number}.jpg",
}
COOP_CLASSES: dict[str, tuple[str, ...]] = {
    "flowers102": ("pink primrose", "hard-leaved pocket orchid", "canterbury bells"),
    "dtd": ("banded", "blotchy", "braided"),
    "pets": ("abyssinian", "american_bulldog", "basset_hound"),
    "ucf101": ("Apply_Eye_Makeup", "Archery", "Band_Marching"),
    "caltech101": ("face", "leopard", "motorbike"),
    "food101": ("apple_pie", "baklava", "beef_tartare"),
    "sun397": ("abbey", "airplane_cabin", "airport_terminal"),
    "eurosat": ("Annual Crop Land", "Forest", "Highway or Road"),
}


def coop_tree(data: Path, name: str, per_class: int, paint: Painter) -> Path:
    """A set of CoOp's: images, and the split file whose training list names images that are not there. Returns that file."""
    entry = SETS[name]
    folder = data / entry.places[0]
    lists: dict[str, list[list[object]]] = {"train": [], "val": [], "test": []}
    for label, words in enumerate(COOP_CLASSES[name]):
        stem = words.replace(" ", "_")
        for i in range(per_class + 1):
            number = 10 * label + i
            path = COOP_PATHS[name].format(label=stem, letter=stem[0], number=number)
            lists["test" if i else "train"].append([path, label, words])
            if i:
                paint(folder / path, number)
    split = folder.parent / entry.split
    split.write_text(json.dumps(lists), encoding="utf-8")
    return split


def aircraft_tree(data: Path, per_class: int, paint: Painter) -> None:
    """FGVC-Aircraft as its authors leave it."""
    folder = data / SETS["aircraft"].places[0]
    variants = ("707-320", "727-200", "737-200")
    rows = []
    for label, variant in enumerate(variants):
        for i in range(per_class):
            number = 1_000_000 + 10 * label + i
            paint(folder / "images" / f"{number}.jpg", number)
            rows.append(f"{number} {variant}")
    (folder / "variants.txt").write_text("\n".join(variants) + "\n", encoding="utf-8")
    (folder / "images_variant_test.txt").write_text("\n".join(rows) + "\n", encoding="utf-8")


# ------------------------------------------------------------------------------------------------------------ every set


def write(data: Path) -> Path:
    """Below `data`, every set of profile `paper`, needed or optional, in the layout in which its authors leave it.

    Images of a set have 3 to 10 of its classes; corrupted sets all 15 corruptions and 5 severities.
    """
    classes = (TENCH, RETRIEVER, TABBY, TISSUE)
    imagenet_tree(data / "imagenet" / "val", classes, 3, photograph)
    # CoOp wants an image of every class up to the last that is there
    class_tree(data / "imagenet" / "train", published_sets.wnids()[:5], 2, photograph, "n0_{:d}.JPEG", 500)
    for name in ("imagenet-a", "imagenet-r"):
        own = published_sets.wnids(name.replace("-", "_"))[:4]
        class_tree(data / name, own, 3, photograph, "0.0{:d}_tree _ lawn_0.9.jpg", 600)
    class_tree(
        data / "imagenetv2-matched-frequency-format-val", ("0", "2", "10", "999"), 3, photograph, "{:d}.jpeg", 700
    )
    class_tree(data / "imagenet-sketch" / "sketch", classes, 3, photograph, "sketch_{:d}.JPEG", 800)
    for corruption in CORRUPTIONS:
        for severity in SEVERITIES:
            imagenet_tree(
                data / "imagenet-c" / corruption / str(severity), classes, 3, _corrupted(corruption, severity)
            )
    ten, hundred = published_sets.CIFAR10_NAMES, published_sets.CIFAR100_NAMES
    class_tree(data / "cifar10" / "test", ten, 3, thumbnail)
    class_tree(data / "cifar10" / "train", ten, 3, thumbnail, first=100)
    class_tree(data / "cifar100" / "test", [name.replace(" ", "_") for name in hundred[:10]], 2, thumbnail)
    for name in ("CIFAR-10-C", "CIFAR-100-C"):
        cifar_c(data / name, 10, CORRUPTIONS)
    new = data / "CIFAR-10.1" / "datasets"
    new.mkdir(parents=True)
    np.save(new / "cifar10.1_v6_data.npy", np.stack([pattern(900 + i, (32, 32)) for i in range(10)]))
    np.save(new / "cifar10.1_v6_labels.npy", np.arange(10, dtype=np.int32))
    for name in COOP_PATHS:
        coop_tree(data, name, 5, photograph)
    aircraft_tree(data, 5, photograph)
    for part in ("train", "val"):
        for i in range(20):
            photograph(data / "coco" / f"{part}2017" / f"{i:012d}.jpg", 1000 + i)
    return data


def _corrupted(corruption: str, severity: int) -> Painter:
    def paint(path: Path, number: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        changed = corruptions.corrupt(pattern(number, (48, 40)), corruption, severity, regime="imagenet-c")
        Image.fromarray(changed).save(path, format="JPEG")

    return paint
