"""Students that are no APM, trained in the same way on the same image: a plain MLP, ResNets, a bare vector (Table 5a)."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision import models

from apm import lockstep, methods, project, teachers, ttt
from apm.data import Dataset
from apm.methods import Predictions
from apm.project.identity import RUN_MODULES
from apm.teachers import Teacher
from apm.ttt import TTTConfig
from apm.typed import checked


class Vector(nn.Module):
    """No network: D numbers that are trained directly. It never sees the image, and shows what fitting one target takes."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.randn(width) * 0.01)

    def forward(self, images: Tensor) -> Tensor:
        return self.value.expand(len(images), -1)  # (N, D)


def _mlp(size: int, width: int) -> nn.Module:
    """The APM's own hidden widths of preset mini, on the flattened image instead of on columns."""
    sides = (3 * size * size, 256, 128, 64)
    layers = [layer for a, b in itertools.pairwise(sides) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(sides[-1], width))


def _resnet(size: int, width: int, *, build: Callable[..., nn.Module]) -> nn.Module:
    if size < 33:
        raise ValueError(
            f"{build.__name__}: images of {size} px become 1 x 1 maps, whose batch normalisation over one image has no variance: "
            "set size: 64 or larger in the ablation's line"
        )
    return build(weights=None, num_classes=width)


# (side of the square image in pixels, D) -> module from images (N, 3, size, size) to features (N, D)
NETWORKS: dict[str, Callable[[int, int], nn.Module]] = {
    "vector": Vector,
    "mlp": _mlp,
    "resnet18": partial(_resnet, build=models.resnet18),
    "resnet34": partial(_resnet, build=models.resnet34),
}
INITS = ("default", "normal")
_GLOBAL_SEED = threading.Lock()


@checked
@dataclass
class OneSampleStudent:
    """Test-time training of another network towards the teacher's feature, one image at a time.

    All is new for every image; a batch is that image, from which alone batch normalisation takes its statistics. init: "default" (the
    network's own) or "normal" (every parameter N(0, std), as the paper's student). Of `config` only iterations, learning rate, decay,
    target and init_std apply. Raises ValueError for an unknown network or init, and for settings of a student with a grid.
    """

    teacher: Teacher
    network: str
    config: TTTConfig
    size: int
    name: str = ""
    init: str = "default"
    modules = (*RUN_MODULES, "experiments.other_students")

    def __post_init__(self) -> None:
        self.name = self.name or self.network
        if self.network not in NETWORKS:
            raise project.unknown("network", self.network, ("apm", *NETWORKS))
        if self.init not in INITS:
            raise project.unknown("init", self.init, INITS)
        for field in ("loss_cls", "loss_grid", "loss_rgb", "augmentation", "protocol", "precision"):
            if (value := getattr(self.config, field)) != getattr(TTTConfig, field):
                raise ValueError(
                    f"network {self.network} has no grid and one way to train: {field} = {value!r} applies to the APM only"
                )

    def settings(self) -> dict[str, Any]:
        """Teacher, network and every setting of its training that can change a number."""
        used = ["iterations", "learning_rate", "decay_every", "decay", "normalise_target"]
        used += ["init_std"] if self.init == "normal" else []
        return {
            "method": "one-sample student",
            "teacher": self.teacher.hash,
            "network": self.network,
            "size": self.size,
            "init": self.init,
            **{name: getattr(self.config, name) for name in used},
        }

    def build(self, seed: int) -> nn.Module:
        """The network at random weights."""
        with _GLOBAL_SEED, torch.random.fork_rng(devices=[]):  # torch's modules draw from the global generator
            torch.manual_seed(seed)
            module = NETWORKS[self.network](self.size, self.teacher.width)
            if self.init == "normal":
                for parameter in module.parameters():
                    nn.init.normal_(parameter, std=self.config.init_std)
        return module.to(self.teacher.device)

    def parameters(self) -> int:
        """Number of weights."""
        return sum(p.numel() for p in self.build(0).parameters())

    @lockstep.caller_free()
    def predict(self, dataset: Dataset, positions: np.ndarray, seed: int) -> Predictions:
        """One new network per image; random weights from the seed and the image's pixels."""
        pictures = teachers.pictures(dataset, positions)
        images = methods.student_pictures(self.teacher, pictures, self.size).to(self.teacher.device)
        targets = teachers.features_at(self.teacher, dataset, positions).to(images)
        if self.config.normalise_target:
            targets = nn.functional.normalize(targets, dim=-1)
        text = self.teacher.text_features(dataset.classnames, dataset.templates).to(images)
        shape = len(images), self.config.iterations + 1
        losses, path = torch.full(shape, math.nan), torch.full(shape, -1)

        def train(part: slice) -> dict[str, Tensor]:
            i = part.start
            module = self.build(ttt.image_seed(seed, images[i])).train()
            optimiser = torch.optim.Adam(module.parameters(), lr=self.config.learning_rate, fused=True)
            schedule = torch.optim.lr_scheduler.StepLR(optimiser, self.config.decay_every, self.config.decay)
            for k in range(shape[1]):
                feature = module(images[part])[0]  # (D,)
                loss = (feature - targets[i]).square().mean()
                losses[i, k], path[i, k] = loss.detach(), ttt.cosine_scores(feature.detach(), text).argmax()
                if k < self.config.iterations:
                    optimiser.zero_grad()
                    loss.backward()
                    optimiser.step()
                    schedule.step()
            return {}

        lockstep.side_by_side(train, [slice(i, i + 1) for i in range(len(images))], images.device)
        failed = ~losses.isfinite().all(dim=1)
        path[failed] = -1
        lowest = losses.nan_to_num(math.inf).argmin(dim=1, keepdim=True)
        return Predictions(
            prediction=path[:, -1].numpy(),
            path=path.to(torch.int16).numpy(),
            first_loss=losses[:, 0].double().numpy(),
            last_loss=losses[:, -1].double().numpy(),
            minimum_loss_prediction=path.gather(1, lowest)[:, 0].numpy(),
            status=["non-finite loss" if bad else "ok" for bad in failed],
        )
