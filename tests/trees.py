"""Small trees of the published sets in their true layouts, filled with noise: what a rehearsal and tests read in their place."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from apm.data import corruptions
from apm.data.published_sets import CLASSES, SETS, wnids

SIZE = (48, 40)  # width, height of the photographs
LAND = (
    "AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial", "Pasture", "PermanentCrop", "Residential", "River", "SeaLake",
)  # fmt: skip
EACH = 12  # images of a set: a few more than an interval needs


def photograph(path: Path, seed: int, size: tuple[int, int] = SIZE) -> None:
    """A picture of coloured blocks, in the format of its suffix."""
    blocks = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    save(Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST), path)


def save(image: Image.Image, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, format="PNG" if path.suffix == ".png" else "JPEG")
    return path


def imagenet(data: Path, n: int = EACH) -> None:
    """Validation (class folders), -A, -V2, -R, -Sketch, and -C in 15 types and 5 severities: one image of each of n classes; the
    training split: one small image of all 1000 classes."""
    for c, wnid in enumerate(wnids()[:n]):
        photograph(data / "imagenet" / "val" / wnid / f"ILSVRC2012_val_{c + 1:08d}.JPEG", c)
        photograph(data / "imagenet-sketch" / "sketch" / wnid / f"sketch_{c}.JPEG", 100 + c)
        photograph(data / "imagenetv2-matched-frequency-format-val" / str(c) / f"{c}.jpeg", 200 + c)
        for kind in corruptions.NAMES:
            for severity in corruptions.SEVERITIES:
                folder = data / "imagenet-c" / kind / str(severity) / wnid
                photograph(folder / f"ILSVRC2012_val_{c + 1:08d}.JPEG", 300 + 10 * c + severity)
    for name in ("imagenet-a", "imagenet-r"):
        for c, wnid in enumerate(wnids(name.replace("-", "_"))[:n]):
            photograph(data / name / wnid / f"{c}.jpg", 1000 + c)
    for c, wnid in enumerate(wnids()):
        photograph(data / "imagenet" / "train" / wnid / f"{wnid}_1.JPEG", 2000 + c, (16, 16))


def cifar(data: Path, n: int = 3 * EACH) -> None:
    """CIFAR-10 and -100 as class folders, n test images over the first classes and 40 training images of CIFAR-10; CIFAR-10-C.

    Notebook 07 pairs a third of the images, and an interval needs ten pairs."""
    for i in range(n):
        photograph(data / "cifar10" / "test" / CLASSES["cifar10"][i % 10] / f"{i:04d}.png", 4000 + i, (32, 32))
        photograph(data / "cifar100" / "test" / CLASSES["cifar100"][i] / f"{i:04d}.png", 5000 + i, (32, 32))
    for i in range(40):
        photograph(data / "cifar10" / "train" / CLASSES["cifar10"][i % 10] / f"{i:04d}.png", 6000 + i, (32, 32))
    folder = data / "CIFAR-10-C"
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    np.save(folder / "labels.npy", np.tile(np.arange(n) % 10, 5))
    for kind in corruptions.NAMES:
        np.save(folder / f"{kind}.npy", rng.integers(0, 256, (5 * n, 32, 32, 3), dtype=np.uint8))


def cross_dataset(data: Path, n: int = 15) -> None:
    """The nine sets of Table 3: n test images over three classes each, with CoOp's split file or the authors' lists. The probe
    of notebook 03 has five folds, so that a class needs five images."""
    coop(data, [name for name, entry in SETS.items() if entry.split], n)
    folder = data / SETS["aircraft"].places[0]
    variants = ("707-320", "A300B4", "Yak-42")
    for i in range(n):
        photograph(folder / "images" / f"{i:07d}.jpg", 8000 + i)
    (folder / "variants.txt").write_text("\n".join(variants) + "\n", encoding="utf-8")
    lines = [f"{i:07d} {variants[i % 3]}" for i in range(n)]
    (folder / "images_variant_test.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def coop(data: Path, names: Sequence[str], n: int = 15) -> None:
    """Sets with CoOp's split files."""
    words = ("ant", "Bee_Hive", "cat")
    for entry in (SETS[name] for name in names):
        folder = data / entry.places[0]
        lists: dict[str, list] = {"train": [], "val": [], "test": []}
        for i in range(n):
            relative = f"{words[i % 3]}/{i}.jpg"
            photograph(folder / relative, 7000 + i)
            lists["test"].append([relative, i % 3, words[i % 3]])
        lists["train"].append(["ant/other.jpg", 0, "ant"])
        (folder.parent / entry.split).write_text(json.dumps(lists), encoding="utf-8")


def downloads(data: Path, n: int = 15) -> Path:
    """The sets of profile `clip` as torchvision leaves them, but CIFAR-10 and Flowers102, whose checksums it tests; n images of three classes
    each. Returns the data folder."""
    cifar(data)
    coop(data, ["flowers102"], n)
    kinds, breeds, things = (
        ("banded", "dotted", "lined"),
        ("Abyssinian", "beagle", "Bombay"),
        ("ant", "ewer", "yin_yang"),
    )
    lists: dict[str, list[str]] = {"dtd/dtd/labels/test1.txt": [], "oxford-iiit-pet/annotations/test.txt": []}
    textures, pets = lists.values()
    for name in LAND:
        (data / "eurosat" / "2750" / name).mkdir(parents=True)
    for i in range(n):
        kind, breed, thing, land = (names[i % 3] for names in (kinds, breeds, things, LAND))
        textures.append(f"{kind}/{kind}_{i}.jpg")
        pets.append(f"{breed}_{i} {i % 3 + 1} 1 1")
        photograph(data / "dtd" / "dtd" / "images" / textures[-1], 10000 + i)
        photograph(data / "oxford-iiit-pet" / "images" / f"{breed}_{i}.jpg", 10100 + i)
        photograph(data / "caltech101" / "101_ObjectCategories" / thing / f"image_{i:04d}.jpg", 10200 + i)
        photograph(data / "eurosat" / "2750" / land / f"{land}_{i}.jpg", 10300 + i, (64, 64))
    for name, lines in lists.items():
        (data / name).parent.mkdir(parents=True)
        (data / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    for c, wnid in enumerate(wnids("imagenet_a")[:EACH]):
        photograph(data / "imagenet-a" / wnid / f"{c}.jpg", 10400 + c)
        photograph(data / "imagenetv2-matched-frequency-format-val" / str(c) / f"{c}.jpeg", 10500 + c)
    return data


def coco(data: Path, n: int = 2 * EACH) -> None:
    """Images without labels."""
    for i in range(n):
        photograph(data / "coco" / "val2017" / f"{i:012d}.jpg", 9000 + i)
        photograph(data / "coco" / "train2017" / f"{i:012d}.jpg", 9500 + i)


def everything(data: Path) -> Path:
    """All sets that profile `paper` names. Returns the data folder."""
    for build in (imagenet, cifar, cross_dataset, coco):
        build(data)
    return data


# smaller still, for tests of one layout
TENCH, RETRIEVER, TABBY, TISSUE = "n01440764", "n02099601", "n02123045", "n15075141"  # labels 0, 207, 281, 999


def uniform(path: Path, value: int = 0) -> Path:
    """A tiny image whose colour is the value, in the format of its suffix."""
    return save(Image.new("RGB", (6, 5), (value, value, value)), path)


def imagenet_classes(folder: Path, classes=(TABBY, TENCH, TISSUE), per_class=2) -> None:
    """A class tree whose order by number is not that by class; an image's colour is its number."""
    for k, wnid in enumerate(wnid for wnid in classes for _ in range(per_class)):
        uniform(folder / wnid / f"ILSVRC2012_val_{50 - k:08d}.JPEG", 50 - k)


def coop_split(data: Path, name: str, place: int = 0) -> Path:
    """A split file of CoOp's form and its images; the test list is not in the order of labels. Returns the split file."""
    entry = SETS[name]
    folder = data / entry.places[place]
    lists = {
        "train": [["a/Some_Class/1.jpg", 0, "Some_Class"], ["b/other/1.jpg", 1, "other"]],
        "val": [["c/third/1.jpg", 2, "third"]],
        "test": [["b/other/2.jpg", 1, "other"], ["a/Some_Class/2.jpg", 0, "Some_Class"], ["c/third/2.jpg", 2, "third"]],
    }
    for path, label, _ in lists["test"]:
        uniform(folder / path, 10 * label)
    split = folder.parent / entry.split
    split.write_text(json.dumps(lists))
    return split


def environment(clone: Path) -> None:
    """An environment in a clone, of which make believes that it has made it: this Python, with the clone's own package."""
    python = clone / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{clone}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    (clone / ".make").mkdir()
    (clone / ".make" / "venv").touch()
