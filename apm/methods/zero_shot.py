"""CLIP zero-shot: the class whose mean prompt feature has the largest cosine similarity to the image feature."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from apm import teachers, ttt
from apm.data import Dataset
from apm.methods.method import Predictions, WithPrompts, outcome
from apm.typed import checked


@checked
@dataclass
class ZeroShot(WithPrompts):
    """The teacher by itself. One template is the paper's row "CLIP", several are its row "Ensemble" (Table 1)."""

    name: str = "zero-shot"

    def prepare(self, dataset: Dataset) -> None:
        """Encode dataset and prompts, before many processes ask for them."""
        teachers.features(self.teacher, dataset)
        self.text(dataset)

    def scores(self, dataset: Dataset, positions: np.ndarray) -> Tensor:
        """(n, C) cosine similarities of the images at `positions` to every class."""
        features = teachers.features_at(self.teacher, dataset, positions)
        return ttt.cosine_scores(features, self.text(dataset).to(features))

    def predict(self, dataset: Dataset, positions: np.ndarray, seed: int) -> Predictions:
        """Deterministic: the seed has no effect."""
        scores = self.scores(dataset, positions)
        return outcome(self.teacher.probabilities(scores), prediction=scores.argmax(dim=-1), teacher_passes=1)


@checked
@dataclass
class LinearHead(ZeroShot):
    """A classifier's own decision, by the rows of its head, its biases and the feature's length: what it costs to decide by cosines
    alone stands between this row and `ZeroShot`. A CLIP decides by cosines, so that the two are one."""

    name: str = "linear head"

    def scores(self, dataset: Dataset, positions: np.ndarray) -> Tensor:
        """(n, C) the teacher's logits of the images at `positions`."""
        features = teachers.features_at(self.teacher, dataset, positions).to(self.teacher.device)
        return self.teacher.logits(features, dataset.classnames, self.prompts_for(dataset))

    def predict(self, dataset: Dataset, positions: np.ndarray, seed: int) -> Predictions:
        """Deterministic: the seed has no effect."""
        return outcome(self.scores(dataset, positions).softmax(dim=-1), teacher_passes=1)
