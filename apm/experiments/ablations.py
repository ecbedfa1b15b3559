"""Ablations: one line of a profile each, all on the same images, seeds and teacher (Tables 5, 8 and 9 and the text of the paper).

A line names what it changes over the common settings:

    {part: losses, name: L_cls + L_rgb, training: {loss_rgb: 1}, published: ["Lcls + Lrgb", CIFAR-10]}

Lines with the same settings share one run. A line is compared with the profile's base on the same images and seeds, or with the
line that it names as `against`; where that one ran for more iterations, with its predictions after as many. Besides the APM, the
student may be another network (`apm.experiments.other_students`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch.nn.functional import cosine_similarity

from apm import methods, project, teachers, ttt
from apm.analysis import stats, tables
from apm.analysis.numbers import Number
from apm.data import Dataset
from apm.data import load as load_dataset
from apm.experiments.other_students import OneSampleStudent
from apm.model import APMConfig, count_parameters
from apm.project import profiles
from apm.runs import records
from apm.teachers import Teacher
from apm.ttt import TTTConfig
from apm.typed import check_fields, checked

MINIMUM_SEEDS = 3  # a spread over fewer says nothing

# ---------------------------------------------------------------------------------------------------- lines of a profile


@checked
@dataclass(frozen=True)
class Ablation:
    """One line: what is changed over the common settings, and which published number it stands beside."""

    part: str  # heading under which it stands
    name: str
    student: Mapping[str, Any] = field(default_factory=dict)  # fields of apm.model.APMConfig
    training: Mapping[str, Any] = field(default_factory=dict)  # fields of apm.ttt.TTTConfig
    network: str = "apm"  # or one of other_students.NETWORKS
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
    """The lines of a profile. Raises ValueError, naming the line, for an unknown or missing option, a value of another type than its
    option's, a name used twice, and a line to compare with that is not there."""
    known = [option.name for option in fields(Ablation)]
    parsed: dict[str, Ablation] = {}
    for number, line in enumerate(lines, 1):
        if not isinstance(line, Mapping):
            raise ValueError(
                f"ablation {number}: expected {{part: ..., name: ..., ...}}, found {type(line).__name__} {line!r}"
            )
        try:
            project.among("option", line, known)
            if not (line.get("part") and line.get("name")):
                raise ValueError(f"needs a part and a name, found {line.get('part')!r} and {line.get('name')!r}")
            made = Ablation(**line)
            check_fields(made.student, APMConfig, "student")
            check_fields(made.training, TTTConfig, "training")
            if made.name in parsed:
                raise ValueError(f"the name {made.name!r} is used twice")
            others = [str(other.get("name")) for other in lines if isinstance(other, Mapping) and other is not line]
            if made.against is not None and made.against not in others:
                raise project.unknown("line to compare with", made.against, others)
        except ValueError as error:
            raise ValueError(f"ablation {number} ({line.get('name', 'without name')}): {error}") from None
        parsed[made.name] = made
    return list(parsed.values())


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
    chosen = []
    sets = {name: load_dataset(name) for name in dict.fromkeys(line.dataset for line in lines) if name}
    for line in lines:
        made = method(line, teacher, student, training)
        data = sets[line.dataset] if line.dataset else dataset
        n = line.samples or min(len(dataset), len(data))
        if not stats.MINIMUM_SAMPLES <= n <= len(data):
            raise ValueError(
                f"ablation {line.name!r}: samples must be {stats.MINIMUM_SAMPLES} (for an interval) to {len(data)}, found {n}"
            )
        chosen.append((line, made, data if n == len(data) else data.subset(n, seed=0)))
    options: dict[str, Any] = {"folder": folder, "teacher_method": methods.ZeroShot(teacher), "on_error": on_error}
    done: dict[str, tuple[str, pd.DataFrame]] = {}
    frames = []
    for line, made, data in chosen:
        key = project.sha256_of([made.settings(), data.fingerprint, data.indices.tolist()])
        if key not in done:
            runs = [records.run(made, data, seed=seed, **options) for seed in seeds]
            done[key] = line.name, pd.concat(runs, ignore_index=True)
        first, found = done[key]
        parameters = made.parameters() if isinstance(made, OneSampleStudent) else count_parameters(made.config.trained)
        said = {"part": line.part, "variant": line.name, "against": line.against or ""}
        frames.append(found.assign(parameters=parameters, same_as="" if first == line.name else first, **said))
    return pd.concat(frames, ignore_index=True)


# ----------------------------------------------------------------------------------------------------------------- tables


KEY = ["dataset", "corruption", "severity", "sample", "seed"]  # which prediction is compared with which
SIDES = ("below", "not told apart", "above")
AGAINST = {"final - teacher": "against its teacher", "difference": "against that"}  # a difference and its verdict


def side(difference: Number) -> str:
    """Whether an interval of points leaves out 0 by more than one image would move it: below, above, not told apart."""
    image = 100 / (difference.n or 1)
    return SIDES[0] if difference.high < -image else SIDES[2] if difference.low > image else SIDES[1]


def measured(values: Any, least: float, most: float, unit: str = "") -> Number:
    """Mean of a measure (n,) between least and most over images, with its 95 % t interval; without one for a single image."""
    values = np.asarray(values, dtype=np.float64)
    if len(values) < 2:
        return Number(float(values.mean()), n=len(values), unit=unit, kind="measure")
    mean = stats.mean(values, minimum=2)
    return Number(mean.value / 100, max(least, mean.low / 100), min(most, mean.high / 100), mean.n, unit, "measure")


def updates(own: pd.DataFrame) -> int:
    """K, the number of updates of a variant's records."""
    return stats.paths(own).shape[1] - 1


def stopped(own: pd.DataFrame, k: int) -> dict[str, Any]:
    """What a variant reaches had it been stopped after k updates: training does not know how long it will last.

    own: its records. images, seeds, k; accuracies: final, teacher, as teacher (same prediction), any (right after at least one of
    the first k updates); final - teacher; each a Number with its interval over images and seeds; sd over seeds (points).

    Raises ValueError for a k beyond its last update.
    """
    if not 1 <= k <= updates(own):
        raise ValueError(f"{own['variant'].iloc[0]} was trained for {updates(own)} iterations; found k = {k}")
    path, label, seeds = stats.paths(own)[:, : k + 1], own["label"].to_numpy(), own["seed"].to_numpy()
    teacher = own["teacher_prediction"].fillna(-2).to_numpy(dtype=np.int64)  # -2: nobody's answer
    right = path == label[:, None]
    final = right[:, k]
    found = {
        "final": final,
        "teacher": teacher == label,
        "as teacher": path[:, k] == teacher,
        "any": right[:, 1:].any(axis=1),
    }
    by_seed = 100 * pd.Series(final).groupby(seeds).mean()
    return {
        "images": own["sample"].nunique(),
        "seeds": len(by_seed),
        "k": k,
        **{name: tables.percent(stats.mean(each, own["sample"], seeds=seeds)) for name, each in found.items()},
        "final - teacher": _points(stats.paired_difference(final, teacher == label, own["sample"], seeds=seeds)),
        "sd over seeds": Number(float(by_seed.std(ddof=1)), n=len(by_seed), unit="points", kind="measure"),
    }


def compared(own: pd.DataFrame, other: pd.DataFrame, k: int, k_other: int) -> Number | None:
    """Accuracy of a variant after k updates minus another's after k_other, on the same images and seeds, percentage points.

    None where the two are on different datasets. Raises ValueError for images that the other one has not seen.
    """
    if set(own["dataset"]) != set(other["dataset"]):
        return None
    place = pd.Series(np.arange(len(other)), index=pd.MultiIndex.from_frame(other[KEY]))
    found = place.reindex(pd.MultiIndex.from_frame(own[KEY])).to_numpy()
    if np.isnan(found).any():
        raise ValueError(
            f"variant {own['variant'].iloc[0]!r} has {own.loc[np.isnan(found), 'sample'].nunique()} images that "
            f"{other['variant'].iloc[0]!r}, with which it is compared, has not seen: give it at most "
            f"{other['sample'].nunique()} samples, or the other one more"
        )
    label = own["label"].to_numpy()
    theirs = stats.paths(other)[found.astype(np.int64), k_other]
    right = stats.paths(own)[:, k] == label
    return _points(stats.paired_difference(right, theirs == label, own["sample"], seeds=own["seed"]))


def _points(difference: stats.Interval) -> Number:
    return tables.percent(difference, kind="difference", unit="points")


def after(rows: pd.DataFrame, base: str, k: int | None = None) -> pd.DataFrame:
    """One row per variant (index part, variant) after k updates, or after its last for None: what it reaches, how it compares.

    Columns: those of `stopped`; compared with (the line, base where it names none), its k; difference; for both differences which
    `side`. Variants trained for fewer than k updates have no row; a variant is compared with another after as many updates, where
    that one has them (without k: after its last where it has fewer).

    Raises ValueError for an unknown base, when no variant was trained for k updates, and as `compared`.
    """
    parts = {str(variant): own for variant, own in rows.groupby("variant", sort=False)}
    if base not in parts:
        raise project.unknown("variant", base, parts)
    lines: dict[tuple[str, str], dict[str, Any]] = {}
    for variant, own in parts.items():
        last = updates(own)
        chosen = last if k is None else k
        if chosen > last:
            continue
        line = lines[own["part"].iloc[0], variant] = stopped(own, chosen)
        against = own["against"].iloc[0] or base
        theirs = updates(parts[against])
        at = min(chosen, theirs)
        found = compared(own, parts[against], chosen, at) if against != variant and at >= (k or 1) else None
        named = against if at == theirs else f"{against}, k = {at}"
        line |= {"compared with": named if found else None, "difference": found}
    if not lines:
        raise ValueError(f"no variant was trained for {k} iterations: name fewer")
    table = pd.DataFrame.from_dict(lines, orient="index").rename_axis(["part", "variant"])
    for name, verdict in AGAINST.items():
        table[verdict] = table[name].map(side, na_action="ignore")
    shown = ("images", "k", "final", "sd over seeds", "teacher", "as teacher", "final - teacher", "against its teacher")
    return table[[*shown, "compared with", "difference", "against that"]]


def over_iterations(own: pd.DataFrame, counts: Sequence[int]) -> pd.DataFrame:
    """One variant's records had it been stopped after k updates, for k in counts: index "k = 5" and so on.

    A run of K updates begins with the run of k < K. Columns: those of `stopped`, but for the teacher's, and final minus that after
    the last of counts, paired. Raises ValueError for a k beyond its last update.
    """
    last = counts[-1]
    lines = {
        f"k = {k}": {**stopped(own, k), f"final - final after {last}": compared(own, own, k, last)} for k in counts
    }
    table = pd.DataFrame.from_dict(lines, orient="index").rename_axis("stopped").drop(columns=["k", "teacher"])
    table.iloc[-1, -1] = None  # the last with itself
    return table


def settings(rows: pd.DataFrame) -> pd.DataFrame:
    """What every variant is: data, images, seeds, K, weights, same run as, medians of first and last loss. Index part, variant."""
    table = rows.groupby(["part", "variant"], sort=False).agg(
        **{
            "data": ("dataset", "first"),
            "images": ("sample", "nunique"),
            "seeds": ("seed", "nunique"),
            "K": ("path", lambda paths: len(paths.dropna().iloc[0]) - 1),
            "weights": ("parameters", "first"),
            "loss before": ("first_loss", "median"),
            "loss after": ("last_loss", "median"),
            "same run as": ("same_as", "first"),
        }
    )
    return table if len(set(table["data"])) > 1 else table.drop(columns="data")


def moved(found: Mapping[str, pd.DataFrame], same: Sequence[str]) -> pd.DataFrame:
    """How many distinct runs are below, above or not told apart from their teacher and from the line that they are compared with.

    found: name of a row -> table of `after`. same: variants that are the same run as an earlier one, no findings of their own.
    of them p (Holm) < 0.05: of those below or above, how many survive the correction for as many tests.
    """
    lines = {}
    for (name, table), column in itertools.product(found.items(), AGAINST):
        runs = table[column].droplevel("part").dropna()
        runs = runs[~runs.index.isin(list(same))]
        sides = runs.map(side)
        holm = stats.holm([tables.p_value(difference) for difference in runs])
        lines[name, "its teacher" if column == "final - teacher" else "the line compared with"] = {
            "runs": len(runs),
            **{word: int((sides == word).sum()) for word in SIDES},
            "of them p (Holm) < 0.05": int(((holm < 0.05) & (sides != SIDES[1])).sum()),
            "which below": "; ".join(runs.index[sides == SIDES[0]]),
            "which above": "; ".join(runs.index[sides == SIDES[2]]),
        }
    return pd.DataFrame.from_dict(lines, orient="index").rename_axis(["stopped", "against"])


def published_cells(lines: Sequence[Ablation], published: pd.DataFrame) -> dict[str, Number | str]:
    """Variant -> the published value, or what the paper's text says of it where no number was found.

    published: `apm.data.published.load("table5")`. Raises ValueError for a row and column that are not there.
    """
    known = {(cell.row, cell.column): cell for cell in published.itertuples()}
    cells: dict[str, Number | str] = {}
    for line in lines:
        if line.published is None:
            continue
        if line.published not in known:
            raise ValueError(
                f"ablation {line.name!r}: {project.unknown('published cell', line.published, map(str, known))}"
            )
        cell = known[line.published]
        text = cell.text.removeprefix("not found ").strip("()")
        cells[line.name] = text if math.isnan(cell.value) else Number(cell.value, kind="published")
    return cells


# --------------------------------------------------------------------------------------------- students and their targets


def feature_and_tokens(teacher: Teacher, dataset: Dataset, *, images: int = 32) -> Number:
    """Mean cosine of the teacher's image feature and the mean of its patch tokens, over some images of a dataset.

    1: the target of L_grid, folded, is that of L_cls. Empty for a teacher without patch tokens or where no image can be read.
    """
    try:
        some = dataset.readable("record", most=images)
    except ValueError:
        some = None
    if teacher.grid is None or some is None:
        return Number(math.nan, unit="", kind="measure")
    encoding = teacher.encode(teacher.transform(teachers.pictures(some, np.arange(len(some)))), tokens=True)
    assert encoding.tokens is not None
    return measured(cosine_similarity(encoding.feature, encoding.tokens.mean(dim=(1, 2)), dim=-1), -1, 1, "cosine")


def towards_target(teacher: Teacher, dataset: Dataset, config: TTTConfig, counts: Sequence[int]) -> pd.DataFrame:
    """How close students come to their targets: one row per number of updates in counts (0: random weights), at most K.

    Columns: images, loss, cosine to the target (means over images with t intervals), as teacher (same class, Wilson). Images are
    all of the dataset, seed 0. Raises ValueError for a count beyond K.
    """
    if max(counts) > config.iterations:
        raise ValueError(f"the student is trained for {config.iterations} iterations; found k = {max(counts)}")
    places = np.arange(len(dataset))
    pictures = teachers.pictures(dataset, places)
    images = methods.student_pictures(teacher, pictures, config.student.image_size[0]).to(teacher.device)
    targets = teachers.features_at(teacher, dataset, places).to(images)
    text = teacher.text_features(dataset.classnames, dataset.templates).to(images)
    result = ttt.adapt(images, targets, config)
    assert result.features is not None
    features = result.features.float()
    cosine = cosine_similarity(features, targets[:, None], dim=-1).cpu()  # (n, K + 1)
    same = ttt.cosine_scores(features, text).argmax(-1) == ttt.cosine_scores(targets, text).argmax(-1)[:, None]
    lines = {
        k: {
            "images": len(dataset),
            "loss": measured(result.losses[:, k].cpu(), 0, math.inf),
            "cosine to the target": measured(cosine[:, k], -1, 1, "cosine"),
            "as teacher": tables.percent(stats.accuracy(same[:, k].cpu().numpy(), minimum=1)),
        }
        for k in counts
    }
    return pd.DataFrame.from_dict(lines, orient="index").rename_axis("updates")
