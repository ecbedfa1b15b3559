"""MTA: the mode of the views' features, found by a mean shift that also says which views to trust.

Zanella and Ben Ayed, "On the Test-Time Zero-Shot Generalization of Vision-Language Models: Do We Really Need Prompt
Learning?", CVPR 2024 (arXiv 2405.02266), section 3; `solve_mta` in mta.py of github.com/MaxZanella/MTA. For unit features f_p of n views
with bandwidths h_p, mode m and inlierness y on the simplex, two steps alternate:

    K_p = exp(-|f_p - m|^2 / (2 h_p^2))                                 Gaussian kernel
    y  <- softmax((K + lambda_q W y) / lambda_y)                        inlierness; W = P P^T, affinity of the views' classes
    m  <- sum_p y_p K_p f_p / sum_p y_p K_p,  brought to unit length    mean shift

and the class is the one whose text feature is closest to m. No view is filtered out by a threshold. Prompts: "a photo of a {}." on
every set (--ctx_init in main.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from apm.data import Dataset
from apm.methods.method import Predictions, WithOriginalPrompts, WithViews, outcome, register

LAMBDA_Q = 4.0  # weight of the affinity term: --lambda_q in main.py
LAMBDA_Y = 0.2  # weight of the entropy that keeps y spread: --lambda_y in main.py
NEIGHBOURS = 0.3  # share of the other views whose distances set a view's bandwidth: k = int(0.3 * (n - 1)) in mta.py
ROUNDS = 5  # max_iter in mta.py: of the alternation, and of the repetitions within each step
THRESHOLD = 1e-6  # th in mta.py: a step has converged when its vector moves less
_TINY = 1e-12  # views that are all alike have bandwidth 0; their kernel is then 1 and not 0 / 0


def bandwidths(features: Tensor) -> Tensor:
    """(n,) h_p^2: half the mean squared distance from each view (n, D) to its nearest 30 % of the others.

    At least to one of them: int(0.3 * (n - 1)) is 0 below 5 views, where the released code would divide by zero.
    """
    others = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist").sort(dim=1).values[:, 1:]
    k = max(1, int(NEIGHBOURS * others.shape[1]))
    return 0.5 * others[:, :k].square().mean(dim=1)


def seek(
    features: Tensor, logits: Tensor, *, lambda_q: float = LAMBDA_Q, lambda_y: float = LAMBDA_Y
) -> tuple[Tensor, Tensor]:
    """Mode (D,) of unit length and inlierness (n,) that sums to 1.

    features: (n, D) unit length, the image itself first: where the search starts. logits: (n, C) at the teacher's temperature.
    """
    n = len(features)
    squared = bandwidths(features).clamp(min=_TINY)
    probabilities = logits.softmax(dim=-1)
    affinity = probabilities @ probabilities.T
    inlierness = torch.full((n,), 1 / n).to(features)
    mode = features[0]

    def kernel(at: Tensor) -> Tensor:
        return torch.exp(-(features - at).square().sum(dim=-1) / (2 * squared))

    for _ in range(ROUNDS):
        density = kernel(mode)
        for _ in range(ROUNDS):
            before = inlierness
            inlierness = ((density + lambda_q * affinity @ inlierness) / lambda_y).softmax(dim=-1)
            if float((before - inlierness).norm()) < THRESHOLD:
                break
        for _ in range(ROUNDS):
            old = mode
            weights = kernel(mode) * inlierness
            mode = F.normalize(weights @ features / weights.sum(), dim=-1)
            if float((old - mode).norm()) < THRESHOLD:
                break
    return mode, inlierness


@register("mta")
@dataclass
class MTA(WithViews, WithOriginalPrompts):
    """MTA. Episodic: every image by itself, nothing trained.

    views: 64 (--batch-size in main.py). augmix: off on every set (main.py). confidence: of the mode, at the teacher's temperature.
    """

    name: str = "MTA"
    lambda_q: float = LAMBDA_Q
    lambda_y: float = LAMBDA_Y

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.views < 2:
            raise ValueError(f"MTA needs at least 2 views, whose distances set its bandwidth, found {self.views}")
        if self.lambda_y <= 0:
            raise ValueError(f"lambda_y must be positive, found {self.lambda_y}")

    def predict(self, dataset: Dataset, positions: np.ndarray, seed: int) -> Predictions:
        """One class per image; the views are drawn from the seed and the image's pixels."""
        text, scale = self.text(dataset), self.teacher.logit_scale
        features, saved = self.seen(dataset, positions, seed)
        rows = []
        for one in F.normalize(features, dim=-1):
            mode, _ = seek(one, scale * one @ text.T, lambda_q=self.lambda_q, lambda_y=self.lambda_y)
            rows.append(scale * mode @ text.T)
        return outcome(torch.stack(rows).softmax(dim=-1), teacher_passes=self.views, saved_milliseconds=saved)
