"""The APM with a better target: the mean teacher feature over the views that the teacher is sure of.

The paper distils the teacher's feature of the image itself (Modi & Rawat, NeurIPS 2024, section 3.6). A better representation
to distil needs no label: of n views (`apm.methods.views`) the confident share is averaged, and the student is trained
towards that by the same loss, iterations and optimiser. One view is the paper's APM exactly. Beside ZERO and MTA at the same
number of views this shows what the student adds to its target; `target_prediction` says what the target alone predicts.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from apm import teachers, ttt
from apm.data.datasets import Dataset
from apm.methods.common import classifier, modules, outcome, settings
from apm.methods.method import Predictions
from apm.methods.registry import register
from apm.methods.views import VIEWS, confident, encoded, kept
from apm.teachers import Teacher
from apm.ttt import TTTConfig


def mean_target(features: Tensor, text: Tensor, scale: float, share: float, *, unit: bool) -> Tensor:
    """(D,) mean over the confident of n views' features (n, D), each of unit length first if `unit`.

    text: (C, D) unit-length class features; scale: the teacher's logit_scale.
    """
    units = F.normalize(features, dim=-1)
    chosen = confident(scale * units @ text.T, share)
    return (units if unit else features)[chosen].mean(dim=0)


@register("apm-views")
@dataclass
class BetterTargets:
    """Test-time training of an APM (`apm.ttt`) towards the mean teacher feature over the confident views.

    views: 64, the image and 63 crops. share: 0.1 of lowest entropy, as TPT selects (`--selection_p`); with one view there is
        nothing to select. config: as of `apm.methods.APM`; the student still sees the image itself, once per iteration.
    flip: False where the mirror image is another class or none.
    confidence: softmax of the student's last scores at the teacher's temperature. teacher_passes: the views; the student's
        own passes are not the teacher's. Extra columns target_prediction, target_confidence and target_milliseconds: the class
        of the target without a student, its probability, and the time until it is known.
    """

    teacher: Teacher
    config: TTTConfig
    name: str = "APM, views"
    views: int = VIEWS
    share: float = 0.1
    augmix: bool = False
    flip: bool = True
    templates: tuple[str, ...] | None = None
    modules: ClassVar[tuple[str, ...]] = modules("better_targets")

    def __post_init__(self) -> None:
        if self.views != 1:
            kept(self.views, self.share)

    @property
    def online(self) -> bool:
        """Whether state is carried from image to image: by the released protocol, not by the corrected one."""
        return self.config.carried

    def settings(self) -> dict[str, Any]:
        """Teacher, prompts, views, and every setting of the student and its training that can change a number."""
        config = asdict(self.config)
        del config["lockstep"]  # how many images train side by side changes speed and memory only
        # the random weights are drawn by the device's generator
        return {**settings(self, "apm-views"), "config": config, "device": self.teacher.device.type}

    def prepare(self, dataset: Dataset) -> None:
        """With one view: encode the dataset into the cache, before many processes ask for it."""
        if self.views == 1:
            teachers.features(self.teacher, dataset)

    def targets(self, dataset: Dataset, positions: np.ndarray, seed: int) -> tuple[Tensor, np.ndarray]:
        """(N, D) what the students are trained to equal, and (N,) milliseconds that another method's views saved."""
        if self.views == 1:
            stored = torch.as_tensor(np.array(teachers.features(self.teacher, dataset)[positions]))
            return stored.float().to(self.teacher.device), np.zeros(len(positions), dtype=np.float32)
        text, scale = classifier(self.teacher, dataset, self.templates), self.teacher.logit_scale
        seen = encoded(self.teacher, dataset, positions, self.views, seed=seed, augmix=self.augmix, flip=self.flip)
        unit = self.config.normalise_target  # else long features would outvote short ones
        means = [mean_target(one, text, scale, self.share, unit=unit) for one in seen.features]
        return torch.stack(means), seen.saved_milliseconds

    def predict(self, dataset: Dataset, positions: np.ndarray, seed: int) -> Predictions:
        """One new student per image; random weights and views from the seed and the image's pixels."""
        config, teacher = self.config, self.teacher
        student = config.student
        h, w = student.image_size
        if h != w:
            raise ValueError(f"datasets are read at square sizes, found a student of {h} x {w} px: use a square grid")
        pictures = [dataset.images[int(i)] for i in positions]
        images = teachers.student_images(pictures, h, resize_mode=teacher.preprocess_config.resize_mode).to(
            teacher.device
        )
        options: dict[str, Any] = {}
        if config.loss_grid or student.column == "tokens":
            options["tokens"] = teachers.token_grid(teacher, pictures, student.grid)
        if config.loss_rgb:
            options["colours"] = teachers.patch_colours(images, student.patch)
        start = time.perf_counter()
        targets, saved = self.targets(dataset, positions, seed)
        text = classifier(teacher, dataset, self.templates)
        of_target = (teacher.logit_scale * ttt.cosine_scores(targets, text)).softmax(dim=-1).max(dim=-1)
        target_confidence, target_prediction = of_target.values.cpu().numpy(), of_target.indices.cpu().numpy()
        target_milliseconds = 1e3 * (time.perf_counter() - start) / len(positions)
        good = targets.isfinite().all(dim=-1)  # a failed target fails its own image only
        result = ttt.adapt(
            images, torch.where(good[:, None], targets, 1.0), config, text_features=text, seed=seed, **options
        )
        assert result.scores is not None
        bad = ~good.cpu().numpy()
        status = ["non-finite target" if b else s for s, b in zip(result.status, bad, strict=True)]
        failed = np.array([s != "ok" for s in status])
        path, losses = result.predictions().cpu().numpy(), result.losses.cpu().numpy()
        path[bad], losses[bad] = -1, np.nan
        # nothing finite at all: argmin would raise, and the prediction is -1 anyway
        lowest = np.where(np.isfinite(losses), losses, np.inf).argmin(axis=1)
        at_lowest = np.take_along_axis(path, lowest[:, None], axis=1)[:, 0]
        said = outcome(
            (teacher.logit_scale * result.scores[:, -1]).softmax(dim=-1),
            prediction=torch.as_tensor(path[:, -1]),
            status=status,
            teacher_passes=self.views,
            saved_milliseconds=saved,
            target_prediction=np.where(bad, -1, target_prediction).astype(np.int32),
            target_confidence=np.where(bad, np.nan, target_confidence).astype(np.float32),
            target_milliseconds=np.full(len(positions), target_milliseconds, dtype=np.float32),
        )
        said.path = path.astype(np.int16)
        said.first_loss = losses[:, 0].astype(np.float64)
        said.last_loss = losses[:, -1].astype(np.float64)
        said.minimum_loss_prediction = np.where(failed, -1, at_lowest).astype(np.int64)
        return said
