"""What the baseline methods share: settings from fields, the text classifier, and predictions with confidence and cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from apm.data import prompts
from apm.data.datasets import Dataset
from apm.methods.method import Predictions
from apm.project import plain, unknown
from apm.project.identity import RUN_MODULES
from apm.teachers import Teacher


def modules(file: str) -> tuple[str, ...]:
    """The code that determines the predictions of the method in apm/methods/FILE.py: that file, what methods share, and what
    every run depends on. Another method's file is not among it, so that a new or changed one leaves the others' records alone."""
    return (*RUN_MODULES, *(f"methods.{name}" for name in (file, "common", "registry", "views")))


def failure(error: Exception) -> str:
    """The status of an image on which an online method failed, in one line."""
    return " ".join(f"error: {type(error).__name__}: {error}".split())[:300]


def settings(method: Any, kind: str) -> dict[str, Any]:
    """Everything but data and seed that determines the predictions of a method that is a dataclass: its fields, with the
    teacher by its hash and without the name it goes by in tables."""
    values = {field.name: getattr(method, field.name) for field in fields(method)}
    del values["name"]
    return plain({"method": kind, **values, "teacher": method.teacher.hash})


PROMPTS = (
    "profile",
    "original",
)  # of a method with the option `prompts`: the sets' own, or those of its authors' release


def check_prompts(chosen: str, templates: Sequence[str] | None) -> None:
    """Raises ValueError for a value that `prompts` does not have, and for templates beside "original"."""
    if chosen not in PROMPTS:
        raise unknown("prompts", chosen, PROMPTS)
    if chosen == "original" and templates is not None:
        raise ValueError("prompts: original are those of the release, templates: others: remove one of the two")


def single_or_own(method: Any, dataset: Dataset) -> tuple[str, ...]:
    """The prompts of a method whose release has "a photo of a {}." on every set: that with prompts "original", else
    `method.templates`, else the dataset's own."""
    return prompts.SINGLE if method.prompts == "original" else tuple(method.templates or dataset.templates)


def classifier(teacher: Teacher, dataset: Dataset, templates: Sequence[str] | None) -> Tensor:
    """(C, D) float32 unit-length class features on the teacher's device; templates None: the dataset's own."""
    return teacher.text_features(dataset.classnames, templates or dataset.templates).to(teacher.device)


def outcome(
    probabilities: Tensor,
    *,
    teacher_passes: float,
    prediction: Tensor | None = None,
    status: Sequence[str] | None = None,
    **extra: np.ndarray,
) -> Predictions:
    """Predictions from class probabilities (n, C) at the teacher's logit_scale.

    prediction: (n,) where it is not the most probable class. status: what went wrong with an image; "ok" for the others.
    A row with a value that is not finite is a failure of that image. Extra columns: confidence (the probability of the
    predicted class, NaN for failures), teacher_passes (forward passes of the image tower per image, whether or not another
    method's were reused), and those in `extra`, (n,) each.
    """
    finite = probabilities.isfinite().all(dim=-1)
    said = ["ok"] * len(probabilities) if status is None else list(status)
    said = [
        "non-finite class scores" if s == "ok" and not good else s
        for s, good in zip(said, finite.tolist(), strict=True)
    ]
    good = torch.tensor([s == "ok" for s in said], dtype=torch.bool)
    probabilities = probabilities.detach().float().cpu().nan_to_num(0.0)
    chosen = probabilities.argmax(dim=-1) if prediction is None else prediction.cpu()
    confidence = probabilities.gather(1, chosen.clamp(min=0)[:, None])[:, 0]
    return Predictions(
        prediction=torch.where(good, chosen, -1).numpy().astype(np.int64),
        status=said,
        extra={
            "confidence": torch.where(good, confidence, torch.nan).numpy().astype(np.float32),
            "teacher_passes": np.full(len(said), teacher_passes, dtype=np.float32),
            **extra,
        },
    )
