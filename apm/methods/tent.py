"""TENT: the normalisation layers' scale and shift are trained to make predictions sure.

Wang et al., "Tent: Fully Test-Time Adaptation by Entropy Minimization", ICLR 2021 (arXiv 2006.10726): the mean entropy of a batch's
predictions (section 3.1), over the affine parameters of normalisation layers (section 3.2); github.com/DequanWang/tent. The paper
adapts online; here a batch is one image's views, and all is reset after it (`episodic=True` in the released `Tent`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from apm.data import Dataset
from apm.lockstep import caller_free
from apm.methods.method import Predictions, WithPrompts, WithViews, outcome, register
from apm.methods.views import entropy, view_pixels
from apm.project import unknown
from apm.teachers import Teacher

BATCH_NORMS = nn.modules.batchnorm._BatchNorm
NORMS = (nn.LayerNorm, nn.GroupNorm, BATCH_NORMS)
STATISTICS = ("batch", "running")
LAYERS = {"all": NORMS, "batch": (BATCH_NORMS,)}
SCORES = ("after", "before")


class Tower:
    """A float32 copy of a teacher's image tower, of which the normalisation layers' affine `parameters` can be trained.

    statistics, layers: as of `Tent`. batch_norm: whether a feature depends on its batch. ValueError where no such layer is.
    """

    @caller_free()
    def __init__(self, teacher: Teacher, statistics: str = "batch", layers: str = "all") -> None:
        self.network = teacher.tower().requires_grad_(False)
        self.parameters: dict[str, Tensor] = {}
        self.batch_norm = False
        for name, module in self.network.named_modules():
            if not isinstance(module, LAYERS[layers]):
                continue
            for key, parameter in module.named_parameters(recurse=False):
                self.parameters[f"{name}.{key}"] = parameter.requires_grad_()
            if isinstance(module, BATCH_NORMS) and statistics == "batch":
                # as `configure_model`, which has all in training mode: dropout would blur the entropy that is minimised
                module.track_running_stats = False
                module.running_mean = module.running_var = None
                self.batch_norm = True
        if not self.parameters:
            raise ValueError(
                f"TENT trains the scale and shift of normalisation layers, and the image tower of teacher {teacher.name} has "
                + (
                    "none: use a tower with LayerNorm or BatchNorm, or another method"
                    if layers == "all"
                    else "no BatchNorm, the only one that the original trains: set layers: all, or use another tower"
                )
            )
        self._start = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    def reset(self) -> None:
        """Every trained parameter as the teacher has it."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(self._start[name])
                parameter.grad = None

    def features(self, pixels: Tensor) -> Tensor:
        """(n, D) of images (n, 3, S, S), differentiable."""
        features = self.network(pixels)
        return features if isinstance(features, Tensor) else features[0]  # CoCa towers return their tokens too


@caller_free()
def adapt(
    tower: Tower,
    pixels: Tensor,
    logits_of: Callable[[Tensor], Tensor],
    *,
    steps: int,
    learning_rate: float,
    scores: str = "after",
) -> tuple[Tensor, int]:
    """Scores (C,) of the first of an image's views (n, 3, S, S), and how many forward passes they took.

    logits_of: features (n, D) -> the teacher's scores (n, C), `Teacher.logits`. scores: "after" the last step, by one more pass; "before"
    it. The tower keeps what it has learned; `Tower.reset` undoes it.
    """
    pixels = pixels.detach().clone()
    optimiser = torch.optim.Adam(list(tower.parameters.values()), lr=learning_rate)
    for _ in range(steps):
        logits = logits_of(tower.features(pixels))
        loss = entropy(logits).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    if steps and scores == "before":
        return logits[0].detach(), steps * len(pixels)
    last = pixels if tower.batch_norm else pixels[:1]  # batch statistics need the batch
    with torch.no_grad():
        return logits_of(tower.features(last))[0], steps * len(pixels) + len(last)


@register("tent")
@dataclass
class Tent(WithViews, WithPrompts):
    """TENT on a copy of the teacher's image tower. Episodic: parameters are reset after every image.

    views: 64, all of them, in the place of a batch (TEST.BATCH_SIZE 200 images in cfgs/tent.yaml).
    steps: 1 (OPTIM.STEPS in cfgs/tent.yaml); 0: new statistics and nothing trained, `norm` in the release. learning_rate: 1e-3, Adam
        without weight decay (OPTIM there; section 4 has SGD at 2.5e-4 for ImageNet).
    layers: "all": LayerNorm, GroupNorm and BatchNorm; "batch": BatchNorm alone, as `collect_params` in tent.py, which leaves nothing
        of CLIP's transformers.
    statistics: of BatchNorm: "batch", as `configure_model` in tent.py; "running", those of training. Crops of *one* image are not 200
        images: what all crops share, by which one object is told from another, is normalised away. Compare steps 0.
    scores: "after" the last step; "before", as `forward_and_adapt` in tent.py, where a step serves the next batch: with one
        step and a reset after it these are the scores of no step at all.
    Extra columns teacher_backward_passes, per image; batch_statistics: 1 where the views' statistics normalised features, else 0.
    """

    name: str = "TENT"
    steps: int = 1
    learning_rate: float = 1e-3
    statistics: str = "batch"
    layers: str = "all"
    scores: str = "after"

    def __post_init__(self) -> None:
        if self.views < 1 or self.steps < 0 or self.learning_rate <= 0:
            raise ValueError(
                "views must be at least 1, steps at least 0 and learning_rate positive, found "
                f"{self.views}, {self.steps} and {self.learning_rate}"
            )
        for option, known in (("statistics", STATISTICS), ("layers", LAYERS), ("scores", SCORES)):
            if (chosen := getattr(self, option)) not in known:
                raise unknown(option, chosen, known)
        if self.steps == 0 and self.statistics == "running":
            raise ValueError("TENT without a step and with the statistics of training changes nothing: it is zero-shot")

    @caller_free()
    def predict(self, dataset: Dataset, positions: np.ndarray, seed: int) -> Predictions:
        """One class per image; raises ValueError for a tower without normalisation layers."""
        logits_of = partial(self.teacher.logits, classnames=dataset.classnames, templates=self.prompts_for(dataset))
        tower = Tower(self.teacher, self.statistics, self.layers)
        rows, passes = [], 0
        for position in positions:
            pixels = view_pixels(self.teacher, dataset.images[int(position)], self.views, **self.drawn(seed))
            pixels = pixels.to(self.teacher.device)
            tower.reset()
            options = {"steps": self.steps, "learning_rate": self.learning_rate, "scores": self.scores}
            scores, passes = adapt(tower, pixels, logits_of, **options)  # type: ignore[arg-type]
            rows.append(scores)
        return outcome(
            torch.stack(rows).softmax(dim=-1),
            teacher_passes=passes,
            teacher_backward_passes=np.full(len(positions), self.steps * self.views, dtype=np.float32),
            batch_statistics=np.full(len(positions), tower.batch_norm, dtype=np.float32),
            saved_milliseconds=np.zeros(len(positions), dtype=np.float32),
        )
