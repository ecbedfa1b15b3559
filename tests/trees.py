"""Small trees of the published sets in their true layouts, filled with noise: what a rehearsal and tests read in their place."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from apm.data import corruptions, published_sets
from apm.data.published_sets import CIFAR10_NAMES, CIFAR100_NAMES, SETS, wnids

SIZE = (48, 40)  # width, height of the photographs
EACH = 12  # images of a set: a few more than an interval needs


def photograph(path: Path, seed: int, size: tuple[int, int] = SIZE) -> Path:
    """A picture of coloured blocks, in the format of its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    kind = "PNG" if path.suffix == ".png" else "JPEG"
    Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST).save(path, format=kind)
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
        photograph(data / "cifar10" / "test" / CIFAR10_NAMES[i % 10] / f"{i:04d}.png", 4000 + i, (32, 32))
        photograph(data / "cifar100" / "test" / CIFAR100_NAMES[i] / f"{i:04d}.png", 5000 + i, (32, 32))
    for i in range(40):
        photograph(data / "cifar10" / "train" / CIFAR10_NAMES[i % 10] / f"{i:04d}.png", 6000 + i, (32, 32))
    folder = data / "CIFAR-10-C"
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    np.save(folder / "labels.npy", np.tile(np.arange(n) % 10, 5))
    for kind in corruptions.NAMES:
        np.save(folder / f"{kind}.npy", rng.integers(0, 256, (5 * n, 32, 32, 3), dtype=np.uint8))


def cross_dataset(data: Path, n: int = 15) -> None:
    """The nine sets of Table 3: n test images over three classes each, with CoOp's split file or the authors' lists. The probe
    of notebook 03 has five folds, so that a class needs five images."""
    words = ("ant", "Bee_Hive", "cat")
    for entry in (entry for entry in SETS.values() if entry.split):
        folder = data / entry.places[0]
        lists: dict[str, list] = {"train": [], "val": [], "test": []}
        for i in range(n):
            relative = f"{words[i % 3]}/{i}.jpg"
            photograph(folder / relative, 7000 + i)
            lists["test"].append([relative, i % 3, words[i % 3]])
        lists["train"].append(["ant/other.jpg", 0, "ant"])
        (folder.parent / entry.split).write_text(json.dumps(lists), encoding="utf-8")
    folder = data / SETS["aircraft"].places[0]
    variants = ("707-320", "A300B4", "Yak-42")
    for i in range(n):
        photograph(folder / "images" / f"{i:07d}.jpg", 8000 + i)
    (folder / "variants.txt").write_text("\n".join(variants) + "\n", encoding="utf-8")
    lines = [f"{i:07d} {variants[i % 3]}" for i in range(n)]
    (folder / "images_variant_test.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


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


def named() -> set[str]:
    """Names of the sets that `everything` makes."""
    made = {
        "imagenet",
        "imagenet-train",
        "imagenet-a",
        "imagenet-v2",
        "imagenet-r",
        "imagenet-sketch",
        "imagenet-c",
        "aircraft",
    }
    made |= {"cifar10", "cifar10-train", "cifar100", "cifar10-c", "coco-train", "coco-val"}
    return made | {name for name, entry in published_sets.SETS.items() if entry.split}
