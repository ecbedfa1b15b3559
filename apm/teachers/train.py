"""Training of a small CLIP teacher on images and captions of their class names.

    python -m apm.teachers.train --data folder:PATH --out FILE.safetensors     # the further options are the fields of `TrainConfig`
    python -m apm.teachers.train --profile mini                                # `make teacher PROFILE=mini`

The second trains by the profile's teacher.yaml into the cache, where no teacher of these settings, images, code and libraries is there
yet, and says how far it is from the one in data/teachers that comes with the clone. Results are made with the shipped weights: another
processor trains others from the same seed. --freeze [FILE] makes FILE (default: the one in the cache) the shipped one; one that is too
large to be shipped gets its card alone: `apm.teachers.load` then says of other weights that they are others.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
import yaml
from open_clip.pos_embed import get_2d_sincos_pos_embed
from open_clip.transform import PreprocessCfg, image_transform_v2
from safetensors import SafetensorError, safe_open
from torch import Tensor

from apm.data import Dataset, prompts
from apm.data import load as load_dataset
from apm.lockstep import caller_free
from apm.project import among, atomic_write, cache_dir, located, portable, profiles, root, sha256_file, unknown
from apm.project.identity import code_of, libraries
from apm.project.paths import atomic_path
from apm.project.progress import progress
from apm.teachers import weights
from apm.teachers.cached import features
from apm.teachers.images import fitted
from apm.teachers.loading import load, register
from apm.teachers.teacher import Teacher, tokenize
from apm.typed import checked

LARGEST = 10_000_000  # bytes of a shipped file


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
            raise ValueError(f"epochs, groups, threads and learning_rate must be positive, found {self}")
        if self.precision not in ("fp32", "bf16"):
            raise unknown("training precision", self.precision, ("fp32", "bf16"))


def captions(dataset: Dataset) -> list[list[str]]:
    """Per class, all captions: general ones and the dataset's templates, with every form of the class name."""
    photos = ("{}", "a photo of {}.", "a photo of a {}.", "a photo of the {}.")
    others = ("an image of a {}.", "a picture of the {}.", "a drawing of a {}.")
    templates = dict.fromkeys((*photos, *others, *dataset.templates))
    return [
        [prompts.fill(template, form) for template in templates for form in prompts.forms(name)]
        for name in dataset.classnames
    ]


@caller_free()
def train(dataset: Dataset, config: TrainConfig, *, device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """Weights (a state dict on the CPU) of a CLIP trained from scratch on images and captions of their class names.

    A batch is made of groups with one image per class. Within a group every caption is unique, so open_clip's ClipLoss has no false
    negatives; in a plain random batch most negatives of a ten-class set would be true captions. Per step one caption is drawn per
    class and encoded once for all groups, which gives the gradient of encoding it for each image. Only the rows of the token embedding
    that occur in captions are trained: the others have no gradient. The same config, data, machine and library versions give
    bit-identical weights. Raises ValueError for a class without images, RuntimeError for a loss that is not finite.
    """
    counts = np.bincount(dataset.labels, minlength=len(dataset.classnames))
    if not counts.all():
        raise ValueError(f"{dataset.name} has no images of class {dataset.classnames[int(counts.argmin())]!r}")
    name = register(config.model)
    device = torch.device(device)
    with _reproducible(config.seed, config.threads):
        model = open_clip.create_model(name, load_weights=False).to(device)
        ids = [tokenize(open_clip.get_tokenizer(name), texts) for texts in captions(dataset)]
        used = torch.unique(torch.cat(ids))  # sorted: the end-of-text token stays the highest id, which CLIP pools by
        ids = [torch.searchsorted(used, i).to(device) for i in ids]
        embedding = getattr(model, "text", model).token_embedding
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
    normalise = image_transform_v2(preprocessing, is_train=False).transforms[-1]
    seen = np.empty((len(dataset), *preprocessing.input_size[1:], 3), dtype=np.uint8)  # (N, S, S, 3)
    for i in range(len(dataset)):
        seen[i] = fitted(dataset.images[i], preprocessing)
    pixels = torch.from_numpy(seen).permute(0, 3, 1, 2).contiguous()
    classes = len(dataset.classnames)
    per_epoch = math.ceil(len(dataset) / (classes * config.groups))
    steps = config.epochs * per_epoch
    generator = torch.Generator().manual_seed(config.seed)  # data, captions, augmentation; on the CPU for every device
    batches = _balanced(torch.tensor(dataset.labels), classes, config.groups, generator)
    decayed, other = list[Tensor](), list[Tensor]()  # as open_clip: not gains, biases, embeddings and the temperature
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            (decayed if parameter.ndim > 1 and "embedding" not in key else other).append(parameter)
    parameters = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": other, "weight_decay": 0.0}]
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
                raise RuntimeError(f"loss {loss.item()} in step {step} of {steps}: lower the learning rate")
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
            optimiser.step()
            schedule.step()
            with torch.no_grad():
                model.logit_scale.clamp_(0, math.log(100))  # as open_clip trains
            bar.update(len(images))
    model.eval()


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
    matrices = torch.stack(rows, dim=1)  # (n, 2, 3)
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)  # (n, S, S, 2)
    return F.grid_sample(images, grid, align_corners=False, padding_mode="zeros")


def _warmup_cosine(steps: int, warmup: float) -> Any:
    first = warmup * steps

    def factor(step: int) -> float:
        if step < first:
            return (step + 1) / (first + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - first) / max(1.0, steps - first)))

    return factor


def _sinusoidal_positions(model: Any) -> None:
    """Start a square ViT's learned position codes from 2-D sinusoids: with small patches learning starts much sooner."""
    visual = model.visual
    if isinstance(visual, open_clip.transformer.VisionTransformer) and len(set(visual.grid_size)) == 1:
        codes = get_2d_sincos_pos_embed(visual.positional_embedding.shape[1], visual.grid_size[0], cls_token=True)
        visual.positional_embedding.data.copy_(torch.from_numpy(codes))


@contextmanager
def _reproducible(seed: int, threads: int) -> Iterator[None]:
    """Seeded generators, a fixed number of threads and deterministic kernels; everything as before afterwards."""
    before, mode = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        try:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(True, warn_only=True)  # some CUDA kernels have no deterministic form
            torch.manual_seed(seed)
            yield
        finally:
            torch.set_num_threads(before)
            torch.set_deterministic_debug_mode(mode)


HELPERS = (_balanced, augment, _warmup_cosine, _sinusoidal_positions, _reproducible)  # of `_fit` and `train`


def determined_by(dataset: Dataset, config: TrainConfig) -> dict[str, Any]:
    """All that determines the weights that `train` gives, the machine aside, as it is noted in a checkpoint."""
    return {
        "settings": asdict(config),
        "model": open_clip.factory.get_model_config(register(config.model)),
        "captions": captions(dataset),
        "data": dataset.fingerprint,
        "versions": {"torch": str(torch.__version__), "open_clip": open_clip.__version__},
        "recipe": code_of(TrainConfig, captions, train, _fit, *HELPERS),
    }


def cosines(teacher: Teacher, dataset: Dataset) -> Tensor:
    """(N, C) cosine similarities of all images and classes, by the dataset's own prompts; NaN for an unreadable image."""
    own = torch.from_numpy(np.array(features(teacher, dataset))).float()
    return F.normalize(own, dim=-1) @ teacher.text_features(dataset.classnames, dataset.templates).cpu().T


def accuracy(teacher: Teacher, dataset: Dataset) -> float:
    """Zero-shot top-1 accuracy (0..1) with the dataset's own class names and templates; an unreadable image counts as wrong."""
    scores = cosines(teacher, dataset)
    finite = scores.isfinite().all(dim=-1).numpy()
    return float((finite & (scores.argmax(dim=-1).numpy() == dataset.labels)).mean())


OTHER = {
    "data": "dataset to train on, such as digits-train or folder:PATH (one folder of images per class)",
    "test": "dataset for the accuracy printed at the end",
    "device": "default: cpu",
}


def configured(options: Mapping[str, Any]) -> TrainConfig:
    """The settings among the options of `run`. Raises ValueError for one that is neither a setting nor in `OTHER`, and without data."""
    if "data" not in options:
        raise ValueError(f"a teacher's training needs data: {OTHER['data']}")
    among("option of a teacher's training", options, [*OTHER, *TrainConfig.__dataclass_fields__])
    return TrainConfig(**{name: value for name, value in options.items() if name not in OTHER})


def run(options: Mapping[str, Any], out: Path) -> None:
    """Train a teacher, write it to `out`, print its accuracy on the held-out images. options: of the command, as in a teacher.yaml.
    Raises as `configured`, `train`, `save` and loading a dataset do; ValueError for a test set with other classes."""
    if out.suffix != ".safetensors":
        raise ValueError(f"checkpoints are written as .safetensors, found {out}")
    with suppress(LookupError), atomic_path(out):  # what cannot be written is said before the training
        raise LookupError
    config, device = configured(options), options.get("device", "cpu")
    data = load_dataset(options["data"])
    test = load_dataset(options["test"]) if "test" in options else None
    if test and test.classnames != data.classnames:
        raise ValueError(f"test set {test.name} has other classes than {data.name}: {test.classnames[:5]}...")
    start = time.perf_counter()
    weights.save(train(data, config, device=device), out, determined_by(data, config))
    print(f"trained {config.model} on {len(data)} images of {data.name} in {time.perf_counter() - start:.0f} s: {out}")
    if test:
        right = accuracy(load(config.model, pretrained=out, device=device), test)
        print(f"zero-shot top-1 on {test.name}: {100 * right:.1f} % of {len(test)} images")


def notes(path: Path) -> dict[str, Any]:
    """What a checkpoint says of how it was trained (`determined_by`). Raises ValueError for a file that was not trained here."""
    try:
        with safe_open(path, framework="pt") as file:
            found = json.loads(file.metadata()["apm"])
        return {"settings": found["settings"], "data": found["data"], **found}
    except (SafetensorError, TypeError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path} says nothing of how it was trained: it is left as it is; move it away to train one"
        ) from error


def train_anew(options: Mapping[str, Any], out: Path) -> None:
    """Train where no checkpoint trained so is at `out`. options: of `run`. Raises as that and `notes`."""
    if out.exists():
        wanted = determined_by(load_dataset(options["data"]), configured(options))
        had, now = (
            {**said["settings"], "images": said["data"], "code": said.get("recipe"), **said.get("versions", {})}
            for said in (notes(out), wanted)
        )
        # what an older checkpoint does not say is no reason to train again
        differs = [f"{k} {had[k]}, not {value}" for k, value in now.items() if had.get(k) not in (None, value)]
        if not differs:
            print(f"up to date: {out}, trained with these settings")
            return
        print(f"{out} was trained with {'; '.join(differs)}: training it again", flush=True)
    run(options, out)


def distance(options: Mapping[str, Any], first: Path, second: Path) -> tuple[float, float, float, float, int]:
    """Of two checkpoints on the held-out images: accuracy of each (%), equal decisions (%), largest difference of a cosine, images."""
    test, model = load_dataset(options["test"]), configured(options).model
    one, other = (cosines(load(model, pretrained=path), test) for path in (first, second))  # (N, C)
    a, b, labels = one.argmax(dim=-1), other.argmax(dim=-1), torch.tensor(test.labels)
    shares = [100 * float((x == y).double().mean()) for x, y in ((a, labels), (b, labels), (a, b))]
    return shares[0], shares[1], shares[2], float((one - other).abs().max()), len(test)


def freeze(profile: str, options: Mapping[str, Any], source: Path) -> None:
    """Write a trained checkpoint into data/teachers, in float16, with its card; of one larger than `LARGEST` the card alone, with
    the hash of its weights.

    Raises ValueError for a file that was not trained here or on other images, and one that decides otherwise in float16 on more than
    one in a hundred held-out images; for one that is too large where a smaller one is shipped.
    """
    said, trained, data = notes(source), weights.read(source), load_dataset(options["data"])
    if said["data"] != data.fingerprint:
        raise ValueError(f"{source} was trained on other images: expected {data.fingerprint}, found {said['data']}")
    half = {key: value.half() if value.is_floating_point() else value for key, value in trained.items()}
    size = sum(value.nbytes for value in half.values())
    path = weights.SHIPPED / source.name
    card = path.with_suffix(".yaml")
    if size > LARGEST:
        if path.exists():
            raise ValueError(f"{path} is shipped and {source} is too large to take its place: remove that one first")
        single, right, _, _, images = distance(options, source, source)
        file = {
            "versions": said.get("versions") or "the checkpoint notes none",
            "stored_as": f"not shipped: {size / 1e6:.0f} MB in float16, at most {LARGEST / 1e6:.0f} MB are",
            "weights_sha256": weights.weights_sha256(trained),
        }
    else:
        card.unlink(missing_ok=True)  # else it would be held against the new file
        weights.save(half, path, said)
        single, right, same, _, images = distance(options, source, path)
        if same < 99:
            path.unlink()
            raise ValueError(f"{source}: in float16 it decides alike on {same:.1f} % of the images only")
        file = {
            "versions": {**libraries(("torch", "timm", "numpy")), "open_clip": open_clip.__version__},
            "processor": f"{torch.backends.cpu.get_cpu_capability()}; another kind trains other weights from the same seed",
            "stored_as": "float16; used as float32 with these rounded values",
            "bytes": path.stat().st_size,
            "sha256": sha256_file(path),
        }
    about = {
        "command": f"make teacher PROFILE={profile}",
        "model": said["settings"]["model"],
        "data": f"{options['data']}: {portable(data.notes)}",
        "images": len(data),
        "data_sha256": said["data"],
        "seed": said["settings"]["seed"],
        "settings": said["settings"],
        "accuracy": {options["test"]: round(right, 2), "images": images},
        **file,
    }
    atomic_write(card, yaml.safe_dump(about, sort_keys=False, allow_unicode=True, width=120))
    print(f"{card}: {about['stored_as']}; {right:.2f} % of the held-out images ({single:.2f} % in float32)")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status."""
    parser = argparse.ArgumentParser("python -m apm.teachers.train", argument_default=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="checkpoint to write (.safetensors)")
    for name, text in OTHER.items():
        parser.add_argument(f"--{name}", help=text)
    for name, default in asdict(TrainConfig()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), help=f"default: {default}")
    parser.add_argument("--profile", help="train this profile's own teacher, by its teacher.yaml")
    parser.add_argument("--freeze", nargs="?", const="", metavar="FILE", help="make FILE the one in data/teachers")
    given = vars(parser.parse_args(arguments))
    if "profile" not in given and "out" not in given:
        parser.error("name --data and --out, or --profile")
    try:
        if "out" in given:
            out = given.pop("out")
            if out.exists():
                raise FileExistsError(f"{out} is there already and stays as it is: move it away, or name another --out")
            run(given, out)
            return 0
        among("option beside --profile", given, ("profile", "freeze"))
        options, named = profiles.load_teacher(given["profile"])
        configured(options)
        used = root() / located(named)  # the checkpoint that the profile uses
        trained = cache_dir() / "teachers" / used.name
        if "freeze" in given:
            freeze(given["profile"], options, Path(given["freeze"] or trained))
            return 0
        train_anew(options, trained)
        if used != trained and used.is_file() and "test" in options:
            first, second, same, largest, images = distance(options, used, trained)
            print(
                f"{options['test']}, {images} held-out images: shipped {first:.2f} %, trained here {second:.2f} %; the same decision "
                f"on {same:.2f} %; cosines with the classes differ by {largest:.4f} at most. Results are made with the shipped one, {used}"
            )
    except (ValueError, OSError, RuntimeError) as error:
        print(f"apm.teachers.train: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
