"""Images as the networks see them: by a teacher's own preprocessing, and as the student reads them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as transforms

from apm.data import Dataset

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LARGE = 1_000_000  # pixels of a batch from which on threads transform it; Pillow and torch release Python's lock
Images = Sequence[np.ndarray] | np.ndarray


@dataclass
class Cropped(PreprocessCfg):
    """How a network sees images that was trained on their middle: the shorter side is resized to size / crop, the middle cut out.

    Square images of `whole` px are taken as they are: they were cut before (ImageNet-C, `imagenet-sample`).
    """

    crop: float = 1.0
    whole: int = 0

    def __call__(self, image: np.ndarray) -> Image.Image:
        """The part of an image (H, W, 3) uint8 that is seen, at this size."""
        picture, side = Image.fromarray(image), self.input_size[1]
        if self.crop == 1 or image.shape[:2] == (self.whole, self.whole):
            return picture
        way = InterpolationMode(self.interpolation)
        return transforms.center_crop(transforms.resize(picture, math.floor(side / self.crop), way), side)


def preprocess(images: Images, config: PreprocessCfg) -> Tensor:
    """uint8 RGB images (H, W, 3) of any sizes -> float32 (N, 3, S, S) by open_clip's evaluation transform. Raises ValueError for images
    of another type or shape, and for none."""
    if not len(images):
        raise ValueError("expected at least one image, found none")
    for i, image in enumerate(images):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
            raise ValueError(f"image {i}: expected uint8 (H, W, 3), found {image.dtype} {image.shape}")
    transform = image_transform_v2(config, is_train=False)
    if isinstance(config, Cropped):
        images = [np.asarray(config(image)) for image in images]
    if {image.shape for image in images} == {(*config.input_size[1:], 3)}:
        # Resizing and cropping do nothing at the model's own size: the rest of the transform, on all images at once.
        pixels = torch.from_numpy(np.stack(list(images))).permute(0, 3, 1, 2).contiguous()  # (N, 3, S, S)
        return transform.transforms[-1](pixels.float().div(255))
    large = sum(image.shape[0] * image.shape[1] for image in images) >= LARGE
    one_each = partial(torch.set_num_threads, 1)  # within each of them
    return torch.stack(_each(lambda image: transform(Image.fromarray(image)), images, large, one_each))


def fitted(image: np.ndarray, config: PreprocessCfg) -> np.ndarray:
    """The pixels (S, S, 3) uint8 that a network sees of an image uint8 (H, W, 3): resized and cut, not yet normalised."""
    picture = config(image) if isinstance(config, Cropped) else Image.fromarray(image)
    for step in image_transform_v2(config, is_train=False).transforms[:-2]:  # the last two: to floats, normalise
        picture = step(picture)
    return np.array(picture)


def pictures(dataset: Dataset, positions: np.ndarray) -> list[np.ndarray]:
    """The images at `positions`, uint8 (H, W, 3); files are decoded by several threads. Raises as the dataset does."""
    chosen = [int(i) for i in positions]
    return _each(dataset.images.__getitem__, chosen, not dataset.in_memory and len(chosen) >= 8)


def _each(
    change: Callable[[Any], Any], items: Iterable[Any], threads: bool, setup: Callable[[], None] | None = None
) -> list[Any]:
    """Every item changed: by as many threads as torch may use, each set up so, or by none."""
    if not threads or torch.get_num_threads() < 2:
        return [change(item) for item in items]
    with ThreadPoolExecutor(torch.get_num_threads(), initializer=setup) as pool:
        return list(pool.map(change, items))


def student_images(images: Images, size: int, like: PreprocessCfg | None = None) -> Tensor:
    """uint8 RGB images -> float32 (N, 3, size, size) for the student: ImageNet mean and standard deviation (appendix E.1).

    like: the teacher's preprocessing, so that both see the same part of an image; None: as most teachers, the shorter side resized,
    bicubic, and the middle of the longer one.
    """
    given = {"size": size, "mean": IMAGENET_MEAN, "std": IMAGENET_STD, "interpolation": "bicubic"}
    return preprocess(images, PreprocessCfg(**given) if like is None else replace(like, **given))


def patch_colours(images: Tensor, patch: int) -> Tensor:
    """(N, h*w, 3) mean colour in 0..1 of every patch of `student_images` (N, 3, H, W): the target of L_rgb."""
    mean, std = (torch.tensor(values).view(3, 1, 1).to(images) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return F.avg_pool2d(images * std + mean, patch).flatten(2).mT.clamp(0, 1)
