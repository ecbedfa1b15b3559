"""Looks into the student's grid while it learns: the features of every location, at chosen iterations.

Places whose features agree form *islands* (section 3.5, Figures 3 and 7 of the paper; the word is GLOM's).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from apm import figures
from apm.model import APMConfig, activations, head, patches, perceive
from apm.teachers import IMAGENET_MEAN, IMAGENET_STD


class Snapshots:
    """Callback for `apm.ttt.adapt` that keeps the feature grids of all images after chosen numbers of updates.

    student: the config that is trained (`apm.ttt.trained_student`). images: (N, 3, H, W), those passed to `adapt`.
    iterations: numbers of updates to look at, 0 for the random weights. tokens: (N, h*w, D') for column="tokens".

    `grids[k]` is a float32 array (N, h, w, D) after `adapt` has returned. It only looks: training does not depend on it.
    """

    def __init__(
        self, student: APMConfig, images: Tensor, iterations: Sequence[int], tokens: Tensor | None = None
    ) -> None:
        self.student, self.images, self.tokens = student, images, tokens
        self.iterations = sorted(set(iterations))
        shape = (len(images), *student.grid, student.width)
        self.grids = {k: np.full(shape, np.nan, dtype=np.float32) for k in self.iterations}

    def __call__(self, k: int, part: slice, parameters: Mapping[str, Tensor]) -> None:
        """Called by `adapt` after k updates of the images in `part`."""
        if k not in self.grids:
            return
        dtype = parameters["head_weight"].dtype
        x = patches(self.images[part].to(dtype), self.student)
        tokens = None if self.tokens is None else self.tokens[part].to(dtype)
        with torch.no_grad():
            percept = perceive(parameters, x, self.student, tokens)
            features = head(parameters, activations(parameters, percept, self.student))
        self.grids[k][part] = features.unflatten(1, self.student.grid).float().cpu().numpy()

    def colours(self, image: int = 0) -> list[np.ndarray]:
        """One RGB picture (h, w, 3) in 0..1 per iteration: the first three principal components of that grid."""
        return [figures.grid_rgb(self.grids[k][image]) for k in self.iterations]


def displayed(image: Tensor) -> np.ndarray:
    """A student's normalised image (3, H, W) as it looks: float RGB (H, W, 3) in 0..1."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (image.cpu() * std + mean).clamp(0, 1).permute(1, 2, 0).numpy()
