"""TPT and CoOp: the words around a class name become vectors that are trained; image tower and class names stay.

CoOp: Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV 2022 (arXiv 2109.01134); trainers/coop.py of
github.com/KaiyangZhou/CoOp. M context vectors before the class name, shared by all classes (section 3.2), are learned from a few
labelled training images by cross-entropy.

TPT: Shu et al., "Test-Time Prompt Tuning for Zero-Shot Generalization in Vision-Language Models", NeurIPS 2022 (arXiv 2209.07511);
tpt_classification.py of github.com/azshue/TPT. For every image by itself, one step on the vectors lowers the entropy of the *average*
prediction over the confident views (equations 3 and 4). TPT + CoOp (Table 1) starts from CoOp's vectors instead of words.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apm import data as datasets
from apm.data import Dataset, prompts
from apm.lockstep import caller_free
from apm.methods.method import Method, Predictions, WithViews, create, outcome, register
from apm.methods.views import confident, encoded, kept
from apm.project import cache_dir, data_dir, locked, sha256_of
from apm.project.identity import code_version
from apm.project.progress import progress
from apm.teachers import Teacher, features_at, save
from apm.teachers import kept as kept_file

CONTEXT = "a photo of a"  # ctx_init in tpt_classification.py of TPT; four tokens
CONTEXT_STD = 0.02  # of vectors that start from no words: PromptLearner in trainers/coop.py
BATCH = 32  # DATALOADER.TRAIN_X.BATCH_SIZE in configs/trainers/CoOp/vit_b16.yaml
WARMUP_RATE = 1e-5  # of the first epoch: OPTIM.WARMUP_CONS_LR in the same file
MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4  # of SGD: OPTIM in Dassl's config/defaults.py, which CoOp does not change


# ------------------------------------------------------------------------------------------------- prompts with vectors


class Prompts:
    """The prompts "[v1] ... [vM] class." of some classes, as functions of their M context vectors.

    The vectors take the place of the words' embeddings (`start`, (M, width) float32) within open_clip's own forward pass.
    words: M words, or a number M of places. Raises ValueError for a tower without token embeddings, and for prompts too long.
    """

    @caller_free()
    def __init__(self, teacher: Teacher, classnames: Sequence[str], words: str | int) -> None:
        self._model, self._device = teacher.model, teacher.device
        tower = getattr(teacher.model, "text", teacher.model)
        embedding, tokenizer = getattr(tower, "token_embedding", None), teacher.tokenizer
        if not isinstance(embedding, nn.Embedding) or not isinstance(tokenizer, open_clip.tokenizer.SimpleTokenizer):
            found = (
                f"{type(tower).__name__} with {type(tokenizer).__name__}"
                if tokenizer
                else "a network that reads no texts"
            )
            raise ValueError(
                f"teacher {teacher.name} has no words that could be tuned: expected CLIP's own text transformer and tokenizer, found "
                f"{found}; leave tpt and coop out of `baselines` for this teacher"
            )
        self._embedding = embedding
        phrase = words if isinstance(words, str) else " ".join(["X"] * words)  # PromptLearner of CoOp fills with X
        self.places = len(tokenizer.encode(phrase))
        if self.places < 1:
            raise ValueError(f"expected at least one context word or vector, found {words!r}")
        names = [name.replace("_", " ") for name in classnames]
        texts = [f"{prompts.fill(f'{phrase} {{}}', name)}." for name in names]
        for text in texts:
            length = len(tokenizer.encode(text)) + 2
            if length > tokenizer.context_length:
                raise ValueError(
                    f"the prompt {text!r} has {length} tokens, the text tower reads {tokenizer.context_length}: use fewer "
                    "context words or shorter class names"
                )
        self._tokens = tokenizer(texts).to(self._device)  # (C, context), the first one marks the start
        with torch.no_grad():
            self.start = embedding(self._tokens[0, 1 : 1 + self.places]).float().clone()

    def features(self, vectors: Tensor) -> Tensor:
        """(C, D) float32 unit-length class features, differentiable in the vectors (M, width)."""
        if vectors.shape != self.start.shape:
            raise ValueError(f"expected context vectors {tuple(self.start.shape)}, found {tuple(vectors.shape)}")

        def in_place_of_words(module: nn.Module, inputs: Any, embedded: Tensor) -> Tensor:
            own = vectors.to(embedded.dtype).expand(len(embedded), -1, -1)
            return torch.cat([embedded[:, :1], own, embedded[:, 1 + self.places :]], dim=1)

        with self._embedding.register_forward_hook(in_place_of_words):
            return F.normalize(self._model.encode_text(self._tokens).float(), dim=-1)


# ------------------------------------------------------------------------------------------------------------------ CoOp


def learning_rate(epoch: int, epochs: int, base: float) -> float:
    """Of an epoch: WARMUP_RATE in the first, then half a cosine from `base` (Dassl's ConstantWarmupScheduler, CosineAnnealingLR)."""
    return WARMUP_RATE if epoch == 0 else 0.5 * base * (1 + math.cos(math.pi * (epoch - 1) / epochs))


def few_shots(labels: np.ndarray, shots: int, seed: int) -> np.ndarray:
    """(n,) positions of up to `shots` images of every class, chosen by the seed. ValueError for a class without images."""
    rng = np.random.default_rng(seed)
    chosen = []
    for label in range(int(labels.max()) + 1):
        own = np.flatnonzero(labels == label)
        if not len(own):
            raise ValueError(f"class {label} of the training split has no image: CoOp needs one of every class")
        chosen.append(np.sort(rng.permutation(own)[:shots]))
    return np.concatenate(chosen)


@caller_free()
def learn(
    own: Prompts,
    vectors: Tensor,
    features: Tensor,
    labels: Tensor,
    scale: float,
    *,
    epochs: int,
    rate: float,
    seed: int,
) -> Tensor:
    """(M, width) context vectors after training on unit features (epochs, n, D), epoch e on features[e]; labels: (n,) int64.

    Images that fill no batch are left out of an epoch (drop_last in dassl/data/data_manager.py); fewer than a batch are one.
    """
    vectors, features = vectors.detach().clone().requires_grad_(), features.detach().clone()
    optimiser = torch.optim.SGD([vectors], lr=rate, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    order = torch.Generator().manual_seed(seed)
    for epoch in progress(range(epochs), desc="CoOp: epochs"):
        optimiser.param_groups[0]["lr"] = learning_rate(epoch, epochs, rate)
        shuffled = torch.randperm(len(labels), generator=order).to(labels.device)
        whole = len(labels) // BATCH * BATCH or len(labels)
        for batch in shuffled[:whole].split(BATCH):
            scores = scale * features[epoch, batch] @ own.features(vectors).T
            optimiser.zero_grad()
            F.cross_entropy(scores, labels[batch]).backward()
            optimiser.step()
    return vectors.detach()


@functools.lru_cache(maxsize=4)
def _load(name: str, root: Path, partial: str | None) -> Dataset:
    """A set, read once per process: every method, every tested set and every shard asks for it."""
    return datasets.load(name, root=root)


@register("coop")
@dataclass
class CoOp(Method):
    """CoOp: context vectors learned from labelled training images, then used as they are. Nothing is adapted at test time.

    train: name of the labelled set whose classes it learns from, as the paper's Tables 1 and 3 do with ImageNet; None: the training
        split of the tested set. It must hold other images than that, changed or not.
    shots: 16 of a class (section 4.1). epochs, rate: 50 (200 for other sets than ImageNet) and 0.002, SGD, as
        configs/trainers/CoOp/vit_b16_ep50.yaml.
    context: CTX_INIT in vit_b16_ep50_ctxv1.yaml; a number: as many vectors N(0, 0.02).
    flip: of the crops; every epoch sees another of every image, resized bicubically. draw: seed of shots, crops and order.
    """

    name: str = "CoOp"
    train: str | None = None
    shots: int = 16
    epochs: int = 50
    rate: float = 2e-3
    context: str | int = CONTEXT
    flip: bool = True
    draw: int = 0

    def __post_init__(self) -> None:
        if self.shots < 1 or self.epochs < 1 or self.rate <= 0:
            raise ValueError(
                f"shots and epochs must be at least 1 and rate positive, found {self.shots}, {self.epochs} and {self.rate}"
            )
        # by the name of the split, vectors on the CPU and the images they come from: travels to workers with the method
        self._learned: dict[str, tuple[Tensor, str, str]] = {}

    def prompts_used(self, dataset: Dataset) -> str:
        start = "random vectors" if isinstance(self.context, int) else f'"{self.context} {{}}."'
        return f"one, learned from {start}"

    def data_identity(self, dataset: Dataset) -> str:
        """Fingerprint of the training split. Raises as `training_split`."""
        return self.training_split(dataset).fingerprint

    def training_split(self, dataset: Dataset) -> Dataset:
        """The labelled set. Raises ValueError where the tested set has none, or holds the same images."""
        name = self._split_name(dataset)
        split = _load(name, data_dir(), os.environ.get("PARTIAL"))
        _other_images(dataset, name, *_images(split))
        return split

    def _split_name(self, dataset: Dataset) -> str:
        name = self.train or f"{dataset.name.removesuffix('-test')}-train"
        if self.train is None and name not in datasets.names():
            raise ValueError(
                f"CoOp learns from labelled training images, and dataset {dataset.name} has no training split ({name} is not "
                "known): name one by train: in its line of `baselines`"
            )
        return name

    @caller_free()
    def prepare(self, dataset: Dataset) -> None:
        """Learn the vectors, before many processes ask for them."""
        self.vectors(dataset)

    @caller_free()
    def vectors(self, dataset: Dataset) -> Tensor:
        """(M, width) learned context vectors, learned once and kept here and in the cache. Raises as `training_split`."""
        name = self._split_name(dataset)
        if name not in self._learned:
            split = self.training_split(dataset)
            self._learned[name] = (self._learn(split), *_images(split))
        vectors, *images = self._learned[name]
        _other_images(dataset, name, *images)
        return vectors.to(self.teacher.device)

    def _learn(self, split: Dataset) -> Tensor:
        """The vectors on the CPU: from the file in the cache, which is made where there is none."""
        key = sha256_of({**self.settings(), "data": split.fingerprint, "code": code_version(self.modules)})
        file = cache_dir() / "prompts" / f"coop-{key[:24]}.safetensors"
        # 01, 02 and 03 ask for the same vectors, perhaps at once
        with locked(file.with_name(f".{file.stem}.lock.tmp")):
            if (known := kept_file(file)) is None:
                known = {"context": self._train(split)}
                save(known, file, {})
        return known["context"]

    def _train(self, split: Dataset) -> Tensor:
        """The vectors, learned from `shots` images of every class."""
        teacher = self.teacher
        chosen = few_shots(split.labels, self.shots, self.draw)
        own = Prompts(teacher, split.classnames, self.context)
        start = own.start
        if isinstance(self.context, int):
            drawn = torch.randn(start.shape, generator=torch.Generator().manual_seed(self.draw))
            start = CONTEXT_STD * drawn.to(start.device)
        seen = encoded(teacher, split, chosen, self.epochs + 1, seed=self.draw, flip=self.flip, bicubic=True)
        units = F.normalize(seen.features[:, 1:], dim=-1).transpose(0, 1)  # (epochs, n, D)
        labels = torch.as_tensor(split.labels[chosen]).to(teacher.device)
        options = {"epochs": self.epochs, "rate": self.rate, "seed": self.draw}
        learned = learn(own, start, units, labels, teacher.logit_scale, **options)  # type: ignore[arg-type]
        return learned.cpu().contiguous()

    @caller_free()
    def predict(self, dataset: Dataset, positions: np.ndarray, seed: int) -> Predictions:
        """One class per image. The seed has no effect."""
        teacher = self.teacher
        tuned = Prompts(teacher, dataset.classnames, self.context)
        vectors = self.vectors(dataset)
        with torch.no_grad():
            text = tuned.features(vectors)
            own = F.normalize(features_at(teacher, dataset, positions).to(text), dim=-1)
            scores = teacher.logit_scale * own @ text.T
        return outcome(scores.softmax(dim=-1), teacher_passes=1)


def _images(split: Dataset) -> tuple[str, str]:
    """The set whose images a set holds, and its fingerprint."""
    return split.origin or split.name, split.fingerprint


def _other_images(tested: Dataset, name: str, origin: str, fingerprint: str) -> None:
    """Raise ValueError where a training split of that name holds images of the tested set, as they are, changed or renamed."""
    if origin == _images(tested)[0] or fingerprint == tested.fingerprint:
        made = "" if name == tested.name else f"; {name} and {tested.name} are both made from the images of {origin}"
        raise ValueError(
            f"CoOp would be trained on the images that it is tested on ({name}{made}): name another train:"
        )


# ------------------------------------------------------------------------------------------------------------------- TPT


def average_entropy(logits: Tensor) -> Tensor:
    """() entropy in nats of the mean of softmax(logits) over n views, (n, C): `avg_entropy` in tpt_classification.py."""
    logs = logits.log_softmax(dim=-1)
    mean = logs.logsumexp(dim=0) - math.log(len(logits))
    mean = mean.clamp(min=torch.finfo(mean.dtype).min)
    return -(mean * mean.exp()).sum()


@caller_free()
def tune(
    own: Prompts, vectors: Tensor, views: Tensor, scale: float, *, share: float, steps: int, rate: float
) -> Tensor:
    """(M, width) context vectors after some steps of AdamW from `vectors` on one image's views (n, D), of unit length."""
    vectors, views = vectors.detach().clone().requires_grad_(), views.detach().clone()
    optimiser = torch.optim.AdamW([vectors], lr=rate)  # weight decay 0.01, torch's and TPT's default
    for step in range(steps):
        logits = scale * views @ own.features(vectors).T
        if step == 0:  # selected once, by the prompt as it was
            chosen = confident(logits.detach(), share)
        optimiser.zero_grad()
        average_entropy(logits[chosen]).backward()
        optimiser.step()
    return vectors.detach()


@register("tpt")
@dataclass
class TPT(WithViews):
    """TPT. Episodic: context vectors and optimiser start anew for every image.

    views: `--batch-size`. share: `--selection_p`. steps: `--tta_steps`. rate: `--lr`, AdamW. context: `--ctx_init`. augmix: as on TPT's
        fine-grained sets; off on ImageNet's shifted versions.
    coop: options of `CoOp`, whose vectors the step then starts from (TPT + CoOp); None: the words.
    Extra column prompts_read: how often the text tower reads a prompt forward for an image.
    """

    name: str = "TPT"
    augmix: bool = True
    share: float = 0.1
    steps: int = 1
    rate: float = 5e-3
    context: str = CONTEXT
    coop: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        kept(self.views, self.share)
        if self.steps < 1 or self.rate <= 0:
            raise ValueError(f"steps must be at least 1 and rate positive, found {self.steps} and {self.rate}")
        # with the same words, so that its vectors fit
        options = {"context": self.context, "flip": self.flip, **(self.coop or {})}
        self._coop: CoOp | None = None if self.coop is None else create("coop", self.teacher, **options)

    def prompts_used(self, dataset: Dataset) -> str:
        return "one, tuned from " + (f'"{self.context} {{}}."' if self._coop is None else "CoOp's")

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "coop": None if self._coop is None else self._coop.settings()}

    def data_identity(self, dataset: Dataset) -> str | None:
        """Fingerprint of CoOp's training split where the step starts from its vectors, else None."""
        return None if self._coop is None else self._coop.data_identity(dataset)

    @caller_free()
    def prepare(self, dataset: Dataset) -> None:
        """CoOp's vectors where the step starts from them."""
        if self._coop is not None:
            self._coop.prepare(dataset)

    @caller_free()
    def predict(self, dataset: Dataset, positions: np.ndarray, seed: int) -> Predictions:
        """One class per image; the views are drawn from the seed and the image's pixels."""
        teacher, scale = self.teacher, self.teacher.logit_scale
        own = Prompts(teacher, dataset.classnames, self.context)
        start = own.start if self._coop is None else self._coop.vectors(dataset)
        features, saved = self.seen(dataset, positions, seed)
        rows = []
        for views in F.normalize(features, dim=-1):
            if not bool(views.isfinite().all()):  # a step from there would say nothing
                rows.append(torch.full((len(dataset.classnames),), torch.nan, device=views.device))
                continue
            vectors = tune(own, start, views, scale, share=self.share, steps=self.steps, rate=self.rate)
            with torch.no_grad():
                rows.append(scale * own.features(vectors) @ views[0])
        return outcome(
            torch.stack(rows).softmax(dim=-1),
            teacher_passes=self.views,
            prompts_read=np.full(len(positions), (self.steps + 1) * len(dataset.classnames), dtype=np.float32),
            saved_milliseconds=saved,
        )
