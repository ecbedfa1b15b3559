"""What a method is: its options, what determines its predictions, and what it says about images.

A method sees images, the teacher and the class names. It never sees a label: `apm.runs` joins labels to predictions when both
exist. `Method` is the base of all; `WithPrompts`, `WithOriginalPrompts` and `WithViews` add the options that many have.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor

from apm.data import Dataset, UnreadableImage, prompts
from apm.methods.views import VIEWS, Encoded, encoded
from apm.project import plain, unknown
from apm.project.identity import RUN_MODULES
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
    # Further columns of the records, (n,) each. Those that tables of methods read: confidence, the probability of the predicted
    # class at the teacher's temperature (NaN for failures); teacher_passes, forward passes of the teacher's image tower.
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

    prediction: (n,) where it is not the most probable class. status: what went wrong with an image; "ok" for the others.
    A row with a value that is not finite is a failure of that image. Extra columns: confidence (the probability of the
    predicted class, NaN for failures), teacher_passes (forward passes of the image tower per image, whether or not another
    method's were reused), and those in `extra`, (n,) each.
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
    """One row of a benchmark table. Its fields are its options.

    online: whether state is carried from image to image. modules: the code that determines its predictions: its own file and
    what all share, so that a new or changed method leaves the records of the others alone.
    """

    teacher: Teacher
    _: KW_ONLY
    name: str = ""
    online: ClassVar[bool] = False
    modules: ClassVar[tuple[str, ...]] = RUN_MODULES

    def __init_subclass__(cls) -> None:
        cls.modules = (*RUN_MODULES, "methods.views", cls.__module__.removeprefix("apm."))

    def settings(self) -> dict[str, Any]:
        """Everything but data and seed that determines the predictions, as plain JSON-able data: the class and its fields, the
        teacher by its hash, without the name that the method goes by in tables."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "name"}
        return plain({"method": type(self).__name__, **values, "teacher": self.teacher.hash})

    def prepare(self, dataset: Dataset) -> None:
        """Called once before the images are asked for: what can be stored (features, learned context vectors) is made here."""

    def data_identity(self, dataset: Dataset) -> Any:
        """What other data is read, a training split for example, as plain JSON-able data: it stands in the keys of records."""
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
        return prompts.describe(self.prompts_for(dataset)) if self.teacher.tokenizer else "none: the rows of its head"

    def text(self, dataset: Dataset) -> Tensor:
        """(C, D) float32 unit-length class features on the teacher's device."""
        return self.teacher.text_features(dataset.classnames, self.prompts_for(dataset)).to(self.teacher.device)


PROMPTS = ("profile", "original")


@dataclass(kw_only=True)
class WithOriginalPrompts(WithPrompts):
    """prompts: "profile": `templates`, else the set's own; "original": those of the authors' release (`released`), by default
    "a photo of a {}." on every set. Raises ValueError for another value, and for templates beside "original"."""

    prompts: str = "profile"

    def __post_init__(self) -> None:
        if self.prompts not in PROMPTS:
            raise unknown("prompts", self.prompts, PROMPTS)
        if self.prompts == "original" and self.templates is not None:
            raise ValueError("prompts: original are those of the release, templates: others: remove one of the two")

    def released(self, dataset: Dataset) -> Sequence[str]:
        """The prompts of the release on this set."""
        return prompts.SINGLE

    def prompts_for(self, dataset: Dataset) -> Sequence[str]:
        return self.released(dataset) if self.prompts == "original" else super().prompts_for(dataset)


@dataclass(kw_only=True)
class WithViews(Method):
    """views: 64, the image and 63 crops. augmix: every crop through AugMix's chains. flip: False where the mirror image is
    another class or none (`apm.methods.views.views`)."""

    views: int = VIEWS
    augmix: bool = False
    flip: bool = True

    def seen(self, dataset: Dataset, positions: np.ndarray, seed: int) -> Encoded:
        """The teacher's features of the images' views, and the time that another method's views saved."""
        return encoded(self.teacher, dataset, positions, self.views, seed=seed, augmix=self.augmix, flip=self.flip)


REGISTRY: dict[str, Callable[..., Any]] = {}  # name -> class
Class = TypeVar("Class", bound=type)


def register(name: str) -> Callable[[Class], Class]:
    """Decorator of a `Method` dataclass: makes `create(name, ...)` build it, and holds its values to its fields' types.

    Raises ValueError for a name that another class has.
    """

    def add(made: Class) -> Class:
        other = REGISTRY.get(name)
        if other is not None and (other.__module__, other.__qualname__) != (made.__module__, made.__qualname__):
            raise ValueError(f"the name {name!r} is taken by {other.__module__}.{other.__qualname__}")
        REGISTRY[name] = checked(made)
        return made

    return add


def create(name: str, teacher: Any, /, **options: Any) -> Any:
    """The method of that name. options: fields of its class, such as `views=32`, or `name="ZERO, 32 views"` for its row in tables.

    Raises ValueError for an unknown name or option, with the known ones, and for a value of another type than its field says.
    """
    if name not in REGISTRY:
        raise unknown("baseline", name, sorted(REGISTRY))
    known = [f.name for f in dataclasses.fields(REGISTRY[name]) if f.name != "teacher"]  # type: ignore[arg-type]
    for option in options:
        if option not in known:
            raise unknown(f"option of baseline {name!r}", option, known)
    return REGISTRY[name](teacher, **options)


def readable(dataset: Dataset, positions: np.ndarray) -> tuple[np.ndarray, dict[int, str]]:
    """Those of the positions whose image can be read, and why not for the others."""
    reasons = {}
    for position in positions:
        try:
            dataset.images[int(position)]
        except UnreadableImage as error:
            reasons[int(position)] = f"error: {type(error).__name__}: {error}"
    return np.array([p for p in positions if int(p) not in reasons], dtype=int), reasons
