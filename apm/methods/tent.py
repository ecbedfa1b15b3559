"""TENT: the normalisation layers' scale and shift are trained to make predictions sure.

Wang, Shelhamer, Liu, Olshausen and Darrell, "Tent: Fully Test-Time Adaptation by Entropy Minimization", ICLR 2021 (arXiv
2006.10726): the mean entropy of a batch's predictions (section 3.1) is minimised over the affine parameters of the normalisation
layers (section 3.2). tent.py, norm.py, conf.py and cfgs/tent.yaml of github.com/DequanWang/tent. The paper adapts online, batch
by batch; here a batch is one image's views, and everything is reset after it (`episodic=True` in the released `Tent`).
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
    """A float32 copy of a teacher's image tower, of which only the normalisation layers' affine parameters can be trained.

    statistics: of BatchNorm, "batch" or "running". layers: "all" normalisation layers, or "batch", BatchNorm alone. Attributes:
    parameters, the trained ones by name; batch_norm, whether a feature depends on the rest of its batch. Raises ValueError for a
    tower that has no such layer.
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
                # `configure_model`: statistics of the batch at hand. The rest stays in evaluation mode, where the released
                # code has all in training mode: dropout would blur the entropy that is minimised.
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

    logits_of: features (n, D) -> the teacher's scores (n, C), `Teacher.logits`. scores: "after" the last of the steps, by one more pass; "before" it, of the pass that gave its loss. Without a step both are
    the same. The tower keeps what it has learned; `Tower.reset` undoes it.
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
    """TENT on the teacher's image tower. Episodic: parameters are reset after every image; the shared teacher is never touched.

    views: 64; one image gives no batch, so its views take the batch's place (TEST.BATCH_SIZE 200 images in cfgs/tent.yaml).
        All of them count: TENT selects none.
    steps: 1 (OPTIM.STEPS in cfgs/tent.yaml); 0: none, what the release calls `norm` (norm.py, cfgs/norm.yaml), new statistics and
        nothing trained. learning_rate: 1e-3, Adam with betas 0.9 and 0.999 and no weight decay (OPTIM in cfgs/tent.yaml;
        section 4 of the paper has 1e-3 but for ImageNet, where it is SGD at 2.5e-4).
    layers: "all": LayerNorm, GroupNorm and BatchNorm are trained here, while the original takes BatchNorm alone (`collect_params` in
        tent.py): "batch". CLIP's transformers have LayerNorm, whose statistics are each image's own, so that the original cannot be
        run on them. The paper's networks have BatchNorm, and so do CLIP's residual ones:
    statistics: "batch", of the batch at hand, as `configure_model` in tent.py sets BatchNorm up (section 3.2, "normalization
        statistics"); "running", those of training, so that only scale and shift change. The batch here is crops of *one* image. Its
        statistics are not those of 200 different images, for which the method was made: channels that are alike in all crops, by
        which one object is told from another, are normalised away. That alone can cost many points, with no entropy minimised:
        compare the row with steps 0. Beside "running" it shows which part is due to what.
    scores: "after": the prediction comes from one more pass over the image itself after the last step. "before": as the original,
        `forward_and_adapt` in tent.py, which returns the scores of the very pass whose entropy it then lowers. There the step serves
        the next batch. Here parameters are reset after every image, so with one step these are the scores of no step at all: the
        teacher's own, or with BatchNorm those of `steps: 0`.
    confidence: softmax over the scores after adaptation.
    Extra columns teacher_backward_passes: backward passes of the image tower per image; batch_statistics: 1 where features were
        normalised by the statistics of an image's views, else 0.
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
            pixels = view_pixels(
                self.teacher, dataset.images[int(position)], self.views, seed=seed, augmix=self.augmix, flip=self.flip
            ).to(self.teacher.device)
            tower.reset()
            scores, passes = adapt(
                tower, pixels, logits_of, steps=self.steps, learning_rate=self.learning_rate, scores=self.scores
            )
            rows.append(scores)
        return outcome(
            torch.stack(rows).softmax(dim=-1),
            teacher_passes=passes,
            teacher_backward_passes=np.full(len(positions), self.steps * self.views, dtype=np.float32),
            batch_statistics=np.full(len(positions), tower.batch_norm, dtype=np.float32),
            saved_milliseconds=np.zeros(len(positions), dtype=np.float32),
        )
