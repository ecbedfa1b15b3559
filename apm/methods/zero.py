"""ZERO: a vote of the confident views.

Farina, Franchi, Iacca, Mancini and Ricci, "Frustratingly Easy Test-Time Adaptation of Vision-Language Models", NeurIPS 2024
(arXiv 2405.18330), section 3: its pseudo-code `zero`, and ttas/zero.py of github.com/FarinaMatteo/zero:

    l = features of N views @ text features            p = softmax(l / temperature)
    keep the share gamma of views with the lowest entropy of p
    p_bar = sum over the kept of softmax(l / 0+)       a vote: at zero temperature every view says one class
    predict argmax p_bar

Prompts: "a photo of a {}." on every set (CTX in scripts/zero.sh); its flag --templates, the rows "+ Ensemble", is off by default.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from apm.data import Dataset
from apm.methods.method import Predictions, WithOriginalPrompts, WithViews, outcome, register
from apm.methods.views import confident, entropy, kept

HALF = 2.0**-10  # torch.finfo(torch.float16).eps: what the release divides cosines by for "zero" temperature


def vote(logits: Tensor, share: float, *, cosines: Tensor | None = None) -> int:
    """The class that most of the confident views say; logits (n, C) of n views at the teacher's temperature.

    cosines: (n, C), for the release's vote in float16: at a temperature of 2^-10, not zero, a view whose best classes are within
    about 0.003 of each other shares its vote; None: whole votes.

    Ties are broken as by `greedy_break` (utils/tools.py, since November 2024): the first discarded view, from the most confident on,
    that says a tied class decides; else the tied class that the first of them scores highest (the most confident view where none was
    discarded), as `break_sample_tie` means to do: its mask `logit[~ties]` leaves out other classes than it should.
    """
    order = entropy(logits).argsort(stable=True)
    chosen, rest = order.split([k := kept(len(logits), share), len(logits) - k])
    said = logits.argmax(dim=-1)
    if cosines is None:
        votes = torch.bincount(said[chosen], minlength=logits.shape[1])
    else:
        votes = (cosines[chosen].half().float() / HALF).softmax(dim=-1).sum(dim=0)
    tied = votes == votes.max()
    if int(tied.sum()) == 1:
        return int(votes.argmax())
    first = logits[int((rest if len(rest) else order)[0])].masked_fill(~tied, -torch.inf)
    return next((int(c) for c in said[rest] if tied[c]), int(first.argmax()))


@register("zero")
@dataclass
class Zero(WithViews, WithOriginalPrompts):
    """ZERO. Episodic: every image by itself, nothing trained.

    views: 64, `num_views` (ttas/zero.py; no AugMix: `MultiViewCropAndFlip` in data/augs.py). share: gamma = 0.3 (ttas/zero.py).
    soft_vote: False, as in the paper; True, as the release votes under autocast (`vote`). Views are selected in float32 either way.
    confidence: mean probability of the predicted class over the kept views, at the teacher's temperature.
    """

    name: str = "ZERO"
    share: float = 0.3
    soft_vote: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        kept(self.views, self.share)

    def predict(self, dataset: Dataset, positions: np.ndarray, seed: int) -> Predictions:
        """One class per image; the views are drawn from the seed and the image's pixels."""
        features, saved = self.seen(dataset, positions, seed)
        cosines = F.normalize(features, dim=-1) @ self.text(dataset).T  # (N, n, C)
        logits = self.teacher.logit_scale * cosines
        votes = [
            vote(one, self.share, cosines=half if self.soft_vote else None)
            for one, half in zip(logits, cosines, strict=True)
        ]
        means = torch.stack([one[confident(one, self.share)].softmax(dim=-1).mean(dim=0) for one in logits])
        return outcome(
            torch.where(logits.isfinite().all(dim=1), means, torch.nan),
            prediction=torch.tensor(votes),
            teacher_passes=self.views,
            saved_milliseconds=saved,
        )
