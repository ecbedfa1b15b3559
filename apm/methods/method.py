"""What a method is: its options, what determines its predictions, and what it says about images.

It never sees a label: `apm.runs` joins labels to predictions when both exist.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor

from apm.data import Dataset, prompts
from apm.methods.views import VIEWS, Encoded, encoded
from apm.project import plain, unknown
from apm.project.identity import RUN_MODULES, modules_of
from apm.teachers import Teacher
from apm.typed import checked


@dataclass
class Predictions:
    """What a method says about n images. Arrays have n rows."""

    prediction: np.ndarray  # (n,) int64 class index; -1 where the method failed
    path: np.ndarray | None = None  # (n, K + 1) int16 after k = 0..K updates; None for methods without iterations
    first_loss: np.ndarray | None = None  # (n,) loss before the first update
    last_loss: np.ndarray | None = None  # (n,) loss after the last one
    minimum_loss_prediction: np.ndarray | None = None  # (n,) prediction at the iteration of lowest loss: label-free
    status: list[str] | None = None  # "ok", or what went wrong with that image
    # further columns of the records, (n,) each; `outcome` adds those that tables of methods read
    extra: Mapping[str, np.ndarray] = field(default_factory=dict)


def outcome(
    probabilities: Tensor,
    *,
    teacher_passes: float,
    prediction: Tensor | None = None,
    status: Sequence[str] | None = None,
    **extra: np.ndarray,
) -> Predictions:
    """Predictions from class probabilities (n, C) at the teacher's temperature.

    prediction: (n,) where it is not the most probable class. status: "ok", or what went wrong; a row that is not finite failed.
    Extra columns: confidence (probability of the predicted class, NaN for failures), teacher_passes (forward passes of the image
    tower per image, reused or not), and those in `extra`, (n,) each.
    """
    finite = probabilities.isfinite().all(dim=-1).tolist()
    said = list(status or ["ok"] * len(finite))
    said = ["non-finite class scores" if s == "ok" and not f else s for s, f in zip(said, finite, strict=True)]
    good = torch.tensor([s == "ok" for s in said], dtype=torch.bool)
    probabilities = probabilities.detach().float().cpu().nan_to_num(0.0)
    chosen = probabilities.argmax(dim=-1) if prediction is None else prediction.cpu().long()
    confidence = probabilities.gather(1, chosen.clamp(min=0)[:, None])[:, 0]
    columns = {
        "confidence": torch.where(good, confidence, torch.nan).numpy().astype(np.float32),
        "teacher_passes": np.full(len(said), teacher_passes, dtype=np.float32),
    }
    return Predictions(torch.where(good, chosen, -1).numpy(), status=said, extra={**columns, **extra})


@dataclass
class Method:
    """One row of a benchmark table; its fields are its options. online: whether state is carried from image to image. modules: the
    code that determines its predictions, its own file and what all share."""

    teacher: Teacher
    _: KW_ONLY
    name: str = ""
    online: ClassVar[bool] = False
    modules: ClassVar[tuple[str, ...]] = RUN_MODULES

    def __init_subclass__(cls) -> None:
        cls.modules = modules_of(cls)

    def settings(self) -> dict[str, Any]:
        """Everything but data and seed that determines the predictions, as plain JSON-able data; not the name in tables."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "name"}
        return plain({"method": type(self).__name__, **values, "teacher": self.teacher.hash})

    def prepare(self, dataset: Dataset) -> None:
        """Called once before the images are asked for: makes what can be stored."""

    def data_identity(self, dataset: Dataset) -> Any:
        """What other data is read, such as a training split, as plain JSON-able data: it stands in the keys of records."""
        return None

    def prompts_used(self, dataset: Dataset) -> str:
        """Which prompts a row on this set has, in words."""
        raise NotImplementedError

    def predict(self, dataset: Dataset, positions: np.ndarray, seed: int) -> Predictions:
        """Classify the images at `positions` (n,) of the dataset, whose labels are hidden."""
        raise NotImplementedError


@dataclass(kw_only=True)
class WithPrompts(Method):
    """templates: prompts with one "{}" each; None: the dataset's own."""

    templates: tuple[str, ...] | None = None

    def prompts_for(self, dataset: Dataset) -> Sequence[str]:
        """The prompts on this set."""
        return self.templates or dataset.templates

    def prompts_used(self, dataset: Dataset) -> str:
        return (
            prompts.describe(self.prompts_for(dataset))
            if self.teacher.tokenizer
            else "none, its class features are the rows of its head"
        )

    def text(self, dataset: Dataset) -> Tensor:
        """(C, D) float32 unit-length class features on the teacher's device."""
        return self.teacher.text_features(dataset.classnames, self.prompts_for(dataset)).to(self.teacher.device)


PROMPTS = ("profile", "original")


@dataclass(kw_only=True)
class WithOriginalPrompts(WithPrompts):
    """prompts: "profile": `templates`, else the set's own; "original": `released`. ValueError for templates beside "original"."""

    prompts: str = "profile"

    def __post_init__(self) -> None:
        if self.prompts not in PROMPTS:
            raise unknown("prompts", self.prompts, PROMPTS)
        if self.prompts == "original" and self.templates is not None:
            raise ValueError("prompts: original are those of the release, templates: others: remove one of the two")

    def released(self, dataset: Dataset) -> Sequence[str]:
        """The prompts of the authors' release on this set."""
        return prompts.SINGLE

    def prompts_for(self, dataset: Dataset) -> Sequence[str]:
        return self.released(dataset) if self.prompts == "original" else super().prompts_for(dataset)


@dataclass(kw_only=True)
class WithViews(Method):
    """views: the image and 63 crops. augmix, flip: as of `apm.methods.views.views`."""

    views: int = VIEWS
    augmix: bool = False
    flip: bool = True

    def seen(self, dataset: Dataset, positions: np.ndarray, seed: int) -> Encoded:
        """The teacher's features of the images' views, and the time that another method's views saved."""
        return encoded(self.teacher, dataset, positions, self.views, **self.drawn(seed))

    def drawn(self, seed: int) -> dict[str, Any]:
        """How its views are drawn: options of `apm.methods.views.views`."""
        return {"seed": seed, "augmix": self.augmix, "flip": self.flip}


REGISTRY: dict[str, Callable[..., Any]] = {}  # name -> class
Class = TypeVar("Class", bound=type)


def register(name: str) -> Callable[[Class], Class]:
    """Decorator of a `Method` dataclass: `create(name, ...)` builds it, `checked`. ValueError for a name that another class has."""

    def add(made: Class) -> Class:
        other = REGISTRY.get(name)
        if other is not None and (other.__module__, other.__qualname__) != (made.__module__, made.__qualname__):
            raise ValueError(f"the name {name!r} is taken by {other.__module__}.{other.__qualname__}")
        REGISTRY[name] = checked(made)
        return made

    return add


def create(name: str, teacher: Any, /, **options: Any) -> Any:
    """The method of that name; options are fields of its class. ValueError for unknown names and options, and values of other types."""
    if name not in REGISTRY:
        raise unknown("baseline", name, sorted(REGISTRY))
    known = [f.name for f in dataclasses.fields(REGISTRY[name]) if f.name != "teacher"]  # type: ignore[arg-type]
    for option in options:
        if option not in known:
            raise unknown(f"option of baseline {name!r}", option, known)
    return REGISTRY[name](teacher, **options)
