"""Images as callers bring them: PIL's beside arrays. Arrays pass as they are, so nothing that is kept depends on this file."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from apm.teachers import images as arrays


def _array(image: Image.Image) -> np.ndarray:
    """uint8 RGB (H, W, 3), turned by its EXIF tag as files are."""
    return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def _bring(change: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same function, of PIL images too: a sequence of them, mixed with arrays or not, or a single one."""

    @functools.wraps(change)
    def of_any(images: Any, *args: Any, **options: Any) -> Tensor:
        several = [images] if isinstance(images, Image.Image) else images
        if not isinstance(several, np.ndarray):
            several = [_array(one) if isinstance(one, Image.Image) else one for one in several]
        return change(several, *args, **options)

    return of_any


preprocess, student_images = _bring(arrays.preprocess), _bring(arrays.student_images)
