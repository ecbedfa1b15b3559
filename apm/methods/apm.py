"""Test-time training of an asynchronous perception machine towards a feature of the teacher, one student per image.

`APM`: towards that of the image itself (Modi & Rawat, NeurIPS 2024, section 3.6). `BetterTargets`: towards the mean over the confident
of n views; beside ZERO and MTA it shows what the student adds to its target.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import KW_ONLY, asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from open_clip.transform import PreprocessCfg
from torch import Tensor

from apm import model, teachers, ttt
from apm.data import Dataset
from apm.methods.method import Predictions, WithPrompts, WithViews, outcome, register
from apm.methods.views import VIEWS, confident, kept
from apm.project import unknown
from apm.teachers import Teacher
from apm.ttt import TTTConfig
from apm.typed import checked

PICTURES = ("teacher", "squash")


def training_config(
    teacher: Teacher, student: Mapping[str, Any] | None = None, training: Mapping[str, Any] | None = None
) -> TTTConfig:
    """The settings of test-time training from a profile's plain values.

    student: fields of `APMConfig` over those of its `preset` (default "mini"), widths the teacher's unless given. training: fields of
    `TTTConfig`. Raises ValueError for unknown fields and values of another type.
    """
    chosen, training = {"width": teacher.width, **(student or {})}, dict(training or {})
    if chosen.get("column") == "tokens":
        chosen.setdefault("token_width", teacher.width)
    base = model.preset(str(chosen.pop("preset", "mini")))
    for kind, values, made in (("student", chosen, model.APMConfig), ("training", training, TTTConfig)):
        known = [f.name for f in fields(made) if f.name != "student"]
        for name in values:
            if name not in known:
                raise unknown(f"field of the {kind}", name, known)
    return TTTConfig(student=replace(base, **chosen), **training)


def student_pictures(teacher: Teacher, images: teachers.Images, size: int, picture: str = "teacher") -> Tensor:
    """uint8 RGB images (H, W, 3) -> float32 (N, 3, size, size) for the student, normalised by ImageNet's mean and deviation.

    picture: "teacher": resized and cropped as the teacher's own (most: shorter side, bicubic, centre crop); "squash": the whole image
    to the square, bilinear, as the released code does for the student alone.
    """
    if picture == "squash":
        squash = {"resize_mode": "squash", "interpolation": "bilinear"}
        config = PreprocessCfg(size=size, mean=teachers.IMAGENET_MEAN, std=teachers.IMAGENET_STD, **squash)
        return teachers.preprocess(images, config)
    return teachers.student_images(images, size, teacher.preprocess_config)


def adapt_dataset(
    teacher: Teacher,
    dataset: Dataset,
    positions: np.ndarray,
    config: TTTConfig,
    *,
    templates: tuple[str, ...] | None = None,
    seed: int = 0,
    picture: str = "teacher",
    targets: Tensor | None = None,
    **options: Any,
) -> ttt.TTTResult:
    """`apm.ttt.adapt` on images of a dataset, with tokens and colours where a loss or the column needs them.

    targets: (n, D); default: the teacher's cached features. picture: as of `student_pictures`. options go to `adapt`. Raises
    ValueError for another width than the teacher's and for grids that are not square.
    """
    student = config.student
    if student.width != teacher.width:
        raise ValueError(
            f"the student's width {student.width} must be the width {teacher.width} of teacher {teacher.name}: set width in the profile"
        )
    h, w = student.image_size
    if h != w:
        raise ValueError(f"datasets are read at square sizes, found a student of {h} x {w} px: use a square grid")
    pictures = teachers.pictures(dataset, positions)
    images = student_pictures(teacher, pictures, h, picture).to(teacher.device)
    if config.loss_grid or student.column == "tokens":
        options["tokens"] = teachers.token_grid(teacher, pictures, student.grid)
    if config.loss_rgb:
        options["colours"] = teachers.patch_colours(images, student.patch)
    if targets is None:
        targets = teachers.features_at(teacher, dataset, positions)
    text = teacher.text_features(dataset.classnames, templates or dataset.templates)
    return ttt.adapt(images, targets.to(teacher.device), config, text_features=text, seed=seed, **options)


@checked
@dataclass
class APM(WithViews, WithPrompts):
    """Test-time training towards the teacher's feature of each image (`apm.ttt`).

    Prediction and confidence: of the scores after `config.iterations` updates, fixed beforehand. picture: as of
    `student_pictures`. views, share: see `BetterTargets`. teacher_passes: the views.
    """

    config: TTTConfig
    _: KW_ONLY
    name: str = "APM"
    views: int = 1
    share: float = 0.1
    picture: str = "teacher"

    def __post_init__(self) -> None:
        if self.picture not in PICTURES:
            raise unknown("picture", self.picture, PICTURES)
        if self.views != 1:
            kept(self.views, self.share)

    @property
    def online(self) -> bool:  # type: ignore[override]
        """Whether state is carried from image to image: by the released protocol's optimiser."""
        return self.config.carried

    def settings(self) -> dict[str, Any]:
        config = asdict(self.config)
        del config["lockstep"]  # how many images train side by side changes speed and memory only
        # the random weights are drawn by the device's generator
        return {**super().settings(), "config": config, "device": self.teacher.device.type}

    def prepare(self, dataset: Dataset) -> None:
        """Encode dataset and prompts, before many processes ask for them."""
        if self.views == 1:
            teachers.features(self.teacher, dataset)
        self.text(dataset)

    def targets(self, dataset: Dataset, positions: np.ndarray, seed: int) -> tuple[Tensor, dict[str, np.ndarray]]:
        """(n, D) what the students are trained to equal, and extra columns of the records, (n,) each."""
        return teachers.features_at(self.teacher, dataset, positions).to(self.teacher.device), {}

    def predict(self, dataset: Dataset, positions: np.ndarray, seed: int) -> Predictions:
        """One new student per image; random weights and views from the seed and the image's pixels."""
        targets, extra = self.targets(dataset, positions, seed)
        good = targets.isfinite().all(dim=-1)  # a failed target fails its own image only
        result = adapt_dataset(
            *(self.teacher, dataset, positions, self.config),
            targets=torch.where(good[:, None], targets, 1.0),
            templates=self.templates,
            seed=seed,
            picture=self.picture,
        )
        assert result.scores is not None
        bad = ~good.cpu().numpy()
        status = ["non-finite target" if b else s for s, b in zip(result.status, bad, strict=True)]
        path, losses = result.predictions().cpu().numpy(), result.losses.cpu().numpy()
        path[bad], losses[bad] = -1, np.nan
        said = outcome(
            self.teacher.probabilities(result.scores[:, -1]),
            prediction=torch.as_tensor(path[:, -1]),
            status=status,
            teacher_passes=self.views,
            **extra,
        )
        said.path = path.astype(np.int16)
        said.first_loss, said.last_loss = losses[:, 0].astype(np.float64), losses[:, -1].astype(np.float64)
        # nothing finite at all: argmin would raise, and the prediction is -1 anyway
        lowest = np.where(np.isfinite(losses), losses, np.inf).argmin(axis=1)
        said.minimum_loss_prediction = np.where(said.prediction < 0, -1, path[np.arange(len(path)), lowest])
        return said


def mean_target(features: Tensor, text: Tensor, scale: float, share: float, *, unit: bool) -> Tensor:
    """(D,) mean over the confident of n views' features (n, D), of unit length first if `unit`; text: (C, D) unit-length."""
    units = F.normalize(features, dim=-1)
    chosen = confident(scale * units @ text.T, share)
    return (units if unit else features)[chosen].mean(dim=0)


@register("apm-views")
@dataclass
class BetterTargets(APM):
    """The APM with a better target: the mean teacher feature over the views that the teacher is sure of.

    share: 0.1 of lowest entropy, as TPT selects (`--selection_p`). The student sees the image itself. Extra columns
    target_prediction, target_confidence, target_milliseconds: of the target without a student.
    """

    _: KW_ONLY
    name: str = "APM, views"
    views: int = VIEWS

    def targets(self, dataset: Dataset, positions: np.ndarray, seed: int) -> tuple[Tensor, dict[str, np.ndarray]]:
        start, teacher, text = time.perf_counter(), self.teacher, self.text(dataset)
        if self.views == 1:
            targets, saved = super().targets(dataset, positions, seed)[0], np.zeros(len(positions), dtype=np.float32)
        else:
            seen, saved = self.seen(dataset, positions, seed)
            unit = self.config.normalise_target  # else long features would outvote short ones
            means = [mean_target(one, text, teacher.logit_scale, self.share, unit=unit) for one in seen]
            targets = torch.stack(means)
        said = outcome(teacher.probabilities(ttt.cosine_scores(targets, text)), teacher_passes=self.views)
        milliseconds = 1e3 * (time.perf_counter() - start) / len(positions)
        return targets, {
            "saved_milliseconds": saved,
            "target_prediction": said.prediction.astype(np.int32),
            "target_confidence": said.extra["confidence"],
            "target_milliseconds": np.full(len(positions), milliseconds, dtype=np.float32),
        }
