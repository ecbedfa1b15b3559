"""Ablations: one line of a profile each, all on the same images, seeds and teacher (Tables 5, 8 and 9 and the text of the paper).

    {part: losses, name: L_cls + L_rgb, training: {loss_rgb: 1}, published: ["Lcls + Lrgb", CIFAR-10]}

Lines with the same settings share one run. A line is compared with the profile's base on the same images and seeds, or with the line
that it names as `against`; where that one ran for more iterations, with its predictions after as many.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import chi2
from torch import Tensor
from torch.nn.functional import cosine_similarity

from apm import methods, project, teachers, ttt
from apm.analysis import stats
from apm.analysis.numbers import Number
from apm.data import Dataset
from apm.data import load as load_dataset
from apm.experiments import judge
from apm.experiments.other_students import OneSampleStudent
from apm.model import APMConfig, count_parameters
from apm.project import profiles
from apm.project.identity import code_of, code_version
from apm.project.progress import progress
from apm.runs import records
from apm.teachers import Teacher
from apm.ttt import TTTConfig
from apm.typed import check_fields, checked

MINIMUM_SEEDS = 3  # a spread over fewer says nothing
KEY = ["dataset", "corruption", "severity", "sample", "seed"]  # which prediction is compared with which
SIDES = ("below", "not told apart", "above")
AGAINST = {"final - teacher": "against its teacher", "difference": "against that"}  # a difference and its verdict


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

    def __post_init__(self) -> None:
        check_fields(self.student, APMConfig, "student")
        check_fields(self.training, TTTConfig, "training")


def load(profile: str, file: str, base: str | None = None) -> list[Ablation]:
    """The lines of profiles/<profile>/<file>; with APM_LINES (make: LINES=...) only those of this part or name, the base, and what
    they are compared with. Raises as `apm.project.profiles.load_lines`, `parse` and `selected`, naming the file."""
    lines = profiles.load_lines(profile, file)
    try:
        return selected(parse(lines), os.environ.get("APM_LINES", ""), base)
    except ValueError as error:
        raise ValueError(f"profiles/{profile}/{file}: {error}") from error


def parse(lines: Sequence[Mapping[str, Any]]) -> list[Ablation]:
    """The lines of a profile. Raises ValueError, naming the line, for bad options, a name used twice, an unknown line to compare with."""
    parsed: list[Ablation] = []
    for number, line in enumerate(lines, 1):
        if not isinstance(line, Mapping):
            found = f"{type(line).__name__} {line!r}"
            raise ValueError(f"ablation {number}: expected {{part: ..., name: ..., ...}}, found {found}")
        try:
            project.among("option", line, [option.name for option in fields(Ablation)])
            if not (line.get("part") and line.get("name")):
                raise ValueError(f"needs a part and a name, found {line.get('part')!r} and {line.get('name')!r}")
            parsed.append(Ablation(**line))
            others = [str(other.get("name")) for other in lines if isinstance(other, Mapping) and other is not line]
            if line["name"] in others:
                raise ValueError(f"the name {line['name']!r} is used twice")
            project.among("line to compare with", filter(None, [parsed[-1].against]), others)
        except ValueError as error:
            raise ValueError(f"ablation {number} ({line.get('name', 'without name')}): {error}") from None
    return parsed


def selected(lines: Sequence[Ablation], wanted: str, base: str | None = None) -> list[Ablation]:
    """The lines of a part or name, the base, and those that they are compared with; all for "". Raises ValueError for an unknown one."""
    chosen = {line.name for line in lines if wanted in ("", line.part, line.name)}
    if not chosen:
        raise project.unknown("part or line", wanted, dict.fromkeys(said for x in lines for said in (x.part, x.name)))
    more = {base} if base else set()
    while not more <= chosen:  # a line may be compared with one that is compared with a third
        chosen |= more
        more = {line.against for line in lines if line.name in chosen and line.against}
    return [line for line in lines if line.name in chosen]


def method(
    line: Ablation, teacher: Teacher, student: Mapping[str, Any] | None, training: Mapping[str, Any] | None
) -> methods.APM | OneSampleStudent:
    """The method of a line: its changes over the common student and training. Raises ValueError naming the line."""
    name = f"ablation {line.name}"
    try:
        changed = {**(student or {}), **line.student}, {**(training or {}), **line.training}
        config = methods.training_config(teacher, *changed)
        if line.network == "apm":
            if line.size is not None or line.init is not None:
                raise ValueError("size and init are options of other networks; the APM's are student and training")
            return methods.APM(teacher, config, name=name, picture=line.picture or "teacher")
        if line.student or line.picture:
            raise ValueError(f"the options student and picture describe the APM, not the network {line.network}")
        size = line.size or config.student.image_size[0]
        return OneSampleStudent(teacher, line.network, config, size, name, line.init or "default")
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
    """Records of all lines over all seeds; lines with equal settings and images run once, the last of the list, where new ones are
    added, first. on_error: as of `apm.runs.records.run`.

    Further columns: part, variant, parameters, against (the line that it names), same_as (an earlier line that is the same run), "" for
    none. Raises ValueError for fewer than 3 seeds, `samples` out of range and as `method`, before it runs.
    """
    if len(set(seeds)) != len(seeds) or len(seeds) < MINIMUM_SEEDS:
        wanted = f"at least {MINIMUM_SEEDS} different seeds for a spread over seeds"
        raise ValueError(f"expected {wanted}, found {list(seeds)}: set seeds in the profile")
    chosen = []
    own = {name: load_dataset(name) for name in dict.fromkeys(line.dataset for line in lines) if name}
    for line in lines:
        made, data = method(line, teacher, student, training), own.get(line.dataset or "", dataset)
        n, least = line.samples or min(len(dataset), len(data)), stats.MINIMUM_SAMPLES
        if min(n, len(data)) < least:
            raise ValueError(
                f"ablation {line.name!r}: samples must be at least {least} (for an interval), found {min(n, len(data))}"
            )
        chosen.append((line, made, data.take(n)))
    options: dict[str, Any] = {"folder": folder, "teacher_method": methods.ZeroShot(teacher), "on_error": on_error}
    keys = [project.sha256_of([made.settings(), data.fingerprint, data.indices.tolist()]) for _, made, data in chosen]
    done: dict[str, pd.DataFrame] = {}
    for key, (_, made, data) in progress([*zip(keys, chosen, strict=True)][::-1], desc="ablations", unit="line"):
        if key not in done:
            done[key] = pd.concat([records.run(made, data, seed=seed, **options) for seed in seeds], ignore_index=True)
    frames = []
    for key, (line, made, _) in zip(keys, chosen, strict=True):
        first, found = chosen[keys.index(key)][0].name, done[key]
        parameters = made.parameters() if isinstance(made, OneSampleStudent) else count_parameters(made.config.trained)
        said = {"part": line.part, "variant": line.name, "against": line.against or ""}
        frames.append(found.assign(parameters=parameters, same_as="" if first == line.name else first, **said))
    return pd.concat(frames, ignore_index=True)


def side(difference: Number) -> str:
    """Whether an interval of points leaves out 0 by more than one image would move it: below, above, not told apart."""
    image = 100 / (difference.n or 1)
    return SIDES[0] if difference.high < -image else SIDES[2] if difference.low > image else SIDES[1]


def spread(right: np.ndarray, seeds: Any) -> Number:
    """Standard deviation over seeds of the accuracy, points, shown without its interval. right, seeds: (n,), as many rows of each seed.

    The interval is that of normal values (chi-square), taken of what one answer less and one more make of the deviation: seeds that
    agree do not say that others would.
    """
    count = pd.Series(right).groupby(np.asarray(seeds)).sum()
    n, point = len(count), 100 * len(count) / len(right)  # what one answer is to the accuracy of its seed
    deviation, answer = point * float(count.std()), point / math.sqrt(n)  # the most that one moves the deviation
    low, high = np.sqrt((n - 1) / chi2.ppf([0.5 + 0.5 * stats.CONFIDENCE, 0.5 - 0.5 * stats.CONFIDENCE], n - 1))
    ends = float(low) * max(round(deviation - answer, 9), 0.0), min(float(high) * (deviation + answer), 100.0)
    return Number(deviation, *ends, n, "points", "measure", brief=True)


def stopped(own: pd.DataFrame, k: int) -> dict[str, Any]:
    """What a variant, given by its records, reaches had it been stopped after k updates: a run of K updates begins with the run of k < K.

    any: right after at least one of the k updates. Raises ValueError for a k beyond its last update.
    """
    path, label = stats.paths(own), own["label"].to_numpy()
    if not 1 <= k < path.shape[1]:
        raise ValueError(f"{own['variant'].iloc[0]} was trained for {path.shape[1] - 1} iterations; found k = {k}")
    asked = own["teacher_prediction"].fillna(-2).to_numpy(dtype=np.int64)  # -2: nobody's answer
    final, teacher, options = path[:, k] == label, asked == label, {"samples": own["sample"], "seeds": own["seed"]}
    right = (path[:, 1 : k + 1] == label[:, None]).any(axis=1)
    found = {"final": final, "teacher": teacher, "as teacher": path[:, k] == asked, "any": right}
    return {
        "images": own["sample"].nunique(),
        "seeds": own["seed"].nunique(),
        "k": k,
        **{name: stats.mean(each, **options) for name, each in found.items()},
        "final - teacher": stats.paired_difference(final, teacher, **options),
        "sd over seeds": spread(final, own["seed"]),
    }


def compared(own: pd.DataFrame, other: pd.DataFrame, k: int, k_other: int) -> Number | None:
    """Accuracy of a variant after k updates minus another's after k_other, on the same images and seeds, percentage points; None for
    two datasets. Raises ValueError for images that the other one has not seen."""
    if set(own["dataset"]) != set(other["dataset"]):
        return None
    right, theirs = (stats.paths(part)[:, at] == part["label"].to_numpy() for part, at in ((own, k), (other, k_other)))
    if not np.array_equal(own[KEY].to_numpy(), other[KEY].to_numpy()):
        mine, its = (pd.MultiIndex.from_frame(part[KEY]) for part in (own, other))
        place = its.get_indexer(mine)
        if (place < 0).any():
            named, against = (part["variant"].iloc[0] for part in (own, other))
            unseen = mine[place < 0].unique("sample").size
            found = f"{unseen} images that {against!r}, with which it is compared, has not seen"
            todo = f"give it at most {other['sample'].nunique()} samples, or the other one more"
            raise ValueError(f"variant {named!r} has {found}: {todo}")
        theirs = theirs[place]
    return stats.paired_difference(right, theirs, own["sample"], seeds=own["seed"].to_numpy())


def after(rows: pd.DataFrame, base: str, k: int | None = None) -> pd.DataFrame:
    """One row per variant (index part, variant) after k updates, or after its last for None: what it reaches, how it compares.

    A variant is compared with the line that it names, or base, after as many updates, where that one has them (without k: after its last
    where it has fewer). Raises ValueError for an unknown base, when no variant was trained for k updates, and as `compared`.
    """
    parts = {str(variant): own for variant, own in rows.groupby("variant", sort=False)}
    project.among("variant", [base], parts)
    last = {variant: stats.paths(own).shape[1] - 1 for variant, own in parts.items()}
    lines: dict[tuple[str, str], dict[str, Any]] = {}
    for variant, own in parts.items():
        chosen = last[variant] if k is None else k
        if chosen > last[variant]:
            continue
        against = own["against"].iloc[0] or base
        at = min(chosen, last[against])
        found = compared(own, parts[against], chosen, at) if against != variant and at >= (k or 1) else None
        named = None if found is None else against if at == last[against] else f"{against}, k = {at}"
        key = own["part"].iloc[0], variant
        lines[key] = {**stopped(own, chosen), "compared with": named, "difference": found}
    if not lines:
        raise ValueError(f"no variant was trained for {k} iterations: name fewer")
    table = pd.DataFrame.from_dict(lines, orient="index").rename_axis(["part", "variant"])
    for name, verdict in AGAINST.items():
        table[verdict] = table[name].map(side, na_action="ignore")
    shown = ("images", "k", "final", "sd over seeds", "teacher", "as teacher", "final - teacher", "against its teacher")
    return table[[*shown, "compared with", "difference", "against that"]]


def moved(found: Mapping[str, pd.DataFrame], same: Sequence[str]) -> pd.DataFrame:
    """How many distinct runs are on which side of their teacher and of the line that they are compared with, in tables of `after`; same:
    variants that are the same run as an earlier one, no findings of their own."""
    lines = {}
    for (name, table), column in itertools.product(found.items(), AGAINST):
        runs = table[column].droplevel("part").dropna()
        runs = runs[~runs.index.isin(list(same))]
        sides = runs.map(side)
        holm = stats.holm([stats.p_value(difference) for difference in runs])
        lines[name, "its teacher" if column == "final - teacher" else "the line compared with"] = {
            "runs": len(runs),
            **{word: int((sides == word).sum()) for word in SIDES},
            "of them p (Holm) < 0.05": int(((holm < 0.05) & (sides != SIDES[1])).sum()),
            "which below": "; ".join(runs.index[sides == SIDES[0]]),
            "which above": "; ".join(runs.index[sides == SIDES[2]]),
        }
    return pd.DataFrame.from_dict(lines, orient="index").rename_axis(["stopped", "against"])


def published_cells(lines: Sequence[Ablation], published: pd.DataFrame) -> dict[str, Number | str]:
    """Variant -> its value in published ("table5"), or what the paper's text says where none was found; ValueError for an unknown cell."""
    known = {(cell.row, cell.column): cell for cell in published.itertuples()}
    cells: dict[str, Number | str] = {}
    for name, place in ((line.name, line.published) for line in lines if line.published):
        project.among(f"published cell of ablation {name!r}", [place], known)
        text = known[place].text.removeprefix("not found ").strip("()")
        cells[name] = text if math.isnan(known[place].value) else Number(known[place].value, kind="published")
    return cells


def feature_and_tokens(teacher: Teacher, dataset: Dataset, *, images: int = 32) -> Number:
    """Mean cosine of the teacher's image feature and the mean of its patch tokens, over some images; empty for a teacher without tokens
    or where no image can be read."""
    try:
        some = dataset.readable("record", most=images)
    except ValueError:
        some = None
    if teacher.grid is None or some is None:
        return Number(math.nan, unit="", kind="measure")
    encoding = teacher.encode(teacher.transform(teachers.pictures(some, np.arange(len(some)))), tokens=True)
    assert encoding.tokens is not None
    cosine = cosine_similarity(encoding.feature, encoding.tokens.mean(dim=(1, 2)), dim=-1)
    return judge.mean(cosine, "cosine", least=1, ends=(-1, 1))


def towards_target(teacher: Teacher, dataset: Dataset, config: TTTConfig, counts: Sequence[int]) -> pd.DataFrame:
    """How close students, seed 0, come to their targets after each number of updates in counts (0: random weights), at most K.

    Loss and cosine are means over images with t intervals; as teacher: same class, Wilson. Raises ValueError for a count beyond K.
    """
    if max(counts) > config.iterations:
        raise ValueError(f"the student is trained for {config.iterations} iterations; found k = {max(counts)}")
    targets = teachers.features_at(teacher, dataset, np.arange(len(dataset)))
    text = teacher.text_features(dataset.classnames, dataset.templates).to(targets)
    losses, features = _students(teacher, dataset, config, targets)
    cosine = cosine_similarity(features, targets[:, None], dim=-1)  # (n, K + 1)
    same = ttt.cosine_scores(features, text).argmax(-1) == ttt.cosine_scores(targets, text).argmax(-1)[:, None]
    lines = {
        k: {
            "images": len(dataset),
            "loss": judge.mean(losses[:, k], least=1, ends=(0, math.inf)),
            "cosine to the target": judge.mean(cosine[:, k], "cosine", least=1, ends=(-1, 1)),
            "as teacher": stats.accuracy(same[:, k].numpy(), minimum=1),
        }
        for k in counts
    }
    return pd.DataFrame.from_dict(lines, orient="index").rename_axis("updates")


def _students(teacher: Teacher, dataset: Dataset, config: TTTConfig, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Losses (n, K + 1) and features (n, K + 1, D) of students, seed 0; in the cache, as one of the published size takes seconds."""
    made = methods.APM(teacher, config)
    code = [code_version(made.modules), code_of(_students)]

    def train() -> dict[str, Tensor]:
        pictures = teachers.pictures(dataset, np.arange(len(dataset)))
        images = methods.student_pictures(teacher, pictures, config.student.image_size[0]).to(teacher.device)
        result = ttt.adapt(images, targets.to(images), config)
        assert result.features is not None
        return {"losses": result.losses, "features": result.features.float()}

    found = teachers.remembered("students", [made.settings(), teachers.identity(teacher, dataset), code], train)
    return found["losses"], found["features"]
