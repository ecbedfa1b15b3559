"""TDA: two caches of what was seen before correct the teacher's scores.

Karmanov et al., "Efficient Test-Time Adaptation of Vision-Language Models", CVPR 2024 (arXiv 2403.18293), section 3; tda_runner.py,
utils.py and configs/ of github.com/kdiAAA/TDA. Each image enters, under its predicted class, a positive cache of features of low entropy,
and, with an entropy between two thresholds, a negative cache of which classes had some probability. For its unit feature f and
cached features g_i,

    scores = logit_scale * f @ text^T
           + alpha+ * sum_i exp(-beta+ * (1 - f @ g_i)) * one_hot(class_i)
           - alpha- * sum_i exp(-beta- * (1 - f @ g_i)) * (low < p_i < high)

Their constants (alpha+ and beta+) and prompts differ from set to set: data/published/tda_settings.csv.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from apm import teachers
from apm.data import Dataset, published
from apm.data.prompts import templates
from apm.methods.method import Predictions, WithOriginalPrompts, WithViews, outcome, register
from apm.methods.views import confident, kept
from apm.project import sha256_of
from apm.project.identity import STOPS

IMAGENET = "imagenet"  # whose constants serve sets that the release has no file for


def configuration(name: str) -> dict[str, str]:
    """What is known of the release's alpha, beta and prompts (a name of `apm.data.prompts.templates`) for a dataset, as text."""
    found = published.load("tda_settings")
    return {c: t for row, c, t in zip(found["row"], found["column"], found["text"], strict=True) if row == name and t}


class Cache:
    """Up to `shots` features of lowest entropy for each of C classes, each with a value (C,)."""

    def __init__(self, classes: int, shots: int, width: int, device: torch.device) -> None:
        self.keys = torch.zeros(classes, shots, width, device=device)
        self.values = torch.zeros(classes, shots, classes, device=device)
        self.entropies = torch.full((classes, shots), math.inf, device=device)  # infinite: free

    def add(self, label: int, key: Tensor, entropy: float, value: Tensor) -> None:
        """`update_cache`: into a free place of the class, else in place of its highest entropy if that is higher."""
        place = int(self.entropies[label].argmax())
        if entropy < float(self.entropies[label, place]):
            self.keys[label, place], self.values[label, place], self.entropies[label, place] = key, value, entropy

    def scores(self, feature: Tensor, alpha: float, beta: float) -> Tensor:
        """`compute_cache_logits`: (C,) alpha * sum over cached features of exp(-beta * (1 - cosine)) * value."""
        weights = torch.exp(-beta * (1 - self.keys @ feature)) * self.entropies.isfinite()  # (C, shots)
        return alpha * torch.einsum("cs,csk->k", weights, self.values)


@register("tda")
@dataclass
class TDA(WithViews, WithOriginalPrompts):
    """TDA. Online: the caches are carried from image to image, so a prediction depends on the images before it.

    order_seed: None: the order of the positions; a number: a random one drawn from it (the release shuffles once per set). Rows
        stay in the order of the positions.
    alpha, beta: None: the authors' for the set, else those of their ImageNet. The other constants are the same in all of configs/.
    prompts: "original": the release's for the set, else the set's own.
    views: 1, as for ImageNet and the fine-grained sets there. For ImageNet-A, -V2, -R and -Sketch its loader has views=64,
        augmix=True: means over the `share` of lowest entropy (`get_clip_logits` in utils.py).

    The entropy, in nats, is divided by log2(C) as in `get_entropy`. Scores: the teacher's logit_scale times the cosine (there 100).
    An image that fails is recorded so and leaves the caches alone. When every image fails, the first error is raised.
    """

    name: str = "TDA"
    views: int = 1
    share: float = 0.1
    positive_shots: int = 3
    alpha: float | None = None
    beta: float | None = None
    negative_shots: int = 2
    negative_alpha: float = 0.117
    negative_beta: float = 1.0
    entropy_between: tuple[float, float] = (0.2, 0.5)
    probability_between: tuple[float, float] = (0.03, 1.0)
    order_seed: int | None = None
    online: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.views != 1:
            kept(self.views, self.share)
        if min(self.positive_shots, self.negative_shots) < 1:
            raise ValueError(
                f"caches hold at least one image per class, found {self.positive_shots} and {self.negative_shots} shots"
            )

    def constants(self, dataset: Dataset) -> tuple[float, float]:
        """alpha and beta of the positive cache on this set. Raises FileNotFoundError without data/published."""
        if self.alpha is not None and self.beta is not None:
            return self.alpha, self.beta
        known = {**configuration(IMAGENET), **configuration(dataset.name)}
        return (
            float(known["alpha"]) if self.alpha is None else self.alpha,
            float(known["beta"]) if self.beta is None else self.beta,
        )

    def released(self, dataset: Dataset) -> Sequence[str]:
        """The prompts of the release on this set, else its own."""
        known = configuration(dataset.name)
        return templates(known["prompts"]) if "prompts" in known else dataset.templates

    def data_identity(self, dataset: Dataset) -> dict[str, Any]:
        """What is read from data/published for this set: records of other values are others."""
        return {"constants": list(self.constants(dataset)), "prompts": sha256_of(list(self.prompts_for(dataset)))}

    def prepare(self, dataset: Dataset) -> None:
        """With one view: encode the dataset into the cache, before many processes ask for it."""
        if self.views == 1:
            teachers.features(self.teacher, dataset)

    def order(self, n: int) -> np.ndarray:
        """(n,) in which order the images come."""
        return np.arange(n) if self.order_seed is None else np.random.default_rng(self.order_seed).permutation(n)

    def predict(self, dataset: Dataset, positions: np.ndarray, seed: int) -> Predictions:
        """Both caches start empty. The seed draws the views, so it has no effect with one."""
        text, scale = self.text(dataset), self.teacher.logit_scale
        alpha, beta = self.constants(dataset)
        classes, width = text.shape
        if classes < 2:
            raise ValueError(
                f"TDA divides an entropy by log2 of the number of classes: expected at least 2, found {classes}"
            )
        positive = Cache(classes, self.positive_shots, width, text.device)
        negative = Cache(classes, self.negative_shots, width, text.device)
        own = torch.eye(classes, device=text.device)
        low, high = self.probability_between
        scores = torch.full((len(positions), classes), torch.nan, device=text.device)
        saved, status = np.zeros(len(positions), dtype=np.float32), ["ok"] * len(positions)
        first: Exception | None = None
        stored = teachers.features(self.teacher, dataset) if self.views == 1 else None
        for row in self.order(len(positions)):
            try:
                features, saved[row] = self._features(dataset, int(positions[row]), seed, stored)
                feature, logits, probabilities = self._seen(F.normalize(features.to(text), dim=-1), text, scale)
            except STOPS:
                raise
            except Exception as error:  # before the caches are touched
                reason = " ".join(f"error: {type(error).__name__}: {error}".split())
                status[row], first = reason[:300], first or error
                continue
            if not bool(logits.isfinite().all()):
                status[row] = "non-finite feature"
                continue
            said, uncertainty = int(logits.argmax()), float(torch.special.entr(probabilities).sum())
            positive.add(said, feature, uncertainty, own[said])
            if self.entropy_between[0] < uncertainty / math.log2(classes) < self.entropy_between[1]:
                negative.add(said, feature, uncertainty, ((probabilities > low) & (probabilities < high)).float())
            scores[row] = (
                logits
                + positive.scores(feature, alpha, beta)
                - negative.scores(feature, self.negative_alpha, self.negative_beta)
            )
        if first is not None and "ok" not in status:
            raise first
        # the time of stored features is not known here
        extra = {} if self.views == 1 else {"saved_milliseconds": saved}
        return outcome(scores.softmax(dim=-1), status=status, teacher_passes=self.views, **extra)  # type: ignore[arg-type]

    def _features(self, dataset: Dataset, position: int, seed: int, stored: np.ndarray | None) -> tuple[Tensor, float]:
        """(n, D) features of one image's views, and milliseconds saved. stored: (N, D) of the images themselves."""
        if stored is None:
            features, saved = self.seen(dataset, np.array([position]), seed)
            return features[0], float(saved[0])
        own = torch.as_tensor(np.array(stored[position : position + 1])).float()
        if not bool(own.isfinite().all()):
            dataset.images[position]  # an image that cannot be read says so
        return own, 0.0

    def _seen(self, features: Tensor, text: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
        """Feature (D,), scores (C,) and probabilities (C,) of one image from its views (n, D): `get_clip_logits`."""
        logits = scale * features @ text.T
        if self.views > 1:
            chosen = confident(logits, self.share)
            features, logits = features[chosen], logits[chosen]
        return features.mean(dim=0), logits.mean(dim=0), logits.softmax(dim=-1).mean(dim=0)
