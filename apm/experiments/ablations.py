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

from apm import lockstep, methods, project, teachers, ttt
from apm.analysis import stats, tables
from apm.analysis.numbers import Number
from apm.data import datasets
from apm.data.datasets import Dataset
from apm.methods import Predictions
from apm.model import APMConfig, count_parameters
from apm.project import profiles
from apm.project.identity import RUN_MODULES
from apm.runs import records
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
    modules = (*RUN_MODULES, "experiments.ablations")

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
    """The lines of profiles/<profile>/<file>. Raises as `apm.project.profiles.load_lines` and `parse`, naming the file."""
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
    settings on the same images, "" for that line itself. on_error: as of `apm.runs.records.run`.

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
SIDES = ("below", "not told apart", "above")


def side(difference: Number) -> str:
    """Whether an interval of points leaves out 0 by more than one image would move it: below, above, not told apart; "" if empty."""
    if math.isnan(difference.low):
        return ""
    image = 100 / (difference.n or 1)
    return SIDES[0] if difference.high < -image else SIDES[2] if difference.low > image else SIDES[1]


def measured(values: Any, least: float, most: float, unit: str = "") -> Number:
    """Mean of a measure (n,) between least and most over images, with its 95 % t interval; without one for a single image."""
    values = np.asarray(values, dtype=np.float64)
    if len(values) < 2:
        return Number(float(values.mean()), n=len(values), unit=unit, kind="measure")
    mean = stats.mean(values, minimum=2)
    return Number(mean.value / 100, max(least, mean.low / 100), min(most, mean.high / 100), mean.n, unit, "measure")


def stopped(own: pd.DataFrame, k: int) -> pd.DataFrame:
    """The records of a variant had it been stopped after k updates: training does not know how long it will last."""
    path = stats.paths(own)
    if not 1 <= k < path.shape[1]:
        raise ValueError(f"{own['variant'].iloc[0]} was trained for {path.shape[1] - 1} iterations; found k = {k}")
    return own.assign(prediction=path[:, k].astype(np.int64), path=list(path[:, : k + 1]))


def updates(own: pd.DataFrame) -> int:
    """K, the number of updates of a variant's records."""
    return stats.paths(own).shape[1] - 1


def compared(own: pd.DataFrame, other: pd.DataFrame, k: int, k_other: int) -> stats.Interval:
    """Accuracy of a variant after k updates minus another's after k_other, on the same images and seeds, percentage points.

    Empty where the two have no dataset in common. Raises ValueError for images that the other one has not seen.
    """
    if set(own["dataset"]) != set(other["dataset"]):
        return stats.Interval(math.nan, math.nan, math.nan, 0)
    place = pd.Series(np.arange(len(other)), index=pd.MultiIndex.from_frame(other[KEY]))
    found = place.reindex(pd.MultiIndex.from_frame(own[KEY]))
    if found.isna().any():
        missing = own.loc[found.isna().to_numpy(), "sample"].nunique()
        raise ValueError(
            f"variant {own['variant'].iloc[0]!r} has {missing} images that {other['variant'].iloc[0]!r}, with which it is "
            f"compared, has not seen: give it at most {other['sample'].nunique()} samples, or the other one more"
        )
    theirs = stopped(other, k_other)["prediction"].to_numpy()[found.to_numpy(dtype=np.int64)]
    difference = stats.mean_difference(stopped(own, k).assign(teacher_prediction=theirs))
    assert difference is not None
    return difference


def after(rows: pd.DataFrame, base: str, k: int | None = None) -> pd.DataFrame:
    """One row per variant (index part, variant) after k updates, or after its last for None: what it reaches, how it compares.

    Columns: images, k; final, teacher, as teacher (same prediction), final - teacher, each with its interval over images and
    seeds; against teacher (`side`); sd over seeds (points); compared with (the line, base where it names none), its k; difference
    and which side. Variants trained for fewer than k updates have no row; a variant is compared with another after as many
    updates, where that one has them (without k: after its last where it has fewer).

    Raises ValueError for an unknown base, when no variant was trained for k updates, and as `compared`.
    """
    parts = _variants(rows, base)
    lines = {}
    for variant, own in parts.items():
        chosen = updates(own) if k is None else k
        if chosen > updates(own):
            continue
        reached = stopped(own, chosen)
        cells = _reached(reached)
        line: dict[str, Any] = {
            "images": own["sample"].nunique(),
            "k": chosen,
            "final": cells["final"],
            "sd over seeds": _spread(reached),
            **{name: cells[name] for name in ("teacher", "as teacher", "final - teacher")},
            "against its teacher": side(cells["final - teacher"]),
        }
        against = own["against"].iloc[0] or base
        at = min(chosen, updates(parts[against]))
        if against != variant and (k is None or at == k):
            difference = _points(compared(own, parts[against], chosen, at))
            if not math.isnan(difference.value):
                line |= {
                    "compared with": against if at == updates(parts[against]) else f"{against}, k = {at}",
                    "difference": difference,
                    "against that": side(difference),
                }
        lines[own["part"].iloc[0], variant] = line
    if not lines:
        raise ValueError(f"no variant was trained for {k} iterations: name fewer")
    table = pd.DataFrame.from_dict(lines, orient="index").rename_axis(["part", "variant"])
    return table.reindex(columns=[*list(table)[:8], "compared with", "difference", "against that"])


def _variants(rows: pd.DataFrame, base: str) -> dict[str, pd.DataFrame]:
    if base not in set(rows["variant"]):
        raise project.unknown("variant", base, list(dict.fromkeys(rows["variant"])))
    return {str(variant): own for variant, own in rows.groupby("variant", sort=False)}


def _reached(own: pd.DataFrame) -> dict[str, Number]:
    """Accuracies under each rule, agreement with the teacher and final - teacher, each as a Number."""
    as_teacher = own.assign(label=own["teacher_prediction"].fillna(-2).to_numpy(dtype=np.int64))  # -2: nobody's answer
    found = {
        "final": stats.mean_accuracy(own, "final"),
        "teacher": stats.mean_accuracy(own, "teacher"),
        "as teacher": stats.mean_accuracy(as_teacher, "final"),
        "any": stats.mean_accuracy(own, "any"),
    }
    cells = {name: tables.percent(math.nan if value is None else value) for name, value in found.items()}
    step = stats.mean_difference(own)
    return cells | {"final - teacher": _points(math.nan if step is None else step)}


def _points(value: stats.Interval | float) -> Number:
    return tables.percent(value, kind="difference", unit="points")


def _spread(own: pd.DataFrame) -> Number:
    """Standard deviation over seeds of the accuracy."""
    by_seed = 100 * (own["prediction"] == own["label"]).groupby(own["seed"]).mean()
    return Number(float(by_seed.std(ddof=1)), n=len(by_seed), unit="points", kind="measure")


def settings(rows: pd.DataFrame) -> pd.DataFrame:
    """What every variant is: data, images, seeds, K, weights, same run as, medians of first and last loss. Index part, variant."""
    lines = {
        (own["part"].iloc[0], variant): {
            "data": str(own["dataset"].iloc[0]),
            "images": own["sample"].nunique(),
            "seeds": own["seed"].nunique(),
            "K": updates(own),
            "weights": int(own["parameters"].iloc[0]),
            "loss before": own["first_loss"].median(),
            "loss after": own["last_loss"].median(),
            "same run as": own["same_as"].iloc[0],
        }
        for variant, own in rows.groupby("variant", sort=False)
    }
    table = pd.DataFrame.from_dict(lines, orient="index").rename_axis(["part", "variant"])
    return table if len(set(table["data"])) > 1 else table.drop(columns="data")


def moved(found: Mapping[str, pd.DataFrame], same: Sequence[str]) -> pd.DataFrame:
    """How many distinct runs are below, above or not told apart from their teacher and from the line that they are compared with.

    found: name of a row -> table of `after`. same: variants that are the same run as an earlier one, no findings of their own.
    of them p (Holm) < 0.05: of those below or above, how many survive the correction for as many tests.
    """
    lines: dict[tuple[str, str], dict[str, Any]] = {}
    for name, table in found.items():
        runs = table[~table.index.get_level_values("variant").isin(list(same))]
        for what, column, verdicts in (
            ("its teacher", "final - teacher", "against its teacher"),
            ("the line compared with", "difference", "against that"),
        ):
            own = runs[runs[column].notna() & runs[verdicts].isin(SIDES)]
            p = [tables.p_value(c) for c in own[column]]
            told = own[verdicts].ne(SIDES[1]).to_numpy()
            variants = own.index.get_level_values("variant")
            lines[name, what] = {
                "runs": len(own),
                **{word: int((own[verdicts] == word).sum()) for word in SIDES},
                "of them p (Holm) < 0.05": int(((stats.holm(p) < 0.05) & told).sum()) if p else 0,
                "which below": "; ".join(variants[own[verdicts] == SIDES[0]]),
                "which above": "; ".join(variants[own[verdicts] == SIDES[2]]),
            }
    return pd.DataFrame.from_dict(lines, orient="index").rename_axis(["stopped", "against"])


def published_cells(lines: Sequence[Ablation], published: pd.DataFrame) -> dict[str, Number | str]:
    """Variant -> the published value, or what the paper's text says of it where no number was found.

    published: `apm.data.published.load("table5")`. Raises ValueError for a row and column that are not there.
    """
    cells: dict[str, Number | str] = {}
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
        known_value = Number(float(value), kind="published") if pd.notna(value) else None
        cells[line.name] = known_value or text.removeprefix("not found ").strip("()")
    return cells


def over_iterations(rows: pd.DataFrame, variant: str, counts: Sequence[int]) -> pd.DataFrame:
    """Accuracy of one variant had it been stopped after k updates, for k in counts; index "k = 5" and so on.

    A run of K updates begins with the run of k < K. Columns: images, seeds, final, sd over seeds, as teacher, any (right after at
    least one of the first k updates), final - teacher, and final minus that after the last of counts, paired. Raises ValueError
    for an unknown variant or a k beyond its last update.
    """
    own = _variants(rows, variant)[variant]
    lines: dict[str, dict[str, Any]] = {}
    for k in counts:
        reached = stopped(own, k)
        cells = _reached(reached)
        del cells["teacher"]
        counted = {"images": own["sample"].nunique(), "seeds": own["seed"].nunique()}
        lines[f"k = {k}"] = counted | cells | {"sd over seeds": _spread(reached)}
        if k != counts[-1]:
            lines[f"k = {k}"][f"final - final after {counts[-1]}"] = _points(compared(own, own, k, counts[-1]))
    return pd.DataFrame.from_dict(lines, orient="index").rename_axis("stopped")


def feature_and_tokens(teacher: Teacher, dataset: Dataset, *, images: int = 32) -> Number:
    """Mean cosine of the teacher's image feature and the mean of its patch tokens, over some images of a dataset.

    1: the target of L_grid, folded, is that of L_cls. With its interval over images; empty for a teacher without patch tokens or where no image can be read.
    """
    nothing = Number(math.nan, unit="", kind="measure")
    if teacher.grid is None:
        return nothing
    pictures = []
    for i in range(min(images, len(dataset))):
        try:
            pictures.append(dataset.images[i])
        except datasets.UnreadableImage:
            continue
    if not pictures:
        return nothing
    encoding = teacher.encode(teacher.transform(pictures), tokens=True)
    assert encoding.tokens is not None
    mean = encoding.tokens.flatten(1, 2).mean(dim=1)
    return measured(nn.functional.cosine_similarity(encoding.feature, mean, dim=-1), -1, 1, "cosine")


def towards_target(teacher: Teacher, dataset: Dataset, config: TTTConfig, counts: Sequence[int]) -> pd.DataFrame:
    """How close students come to their targets: one row per number of updates in counts (0: random weights), at most K.

    Columns: images, loss, cosine to the target (means over images with t intervals), as teacher (same class, Wilson). Images are
    all of the dataset, seed 0.
    Raises ValueError for a count beyond K.
    """
    if max(counts) > config.iterations:
        raise ValueError(f"the student is trained for {config.iterations} iterations; found k = {max(counts)}")
    places = np.arange(len(dataset))
    mode = teacher.preprocess_config.resize_mode
    size = config.student.image_size[0]
    images = teachers.student_images(teachers.pictures(dataset, places), size, resize_mode=mode).to(teacher.device)
    targets = teachers.features_at(teacher, dataset, places).to(images)
    text = teacher.text_features(dataset.classnames, dataset.templates).to(images)
    result = ttt.adapt(images, targets, config)
    assert result.features is not None
    features = result.features.float()
    cosine = nn.functional.cosine_similarity(features, targets[:, None], dim=-1).cpu()  # (n, K + 1)
    same = ttt.cosine_scores(features, text).argmax(-1) == ttt.cosine_scores(targets, text).argmax(-1)[:, None]
    lines = {}
    for k in counts:
        lines[k] = {
            "images": len(dataset),
            "loss": measured(result.losses[:, k].cpu(), 0, math.inf),
            "cosine to the target": measured(cosine[:, k], -1, 1, "cosine"),
            "as teacher": tables.percent(stats.accuracy(same[:, k].cpu().numpy(), minimum=1)),
        }
    return pd.DataFrame.from_dict(lines, orient="index").rename_axis("updates")
