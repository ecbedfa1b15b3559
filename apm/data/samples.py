"""A few labelled natural images that come with a package of PyPI: they need no download and no data folder.

foolbox (Rauber, Brendel and Bethge, ICML 2017 workshop; Rauber et al., JOSS 2020) carries 20 ImageNet images, and 20 test images
each of CIFAR-10 and CIFAR-100, with the label in the name of the file. Its code is not imported.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from apm.data import prompts
from apm.data.dataset import Dataset, made
from apm.data.files import read_image
from apm.data.published_sets import CLASSES, imagenet_names

SIDE = 224  # px of the ImageNet images, cut as those of ImageNet-C were
# name: (how the files' names begin, prompts, licence)
SETS = {
    "imagenet-sample": ("imagenet", "imagenet-80", "ImageNet terms of access: non-commercial research and education"),
    "cifar10-sample": ("cifar10", "cifar10", "none stated"),
    "cifar100-sample": ("cifar100", "cifar100", "none stated"),
}


@cache
def load(name: str) -> Dataset:
    """One of `SETS`. ImageNet's images are resized to 256 px and cut to the middle 224, as those of ImageNet-C were before they were
    corrupted; their class names are all 1000. Raises ModuleNotFoundError where the package is not installed."""
    start, words, licence = SETS[name]
    spec = find_spec("foolbox")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            f"dataset {name}: its images come with the package foolbox, which is not installed: pip install foolbox",
            name="foolbox",
        )
    files = sorted((Path(spec.origin).parent / "data").glob(f"{start}_*"))
    images = [read_image(file) for file in files]
    if start == "imagenet":
        images = [_middle(image) for image in images]
    classnames = tuple(imagenet_names().values()) if start == "imagenet" else CLASSES[start]
    return made(
        np.stack(images),
        np.array([int(file.stem.split("_")[-1]) for file in files]),
        name=name,
        classnames=classnames,
        templates=prompts.templates(words),
        notes=f"{len(files)} images of {start.replace('cifar', 'CIFAR-').replace('imagenet', 'ImageNet')} among {len(classnames):,} "
        f"classes, from the package foolbox {version('foolbox')} (MIT). Licence of the images: {licence}.",
    )


def _middle(image: np.ndarray) -> np.ndarray:
    """The middle of a photograph (H, W, 3), (224, 224, 3): Resize(256) and CenterCrop(224) of make_imagenet_c.py."""
    height, width = image.shape[:2]
    scale = 256 / min(height, width)
    picture = Image.fromarray(image).resize((round(width * scale), round(height * scale)), Image.Resampling.BILINEAR)
    left, top = (picture.width - SIDE) // 2, (picture.height - SIDE) // 2
    return np.asarray(picture.crop((left, top, left + SIDE, top + SIDE)))
