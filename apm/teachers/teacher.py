"""Teachers: CLIP models from open_clip, their features, and how the small ones of data/teachers were trained.

    teacher = load("mini")                                                  # the small one that comes with the clone
    teacher = load("ViT-B-16-quickgelu", pretrained="openai")               # any open_clip model and tag
    teacher = load("ViT-B-32", pretrained="/weights/vit_b_32.safetensors")  # or a local checkpoint
    feature = teacher.encode(teacher.transform(images)).feature             # (N, D)

Every teacher, ours included, is built by open_clip's factory from a JSON configuration and a checkpoint. Its image feature
is the target of test-time training (Modi & Rawat, NeurIPS 2024, section 3.6), its text features are the classifier.

    python -m apm.teachers.teacher train --data folder:PATH --out FILE.safetensors

trains one on any class-per-folder image tree.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import math
import os
import re
import sys
import time
import urllib.error
import urllib.request
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
import yaml
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from apm.data import prompts
from apm.data.datasets import Dataset, UnreadableImage
from apm.data.datasets import load as load_dataset
from apm.lockstep import caller_free
from apm.project import atomic_path, cache_dir, located, sha256_file, sha256_of, unknown
from apm.project.identity import RUN_MODULES, code_of, code_version, libraries
from apm.project.progress import progress
from apm.typed import checked

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# fp64: rounded to float32 afterwards, features and tokens are the same on every kind of processor
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}
CONFIGS = Path(__file__).parent / "model_configs"
DENSE = 8  # pixels between the tokens of a convolutional tower
Images = Sequence[np.ndarray] | np.ndarray

open_clip.add_model_config(CONFIGS)


# ---------------------------------------------------------------------------------------------------------- images


def preprocess(images: Images, config: PreprocessCfg) -> Tensor:
    """uint8 RGB images (H, W, 3) of any sizes -> float32 (N, 3, S, S) by open_clip's evaluation transform.

    Raises ValueError for images of another type or shape, and for none.
    """
    if not len(images):
        raise ValueError("expected at least one image, found none")
    for i, image in enumerate(images):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
            raise ValueError(f"image {i}: expected uint8 (H, W, 3), found {image.dtype} {image.shape}")
    transform = image_transform_v2(config, is_train=False)
    if {image.shape for image in images} == {(*_pair(config.size), 3)}:
        # Resizing and cropping do nothing at the model's own size: the rest of the transform, on all images at once.
        pixels = torch.from_numpy(np.stack(list(images))).permute(0, 3, 1, 2).contiguous()  # (N, 3, S, S)
        return transform.transforms[-1](pixels.float().div(255))
    with _pool(images) as threads:
        return torch.stack(list(threads.map(lambda image: transform(Image.fromarray(image)), images)))


LARGE = (
    1_000_000  # pixels of a batch from which on several threads transform it; Pillow and torch release Python's lock
)


@contextmanager
def _pool(images: Images) -> Iterator[Any]:
    """Something with a `map`: threads for many pixels, as many as torch may use, else none."""
    workers = min(torch.get_num_threads(), len(images))
    if workers < 2 or sum(image.shape[0] * image.shape[1] for image in images) < LARGE:
        yield _Serial
        return
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as threads:
        yield threads


class _Serial:
    map = staticmethod(map)


def pictures(dataset: Dataset, positions: np.ndarray) -> list[np.ndarray]:
    """The images at `positions`, uint8 (H, W, 3); files are decoded by several threads. Raises as the dataset does."""
    chosen = [int(i) for i in positions]
    if isinstance(dataset.images, np.ndarray) or len(chosen) < 8:
        return [dataset.images[i] for i in chosen]
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        return list(threads.map(dataset.images.__getitem__, chosen))


def student_images(images: Images, size: int, *, resize_mode: str = "shortest") -> Tensor:
    """uint8 RGB images -> float32 (N, 3, size, size) for the student: ImageNet mean and standard deviation (appendix E.1).

    Bicubic resize of the shorter side and centre crop, as most teachers; resize_mode: the teacher's, so that both see the same
    pixels.
    """
    config = PreprocessCfg(size=size, mean=IMAGENET_MEAN, std=IMAGENET_STD, resize_mode=resize_mode)
    return preprocess(images, config)


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


# ---------------------------------------------------------------------------------------------------------- teacher


@dataclass(frozen=True)
class Encoding:
    """What a teacher says about N images."""

    feature: Tensor  # (N, D) float32, not normalised
    tokens: Tensor | None = (
        None  # (N, h, w, D) float32 patch tokens in the feature's space; None where not asked or none
    )


class Teacher:
    """A frozen CLIP. Attributes: name, model (open_clip's), width D, image_size S, mean, std, device, precision."""

    feature_dtype = "float32"  # of cached features: "float32" or "float16"

    def __init__(self, name: str, model: Any, tokenizer: Any, config: dict[str, Any], precision: str = "fp32") -> None:
        self.name = name
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.config = config
        self.precision = precision
        self.device = next(model.parameters()).device
        self.preprocess_config = PreprocessCfg(**model.visual.preprocess_cfg)
        self.image_size = _pair(self.preprocess_config.size)[0]
        self.mean = tuple(self.preprocess_config.mean)
        self.std = tuple(self.preprocess_config.std)
        self._texts: dict[tuple[tuple[str, ...], tuple[str, ...]], Tensor] = {}

    @cached_property
    def hash(self) -> str:
        """sha256 of all that determines a feature besides the image: configuration, preprocessing, number types, every weight."""
        identity = [self.config, asdict(self.preprocess_config), self.precision, self.feature_dtype]
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode())
        _hash_weights(digest, self.model.state_dict())
        return digest.hexdigest()

    @cached_property
    def width(self) -> int:
        """D, the width of image and text features."""
        return int(self.config["embed_dim"])

    @property
    def logit_scale(self) -> float:
        """The learned inverse temperature that multiplies cosine similarities."""
        return float(self.model.logit_scale.exp())

    @property
    def logit_bias(self) -> float | None:
        """What is added to scaled cosines, for models trained on pairs (SigLIP; Zhai et al. 2023); None for the others.

        The same for every class: it changes neither a decision nor a softmax over classes, only `probabilities`.
        """
        bias = getattr(self.model, "logit_bias", None)
        return None if bias is None else float(bias)

    def probabilities(self, scores: Tensor) -> Tensor:
        """(n, C) float32 probabilities of cosine similarities (n, C), as the model was trained to give them.

        CLIP: the softmax over classes. A model with a logit bias (SigLIP): that image and text belong together, the sigmoid of
        each scaled and shifted cosine; they do not sum to one.
        """
        logits = self.logit_scale * scores.float()
        return logits.softmax(dim=-1) if self.logit_bias is None else (logits + self.logit_bias).sigmoid()

    @property
    def grid(self) -> tuple[int, int] | None:
        """(h, w) of the patch tokens that `encode` can return; None for towers without."""
        visual = self.model.visual
        if isinstance(visual, open_clip.timm_model.TimmModel):
            return None if self._dense is None else self._dense[1]
        if not isinstance(visual, open_clip.transformer.VisionTransformer) or visual.attn_pool is not None:
            return None
        return None if visual.pool_type == "none" or visual.proj is None else visual.grid_size

    @cached_property
    def _dense(self) -> tuple[Any, tuple[int, int]] | None:
        """A convolutional trunk of timm that gives a token every `DENSE` pixels, and its grid; None for other towers.

        Strides after that are replaced by dilations with the same weights (à trous; Chen et al. 2015), so that the map is the
        tower's own one, read between its usual places too. The tower's average pooling and linear projection are linear: what
        holds for the pooled map holds for every place of it.
        """
        visual, cfg = self.model.visual, self.config.get("vision_cfg", {})
        if cfg.get("timm_pool") != "avg" or cfg.get("timm_proj") != "linear":
            return None
        import timm

        try:
            trunk = timm.create_model(cfg["timm_model_name"], num_classes=0, output_stride=DENSE)
            trunk.load_state_dict(visual.trunk.state_dict())
        except (TypeError, RuntimeError, NotImplementedError):  # a tower that knows no dilation
            return None
        trunk = trunk.eval().requires_grad_(False).to(self.device, PRECISIONS[self.precision])
        side = -(-self.image_size // DENSE)
        return trunk, (side, side)

    def transform(self, images: Images) -> Tensor:
        """uint8 RGB images (H, W, 3) -> float32 (N, 3, S, S) by the model's own preprocessing, on the CPU."""
        return preprocess(images, self.preprocess_config)

    @caller_free()
    def encode(self, images: Tensor, *, tokens: bool = False) -> Encoding:
        """The image tower on `transform`ed images (N, 3, S, S), as one batch.

        tokens=True adds the patch tokens, through the tower's own last LayerNorm and projection (L_grid, section 3.6), or, for a
        convolutional tower with average pooling, the places of its last map through its projection. Raises ValueError for another
        shape, and for tokens of a tower that has none (`grid`), such as those with an attention pool (CoCa, SigLIP).
        """
        if tokens and self.grid is None:
            raise ValueError(_no_tokens(self.name))
        size = (3, *_pair(self.preprocess_config.size))
        if images.ndim != 4 or tuple(images.shape[1:]) != size:
            expected = ", ".join(map(str, size))
            raise ValueError(f"teacher {self.name} expects images (N, {expected}), found {tuple(images.shape)}")
        visual, grid = self.model.visual, self.grid if tokens else None
        with torch.inference_mode():
            batch = images.to(self.device, PRECISIONS[self.precision], non_blocking=True)
            if grid is None or self._dense is not None:
                pooled, patches = visual(batch), None
                pooled = pooled if isinstance(pooled, Tensor) else pooled[0]  # CoCa towers return their tokens too
                if grid is not None and self._dense is not None:
                    patches = visual.head(self._dense[0].forward_features(batch).permute(0, 2, 3, 1))  # (N, h, w, D)
            else:
                visual.output_tokens = True
                try:
                    pooled, patches = visual(batch)  # (N, D), (N, h * w, width)
                finally:
                    visual.output_tokens = False
                if visual.final_ln_after_pool:
                    patches = visual.ln_post(patches)
                patches = (patches @ visual.proj).unflatten(1, grid)  # (N, h, w, D)
        # Copies made outside inference mode can take part in a loss.
        return Encoding(_copy(pooled), None if patches is None else _copy(patches))

    @caller_free()
    def text_features(self, classnames: Sequence[str], templates: Sequence[str]) -> Tensor:
        """(C, D) float32, unit length: CLIP's zero-shot recipe, the renormalised mean over templates of unit features.

        Kept in memory per (classnames, templates). Raises ValueError for no class names, templates without exactly one
        "{}", and prompts longer than the text tower's context.
        """
        if isinstance(classnames, str) or not len(classnames):
            raise ValueError(f"expected a sequence of class names, found {classnames!r}")
        key = (tuple(classnames), prompts.check(templates))
        if key not in self._texts:
            texts = [prompts.fill(template, name) for name in key[0] for template in key[1]]
            with torch.inference_mode():
                units = torch.cat([self._encode_text(texts[i : i + 256]) for i in range(0, len(texts), 256)])
            means = units.clone().unflatten(0, (len(key[0]), len(key[1]))).mean(dim=1)  # (C, templates, D) -> (C, D)
            self._texts[key] = F.normalize(means, dim=-1)
        return self._texts[key].clone()

    def _encode_text(self, texts: list[str]) -> Tensor:
        """(n, D) unit features of texts."""
        return F.normalize(self.model.encode_text(_tokenize(self.tokenizer, texts).to(self.device)).float(), dim=-1)


def _no_tokens(name: str) -> str:
    return (
        f"teacher {name} has no patch tokens in its feature's space: L_grid, column='tokens' and the islands need a vision "
        "transformer without attention pool, or a convolutional tower with average pooling"
    )


def _copy(x: Tensor) -> Tensor:
    return x.to(torch.float32, copy=True)


def _tokenize(tokenizer: Any, texts: list[str]) -> Tensor:
    """(n, context) token ids. open_clip cuts long texts without a word; here that is a ValueError."""
    if isinstance(tokenizer, open_clip.tokenizer.SimpleTokenizer):
        for text in texts:
            length = len(tokenizer.encode(text)) + 2  # start and end of text
            if length > tokenizer.context_length:
                raise ValueError(_too_long(text, length, tokenizer.context_length))
    elif isinstance(tokenizer, open_clip.tokenizer.HFTokenizer):
        lengths = [len(ids) for ids in tokenizer.tokenizer([tokenizer.clean_fn(t) for t in texts]).input_ids]
        longest = max(range(len(texts)), key=lengths.__getitem__)
        if lengths[longest] > tokenizer.context_length:
            raise ValueError(_too_long(texts[longest], lengths[longest], tokenizer.context_length))
    return tokenizer(texts)


def _too_long(text: str, length: int, context: int) -> str:
    return (
        f"the prompt {text!r} has {length} tokens, the text tower reads {context}: use shorter templates or class names"
    )


# ---------------------------------------------------------------------------------------------------------- loading


@caller_free()
def load(
    name: str,
    *,
    pretrained: str | Path | None = None,
    device: str | torch.device = "cpu",
    precision: str = "fp32",
    feature_dtype: str = "float32",
    cache: str | Path | None = None,
) -> Teacher:
    """A frozen teacher.

    name: "mini" (the weights in data/teachers), any open_clip model name, an open_clip "hf-hub:" or "local-dir:"
    name, or the path of a model configuration (.json). pretrained: an open_clip tag; a checkpoint file (.safetensors,
    or .pt/.bin/.pth read with weights_only); or both as "TAG=FILE" (a file in data/cache lies in `apm.project.cache_dir`), a file with the weights of that tag, which says how they want
    their images (mean, std, resizing) and which activation they were trained with. A name "timm:MODEL" is an image tower of timm without a text tower, such as
    "timm:vit_large_patch14_reg4_dinov2.lvd142m", the teacher of dataset-scale training; pretrained is then a file, or None
    for timm's own weights. "timm:MODEL@448" reads images of 448 px: timm fits the position codes of vision transformers. precision: "fp32", "bf16", "fp16" or "fp64". feature_dtype: of the cached features, "float32" or
    "float16" (half the space; cosines change by about 1e-3). cache: folder for downloads (default: open_clip's). A checkpoint file
    with a card beside it, as those in data/teachers have, is held against the sha256 in it, and one that has the name of a card
    in data/teachers against the hash of its weights there.

    Raises ValueError for unknown names, tags, precisions and devices that are not there, for weights trained with another
    activation (QuickGELU), for checkpoints of another architecture and for files that are not what their card says; FileNotFoundError for weights that are neither here
    nor reachable; ModuleNotFoundError for a teacher whose tokenizer needs transformers (SigLIP) where that is not installed. Warns of a file without tag where the model's tags want their images in different ways, and of weights that are not
    those of the card of their name in data/teachers.
    """
    pretrained = located(pretrained) if isinstance(pretrained, str) else pretrained
    teacher = _load(name, pretrained, device, precision, cache)
    if feature_dtype not in ("float32", "float16"):
        raise unknown("feature_dtype", feature_dtype, ("float32", "float16"))
    teacher.feature_dtype = feature_dtype
    return teacher


def _load(
    name: str, pretrained: str | Path | None, device: str | torch.device, precision: str, cache: str | Path | None
) -> Teacher:
    if precision not in PRECISIONS:
        raise unknown("precision", precision, list(PRECISIONS))
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device {str(device)!r} was asked for, but torch {torch.__version__} finds no CUDA GPU here: set device: cpu, or "
            "install a torch that fits the GPU's driver"
        )
    if name.startswith("timm:"):
        return _load_timm(name.removeprefix("timm:"), pretrained, device, precision, cache)
    if name == "mini":
        if pretrained is not None:
            raise ValueError(
                "teacher 'mini' is the one in data/teachers; for a checkpoint of its architecture pass name='apm-mini'"
            )
        return _create("apm-mini", str(shipped("mini")), device, precision, None, label="mini")
    if open_clip.factory.parse_model_name(name)[0] is None:
        name = _register_config(name)
        tag, file = split_pretrained(name, None if pretrained is None else str(pretrained))
        pretrained = _check_weights(name, tag, file, cache)
        return _create(name, pretrained, device, precision, cache, label=name, tag=tag)
    if name.startswith("hf-hub:") and not _online(_hub_url()) and not _hub_cached(name[7:], None, cache):
        raise FileNotFoundError(
            f"teacher {name}: not in {_hub_folder(cache)}, and the hub cannot be reached. {_BY_HAND}"
        )
    return _create(name, pretrained, device, precision, cache, label=name)


SHIPPED = (
    Path(__file__).resolve().parents[2] / "data" / "teachers"
)  # weights that come with the clone, each with its card


def shipped(name: str) -> Path:
    """The checkpoint of that name in data/teachers. Raises FileNotFoundError where it or its card is not there."""
    path = SHIPPED / f"{name}.safetensors"
    for file in (path, path.with_suffix(".yaml")):
        if not file.is_file():
            raise FileNotFoundError(
                f"teacher {name}: {file} is not there. It comes with the clone: `git checkout data/teachers` brings it back "
                "(an installed package has none: run from a clone)"
            )
    return path


def _check_card(file: Path) -> None:
    """Raises ValueError for a checkpoint that is not the one that the card beside it (.yaml, with a sha256) describes; warns of
    one elsewhere whose weights are not those of the card of its name in data/teachers, which too large a file has alone."""
    card = file.with_suffix(".yaml")
    if not card.is_file():
        _compare_with_card(file, SHIPPED / card.name)
        return
    expected = (yaml.safe_load(card.read_text(encoding="utf-8")) or {}).get("sha256")
    found = sha256_file(file)
    if expected != found:
        raise ValueError(
            f"{file} is not the file that {card.name} beside it describes: expected sha256 {expected}, found {found} "
            f"({file.stat().st_size:,} bytes). It was cut off or changed: `git checkout data/teachers` brings it back, "
            "`make teacher` trains another"
        )


def _compare_with_card(file: Path, card: Path) -> None:
    if not card.is_file() or file.suffix != ".safetensors":
        return
    expected = (yaml.safe_load(card.read_text(encoding="utf-8")) or {}).get("weights_sha256")
    if expected and (found := weights_sha256(load_file(str(file)))) != expected:
        warnings.warn(
            f"{file}: these are not the weights that the committed results were made with: {card} describes weights of sha256 "
            f"{expected[:16]}, found {found[:16]}. Another machine trains others from the same seed, and numbers differ with them",
            stacklevel=2,
        )


def weights_sha256(weights: dict[str, Tensor]) -> str:
    """sha256 over names, types, shapes and bytes of the weights: the same whatever else their file says."""
    digest = hashlib.sha256()
    _hash_weights(digest, weights)
    return digest.hexdigest()


def _hash_weights(digest: Any, weights: dict[str, Tensor]) -> None:
    for key, value in sorted(weights.items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


_BY_HAND = (
    "Download the weights where there is a network and name the file with its tag, in a profile or in load: "
    "pretrained='TAG=/path/to/weights.safetensors'"
)


def split_pretrained(name: str, pretrained: str | None) -> tuple[str | None, str | None]:
    """(tag, file) that a value of `pretrained` names for an open_clip model; None for what it leaves open.

    Raises ValueError for "TAG=FILE" with a tag that the model does not have.
    """
    if pretrained is None:
        return None, None
    if open_clip.get_pretrained_cfg(name, pretrained):
        return pretrained, None
    tag, equals, file = pretrained.partition("=")
    if not equals or Path(pretrained).is_file() or "/" in tag:
        return None, pretrained
    if not open_clip.get_pretrained_cfg(name, tag):
        raise unknown(f"tag of {name}", tag, open_clip.list_pretrained_tags_by_model(name) or ["none"])
    return tag, file


def _create(
    name: str,
    pretrained: Any,
    device: str | torch.device,
    precision: str,
    cache: str | Path | None,
    *,
    label: str,
    tag: str | None = None,
) -> Teacher:
    """open_clip's own factory and tokenizer."""
    config = open_clip.factory.get_model_config(name)
    _check_tokenizer(label, config)
    where = None if cache is None else str(cache)
    from_file = bool(pretrained) and Path(pretrained).is_file()
    if from_file:
        _check_card(Path(pretrained))
    if (
        from_file
        and zipfile.is_zipfile(pretrained)
        and any("/code/" in n for n in zipfile.ZipFile(pretrained).namelist())
    ):
        raise ValueError(
            f"{pretrained} is a TorchScript archive, as OpenAI published its weights, not a state dict. Save what it holds: "
            "weights = torch.jit.load(FILE, 'cpu').state_dict(); for key in ('input_resolution', 'context_length', 'vocab_size'): "
            "weights.pop(key); torch.save(weights, NEW)"
        )
    try:
        model = open_clip.create_model(
            name,
            pretrained,
            precision="fp32" if precision == "fp64" else precision,  # open_clip knows no fp64
            device=device,
            cache_dir=where,
            require_pretrained=True,
            weights_only=True,
            force_preprocess_cfg=_preprocessing(name, tag, Path(pretrained)) if from_file else None,
        )
    except Exception as error:  # a state dict that does not fit fails in many ways
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"the weights {pretrained or name!r} cannot be loaded into model {name}: {type(error).__name__}: {reason}. "
            "Expected a checkpoint of this architecture (.safetensors, or a state dict saved by torch.save)"
        ) from error
    if pretrained and Path(pretrained).is_file():
        _check_positions(name, model, Path(pretrained))
    try:
        tokenizer = open_clip.get_tokenizer(name, cache_dir=where)
    except OSError as error:  # transformers' word for a repository that is neither here nor reachable
        raise FileNotFoundError(
            f"teacher {label}: its tokenizer {config['text_cfg'].get('hf_tokenizer_name')} is not in {_hub_folder(cache)}, and the "
            "hub cannot be reached. Load it once where there is a network, and copy that folder here (HF_HOME says where)"
        ) from error
    return Teacher(label, model.double() if precision == "fp64" else model, tokenizer, config, precision)


def _check_tokenizer(label: str, config: dict[str, Any] | None) -> None:
    """Raises ModuleNotFoundError for a text tower or tokenizer of transformers where that is not installed."""
    text = (config or {}).get("text_cfg", {})
    if (text.get("hf_tokenizer_name") or text.get("hf_model_name")) and not find_spec("transformers"):
        raise ModuleNotFoundError(
            f"teacher {label} needs the package transformers, for its text: pip install 'apm[hf]', or pip install transformers",
            name="transformers",
        )


class TimmTeacher(Teacher):
    """A frozen image tower of timm, such as DINOv2 with registers: features and patch tokens, no text tower.

    The feature is the tower's pooled one (the CLS token of DINOv2), the tokens are its normalised patch tokens; both have the
    tower's own width (section 5: 1024 for ViT-L/14).
    """

    def __init__(self, name: str, model: Any, precision: str = "fp32") -> None:
        import timm

        cfg = timm.data.resolve_data_config({}, model=model)
        self.name, self.precision = name, precision
        self.model = model.eval().requires_grad_(False)
        self.device = next(model.parameters()).device
        built_for = getattr(getattr(model, "patch_embed", None), "img_size", None)  # not always timm's own size
        self.image_size = int((built_for or cfg["input_size"])[-1])
        self.config = {"timm": name, "embed_dim": model.num_features, "input": [3, self.image_size, self.image_size]}
        self.mean, self.std = tuple(cfg["mean"]), tuple(cfg["std"])
        self.preprocess_config = PreprocessCfg(
            size=self.image_size, mean=self.mean, std=self.std, interpolation=cfg["interpolation"]
        )

    @property
    def logit_scale(self) -> float:
        """There is no text to compare with. Raises ValueError."""
        raise ValueError(self._no_text())

    @property
    def grid(self) -> tuple[int, int] | None:
        """(h, w) of the patch tokens; None for towers without."""
        return getattr(getattr(self.model, "patch_embed", None), "grid_size", None)

    def encode(self, images: Tensor, *, tokens: bool = False) -> Encoding:
        """As `Teacher.encode`."""
        if tokens and self.grid is None:
            raise ValueError(_no_tokens(self.name))
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, self.image_size, self.image_size):
            raise ValueError(
                f"teacher {self.name} expects images (N, 3, {self.image_size}, {self.image_size}), found {tuple(images.shape)}"
            )
        with torch.inference_mode():
            every = self.model.forward_features(images.to(self.device, PRECISIONS[self.precision], non_blocking=True))
            pooled = self.model.forward_head(every, pre_logits=True)  # (N, D)
            patches = None
            if tokens:
                patches = every[:, self.model.num_prefix_tokens :].unflatten(1, self.grid)  # without CLS and registers
        return Encoding(_copy(pooled), None if patches is None else _copy(patches))

    def text_features(self, classnames: Sequence[str], templates: Sequence[str]) -> Tensor:
        """There is no text tower. Raises ValueError."""
        raise ValueError(self._no_text())

    def _no_text(self) -> str:
        return f"teacher {self.name} has no text tower: it serves dataset-scale training (07_field); classification needs a CLIP"


def _load_timm(
    name: str, pretrained: str | Path | None, device: str | torch.device, precision: str, cache: str | Path | None
) -> TimmTeacher:
    """An image tower of timm with its own weights, or those of a file. name: MODEL or MODEL@PIXELS."""
    import timm

    full, (name, _, pixels) = name, name.partition("@")
    if pixels and not pixels.isdecimal():
        raise ValueError(
            f"teacher timm:{full}: expected the image size in pixels after @, such as @448, found {pixels!r}"
        )
    if not timm.is_model(name):
        near = timm.list_models(f"*{name.split('.')[0][:12]}*", pretrained=True)[:20]
        raise unknown("timm model", name, near or timm.list_models("*dinov2*", pretrained=True))
    if pretrained is None and not _online(_hub_url()):
        repository = getattr(timm.get_pretrained_cfg(name), "hf_hub_id", None)
        if repository is None or not _hub_cached(str(repository), None, cache):
            raise FileNotFoundError(
                f"teacher timm:{name}: its weights are not in {_hub_folder(cache)}, and the hub cannot be reached. Download them "
                "where there is a network and pass the file: load(name, pretrained='/path/to/weights.safetensors')"
            )
    size: dict[str, Any] = {"img_size": int(pixels)} if pixels else {}
    try:
        model = timm.create_model(name, pretrained=pretrained is None, num_classes=0, **size)
    except (TypeError, AssertionError) as error:  # a tower that has no say in the size
        raise ValueError(f"timm cannot build {name} for images of another size than its own: {error}") from error
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", (1, 1))
    if pixels and any(int(pixels) % side for side in patch):
        raise ValueError(f"teacher timm:{full}: {pixels} px are no whole number of patches of {patch[0]} px")
    if pretrained is not None:
        file = Path(pretrained)
        if not file.is_file():
            raise FileNotFoundError(f"teacher timm:{name}: there is no file {file}")
        try:
            weights: Any = (
                load_file(str(file)) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
            )
            weights = weights.get("state_dict", weights)
            if pixels and isinstance(model, timm.models.VisionTransformer):
                weights = timm.models.vision_transformer.checkpoint_filter_fn(weights, model)  # fits the position codes
            model.load_state_dict({k: v for k, v in weights.items() if not k.startswith("head.")})
        except Exception as error:  # a state dict that does not fit fails in many ways
            reason = " ".join(str(error).split())[:300]
            raise ValueError(
                f"the weights {file} cannot be loaded into timm:{name}: {type(error).__name__}: {reason}. Expected a "
                "checkpoint of this architecture (.safetensors, or a state dict saved by torch.save)"
            ) from error
    return TimmTeacher(f"timm:{full}", model.to(device, PRECISIONS[precision]), precision)


def _check_positions(name: str, model: Any, file: Path) -> None:
    """open_clip stretches position codes to fit any grid and context; a local file of another size is an error here."""
    stored, expected = open_clip.factory.load_state_dict(str(file)), model.state_dict()
    for key in ("visual.positional_embedding", "positional_embedding"):
        if key in stored and key in expected and stored[key].shape != expected[key].shape:
            raise ValueError(
                f"the checkpoint {file} is of another architecture than {name}: {key} is {tuple(stored[key].shape)}, "
                f"expected {tuple(expected[key].shape)} (image size, patch size or context length differ)"
            )


def _preprocessing(name: str, tag: str | None, file: Path) -> dict[str, Any]:
    """How the weights in a file want their images: as their tag says, or the open_clip_config.json beside them."""
    known = [f.name for f in fields(PreprocessCfg)]

    def of_tag(tag: str) -> dict[str, Any]:
        config = open_clip.get_pretrained_cfg(name, tag) or {}
        return {key: value for key, value in config.items() if key in known and key != "size"}

    if tag is not None:
        return of_tag(tag)
    beside = file.with_name("open_clip_config.json")
    if beside.is_file():
        found = json.loads(beside.read_text(encoding="utf-8")).get("preprocess_cfg", {})
        return {key: value for key, value in found.items() if key in known and key != "size"}
    ways: dict[str, list[str]] = {}
    for each in open_clip.list_pretrained_tags_by_model(name):
        ways.setdefault(json.dumps(of_tag(each), sort_keys=True), []).append(each)
    if len(ways) > 1:
        groups = "; ".join(", ".join(tags) for tags in ways.values())
        warnings.warn(
            f"teacher {name}: the file {file} does not say how its weights want their images, and this model's tags differ in that "
            f"({groups}): taking OpenAI's mean, std and resizing. If the weights are of one of the tags, say TAG={file}",
            stacklevel=2,
        )
    return {}


def _register_config(name: str) -> str:
    """The open_clip name of a model; a .json path is registered first. Raises ValueError for an unknown name."""
    if name.endswith(".json"):
        path = Path(name)
        if not path.is_file():
            raise FileNotFoundError(f"model configuration {path} does not exist")
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"model configuration {path} is no JSON: {error}") from error
        missing = [key for key in ("embed_dim", "vision_cfg", "text_cfg") if key not in config]
        if missing:
            raise ValueError(
                f"model configuration {path} lacks {', '.join(missing)}: expected an open_clip model config"
            )
        if path.stem in open_clip.list_models() and open_clip.factory.get_model_config(path.stem) != config:
            raise ValueError(f"{path}: the model name {path.stem} is taken by another configuration: rename the file")
        open_clip.add_model_config(path)
        return path.stem
    known = open_clip.list_models()
    if name not in known:
        raise unknown("model", name, ["mini", *known])
    return name


def _check_weights(name: str, pretrained: str | None, file: str | None, cache: str | Path | None) -> str:
    """The tag or file to load, after everything that can be known to go wrong was ruled out. pretrained: a tag."""
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained is None and file is None:
        raise ValueError(
            f"teacher {name} needs weights: pass pretrained=TAG ({', '.join(tags) or 'no tags for this model'}) or a "
            "checkpoint file; `python -m apm.teachers.teacher train` makes one for our own configurations"
        )
    if file is not None and not Path(file).is_file():
        made = (
            ""
            if tags
            else ". A teacher of ours is trained with `make teacher`, or `python -m apm.teachers.teacher train`"
        )
        raise FileNotFoundError(
            f"teacher {name}: {file!r} is neither a file nor a tag of this model. Known tags: {', '.join(tags) or 'none'}{made}"
        )
    if pretrained is None:
        _check_activation(name, tags, Path(str(file)))
        return str(file)
    tag = open_clip.get_pretrained_cfg(name, pretrained)
    quick = bool(open_clip.factory.get_model_config(name).get("quick_gelu", False))
    other = name.removesuffix("-quickgelu") if quick else f"{name}-quickgelu"
    if quick != bool(tag.get("quick_gelu", False)) and other in open_clip.list_models():
        raise ValueError(
            f"the weights {name}:{pretrained} were trained {'without' if quick else 'with'} QuickGELU and give wrong features "
            f"in {name}: use {other}"
        )
    if file is not None:
        return file
    _check_reachable(name, pretrained, tag, cache)
    return pretrained


def _check_activation(name: str, tags: Sequence[str], file: Path) -> None:
    """Weights in a file do not say their activation: the open_clip_config.json beside them does, else the user has to.

    Raises ValueError where the configuration beside the file has another activation than the model; warns where the tags of the
    model have both, as those of ViT-B-16 do.
    """
    quick = bool(open_clip.factory.get_model_config(name).get("quick_gelu", False))
    other = name.removesuffix("-quickgelu") if quick else f"{name}-quickgelu"
    beside = file.with_name("open_clip_config.json")
    if beside.is_file():
        said = json.loads(beside.read_text(encoding="utf-8")).get("model_cfg", {})
        if bool(said.get("quick_gelu", False)) != quick:
            raise ValueError(
                f"{beside} says that its weights were trained {'without' if quick else 'with'} QuickGELU; they give wrong features "
                f"in {name}: use {other if other in open_clip.list_models() else 'a model configuration that says so'}"
            )
        return
    differ = [t for t in tags if bool((open_clip.get_pretrained_cfg(name, t) or {}).get("quick_gelu", False)) != quick]
    if differ and len(differ) < len(tags) and other in open_clip.list_models():
        warnings.warn(
            f"teacher {name}: the file {file} does not say whether its weights were trained with QuickGELU. {name} is "
            f"{'with' if quick else 'without'} it; weights of {', '.join(differ)} need {other}. If the weights are of a tag, say TAG={file}",
            stacklevel=2,
        )


def _check_reachable(name: str, pretrained: str, tag: dict[str, Any], cache: str | Path | None) -> None:
    """open_clip retries an unreachable host for most of a minute: look first. Raises FileNotFoundError."""
    if tag.get("hf_hub"):
        repository, _, file = tag["hf_hub"].rpartition("/")
        found, where, url = _hub_cached(repository, file or None, cache), _hub_folder(cache), _hub_url()
    else:
        where, url = Path(cache or "~/.cache/clip").expanduser(), tag["url"]
        found = (where / Path(url).name).is_file()
    if not found and not _online(url):
        raise FileNotFoundError(
            f"the weights {name}:{pretrained} are not in {where}, and {url} cannot be reached. {_BY_HAND}"
        )


def _hub_url() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


def _hub_folder(cache: str | Path | None) -> Path:
    from huggingface_hub import constants

    return Path(cache or constants.HF_HUB_CACHE)


def _hub_cached(repository: str, file: str | None, cache: str | Path | None) -> bool:
    """Whether any form of these weights that open_clip would take lies in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    names = [file or "open_clip_pytorch_model.bin", "open_clip_model.safetensors"]
    names += [re.sub(r"\.(bin|pth)$", ".safetensors", n) for n in names]
    folder = str(_hub_folder(cache))
    return any(isinstance(try_to_load_from_cache(repository, n, cache_dir=folder), str) for n in names)


def _online(url: str, seconds: float = 4.0) -> bool:
    """Whether the host answers at all, proxies included; an HTTP error is an answer. Honours HF_HUB_OFFLINE."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    try:
        request = urllib.request.Request(url, method="HEAD")
        with urllib.request.urlopen(request, timeout=seconds):
            return True
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False


# --------------------------------------------------------------------------------------------------- cached features


def features(
    teacher: Teacher,
    dataset: Dataset,
    cache: str | Path | None = None,
    *,
    batch_size: int = 256,
    workers: int | None = None,
) -> np.ndarray:
    """(N, D) image features of a dataset, a read-only memory map of a file in cache (default: the project's).

    float32 or float16, as the teacher was loaded with; not normalised. The file's name carries the hash of the teacher, its
    preprocessing, precision and kind of device, of the data's fingerprint and of the images' indices, of the code that reads and
    encodes images and of the libraries' versions: whatever changes, changes the file. Memory does not grow with N. The row of an image that cannot be read is NaN; `features_at` names it.

    workers: processes that read and transform images; default: none for images in memory, else one per core, at most 8.
    """
    key = sha256_of(
        {
            "teacher": teacher.hash,
            "device": teacher.device.type,
            "code": code_version(RUN_MODULES),
            "libraries": libraries(("torch", "open_clip_torch", "timm", "pillow", "numpy", "scipy", "scikit-image")),
            "data": dataset.fingerprint,
            "indices": hashlib.sha256(np.ascontiguousarray(dataset.indices, dtype="<i8").tobytes()).hexdigest(),
            "corruption": [dataset.corruption, dataset.severity],
            "batch": batch_size,
        }
    )
    folder = (cache_dir() if cache is None else Path(cache)) / "features"
    path = folder / f"{_slug(dataset.name)}-{_slug(teacher.name)}-{key[:24]}.npy"
    expected = (len(dataset), teacher.width)
    if path.is_file():
        try:
            stored = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            warnings.warn(f"the cached features {path} cannot be read ({error}): computing them again", stacklevel=2)
        else:
            if stored.shape == expected and stored.dtype == teacher.feature_dtype:
                return stored
            warnings.warn(
                f"the cached features {path} are {stored.dtype} {stored.shape}, expected {teacher.feature_dtype} {expected}: "
                "computing them again",
                stacklevel=2,
            )
    folder.mkdir(parents=True, exist_ok=True)
    what = f"{teacher.name} features of {dataset.name}"
    with atomic_path(path) as temporary, progress(total=len(dataset), desc=what, unit="image") as bar:
        result = np.lib.format.open_memmap(temporary, "w+", np.dtype(teacher.feature_dtype), expected)
        done = 0
        for batch, readable in _batches(teacher, dataset, batch_size, workers):
            rows = np.full((len(readable), teacher.width), np.nan, dtype=np.float32)
            if len(batch):
                rows[readable] = teacher.encode(batch).feature.cpu().numpy()
            result[done : done + len(rows)] = rows
            done += len(rows)
            bar.update(len(rows))
        result.flush()
        del result
    return np.load(path, mmap_mode="r", allow_pickle=False)


def features_at(teacher: Teacher, dataset: Dataset, positions: np.ndarray, cache: str | Path | None = None) -> Tensor:
    """(n, D) float32 features of the images at `positions`, from the cached ones of the whole dataset.

    Raises `apm.data.datasets.UnreadableImage`, which names the file, for an image that could not be read, and ValueError for a
    feature that is not finite.
    """
    rows = np.array((features(teacher, dataset) if cache is None else features(teacher, dataset, cache))[positions])
    for row in np.flatnonzero(~np.isfinite(rows).all(axis=1)):
        image = dataset.images[int(positions[row])]  # an image that cannot be read says so
        # one that could not be read when the features were made, but can be now
        rows[row] = teacher.encode(teacher.transform([image])).feature[0].cpu().numpy()
        if np.isfinite(rows[row]).all():
            continue
        raise ValueError(
            f"teacher {teacher.name} gives image {int(dataset.indices[positions[row]])} of {dataset.name} a feature that is not "
            f"finite: another precision than {teacher.precision} may do"
        )
    return torch.from_numpy(rows.astype(np.float32, copy=False))


class _Transformed(torch.utils.data.Dataset):
    """Images of a dataset, transformed one by one; None for one that cannot be read."""

    def __init__(self, teacher: Teacher, dataset: Dataset) -> None:
        self.images, self.config = dataset.images, teacher.preprocess_config

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Tensor | None:
        try:
            return preprocess([self.images[i]], self.config)[0]
        except UnreadableImage:
            return None


def _collate(items: list[Tensor | None]) -> tuple[Tensor, np.ndarray]:
    """The images of a batch that can be read, (n, 3, S, S), and which they are, bool (batch,)."""
    found = [item for item in items if item is not None]
    return torch.stack(found) if found else torch.empty(0), np.array([item is not None for item in items])


def _batches(
    teacher: Teacher, dataset: Dataset, batch_size: int, workers: int | None
) -> Iterable[tuple[Tensor, np.ndarray]]:
    if workers is None:
        in_memory = isinstance(dataset.images, np.ndarray) or len(dataset) < 4 * batch_size
        workers = 0 if in_memory else min(8, os.cpu_count() or 1)
    return torch.utils.data.DataLoader(
        _Transformed(teacher, dataset),
        batch_size=batch_size,
        collate_fn=_collate,
        num_workers=workers,
        pin_memory=teacher.device.type == "cuda",
        generator=torch.Generator(),  # its own: else it would draw from the global one
    )


def token_grid(teacher: Teacher, images: Images, grid: tuple[int, int], *, batch_size: int = 256) -> Tensor:
    """(N, h*w, D) patch tokens of uint8 RGB images (H, W, 3) on a student's grid: the targets of L_grid, the routed tokens.

    Where the teacher's grid has another size it is resampled bilinearly. Raises ValueError for a tower without patch tokens.
    """
    if teacher.grid is None:
        raise ValueError(_no_tokens(teacher.name))
    parts = []
    for start in range(0, len(images), batch_size):
        tokens = teacher.encode(teacher.transform(images[start : start + batch_size]), tokens=True).tokens
        assert tokens is not None
        maps = tokens.permute(0, 3, 1, 2)  # (n, D, h, w)
        if tuple(maps.shape[2:]) != tuple(grid):
            maps = F.interpolate(maps, size=grid, mode="bilinear", align_corners=False)
        parts.append(maps.flatten(2).mT)
    return torch.cat(parts)


def patch_colours(images: Tensor, patch: int) -> Tensor:
    """(N, h*w, 3) mean colour in 0..1 of every patch of `student_images` (N, 3, H, W): the target of L_rgb."""
    mean, std = (torch.tensor(values).view(3, 1, 1).to(images) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return F.avg_pool2d(images * std + mean, patch).flatten(2).mT.clamp(0, 1)


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-")[-48:]


# --------------------------------------------------------------------------------------------------------- training


@checked
@dataclass(frozen=True)
class TrainConfig:
    """Settings of a contrastive training. Defaults: the teacher of profile `mini`."""

    model: str = "apm-mini"  # open_clip model configuration
    epochs: int = 50
    groups: int = 9  # groups of one image per class in a batch
    learning_rate: float = 1e-3
    warmup: float = 0.1  # share of the steps
    weight_decay: float = 0.05
    beta2: float = 0.98
    clip_norm: float = 1.0
    rotation: float = 10.0  # affine augmentation: degrees, and the rest as shares of the image's side
    scale: float = 0.1
    shear: float = 0.1
    shift: float = 0.08
    flip: float = 0.0  # share of images mirrored left to right
    seed: int = 0
    # CPU threads: fixed, because sums split in another way round differently; a second one gains little, stalls when shared.
    threads: int = 1
    precision: str = "fp32"  # "bf16": autocast, about twice as fast for convolutions on CPUs that have it

    def __post_init__(self) -> None:
        if min(self.epochs, self.groups, self.threads) < 1 or self.learning_rate <= 0:
            raise ValueError(
                "epochs, groups, threads and learning_rate must be positive, found "
                f"{self.epochs}, {self.groups}, {self.threads} and {self.learning_rate}"
            )
        if self.precision not in ("fp32", "bf16"):
            raise unknown("training precision", self.precision, ("fp32", "bf16"))


CAPTIONS = (
    "{}",
    "a photo of {}.",
    "a photo of a {}.",
    "a photo of the {}.",
    "an image of a {}.",
    "a picture of the {}.",
    "a drawing of a {}.",
)


def captions(dataset: Dataset) -> list[list[str]]:
    """Per class, all captions: general ones and the dataset's templates, with every form of the class name."""
    templates = dict.fromkeys((*CAPTIONS, *dataset.templates))
    return [
        [prompts.fill(template, form) for template in templates for form in prompts.forms(name)]
        for name in dataset.classnames
    ]


@caller_free()
def train(dataset: Dataset, config: TrainConfig, *, device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """Weights (a state dict on the CPU) of a CLIP trained from scratch on images and captions of their class names.

    A batch is made of groups with one image per class. Within a group every caption is unique, so open_clip's ClipLoss
    has no false negatives; in a plain random batch most negatives of a ten-class set would be true captions. Per step one
    caption is drawn per class and encoded once for all groups, which gives the gradient of encoding it for each image.
    Only the rows of the token embedding that occur in captions are trained: the others have no gradient.
    The same config, data, machine and library versions give bit-identical weights.

    Raises ValueError for a class without images, RuntimeError for a loss that is not finite.
    """
    counts = np.bincount(dataset.labels, minlength=len(dataset.classnames))
    if not counts.all():
        raise ValueError(
            f"training set {dataset.name}: no images of class {dataset.classnames[int(counts.argmin())]!r}"
        )
    name = _register_config(config.model)
    device = torch.device(device)
    with _reproducible(config.seed, config.threads):
        model = _untrained(name).to(device)
        ids = [_tokenize(open_clip.get_tokenizer(name), texts) for texts in captions(dataset)]
        used = torch.unique(
            torch.cat(ids)
        )  # sorted, so the end-of-text token stays the highest id, which CLIP pools by
        ids = [torch.searchsorted(used, i).to(device) for i in ids]
        embedding = _token_embedding(model)
        all_rows = embedding.weight.data
        embedding.weight = torch.nn.Parameter(all_rows[used].clone())
        embedding.num_embeddings = len(used)
        _sinusoidal_positions(model)
        _fit(model, dataset, ids, config, device)
        all_rows[used] = embedding.weight.data
        embedding.weight = torch.nn.Parameter(all_rows)
    return {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}


def _fit(model: Any, dataset: Dataset, captions: list[Tensor], config: TrainConfig, device: torch.device) -> None:
    """The loop: AdamW, linear warm-up, cosine decay to zero."""
    preprocessing = PreprocessCfg(**model.visual.preprocess_cfg)
    pixels, normalise = (
        _training_pixels(dataset, preprocessing),
        image_transform_v2(preprocessing, False).transforms[-1],
    )
    classes = len(dataset.classnames)
    per_epoch = math.ceil(len(dataset) / (classes * config.groups))
    steps = config.epochs * per_epoch
    generator = torch.Generator().manual_seed(
        config.seed
    )  # data, captions and augmentation; on the CPU for every device
    batches = _balanced(torch.tensor(dataset.labels), classes, config.groups, generator)
    parameters = _decay_groups(model, config.weight_decay)
    optimiser = torch.optim.AdamW(parameters, lr=config.learning_rate, betas=(0.9, config.beta2), eps=1e-6, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, _warmup_cosine(steps, config.warmup))
    clip_loss = open_clip.ClipLoss()
    if not isinstance(model.visual, open_clip.transformer.VisionTransformer):
        model.visual.to(memory_format=torch.channels_last)  # convolutions are faster so
    model.train()
    with progress(total=steps * classes * config.groups, desc=f"training teacher {config.model}", unit="image") as bar:
        for step in range(steps):
            images = augment(pixels[next(batches)].float().div(255), config, generator)  # (groups * C, 3, S, S)
            texts = torch.stack([c[torch.randint(len(c), (), generator=generator)] for c in captions])  # (C, context)
            with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
                image_features = model.encode_image(normalise(images).to(device), normalize=True).float()
                text_features = model.encode_text(texts, normalize=True).float()
            scale = model.logit_scale.exp()
            groups = image_features.unflatten(0, (-1, classes))
            loss = torch.stack([clip_loss(group, text_features, scale) for group in groups]).mean()
            if not torch.isfinite(loss):
                raise RuntimeError(
                    f"training {config.model} on {dataset.name}: loss {loss.item()} in step {step} of {steps}; "
                    "lower the learning rate"
                )
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
            optimiser.step()
            schedule.step()
            with torch.no_grad():
                model.logit_scale.clamp_(0, math.log(100))  # as open_clip trains
            bar.update(len(images))
    model.eval()


def _untrained(name: str) -> Any:
    """A model with random weights, without open_clip's warning that it has them."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        return open_clip.create_model(name, load_weights=False)
    finally:
        logging.disable(level)


def _training_pixels(dataset: Dataset, config: PreprocessCfg) -> Tensor:
    """All images at the model's size, uint8 (N, 3, S, S), by the evaluation transform's resizing and cropping."""
    geometry = image_transform_v2(config, is_train=False).transforms[
        :-3
    ]  # without conversion to RGB, tensor, normalise
    size = _pair(config.size)
    result = np.empty((len(dataset), *size, 3), dtype=np.uint8)
    for i in range(len(dataset)):
        image = Image.fromarray(dataset.images[i])
        for step in geometry:
            image = step(image)
        result[i] = np.asarray(image)
    return torch.from_numpy(result).permute(0, 3, 1, 2).contiguous()


def _balanced(labels: Tensor, classes: int, groups: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Endless positions (groups * classes,) with one image per class in every group, each class in shuffled passes."""
    members = [torch.nonzero(labels == c).flatten() for c in range(classes)]
    queues = [torch.empty(0, dtype=torch.long) for _ in members]
    while True:
        rows = []
        for c, own in enumerate(members):
            while len(queues[c]) < groups:
                queues[c] = torch.cat([queues[c], own[torch.randperm(len(own), generator=generator)]])
            rows.append(queues[c][:groups])
            queues[c] = queues[c][groups:]
        yield torch.stack(rows, dim=1).flatten()  # (groups, C) -> (groups * C,)


def augment(images: Tensor, config: TrainConfig, generator: torch.Generator) -> Tensor:
    """Random rotation, anisotropic scale, shear, shift and mirroring of each image (N, 3, S, S); black outside."""
    n = len(images)

    def uniform(limit: float) -> Tensor:
        return (torch.rand(n, generator=generator) * 2 - 1) * limit  # (n,)

    angle, shear = uniform(math.radians(config.rotation)), uniform(config.shear)
    scale_x, scale_y = uniform(config.scale).exp(), uniform(config.scale).exp()
    mirror = 1 - 2 * (torch.rand(n, generator=generator) < config.flip).float()
    rows = [
        torch.stack([mirror * scale_x * angle.cos(), shear - scale_y * angle.sin(), uniform(2 * config.shift)], dim=-1),
        torch.stack([mirror * scale_x * angle.sin(), scale_y * angle.cos(), uniform(2 * config.shift)], dim=-1),
    ]
    grid = F.affine_grid(
        torch.stack(rows, dim=1), list(images.shape), align_corners=False
    )  # (n, S, S, 2) from (n, 2, 3)
    return F.grid_sample(images, grid, align_corners=False, padding_mode="zeros")


def _decay_groups(model: Any, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay on matrices only: not on gains, biases, embeddings and the temperature, as open_clip trains."""
    trained = [(key, p) for key, p in model.named_parameters() if p.requires_grad]
    decayed = [p for key, p in trained if p.ndim > 1 and "embedding" not in key]
    other = [p for key, p in trained if not (p.ndim > 1 and "embedding" not in key)]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": other, "weight_decay": 0.0}]


def _warmup_cosine(steps: int, warmup: float) -> Any:
    first = warmup * steps

    def factor(step: int) -> float:
        if step < first:
            return (step + 1) / (first + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - first) / max(1.0, steps - first)))

    return factor


def _token_embedding(model: Any) -> torch.nn.Embedding:
    owner = model if hasattr(model, "token_embedding") else getattr(model, "text", None)
    if not hasattr(owner, "token_embedding"):
        raise ValueError("training needs open_clip's own text tower: the configuration must not name hf_model_name")
    return owner.token_embedding  # type: ignore[union-attr]


def _sinusoidal_positions(model: Any) -> None:
    """Start a square ViT's learned position codes from 2-D sinusoids: with small patches learning starts much sooner."""
    visual = model.visual
    if not isinstance(visual, open_clip.transformer.VisionTransformer) or len(set(visual.grid_size)) != 1:
        return
    from open_clip.pos_embed import get_2d_sincos_pos_embed

    codes = get_2d_sincos_pos_embed(visual.positional_embedding.shape[1], visual.grid_size[0], cls_token=True)
    visual.positional_embedding.data.copy_(torch.from_numpy(codes))


@contextmanager
def _reproducible(seed: int, threads: int) -> Iterator[None]:
    """Seeded generators, a fixed number of threads and deterministic kernels; everything as before afterwards."""
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        try:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(True, warn_only=True)  # some CUDA kernels have no deterministic form
            torch.manual_seed(seed)
            yield
        finally:
            torch.set_num_threads(before[0])
            torch.use_deterministic_algorithms(before[1], warn_only=warn_only)


RECIPE = (
    train,
    _fit,
    _reproducible,
    _training_pixels,
    _balanced,
    augment,
    _decay_groups,
    _warmup_cosine,
    _sinusoidal_positions,
)


def save(weights: dict[str, Tensor], path: str | Path, metadata: dict[str, Any]) -> None:
    """A checkpoint file (.safetensors), atomically; metadata as one JSON text "apm" in its header.

    Raises ValueError for another suffix.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"checkpoints are written as .safetensors, found {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        save_file(weights, str(temporary), metadata={"apm": json.dumps(metadata)})  # several keys have no fixed order


def determined_by(dataset: Dataset, config: TrainConfig) -> dict[str, Any]:
    """All that determines the weights that `train` gives, the machine aside, as it is noted in a checkpoint: settings, model
    configuration, captions, training data, versions of torch and open_clip, hash of the training functions."""
    return {
        "settings": asdict(config),
        "model": open_clip.factory.get_model_config(_register_config(config.model)),
        "captions": captions(dataset),
        "data": dataset.fingerprint,
        "versions": {"torch": str(torch.__version__), "open_clip": open_clip.__version__},
        "recipe": code_of(*RECIPE),
    }


def accuracy(teacher: Teacher, dataset: Dataset, cache: str | Path | None = None) -> float:
    """Zero-shot top-1 accuracy (0..1) with the dataset's own class names and templates; an unreadable image counts as wrong."""
    image_features = torch.from_numpy(np.array(features(teacher, dataset, cache))).float()
    scores = F.normalize(image_features, dim=-1) @ teacher.text_features(dataset.classnames, dataset.templates).cpu().T
    finite = scores.isfinite().all(dim=-1).numpy()
    return float((finite & (scores.argmax(dim=-1).numpy() == dataset.labels)).mean())


# ------------------------------------------------------------------------------------------------------ command line


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m apm.teachers.teacher", description="Train a small CLIP teacher.")
    commands = parser.add_subparsers(dest="command", required=True)
    sub = commands.add_parser("train", help="train on images and captions of their class names")
    sub.add_argument("--data", required=True, help="digits-train or folder:PATH (one folder of images per class)")
    sub.add_argument("--out", required=True, type=Path, help="checkpoint to write (.safetensors)")
    sub.add_argument("--test", help="dataset for the accuracy printed at the end")
    sub.add_argument("--templates", choices=prompts.names(), help="prompts, default: the dataset's own")
    sub.add_argument(
        "--config", default=TrainConfig.model, help="open_clip model name or a model configuration (.json)"
    )
    sub.add_argument("--device", default="cpu")
    for name in ("epochs", "groups", "seed", "threads"):
        sub.add_argument(f"--{name}", type=int, default=getattr(TrainConfig, name))
    sub.add_argument("--precision", choices=("fp32", "bf16"), default=TrainConfig.precision)
    for name in ("learning_rate", "weight_decay", "rotation", "scale", "shear", "shift", "flip"):
        sub.add_argument(f"--{name.replace('_', '-')}", type=float, default=getattr(TrainConfig, name))
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; prints the accuracy on --test. Returns the exit status."""
    options = vars(_parser().parse_args(arguments))
    fields = {key: value for key, value in options.items() if key in TrainConfig.__dataclass_fields__}
    try:
        if options["out"].suffix != ".safetensors":
            raise ValueError(f"--out: checkpoints are written as .safetensors, found {options['out']}")
        data = load_dataset(options["data"])
        test = load_dataset(options["test"]) if options["test"] else None
        if options["templates"]:
            templates = prompts.templates(options["templates"])
            data, test = replace(data, templates=templates), test and replace(test, templates=templates)
        if test and test.classnames != data.classnames:
            raise ValueError(f"--test {test.name} has other classes than --data {data.name}: {test.classnames[:5]}...")
        config = TrainConfig(model=options["config"], **fields)
        start = time.perf_counter()
        weights = train(data, config, device=options["device"])
        name = _register_config(config.model)
        save(weights, options["out"], determined_by(data, config))
        print(
            f"trained {name} on {len(data)} images of {data.name} in {time.perf_counter() - start:.0f} s: {options['out']}"
        )
        if test:
            teacher = load(config.model, pretrained=options["out"], device=options["device"])
            print(f"zero-shot top-1 on {test.name}: {100 * accuracy(teacher, test):.1f} % of {len(test)} images")
    except (ValueError, OSError, RuntimeError) as error:
        print(f"apm.teachers: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
