"""Ways to classify a test image with a frozen CLIP teacher, behind one small interface.

A method sees images, the teacher and the class names. It never sees a label: `apm.runs.records` joins labels to predictions
when both exist.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Protocol

import numpy as np
import torch
from open_clip.transform import PreprocessCfg

from apm import model, teachers, ttt
from apm.data.datasets import Dataset, UnreadableImage
from apm.project import unknown
from apm.teachers import Teacher
from apm.ttt import TTTConfig
from apm.typed import checked


@dataclass
class Predictions:
    """What a method says about n images. Arrays have n rows."""

    prediction: np.ndarray  # (n,) int64 class index; -1 where the method failed
    path: np.ndarray | None = (
        None  # (n, K + 1) int16 prediction after k = 0..K updates; None for methods without iterations
    )
    first_loss: np.ndarray | None = None  # (n,) loss before the first update
    last_loss: np.ndarray | None = None  # (n,) loss after the last one
    minimum_loss_prediction: np.ndarray | None = None  # (n,) prediction at the iteration of lowest loss: label-free
    status: list[str] | None = None  # "ok", or what went wrong with that image
    # Further columns of the records, (n,) each. Those that tables of methods read: confidence, the probability of the predicted
    # class at the teacher's temperature (NaN for failures); teacher_passes, forward passes of the teacher's image tower.
    extra: Mapping[str, np.ndarray] = field(default_factory=dict)


class Method(Protocol):
    """One row of a benchmark table.

    A method may also have `prepare(dataset)`, called once before its images are (stored features, learned context vectors); an
    attribute `online`, true when it carries state from image to image; `data_identity(dataset)`, which names other data that it
    reads (a training split), as plain JSON-able data; and `prompts_used(dataset)`, which prompts it has there, in words, where these
    may be others than the dataset's own.
    """

    name: str

    def settings(self) -> dict[str, Any]:
        """Everything that determines the predictions besides the data and the seed, as plain JSON-able data."""
        ...

    def predict(self, dataset: Dataset, positions: np.ndarray, seed: int) -> Predictions:
        """Classify the images at `positions` (n,) of the dataset. Must not read dataset.labels."""
        ...


@checked
@dataclass
class ZeroShot:
    """CLIP zero-shot: the class whose mean prompt feature has the largest cosine similarity to the image feature.

    templates: prompts with one "{}" each; None: the dataset's own. One template is the paper's row "CLIP", several are its
    row "Ensemble" (Table 1).
    """

    teacher: Teacher
    name: str = "zero-shot"
    templates: tuple[str, ...] | None = None

    def settings(self) -> dict[str, Any]:
        """Teacher and prompts."""
        return {
            "method": "zero-shot",
            "teacher": self.teacher.hash,
            "templates": self.templates and list(self.templates),
        }

    def prepare(self, dataset: Dataset) -> None:
        """Encode dataset and prompts, before many processes ask for them."""
        teachers.features(self.teacher, dataset)
        self.teacher.text_features(dataset.classnames, self.templates or dataset.templates)

    def scores(self, dataset: Dataset, positions: np.ndarray) -> torch.Tensor:
        """(n, C) cosine similarities of the images at `positions` to every class."""
        features = teachers.features_at(self.teacher, dataset, positions)
        text = self.teacher.text_features(dataset.classnames, self.templates or dataset.templates)
        return ttt.cosine_scores(features, text.to(features))

    def predict(self, dataset: Dataset, positions: np.ndarray, seed: int) -> Predictions:
        """Deterministic: the seed has no effect."""
        scores = self.scores(dataset, positions)
        prediction = scores.argmax(dim=-1)
        return Predictions(prediction=prediction.numpy(), extra=confidence(self.teacher, scores, prediction))


@checked
@dataclass
class APM:
    """Test-time training of an asynchronous perception machine towards the teacher's feature of each image (`apm.ttt`).

    The prediction is the one after `config.iterations` updates, a number fixed beforehand. picture: how an image is brought to the
    student's size: see `student_pictures`.
    """

    teacher: Teacher
    config: TTTConfig
    name: str = "APM"
    templates: tuple[str, ...] | None = None
    picture: str = "teacher"

    def __post_init__(self) -> None:
        if self.picture not in PICTURES:
            raise unknown("picture", self.picture, PICTURES)

    def settings(self) -> dict[str, Any]:
        """Teacher, prompts and every setting of the student and its training that can change a number."""
        config = asdict(self.config)
        del config["lockstep"]  # how many images train side by side changes speed and memory only
        return {
            "method": "apm",
            "teacher": self.teacher.hash,
            "templates": self.templates and list(self.templates),
            "config": config,
            "picture": self.picture,
            "device": self.teacher.device.type,  # whose generator draws the random weights
        }

    def prepare(self, dataset: Dataset) -> None:
        """Encode dataset and prompts, before many processes ask for them."""
        teachers.features(self.teacher, dataset)
        self.teacher.text_features(dataset.classnames, self.templates or dataset.templates)

    @property
    def online(self) -> bool:
        """Whether state is carried from image to image: by the released protocol's optimiser, not by the corrected one."""
        return self.config.carried

    def predict(self, dataset: Dataset, positions: np.ndarray, seed: int) -> Predictions:
        """One new student per image; random weights from the seed and the image's pixels.

        Where state is carried from image to image, an image that cannot be read is left out and gets a failed row.
        """
        if self.online:
            whole, reasons = readable(dataset, positions)
            if len(whole) < len(positions):
                return _with_failures(self.predict(dataset, whole, seed) if len(whole) else None, positions, reasons)
        result = adapt_dataset(
            self.teacher, dataset, positions, self.config, templates=self.templates, seed=seed, picture=self.picture
        )
        assert result.scores is not None
        path = result.predictions().cpu().numpy()
        losses = result.losses.cpu().numpy()
        failed = np.array([status != "ok" for status in result.status])
        # nothing finite at all: argmin would raise, and the prediction is -1 anyway
        lowest = np.where(np.isfinite(losses), losses, np.inf).argmin(axis=1)
        at_lowest = np.take_along_axis(path, lowest[:, None], axis=1)[:, 0]
        return Predictions(
            prediction=path[:, -1].astype(np.int64),
            path=path.astype(np.int16),
            first_loss=losses[:, 0].astype(np.float64),
            last_loss=losses[:, -1].astype(np.float64),
            minimum_loss_prediction=np.where(failed, -1, at_lowest).astype(np.int64),
            status=result.status,
            extra=confidence(self.teacher, result.scores[:, -1], torch.as_tensor(path[:, -1])),
        )


def readable(dataset: Dataset, positions: np.ndarray) -> tuple[np.ndarray, dict[int, str]]:
    """Those of the positions whose image can be read, and why not for the others."""
    reasons = {}
    for position in positions:
        try:
            dataset.images[int(position)]
        except UnreadableImage as error:
            reasons[int(position)] = f"error: {type(error).__name__}: {error}"
    return np.array([p for p in positions if int(p) not in reasons], dtype=int), reasons


def _with_failures(found: Predictions | None, positions: np.ndarray, reasons: Mapping[int, str]) -> Predictions:
    """Predictions for the positions without a reason, in their order, with failed rows for the others."""
    n, good = len(positions), np.array([int(p) not in reasons for p in positions])
    whole = Predictions(np.full(n, -1, dtype=np.int64), status=[reasons.get(int(p), "") for p in positions])
    assert whole.status is not None
    if found is None:
        return whole

    def spread(values: np.ndarray | None, fill: float) -> np.ndarray | None:
        if values is None:
            return None
        result = np.full((n, *values.shape[1:]), fill, dtype=values.dtype)
        result[good] = values
        return result

    for name, fill in (("prediction", -1), ("path", -1), ("minimum_loss_prediction", -1), ("first_loss", np.nan), ("last_loss", np.nan)):  # fmt: skip
        setattr(whole, name, spread(getattr(found, name), fill))
    for place, status in zip(np.flatnonzero(good), found.status or ["ok"] * int(good.sum()), strict=True):
        whole.status[place] = status
    whole.extra = {name: np.asarray(spread(values, np.nan)) for name, values in found.extra.items()}
    return whole


def confidence(teacher: Teacher, scores: torch.Tensor, prediction: torch.Tensor) -> dict[str, np.ndarray]:
    """The extra columns confidence and teacher_passes of methods that ask the teacher once per image.

    scores: (n, C) cosine similarities. prediction: (n,); -1 for failures, whose confidence is NaN.
    """
    probabilities = teacher.probabilities(scores).cpu()
    chosen = prediction.cpu().long()
    of_chosen = probabilities.gather(1, chosen.clamp(min=0)[:, None])[:, 0]
    return {
        "confidence": torch.where(chosen >= 0, of_chosen, torch.nan).numpy().astype(np.float32),
        "teacher_passes": np.ones(len(chosen), dtype=np.float32),
    }


def training_config(
    teacher: Teacher, student: Mapping[str, Any] | None = None, training: Mapping[str, Any] | None = None
) -> TTTConfig:
    """The settings of test-time training from a profile's plain values.

    student: fields of `apm.model.APMConfig` over those of its `preset` (default "mini"); its width, and that of routed tokens, is
    the teacher's unless given. training: fields of `apm.ttt.TTTConfig`. Raises ValueError for an unknown field, with the
    list of known ones, and for a value of another type than its field's.
    """
    chosen = {"width": teacher.width, **(student or {})}
    if chosen.get("column") == "tokens":
        chosen.setdefault("token_width", teacher.width)
    base = model.preset(str(chosen.pop("preset", "mini")))
    training = dict(training or {})
    for kind, values, cls in (
        ("field of the student", chosen, model.APMConfig),
        ("field of the training", training, TTTConfig),
    ):
        known = [f.name for f in fields(cls) if f.name != "student"]
        for name in values:
            if name not in known:
                raise unknown(kind, name, known)
    return TTTConfig(student=replace(base, **chosen), **training)


PICTURES = ("teacher", "squash")


def student_pictures(teacher: Teacher, images: teachers.Images, size: int, picture: str = "teacher") -> torch.Tensor:
    """uint8 RGB images (H, W, 3) -> float32 (N, 3, size, size) for the student, normalised by ImageNet's mean and deviation.

    picture: "teacher": resized and cropped as the teacher's own, so that both see the same part of the image (most: shorter side,
    bicubic, centre crop); "squash": the whole image, whatever its sides, to the square, bilinear, as the released code does (its
    teacher has its own picture still). Square images differ by the interpolation alone, those of the student's size not at all.
    """
    if picture == "squash":
        squash = {"resize_mode": "squash", "interpolation": "bilinear"}
        config = PreprocessCfg(size=size, mean=teachers.IMAGENET_MEAN, std=teachers.IMAGENET_STD, **squash)
        return teachers.preprocess(images, config)
    return teachers.student_images(images, size, resize_mode=teacher.preprocess_config.resize_mode)


def adapt_dataset(
    teacher: Teacher,
    dataset: Dataset,
    positions: np.ndarray,
    config: TTTConfig,
    *,
    templates: tuple[str, ...] | None = None,
    seed: int = 0,
    picture: str = "teacher",
    **options: Any,
) -> ttt.TTTResult:
    """`apm.ttt.adapt` on images of a dataset: student images, the teacher's cached features as targets, class scores; with
    the teacher's patch tokens and the patches' colours where a loss or the column needs them.

    picture: as of `student_pictures`. options go to `adapt`. Raises ValueError when the student's width is not the teacher's.
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
    targets = teachers.features_at(teacher, dataset, positions).to(teacher.device)
    text = teacher.text_features(dataset.classnames, templates or dataset.templates)
    return ttt.adapt(images, targets, config, text_features=text, seed=seed, **options)
