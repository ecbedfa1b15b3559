"""Frozen teachers: what they say about images and texts.

    teacher = teachers.load("mini")
    feature = teacher.encode(teacher.transform(images)).feature             # (N, D)

The image feature is the target of test-time training (Modi & Rawat, NeurIPS 2024, section 3.6), the text features are the classifier.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip.transform import PreprocessCfg
from torch import Tensor

from apm.data import prompts
from apm.lockstep import caller_free
from apm.teachers.given import preprocess
from apm.teachers.images import Images
from apm.teachers.weights import hash_weights

# fp64: rounded to float32 afterwards, features and tokens are the same on every kind of processor
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}
DENSE = 8  # pixels between the tokens of a convolutional tower


@dataclass(frozen=True)
class Encoding:
    """What a teacher says about N images."""

    feature: Tensor  # (N, D) float32, not normalised
    tokens: Tensor | None = None  # (N, h, w, D) float32 patch tokens in the feature's space; None where not asked for


class Teacher:
    """A frozen CLIP. Attributes: name, model (open_clip's), tokenizer, config, precision, device, preprocess_config, image_size S."""

    feature_dtype = "float32"  # of cached features: "float32" or "float16"
    classnames: tuple[str, ...] = ()  # the only classes that it knows, of a classifier

    def __init__(
        self,
        name: str,
        model: Any,
        tokenizer: Any,
        config: dict[str, Any],
        precision: str = "fp32",
        preprocessing: PreprocessCfg | None = None,
    ) -> None:
        self.name = name
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.config = config
        self.precision = precision
        self.device = next(model.parameters()).device
        self.preprocess_config = preprocessing or PreprocessCfg(**model.visual.preprocess_cfg)
        self.image_size = int(self.preprocess_config.input_size[1])
        self._texts: dict[tuple[tuple[str, ...], tuple[str, ...]], Tensor] = {}

    def __repr__(self) -> str:
        cfg, weights = self.preprocess_config, sum(p.numel() for p in self.model.parameters()) / 1e6
        mean, std = ("/".join(f"{value:.3f}" for value in each) for each in (cfg.mean, cfg.std))
        seen = f"{self.image_size} px, mean {mean}, std {std}"
        return f"{type(self).__name__} {self.name}: {weights:.1f} M weights, width {self.width}, {seen}, {self.precision} on {self.device}"

    @cached_property
    def hash(self) -> str:
        """sha256 of all that determines a feature besides the image: configuration, preprocessing, number types, every weight."""
        identity = [self.config, asdict(self.preprocess_config), self.precision, self.feature_dtype]
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode())
        hash_weights(digest, self.model.state_dict())
        return digest.hexdigest()

    @property
    def width(self) -> int:
        """D, the width of image and text features."""
        return int(self.config["embed_dim"])

    @property
    def logit_scale(self) -> float:
        """The learned inverse temperature that multiplies cosine similarities."""
        return float(self.model.logit_scale.exp())

    @property
    def logit_bias(self) -> float | None:
        """What is added to scaled cosines, for models trained on pairs (SigLIP; Zhai et al. 2023); None for the others."""
        bias = getattr(self.model, "logit_bias", None)
        return None if bias is None else float(bias)

    def probabilities(self, scores: Tensor) -> Tensor:
        """(n, C) float32 probabilities of cosine similarities (n, C): CLIP's softmax over classes, or, with a logit bias (SigLIP), that
        image and text belong together, which do not sum to one."""
        logits = self.logit_scale * scores.float()
        return logits.softmax(dim=-1) if self.logit_bias is None else (logits + self.logit_bias).sigmoid()

    @property
    def grid(self) -> tuple[int, int] | None:
        """(h, w) of the patch tokens that `encode` can return; None for towers without."""
        visual = self.model.visual
        if isinstance(visual, open_clip.timm_model.TimmModel):
            return None if self._dense is None else (-(-self.image_size // DENSE),) * 2
        if not isinstance(visual, open_clip.transformer.VisionTransformer) or visual.attn_pool is not None:
            return None
        return None if visual.pool_type == "none" or visual.proj is None else visual.grid_size

    @cached_property
    def _dense(self) -> Any:
        """A convolutional trunk of timm that gives a token every `DENSE` pixels; None for other towers.

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
        return trunk.eval().requires_grad_(False).to(self.device, PRECISIONS[self.precision])

    def tower(self) -> torch.nn.Module:
        """A float32 copy of the image tower: pixels (N, 3, S, S) -> features (N, D), some with more beside (CoCa)."""
        return copy.deepcopy(self.model.visual).float()

    def transform(self, images: Images) -> Tensor:
        """uint8 RGB images (H, W, 3), or PIL images -> float32 (N, 3, S, S) by the model's own preprocessing, on the CPU."""
        return preprocess(images, self.preprocess_config)

    @caller_free()
    def encode(self, images: Tensor, *, tokens: bool = False) -> Encoding:
        """The image tower on `transform`ed images (N, 3, S, S), as one batch.

        tokens=True adds the patch tokens, through the tower's own last LayerNorm and projection (L_grid, section 3.6), or, for a
        convolutional tower with average pooling, the places of its last map through its projection. Raises ValueError for another
        shape, and for tokens of a tower that has none (`grid`), such as those with an attention pool (CoCa, SigLIP).
        """
        if tokens and self.grid is None:
            raise ValueError(
                f"teacher {self.name} has no patch tokens in its feature's space: L_grid, column='tokens' and the islands need a "
                "vision transformer without attention pool, or a convolutional tower with average pooling"
            )
        size = self.preprocess_config.input_size
        if images.ndim != 4 or tuple(images.shape[1:]) != size:
            expected = ", ".join(map(str, size))
            raise ValueError(f"teacher {self.name} expects images (N, {expected}), found {tuple(images.shape)}")
        with torch.inference_mode():
            batch = images.to(self.device, PRECISIONS[self.precision], non_blocking=True)
            pooled, patches = self._encode(batch, tokens)
        # Copies made outside inference mode can take part in a loss.
        own = [None if x is None else x.to(torch.float32, copy=True) for x in (pooled, patches)]
        return Encoding(*own)  # type: ignore[arg-type]

    def _encode(self, batch: Tensor, tokens: bool) -> tuple[Tensor, Tensor | None]:
        """(N, D) features and (N, h, w, D) tokens in the tower's own number type."""
        visual = self.model.visual
        if tokens and self._dense is None:
            visual.output_tokens = True
            try:
                pooled, patches = visual(batch)  # (N, D), (N, h * w, width)
            finally:
                visual.output_tokens = False
            if visual.final_ln_after_pool:
                patches = visual.ln_post(patches)
            return pooled, (patches @ visual.proj).unflatten(1, self.grid)
        pooled = visual(batch)
        if not isinstance(pooled, Tensor):  # CoCa towers return their tokens too
            pooled = pooled[0]
        return pooled, visual.head(self._dense.forward_features(batch).permute(0, 2, 3, 1)) if tokens else None

    def logits(self, features: Tensor, classnames: Sequence[str], templates: Sequence[str]) -> Tensor:
        """(n, C) class scores of features (n, D) as the model was trained to give them, differentiable: its scaled cosines."""
        text = self.text_features(classnames, templates).to(features)
        return self.logit_scale * F.normalize(features.float(), dim=-1) @ text.T

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
                ids = [tokenize(self.tokenizer, texts[i : i + 256]).to(self.device) for i in range(0, len(texts), 256)]
                units = torch.cat([F.normalize(self.model.encode_text(one).float(), dim=-1) for one in ids])
            means = units.clone().unflatten(0, (len(key[0]), len(key[1]))).mean(dim=1)  # (C, templates, D) -> (C, D)
            self._texts[key] = F.normalize(means, dim=-1)
        return self._texts[key].clone()


def token_grid(teacher: Teacher, images: Images, grid: tuple[int, int], *, batch_size: int = 256) -> Tensor:
    """(N, h*w, D) patch tokens of uint8 RGB images (H, W, 3) on a student's grid (targets of L_grid, routed tokens), resampled bilinearly
    where the teacher's has another size. Raises ValueError for a tower without patch tokens."""
    parts = []
    for start in range(0, len(images), batch_size):
        tokens = teacher.encode(teacher.transform(images[start : start + batch_size]), tokens=True).tokens
        maps = tokens.permute(0, 3, 1, 2)  # type: ignore[union-attr]  # (n, D, h, w)
        if tuple(maps.shape[2:]) != tuple(grid):
            maps = F.interpolate(maps, size=grid, mode="bilinear", align_corners=False)
        parts.append(maps.flatten(2).mT)
    return torch.cat(parts)


def tokenize(tokenizer: Any, texts: list[str]) -> Tensor:
    """(n, context) token ids. open_clip cuts long texts without a word; here that is a ValueError."""
    if isinstance(tokenizer, open_clip.tokenizer.SimpleTokenizer):
        lengths = [len(tokenizer.encode(text)) + 2 for text in texts]  # start and end of text
    elif isinstance(tokenizer, open_clip.tokenizer.HFTokenizer):
        lengths = [len(ids) for ids in tokenizer.tokenizer([tokenizer.clean_fn(t) for t in texts]).input_ids]
    else:
        return tokenizer(texts)
    for text, length in zip(texts, lengths, strict=True):
        if length > tokenizer.context_length:
            raise ValueError(
                f"the prompt {text!r} has {length} tokens, the text tower reads {tokenizer.context_length}: use shorter templates "
                "or class names"
            )
    return tokenizer(texts)
