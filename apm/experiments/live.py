"""One student of one image while it learns: what is seen of it after each update, and the picture of it that `playground` shows."""

from __future__ import annotations

import io
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from apm import methods, model, ttt
from apm.analysis import figures
from apm.data import Dataset, corruptions, read_image
from apm.experiments import islands, judge
from apm.teachers import Teacher
from apm.ttt import TTTConfig

LOOKS = 50  # updates that are all looked at, and looks after them at most
CLASSES = 5  # in the picture of decisions: the teacher's first
LARGEST = 40_000_000  # pixels of a file
SIDE = 224  # px to which the shorter side of a larger one is resized: corruptions are made for photographs of this size
ONE = threading.Lock()  # at a time: `adapt` sets the number of threads of the whole process


class Stopped(Exception):
    """Raised in a training that is to end."""


@dataclass(frozen=True)
class Look:
    """What one student says after k updates. cosine: of its folded feature and the target. scores: (C,) cosines to the classes. places:
    percent of the grid's places that, each by itself, say what the teacher says."""

    k: int
    loss: float
    cosine: float
    scores: Tensor
    places: float


class Learner:
    """One student in training, whose `looks` and `grids` (k -> (h, w, D)) grow meanwhile. data: whose classes; image: (H, W, 3) uint8.

    Its weights begin as those of `apm.ttt.adapt` with seed 0, and no look changes them.
    """

    def __init__(self, teacher: Teacher, data: Dataset, image: np.ndarray, config: TTTConfig) -> None:
        self.config, self.classnames = config, data.classnames
        self.pixels = methods.student_pictures(teacher, [image], config.student.image_size[0]).to(teacher.device)
        self.target = F.normalize(teacher.encode(teacher.transform([image])).feature.float(), dim=-1)  # (1, D)
        self.text = teacher.text_features(data.classnames, data.templates).float()  # (C, D)
        self.asked = ttt.cosine_scores(self.target, self.text)[0]  # the teacher's own scores (C,)
        self.updates, self.looks = 0, list[Look]()
        self.grids: dict[int, np.ndarray] = {}

    def says(self, scores: Tensor) -> str:
        """The class with the largest score."""
        return self.classnames[int(scores.argmax())]

    def row(self) -> dict[str, Any]:
        """What was seen last, as a table shows it."""
        look = self.looks[-1]
        agreed = {"cosine to the target": f"{look.cosine:.3f}", "places as the teacher": f"{look.places:.0f} %"}
        said = {"says": self.says(look.scores), "its teacher says": self.says(self.asked)}
        return {"updates": look.k, "loss": f"{look.loss:.1e}", **agreed, **said}

    def train(self, stop: threading.Event) -> None:
        """Train to the last update, or until told to stop. Raises ValueError where the loss is no longer finite."""
        with ONE, suppress(Stopped):
            ttt.adapt(self.pixels, self.target, self.config, callback=lambda k, _, seen: self._look(k, seen, stop))

    def _look(self, k: int, weights: Mapping[str, Tensor], stop: threading.Event) -> None:
        if stop.is_set():
            raise Stopped
        self.updates = k
        last, student = self.config.iterations, self.config.trained
        if k > LOOKS and k % max(1, last // LOOKS) and k != last:
            return
        x = model.patches(self.pixels.to(self.config.dtype), student)
        with torch.no_grad():
            loss, feature = ttt.objective(self.config, weights, {"x": x, "target": self.target.to(self.config.dtype)})
        if not loss.isfinite():
            raise ValueError(f"the loss is not finite after {k} updates: a lower learning rate may do")
        grid, feature = islands.feature_grids(weights, self.pixels, student)[0], feature.float()
        places = ttt.cosine_scores(torch.as_tensor(grid), self.text.cpu().double()).argmax(-1)
        agree = 100 * float((places == self.asked.argmax().cpu()).double().mean())
        kept = {one: known for one, known in self.grids.items() if one in (0, last // 10 or 1)}
        self.grids = {**kept, k: grid.astype(np.float32)}
        scores = ttt.cosine_scores(feature, self.text)[0].cpu()
        self.looks.append(Look(k, float(loss), float(F.cosine_similarity(feature, self.target)), scores, agree))


def draw(learners: Mapping[str, Learner]) -> Figure:
    """A row a student: what it sees, its islands in the colours of the newest, its loss, its agreement with the teacher, its decision.

    Of pyplot nothing is used: figures of other cells are not touched."""
    figures.style()
    figure = Figure(figsize=(11.4, 2.1 * len(learners)))
    room = {"left": 0.03, "right": 0.99, "wspace": 0.35, "hspace": 0.5, "top": 0.9, "bottom": 0.13}
    wide = [1.15, 1.15, 1.15, 1.15, 1.2, 1.2, 1.2]
    rows = figure.subplots(len(learners), len(wide), squeeze=False, width_ratios=wide, gridspec_kw=room)
    for (name, one), row in zip(learners.items(), rows, strict=True):
        looks, grids = list(one.looks), list(one.grids.items())  # as they are now: a thread adds to them
        seen = [("the student sees", judge.displayed(one.pixels)[0])]
        seen += [(f"k = {k}", islands.picture(grid, fit=grids[-1][1])) for k, grid in grids]
        for axes, (heading, picture) in zip(row, seen, strict=False):
            axes.imshow(picture)
            axes.set(xticks=[], yticks=[], title=heading)
        for axes in row[len(seen) : 4]:
            axes.set_axis_off()
        row[0].set_ylabel(name)
        k, first = [look.k for look in looks], figures.PALETTE[0]
        far = max(min(LOOKS, one.config.iterations), *k, 0)  # the axis grows with the run
        row[4].semilogy(k, [look.loss for look in looks], color=first)
        row[5].plot(k, [100 * look.cosine for look in looks], label="cosine", color=first)
        row[5].plot(k, [look.places for look in looks], "--", label="places", color=figures.PALETTE[1])
        row[5].legend(loc="center right", fontsize="x-small")
        row[4].set(title="loss", xlim=(0, far))
        row[5].set(title="agreement, %", xlim=(0, far), ylim=(-5, 105))
        best = one.asked.argsort(descending=True)[:CLASSES].tolist()
        row[6].plot(one.asked[best].cpu(), range(len(best)), "|", color="black", ms=9, mew=1.6)
        if looks:
            row[6].barh(range(len(best)), looks[-1].scores[best].tolist(), color=first, alpha=0.7)
            row[6].set_title(f"says {one.says(looks[-1].scores)[:18]}", loc="right", fontsize="small")
        row[6].axvline(0, color="0.3", lw=1)
        for place, c in enumerate(best):  # inside: beside the bars a long name has no room
            row[6].text(
                0.02, place, one.classnames[c][:24], transform=row[6].get_yaxis_transform(), size=7, va="center"
            )
        row[6].set(yticks=[], ylim=(len(best) - 0.4, -0.6))
        for axes in row:
            axes.tick_params(labelsize="x-small")
            axes.title.set_fontsize("small")
    return figure


def read_upload(name: str, content: bytes) -> np.ndarray:
    """The image (H, W, 3) uint8 in the bytes of a file, its shorter side at most `SIDE`. Raises ValueError, with the file's name, for what
    is no image, or too large or too small a one."""
    try:
        with Image.open(io.BytesIO(content)) as opened:  # reads the size alone
            width, height = opened.size
    except Image.DecompressionBombError:
        width = height = LARGEST
    except Exception:  # whatever a decoder raises is about the file
        raise ValueError(f"{name} is no image that can be read here: choose a PNG or JPEG file") from None
    if width * height > LARGEST:
        raise ValueError(
            f"{name} has more than {LARGEST:,} pixels: make it smaller, its shorter side need not exceed {SIDE}"
        )
    if min(width, height) < corruptions.SMALLEST:
        raise ValueError(f"{name} has {width} x {height} px: expected at least {corruptions.SMALLEST} each way")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "upload"
        file.write_bytes(content)
        try:
            image = Image.fromarray(read_image(file))
        except ValueError:
            raise ValueError(f"{name} is damaged, or of a kind that is not read here: choose another") from None
    if (scale := SIDE / min(image.size)) < 1:
        image = image.resize((round(scale * image.width), round(scale * image.height)), Image.Resampling.BICUBIC)
    return np.asarray(image)
