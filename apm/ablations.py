"""Ablations: one line of a profile each, all on the same images, seeds and teacher (Tables 5, 8 and 9 and the text of the paper).

A line names what it changes over the common settings:

    {part: losses, name: L_cls + L_rgb, training: {loss_rgb: 1}, published: ["Lcls + Lrgb", CIFAR-10]}

Lines with the same settings share one run. A line is compared with the profile's base on the same images and seeds, or with the
line that it names as `against`; where that one ran for more iterations, with its predictions after as many. Besides the APM, the student may be another network (`NETWORKS`), trained in the
same way on the same image: a plain MLP, ResNet-18, ResNet-34, or no network at all, a bare vector.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from apm import datasets, figures, lockstep, methods, profiles, project, records, stats, tables, teachers, ttt
from apm.datasets import Dataset
from apm.methods import Predictions
from apm.model import APMConfig, count_parameters
from apm.teachers import Teacher
from apm.ttt import TTTConfig
from apm.typed import check_fields, checked

MINIMUM_SEEDS = 3  # a spread over fewer says nothing

# ------------------------------------------------------------------------------------------------------- other students


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
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in itertools.pairwise(sides):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sides[-1], width))


def _resnet(name: str) -> Callable[[int, int], nn.Module]:
    def build(size: int, width: int) -> nn.Module:
        from torchvision import models

        if size < 33:
            raise ValueError(
                f"network {name}: images of {size} px become 1 x 1 maps, whose batch normalisation over one image has no "
                "variance: set size: 64 or larger in the ablation's line"
            )
        return getattr(models, name)(weights=None, num_classes=width)

    return build


# (side of the square image in pixels, D) -> module from images (N, 3, size, size) to features (N, D)
NETWORKS: dict[str, Callable[[int, int], nn.Module]] = {
    "vector": Vector,
    "mlp": _mlp,
    "resnet18": _resnet("resnet18"),
    "resnet34": _resnet("resnet34"),
}
INITS = ("default", "normal")


@checked
@dataclass
class OneSampleStudent:
    """Test-time training of another network towards the teacher's feature, one image at a time (Table 5a).

    New weights, optimiser and schedule for every image; a batch is that one image, so batch normalisation takes its
    statistics from it alone. init: "default" (the network's own initialisation) or "normal" (every parameter N(0, std), as
    the paper initialises its student).

    Of `config` only iterations, learning rate, decay, target and init_std apply. Raises ValueError for an unknown network
    or init, and for settings that only a student with a grid can have.
    """

    teacher: Teacher
    network: str
    config: TTTConfig
    size: int
    name: str = ""
    init: str = "default"
    modules = (*records.RUN_MODULES, "ablations")

    def __post_init__(self) -> None:
        self.name = self.name or self.network
        if self.network not in NETWORKS:
            raise project.unknown("network", self.network, ("apm", *NETWORKS))
        if self.init not in INITS:
            raise project.unknown("init", self.init, INITS)
        default = TTTConfig()
        for field in ("loss_cls", "loss_grid", "loss_rgb", "augmentation", "protocol", "precision"):
            if getattr(self.config, field) != getattr(default, field):
                raise ValueError(
                    f"network {self.network} has no grid and one way to train: {field} = {getattr(self.config, field)!r} "
                    "applies to the APM only"
                )

    def settings(self) -> dict[str, Any]:
        """Teacher, network and every setting of its training that can change a number."""
        used = ("iterations", "learning_rate", "decay_every", "decay", "normalise_target")
        chosen = {name: getattr(self.config, name) for name in used}
        if self.init == "normal":
            chosen["init_std"] = self.config.init_std
        return {
            "method": "one-sample student",
            "teacher": self.teacher.hash,
            "network": self.network,
            "size": self.size,
            "init": self.init,
            **chosen,
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
        pictures = [dataset.images[int(i)] for i in positions]
        mode = self.teacher.preprocess_config.resize_mode
        images = teachers.student_images(pictures, self.size, resize_mode=mode).to(self.teacher.device)
        targets = teachers.features_at(self.teacher, dataset, positions).to(images)
        if self.config.normalise_target:
            targets = nn.functional.normalize(targets, dim=-1)
        text = self.teacher.text_features(dataset.classnames, dataset.templates).to(images)
        n, steps = len(images), self.config.iterations + 1
        losses = torch.full((n, steps), math.nan)
        path = torch.full((n, steps), -1, dtype=torch.int64)

        def train(part: slice) -> dict[str, Tensor]:
            for i in range(part.start, part.stop):
                losses[i], path[i] = self._train(images[i : i + 1], targets[i], text, seed)
            return {}

        lockstep.side_by_side(train, [slice(i, i + 1) for i in range(n)], images.device)
        failed = ~losses.isfinite().all(dim=1).numpy()
        status = ["ok" if not bad else "non-finite loss" for bad in failed]
        lowest = losses.nan_to_num(math.inf).argmin(dim=1, keepdim=True)
        return Predictions(
            prediction=np.where(failed, -1, path[:, -1].numpy()),
            path=np.where(failed[:, None], -1, path.numpy()).astype(np.int16),
            first_loss=losses[:, 0].double().numpy(),
            last_loss=losses[:, -1].double().numpy(),
            minimum_loss_prediction=np.where(failed, -1, path.gather(1, lowest)[:, 0].numpy()),
            status=status,
        )

    def _train(self, image: Tensor, target: Tensor, text: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Losses (K + 1,) and predictions (K + 1,) of one image (1, 3, S, S)."""
        config = self.config
        module = self.build(ttt.image_seed(seed, image[0])).train()
        optimiser = torch.optim.Adam(module.parameters(), lr=config.learning_rate, fused=True)
        schedule = torch.optim.lr_scheduler.StepLR(optimiser, config.decay_every, config.decay)
        losses, path = [], []
        for k in range(config.iterations + 1):
            feature = module(image)  # (1, D)
            loss = (feature[0] - target).square().mean()
            losses.append(loss.detach().cpu())
            path.append(ttt.cosine_scores(feature.detach(), text)[0].argmax().cpu())
            if k < config.iterations:
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
        return torch.stack(losses), torch.stack(path)


_GLOBAL_SEED = threading.Lock()

# ---------------------------------------------------------------------------------------------------- lines of a profile


@checked
@dataclass(frozen=True)
class Ablation:
    """One line: what is changed over the common settings, and which published number it stands beside."""

    part: str  # heading under which it stands
    name: str
    student: Mapping[str, Any]  # fields of apm.model.APMConfig
    training: Mapping[str, Any]  # fields of apm.ttt.TTTConfig
    network: str = "apm"  # or one of NETWORKS
    size: int | None = None  # image side in pixels for another network; None: the student's
    init: str | None = None  # for another network: see OneSampleStudent
    picture: str | None = None  # how an image is brought to the APM's size: see apm.methods.student_pictures
    samples: int | None = None  # fewer images for an expensive line
    dataset: str | None = None  # another set than the common one, as Tables 8 and 9 have; at most as many images
    against: str | None = None  # name of the line that it is compared with; None: the base
    published: tuple[str, str] | None = None  # row and column of data/published/table5_and_appendix.csv


def load(profile: str, file: str) -> list[Ablation]:
    """The lines of profiles/<profile>/<file>. Raises as `apm.profiles.load_lines` and `parse`, naming the file."""
    lines = profiles.load_lines(profile, file)
    try:
        return parse(lines)
    except ValueError as error:
        raise ValueError(f"profiles/{profile}/{file}: {error}") from error


def parse(lines: Sequence[Mapping[str, Any]]) -> list[Ablation]:
    """The lines of a profile. Raises ValueError, naming the line, for an unknown or missing option and for a name used twice."""
    known = [field.name for field in fields(Ablation)]
    parsed: list[Ablation] = []
    for number, line in enumerate(lines, 1):
        if not isinstance(line, Mapping):
            raise ValueError(
                f"ablation {number}: expected {{part: ..., name: ..., ...}}, found {type(line).__name__} {line!r}"
            )
        where = f"ablation {number} ({line.get('name', 'without name')})"
        for option in line:
            if option not in known:
                raise ValueError(f"{where}: {project.unknown('option', option, known)}")
        for option in ("part", "name"):
            if not isinstance(line.get(option), str) or not line[option]:
                raise ValueError(f"{where}: needs a {option}, found {line.get(option)!r}")
        for option in ("student", "training"):
            if not isinstance(line.get(option, {}), Mapping):
                raise ValueError(f"{where}: {option} must be {{field: value}}, found {line[option]!r}")
            cls = APMConfig if option == "student" else TTTConfig
            check_fields(line.get(option, {}), cls, f"{where}: {option}")
        cell = line.get("published")
        if cell is not None and (isinstance(cell, str) or len(cell) != 2):
            raise ValueError(f"{where}: published must be [row, column], found {cell!r}")
        if line["name"] in {other.name for other in parsed}:
            raise ValueError(f"{where}: the name {line['name']!r} is used twice")
        compared = line.get("against")
        others = [str(other.get("name")) for other in lines if isinstance(other, Mapping) and other is not line]
        if compared is not None and compared not in others:
            raise ValueError(f"{where}: against: {project.unknown('line', str(compared), others)}")
        try:
            parsed.append(Ablation(**{"student": {}, "training": {}, **line}))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    return parsed


def method(
    line: Ablation, teacher: Teacher, student: Mapping[str, Any] | None, training: Mapping[str, Any] | None
) -> methods.APM | OneSampleStudent:
    """The method of a line: its changes over the common student and training. Raises ValueError naming the line."""
    try:
        config = methods.training_config(
            teacher, {**(student or {}), **line.student}, {**(training or {}), **line.training}
        )
        if line.network == "apm":
            if line.size is not None or line.init is not None:
                raise ValueError("size and init are options of other networks; the APM's are student and training")
            return methods.APM(teacher, config, name=f"ablation {line.name}", picture=line.picture or "teacher")
        if line.student or line.picture:
            raise ValueError(f"the options student and picture describe the APM, not the network {line.network}")
        size = line.size or config.student.image_size[0]
        return OneSampleStudent(teacher, line.network, config, size, f"ablation {line.name}", line.init or "default")
    except ValueError as error:
        raise ValueError(f"ablation {line.name!r}: {error}") from error


def size_of(chosen: methods.APM | OneSampleStudent) -> int:
    """Number of weights that a line trains."""
    if isinstance(chosen, OneSampleStudent):
        return chosen.parameters()
    return count_parameters(chosen.config.trained)


def run(
    lines: Sequence[Ablation],
    teacher: Teacher,
    dataset: Dataset,
    *,
    folder: Path | str,
    seeds: Sequence[int],
    student: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    on_error: str = "raise",
) -> pd.DataFrame:
    """Records of all lines over all seeds; lines with equal settings run once.

    Further columns: part, variant, parameters; against (the line that it names, or ""); same_as: the first line with the same
    settings on the same images, "" for that line itself. on_error: as of `apm.records.run`.

    Raises ValueError for fewer than 3 seeds, for `samples` out of range and as `method` does, before anything is computed.
    """
    if len(set(seeds)) != len(seeds) or len(seeds) < MINIMUM_SEEDS:
        raise ValueError(
            f"expected at least {MINIMUM_SEEDS} different seeds for a spread over seeds, found {list(seeds)}: set seeds in the profile"
        )
    chosen = [method(line, teacher, student, training) for line in lines]
    others = {name: datasets.load(name) for name in dict.fromkeys(line.dataset for line in lines) if name}
    images = {}
    for line in lines:
        own_set = others[line.dataset] if line.dataset else dataset
        n = line.samples or min(len(dataset), len(own_set))
        if not stats.MINIMUM_SAMPLES <= n <= len(own_set):
            raise ValueError(
                f"ablation {line.name!r}: samples must be {stats.MINIMUM_SAMPLES} (for an interval) to {len(own_set)}, found {n}"
            )
        images[line.name] = own_set if n == len(own_set) else own_set.subset(n, seed=0)
    zero_shot = methods.ZeroShot(teacher)
    done: dict[str, tuple[str, pd.DataFrame]] = {}
    frames = []
    for line, own in zip(lines, chosen, strict=True):
        data = images[line.name]
        key = project.sha256_of([own.settings(), data.fingerprint, data.indices.tolist()])
        if key not in done:
            runs = [
                records.run(own, data, folder=folder, seed=seed, teacher_method=zero_shot, on_error=on_error)
                for seed in seeds
            ]
            done[key] = line.name, pd.concat(runs, ignore_index=True)
        first, found = done[key]
        same = "" if first == line.name else first
        frames.append(
            found.assign(
                part=line.part, variant=line.name, parameters=size_of(own), against=line.against or "", same_as=same
            )
        )
    return pd.concat(frames, ignore_index=True)


# ----------------------------------------------------------------------------------------------------------------- tables


KEY = ["dataset", "corruption", "severity", "sample", "seed"]  # which prediction is compared with which


def summary(rows: pd.DataFrame, base: str) -> pd.DataFrame:
    """One row of numbers per variant, from the records of `run`.

    Columns: those of `apm.tables.summary` by part and variant, data (name of the set), parameters and same_as; k (iterations);
    spread (standard deviation over the seeds of the accuracy, points); first_loss and last_loss (medians over images and seeds);
    against: the variant that it is compared with, and at: after how many of that one's iterations; step, step_low, step_high:
    final minus that variant's on the same images and seeds, with the paired bootstrap interval over images; empty for a
    variant on another dataset.

    Raises ValueError for an unknown base, and for a variant with images that the one it is compared with has not seen.
    """
    if base not in set(rows["variant"]):
        raise project.unknown("base variant", base, list(dict.fromkeys(rows["variant"])))
    table = tables.summary(rows, by=("part", "variant"))
    parts = {variant: own for variant, own in rows.groupby("variant", sort=False)}
    extra = []
    for variant in table["variant"]:
        own = parts[variant]
        against = own["against"].iloc[0] or base
        right = stats.correct(own, "final")
        assert right is not None
        step, at = _step(own, parts[against])
        by_seed = 100 * pd.Series(right).groupby(own["seed"].to_numpy()).mean()
        extra.append(
            {
                "data": str(own["dataset"].iloc[0]),
                "parameters": int(own["parameters"].iloc[0]),
                "same_as": own["same_as"].iloc[0],
                "k": _updates(own),
                "spread": by_seed.std(ddof=1),
                "first_loss": own["first_loss"].median(),
                "last_loss": own["last_loss"].median(),
                "against": against,
                "at": at,
                "step": step.value,
                "step_low": step.low,
                "step_high": step.high,
            }
        )
    return pd.concat([table, pd.DataFrame(extra)], axis=1)


def _updates(own: pd.DataFrame) -> int:
    return stats.paths(own).shape[1] - 1


def _step(own: pd.DataFrame, other: pd.DataFrame, k: int | None = None) -> tuple[stats.Interval, int]:
    """Accuracy of a variant minus another's on the same images and seeds, and the other's iterations.

    k: after how many updates of both; None: all of the variant's, and as many of the other's where it has more. Empty where the
    two have no dataset in common.
    """
    mine = stats.paths(own)
    theirs = stats.paths(other)
    k_own = mine.shape[1] - 1 if k is None else k
    k_other = min(k_own, theirs.shape[1] - 1)
    if set(own["dataset"]) != set(other["dataset"]):
        return stats.Interval(np.nan, np.nan, np.nan, 0), k_other
    place = pd.Series(np.arange(len(other)), index=pd.MultiIndex.from_frame(other[KEY]))
    found = place.reindex(pd.MultiIndex.from_frame(own[KEY]))
    if found.isna().any():
        missing = own.loc[found.isna().to_numpy(), "sample"].nunique()
        raise ValueError(
            f"variant {own['variant'].iloc[0]!r} has {missing} images that {other['variant'].iloc[0]!r}, with which it is "
            f"compared, has not seen: give it at most {other['sample'].nunique()} samples, or the other one more"
        )
    where = found.to_numpy(dtype=np.int64)
    right = mine[:, k_own] == own["label"].to_numpy()
    reference = theirs[where, k_other] == other["label"].to_numpy()[where]
    return stats.paired_difference(right, reference, own["sample"].to_numpy(), seeds=own["seed"].to_numpy()), k_other


def early(rows: pd.DataFrame, base: str, counts: Sequence[int]) -> pd.DataFrame:
    """Every variant after few updates, k in counts, where accuracies are not yet all the teacher's: from predictions per iteration.

    Columns: part, variant, same_as, n, k; accuracy with low and high (%); against, step, step_low, step_high: accuracy minus
    that variant's after as many updates, paired (percentage points). Variants that were trained for fewer than k updates
    have no row there. Raises ValueError as `summary`.
    """
    if base not in set(rows["variant"]):
        raise project.unknown("base variant", base, list(dict.fromkeys(rows["variant"])))
    parts = {variant: own for variant, own in rows.groupby("variant", sort=False)}
    lines = []
    for variant, own in parts.items():
        path = stats.paths(own)
        against = own["against"].iloc[0] or base
        for k in counts:
            if not 1 <= k < path.shape[1]:
                continue
            value = stats.bootstrap_mean(path[:, k] == own["label"].to_numpy(), own["sample"].to_numpy())
            step, at = _step(own, parts[against], k)
            if at < k:
                step = stats.Interval(np.nan, np.nan, np.nan, 0)
            lines.append(
                {
                    "part": own["part"].iloc[0],
                    "variant": variant,
                    "same_as": own["same_as"].iloc[0],
                    "n": value.n,
                    "k": k,
                    "accuracy": value.value,
                    "low": value.low,
                    "high": value.high,
                    "against": against,
                    "step": step.value,
                    "step_low": step.low,
                    "step_high": step.high,
                }
            )
    if not lines:
        raise ValueError(f"no variant was trained for {min(counts)} iterations: name smaller counts")
    return pd.DataFrame(lines)


def compact_early(table: pd.DataFrame) -> pd.DataFrame:
    """`early` for reading: one row per run, for every k the accuracy and the paired difference."""
    runs = table[table["same_as"] == ""]
    shown = runs.drop_duplicates("variant")[["part", "variant", "n", "against"]].set_index("variant")
    for k, own in runs.groupby("k"):
        own = own.set_index("variant")
        for heading, names in (
            (f"k = {k}", ("accuracy", "low", "high")),
            ("difference", ("step", "step_low", "step_high")),
        ):
            cells = [tables.percent(cell) for cell in zip(*(own[name] for name in names), strict=True)]
            heading = heading if heading != "difference" else f"difference, k = {k}"
            shown[heading] = pd.Series(cells, index=own.index).reindex(shown.index).fillna("")
    shown = shown.reset_index()
    shown.insert(0, "part", shown.pop("part"))
    shown["part"] = shown["part"].where(shown["part"] != shown["part"].shift(), "")
    return shown.rename(columns={"against": "compared with"})


def compact(table: pd.DataFrame, published: Mapping[str, str] | None = None) -> pd.DataFrame:
    """`summary` for reading. published: variant -> text of the published value, for the last column."""

    def cells(*names: str) -> list[str]:
        return [tables.percent(cell) for cell in zip(*(table[name] for name in names), strict=True)]

    longest = dict(zip(table["variant"], table["k"], strict=True))
    compared = [
        "" if own == other else other if at == longest[other] else f"{other}, k = {at}"
        for own, other, at in zip(table["variant"], table["against"], table["at"], strict=True)
    ]
    shown = pd.DataFrame(
        {
            "part": table["part"].where(table["part"] != table["part"].shift(), ""),
            "variant": table["variant"],
            "same run as": table["same_as"],
            "n": table["n"],
            "K": table["k"],
            "weights": [_count(p) for p in table["parameters"]],
            "median loss": [
                f"{a:.0e} to {b:.0e}" for a, b in zip(table["first_loss"], table["last_loss"], strict=True)
            ],
            "final": cells("final", "final_low", "final_high"),
            "sd": table["spread"].round(1),
            "as teacher": table["agreement"].round(1),
            "final - teacher": cells("difference", "low", "high"),
            "compared with": compared,
            "difference": cells("step", "step_low", "step_high"),
        }
    )
    if len(set(table["data"])) > 1:
        shown.insert(2, "data", table["data"])
    if published is not None:
        shown["published"] = [published.get(variant, "") for variant in table["variant"]]
    return shown


def split(shown: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A `compact` table in two that fit a page: what every variant is and reaches; how it compares."""
    cut = list(shown).index("final - teacher")
    return shown.iloc[:, :cut], pd.concat([shown[["part", "variant", "final"]], shown.iloc[:, cut:]], axis=1)


def _count(parameters: int) -> str:
    return f"{parameters / 1e6:.3g} M" if parameters >= 1e6 else f"{parameters / 1e3:.3g} k"


def published_cells(lines: Sequence[Ablation], published: pd.DataFrame) -> dict[str, str]:
    """Variant -> the published value, or what the paper's text says of it where no number was found.

    published: `apm.published.load("table5")`. Raises ValueError for a row and column that are not there.
    """
    cells = {}
    for line in lines:
        if line.published is None:
            continue
        row, column = line.published
        found = published[(published["row"] == row) & (published["column"] == column)]
        if len(found) != 1:
            known = [f"[{r}, {c}]" for r, c in zip(published["row"], published["column"], strict=True)]
            raise ValueError(
                f"ablation {line.name!r}: {project.unknown('published cell', f'[{row}, {column}]', known)}"
            )
        value, text = found.iloc[0]["value"], found.iloc[0]["text"]
        cells[line.name] = text if pd.notna(value) else text.removeprefix("not found ").strip("()")
    return cells


def over_iterations(rows: pd.DataFrame, variant: str, counts: Sequence[int]) -> pd.DataFrame:
    """Accuracy of one variant had it been stopped after k updates, for k in counts: read from its predictions per iteration.

    Training does not know how long it will last, so a run of K updates begins with the run of k < K. Columns: k, n, seeds,
    final with final_low and final_high (%), sd (standard deviation over seeds, points), agreement with the teacher (%), any: right
    after at least one of the first k updates (%); step, step_low, step_high: accuracy after k minus that after the last of counts,
    paired (percentage points). Raises ValueError for an unknown variant or a k beyond its last update.
    """
    if variant not in set(rows["variant"]):
        raise project.unknown("variant", variant, list(dict.fromkeys(rows["variant"])))
    own = rows[rows["variant"] == variant]
    path, label = stats.paths(own), own["label"].to_numpy()
    teacher, sample = own["teacher_prediction"].to_numpy(dtype=np.int64), own["sample"].to_numpy()
    table = []
    for k in counts:
        if not 1 <= k < path.shape[1]:
            raise ValueError(f"{variant} was trained for {path.shape[1] - 1} iterations; found k = {k}")
    for k in counts:
        right = path[:, k] == label
        value = stats.bootstrap_mean(right, sample)
        step = stats.paired_difference(right, path[:, counts[-1]] == label, sample)
        table.append(
            {
                "k": k,
                "n": value.n,
                "seeds": own["seed"].nunique(),
                "final": value.value,
                "final_low": value.low,
                "final_high": value.high,
                "sd": 100 * pd.Series(right).groupby(own["seed"].to_numpy()).mean().std(ddof=1),
                "agreement": stats.agreement(path[:, k], teacher),
                "any": 100 * float((path[:, 1 : k + 1] == label[:, None]).any(axis=1).mean()),
                "step": step.value,
                "step_low": step.low,
                "step_high": step.high,
            }
        )
    return pd.DataFrame(table)


def reading(table: pd.DataFrame) -> list[str]:
    """What moved, in sentences, from `summary`: lines that are the same run are one finding."""
    runs = table[table["same_as"] == ""]
    compared = runs[runs["step"].notna() & (runs["variant"] != runs["against"])]
    moved = compared[(compared["step_low"] > 0) | (compared["step_high"] < 0)]

    def names(which: pd.DataFrame) -> str:
        return "; ".join(which["variant"]) or "none"

    equal = compared[(compared["step_low"] == 0) & (compared["step_high"] == 0)]
    lines = [
        f"{len(table)} lines are {len(runs)} distinct runs",
        f"{len(moved)} of the {len(compared)} compared differ from what they are compared with beyond their interval: {names(moved)}",
        f"below their teacher: {names(runs[runs['high'] < 0])}",
        f"above their teacher: {names(runs[runs['low'] > 0])}",
        f"{len(runs[runs['agreement'] > 97])} of {len(runs)} give the teacher's own prediction on more than 97 % of the images",
    ]
    if len(equal):
        most = int(equal["n"].max())
        lines.append(
            f"{len(equal)} show no difference on any image: with n = {most}, up to about 3/n = {300 / most:.1f} points "
            "would still go unseen"
        )
    return lines


def feature_and_tokens(teacher: Teacher, dataset: Dataset, *, images: int = 32) -> float:
    """Mean cosine of the teacher's image feature and the mean of its patch tokens, over some images of a dataset.

    1: the target of L_grid, folded, is that of L_cls. NaN for a teacher without patch tokens or where no image can be read.
    """
    if teacher.grid is None:
        return math.nan
    pictures = []
    for i in range(min(images, len(dataset))):
        try:
            pictures.append(dataset.images[i])
        except datasets.UnreadableImage:
            continue
    if not pictures:
        return math.nan
    encoding = teacher.encode(teacher.transform(pictures), tokens=True)
    assert encoding.tokens is not None
    return float(
        nn.functional.cosine_similarity(encoding.feature, encoding.tokens.flatten(1, 2).mean(dim=1), dim=-1).mean()
    )


def compact_iterations(steps: pd.DataFrame) -> pd.DataFrame:
    """`over_iterations` for reading."""
    last = steps["k"].iloc[-1]
    final, step = (
        [tables.percent(cell) for cell in steps[[name, f"{name}_low", f"{name}_high"]].itertuples(index=False)]
        for name in ("final", "step")
    )
    shown = steps[["k", "n", "seeds"]].assign(final=final)
    shown[["sd", "agreement", "any"]] = steps[["sd", "agreement", "any"]]
    return shown.assign(**{f"final - final after {last}": step})


def times(rows: pd.DataFrame) -> pd.DataFrame:
    """Median milliseconds per image of every distinct run, fastest first, from the records of `run`. Columns: variant, n, K, ms."""
    runs = rows[rows["same_as"] == ""]
    lines = [
        {
            "variant": variant,
            "n": own["sample"].nunique(),
            "K": _updates(own),
            "ms per image": own["milliseconds"].median(),
        }
        for variant, own in runs.groupby("variant", sort=False)
    ]
    found = pd.DataFrame(lines).sort_values("ms per image", ignore_index=True)
    return found.assign(**{"ms per image": [f"{ms:.2g}" if ms < 10 else f"{ms:,.0f}" for ms in found["ms per image"]]})


# ---------------------------------------------------------------------------------------------------------------- figures


def overview(table: pd.DataFrame) -> tuple[Any, str]:
    """Final accuracy of every variant with its interval, part by part, the teacher's on the same images as a tick.

    table: from `summary`. Returns figure and caption.
    """
    import matplotlib.pyplot as plt

    figures.style()
    parts = list(dict.fromkeys(table["part"]))
    at, labels, y = [], [], 0.0
    figure, axes = plt.subplots(figsize=(7.5, 0.24 * (len(table) + len(parts)) + 1.2))
    for number, part in enumerate(parts):
        own = table[table["part"] == part]
        places = y + np.arange(len(own))
        value, low, high = (own[name].to_numpy() for name in ("final", "final_low", "final_high"))
        for again in (False, True):
            chosen = (own["same_as"] != "").to_numpy() == again
            axes.errorbar(
                value[chosen],
                places[chosen],
                xerr=np.abs([value - low, high - value])[:, chosen],
                fmt="o",
                ms=4,
                lw=1.2,
                capsize=2,
                color="C0",
                mfc="white" if again else "C0",
            )
        axes.plot(own["teacher"], places, "|", ms=11, mew=1.6, color="black", label="teacher" if number == 0 else None)
        at += list(places)
        labels += [f"{variant} ({n})" for variant, n in zip(own["variant"], own["n"], strict=True)]
        axes.text(1.01, places.mean(), part, transform=axes.get_yaxis_transform(), va="center")
        y = places[-1] + 2
        if number < len(parts) - 1:
            axes.axhline(places[-1] + 1, color="0.85", lw=0.8)
    axes.set_yticks(at, labels)
    axes.set_ylim(y - 1, -1)
    axes.set_xlabel("top-1 accuracy after the last iteration, %")
    axes.grid(axis="y", visible=False)
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), frameon=False)
    figure.tight_layout()
    caption = (
        f"Final accuracy of every variant (number of images), {table['seeds'].iloc[0]} seeds; bars: 95 % bootstrap intervals over "
        "images; hollow: the same run as an earlier line; black ticks: the teacher on the same images."
    )
    return figure, caption


def along_sequence(rows: pd.DataFrame, variants: Sequence[str]) -> tuple[Any, str]:
    """Last loss of every image against its place in the sequence, one line per variant, seeds as thin lines.

    rows: records of `run`, in the order in which the images were met. Returns figure and caption.
    """
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    figures.style()
    figure, axes = plt.subplots(figsize=(7.5, 3.8), layout="constrained")
    palette = plt.rcParams["axes.prop_cycle"].by_key()["color"]
    for number, variant in enumerate(variants):
        if variant not in set(rows["variant"]):
            raise project.unknown("variant", variant, list(dict.fromkeys(rows["variant"])))
        own = rows[rows["variant"] == variant]
        for place, (_, one) in enumerate(own.groupby("seed", sort=True)):
            ratio = (one["last_loss"] / one["first_loss"]).to_numpy()
            label = variant if place == 0 else None
            axes.plot(np.arange(1, len(ratio) + 1), ratio, color=palette[number], lw=1, alpha=0.8, label=label)
    axes.set_yscale("log")
    axes.set_xlabel("image, in the order in which they come")
    axes.set_ylabel("loss after the last iteration\ndivided by the first")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    # above the axes: lines may be anywhere inside
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=2)
    seeds = rows["seed"].nunique()
    return figure, f"How far the loss of each image falls, along the sequence of images; one line per seed ({seeds})."


def by_size(table: pd.DataFrame, published: pd.DataFrame) -> tuple[Any, str]:
    """Final minus teacher against the number of weights, with intervals and n (left), published Table 9 (right).

    table: rows of `summary`; their differences to the teacher are on each one's own images, so that variants with fewer images can
    stand beside the others. published: columns parameters (millions) and accuracy (%). Returns figure and caption.
    """
    import matplotlib.pyplot as plt

    figures.style()
    figure, (ours, theirs) = plt.subplots(1, 2, figsize=(8.5, 3.4), width_ratios=(3, 2))
    table = table.sort_values("parameters")
    value, low, high = (table[name].to_numpy() for name in ("difference", "low", "high"))
    size = table["parameters"].to_numpy() / 1e6
    ours.axhline(0, ls="--", color="black", lw=1)
    ours.errorbar(size, value, yerr=np.abs([value - low, high - value]), fmt="o-", ms=4, capsize=2)
    for x, y, n in zip(size, high, table["n"], strict=True):
        ours.annotate(f"n = {n}", (x, y), (0, 5), textcoords="offset points", ha="center", fontsize=8)
    ours.set_title("ours: final - teacher")
    reach = max(1.0, 1.4 * float(np.nanmax(np.abs([low, high]))))
    ours.set_ylim(-reach, reach)
    ours.margins(x=0.12)
    theirs.plot(published["parameters"], published["accuracy"], "o-", color="0.4", ms=4)
    theirs.set_title("published (DTD): accuracy")
    ours.set_xscale("log")
    theirs.set_xticks(published["parameters"])
    theirs.margins(0.15)
    for axes, label in ((ours, "percentage points"), (theirs, "top-1 accuracy, %")):
        axes.set_xlabel("weights of the student, millions")
        axes.set_ylabel(label)
    figure.tight_layout()
    caption = (
        "Size of the student: ours as the difference to the teacher on the same images, 95 % paired intervals over images (none "
        "where no image differs), and the values known of the published Table 9 (other images, another teacher, another axis)."
    )
    return figure, caption
