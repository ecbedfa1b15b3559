"""The APM towards an own target: the mean of the teacher's features of an image and of its mirror image.

Not in the paper. For pictures that mean the same when mirrored: digits and text do not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from apm import teachers
from apm.data import Dataset
from apm.methods.apm import BetterTargets
from apm.methods.method import register
from apm.methods.views import Encoded


@register("apm-mirror")
@dataclass(kw_only=True)
class MirrorTarget(BetterTargets):
    """`BetterTargets` with two views, both of which count. Nothing is drawn."""

    name: str = "APM, mirror image"
    views: int = 2
    share: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.views, self.share, self.augmix, self.flip) != (2, 1.0, False, True):
            raise ValueError("apm-mirror has the image and its mirror image: remove views, share, augmix and flip")

    def seen(self, dataset: Dataset, positions: np.ndarray, seed: int) -> Encoded:
        """The teacher's features (N, 2, D), and that no other method's work saved any time."""
        pairs = [np.stack([image, image[:, ::-1]]) for image in teachers.pictures(dataset, positions)]
        features = [self.teacher.encode(self.teacher.transform(pair)).feature for pair in pairs]
        return Encoded(torch.stack(features), np.zeros(len(pairs), dtype=np.float32))
