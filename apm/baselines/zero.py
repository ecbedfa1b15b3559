"""ZERO: a vote of the confident views.

Farina, Franchi, Iacca, Mancini and Ricci, "Frustratingly Easy Test-Time Adaptation of Vision-Language Models", NeurIPS 2024
(arXiv 2405.18330), section 3: its pseudo-code `zero`, and ttas/zero.py of github.com/FarinaMatteo/zero:

    l = features of N views @ text features            p = softmax(l / temperature)
    keep the share gamma of views with the lowest entropy of p
    p_bar = sum over the kept of softmax(l / 0+)       a vote: at zero temperature every view says one class
    predict argmax p_bar
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from apm.baselines.common import classifier, modules, outcome, settings
from apm.baselines.registry import register
from apm.baselines.views import VIEWS, confident, encoded, entropy, kept
from apm.datasets import Dataset
from apm.methods import Predictions
from apm.teachers import Teacher


def vote(logits: Tensor, share: float) -> int:
    """The class that most of the confident views say; logits (n, C) of n views at the teacher's temperature.

    Ties are broken as by `greedy_break` (utils/tools.py of the released code): the discarded views are asked in turn, and the
    first that says a tied class decides. They are asked from the most confident on; the released code takes `l[k:]`, the last
    n - k views as they were drawn, kept or not. When none says a tied class, the tied class that the first of them scores
    highest (the most confident view where none was discarded). That is what `break_sample_tie` is for; as released it masks by
    `logit[~ties]` with class numbers in `ties`, and ~ of a number counts from the end: it leaves out other classes than it should.
    """
    order = entropy(logits).argsort(stable=True)
    chosen = confident(logits, share)
    said = logits.argmax(dim=-1)
    votes = torch.bincount(said[chosen], minlength=logits.shape[1])
    tied = votes == votes.max()
    if int(tied.sum()) == 1:
        return int(votes.argmax())
    rest = order[len(chosen) :]
    for view in rest.tolist():
        if tied[said[view]]:
            return int(said[view])
    first = int(rest[0]) if len(rest) else int(order[0])
    return int(logits[first].masked_fill(~tied, -torch.inf).argmax())


@register("zero")
@dataclass
class Zero:
    """ZERO. Episodic: every image by itself, nothing trained.

    views: 64, `num_views` (ttas/zero.py; 63 crops with mirroring and no AugMix: `MultiViewCropAndFlip` in data/augs.py).
    share: gamma = 0.3 (ttas/zero.py, "updated from the previous value of 0.1"; "e.g., 0.3" in the pseudo-code).
    flip: False where the mirror image is another class or none (`apm.baselines.views.views`).
    confidence: the mean probability of the predicted class over the kept views, at the teacher's temperature; the vote's
        own share says nothing about calibration.
    """

    teacher: Teacher
    name: str = "ZERO"
    views: int = VIEWS
    share: float = 0.3
    augmix: bool = False
    flip: bool = True
    templates: tuple[str, ...] | None = None
    online: ClassVar[bool] = False
    modules: ClassVar[tuple[str, ...]] = modules("zero")

    def __post_init__(self) -> None:
        kept(self.views, self.share)

    def settings(self) -> dict[str, Any]:
        """Teacher, prompts, views and share."""
        return settings(self, "zero")

    def predict(self, dataset: Dataset, positions: np.ndarray, seed: int) -> Predictions:
        """One class per image; the views are drawn from the seed and the image's pixels."""
        text = classifier(self.teacher, dataset, self.templates)
        seen = encoded(self.teacher, dataset, positions, self.views, seed=seed, augmix=self.augmix, flip=self.flip)
        logits = self.teacher.logit_scale * F.normalize(seen.features, dim=-1) @ text.T  # (N, n, C)
        means = torch.stack([one[confident(one, self.share)].softmax(dim=-1).mean(dim=0) for one in logits])
        return outcome(
            torch.where(logits.isfinite().all(dim=1), means, torch.nan),
            prediction=torch.tensor([vote(one, self.share) for one in logits]),
            teacher_passes=self.views,
            saved_milliseconds=seen.saved_milliseconds,
        )
