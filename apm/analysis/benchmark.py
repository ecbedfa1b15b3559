"""Benchmarks over many datasets (Tables 1 and 3 of the paper): which sets, a method against its references, published steps.

A *step* is the accuracy of a student minus that of a reference, in percentage points: the one number of two tables with
other images, other teachers and other scales that can be put side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from apm import methods, project, teachers
from apm.analysis import numbers, stats, tables
from apm.analysis.numbers import Number
from apm.data import corruptions, datasets, prompts, published
from apm.data.datasets import Dataset
from apm.runs import records
from apm.ttt import TTTConfig

CHANCE_NOTE = "chance: always answering the most frequent class."

# our name of a set -> its column among open_clip's published zero-shot results
OPEN_CLIP_COLUMNS = {
    **{"imagenet": "ImageNet", "imagenet-a": "ImageNet-A", "imagenet-v2": "ImageNet-V2", "imagenet-r": "ImageNet-R"},
    **{"imagenet-sketch": "ImageNet-Sketch", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "dtd": "DTD"},
    **{"eurosat": "EuroSAT", "aircraft": "Aircraft", "food101": "Food101", "caltech101": "Caltech101"},
    **{"flowers102": "Flower102", "pets": "Pets", "sun397": "SUN397"},
}


def load_sets(
    names: Sequence[str],
    samples: int | str = "all",
    *,
    ensemble: str | None = None,
    root: str | None = None,
    partial: bool = False,
) -> list[Dataset]:
    """The datasets of these names; of each a stratified choice of `samples` images, or all where it has no more.

    samples: a count, or "all". ensemble: name of the prompts of all of them, such as "imagenet-7" (`apm.data.prompts.names`); None: each
    set's own. partial: take published sets of which a part is missing.
    Raises ValueError for no names, a name given twice, another `samples`, unknown prompts, and as `apm.data.datasets.load` does.
    """
    if not names or len(set(names)) != len(names):
        raise ValueError(f"expected names of datasets, each once, found {list(names)}")
    if samples != "all" and (isinstance(samples, str) or samples < stats.MINIMUM_SAMPLES):
        raise ValueError(
            f'samples must be "all" or at least {stats.MINIMUM_SAMPLES} images (for an interval), found {samples!r}'
        )
    loaded = [datasets.load(name, root=root, partial=partial) for name in names]
    if ensemble is not None:
        loaded = [replace(d, templates=prompts.templates(ensemble)) for d in loaded]
    return [d if samples == "all" or int(samples) >= len(d) else d.subset(int(samples), seed=0) for d in loaded]


def corrupted_sets(
    data: Dataset, kinds: Sequence[str], levels: Sequence[int], *, source: str | None = None, seed: int = 0
) -> list[Dataset]:
    """The images of a dataset under every corruption and severity, severities outermost.

    source: None: made by `apm.data.corruptions`; "cifar10-c", "imagenet-c", ...: the published download of the same images, read
    from disk. Raises ValueError where the download has fewer images than `data` refers to, or other labels there: then its
    images are not in the order of `data`, and every prediction would be paired with that of another image.
    """
    if source is None:
        return [corruptions.corrupted(data, kind, level, seed=seed) for level in levels for kind in kinds]
    made = []
    for level in levels:
        for kind in kinds:
            whole = datasets.load(f"{source}/{kind}/{level}")
            if len(whole) <= int(data.indices.max()):
                raise ValueError(
                    f"{source}/{kind}/{level} has {len(whole)} images, {data.name} refers to image {int(data.indices.max())}: "
                    "is it the corrupted form of another set?"
                )
            part = whole.subset(data.indices)
            agreeing = float(np.mean(part.labels == data.labels))
            if agreeing < 1:
                raise ValueError(
                    f"{source}/{kind}/{level} and {data.name} have the same label on {100 * agreeing:.1f} % of the images only, so they "
                    "are in another order. The download follows the published order: read the clean images in it too "
                    "(CIFAR: torchvision's files, not folders of images by class), or set corruption_set: null to make the corrupted "
                    "images here"
                )
            made.append(replace(part, templates=data.templates))
    return made


def examples(dataset: Dataset, count: int, *, seed: int = 0) -> list[np.ndarray]:
    """Up to `count` images (H, W, 3) of a stratified choice, to be shown; a grey square for one that cannot be read."""
    chosen = dataset.subset(min(count, len(dataset)), seed=seed)
    shown = []
    for i in range(len(chosen)):
        try:
            shown.append(np.asarray(chosen.images[i]))
        except datasets.UnreadableImage:
            shown.append(np.full((datasets.SIDE, datasets.SIDE, 3), 128, dtype=np.uint8))
    return shown


def readable(dataset: Dataset, *, on_error: str = "raise", most: int | None = None) -> Dataset:
    """The images of a dataset that can be read, the first `most` of them.

    on_error: "raise": an image that cannot be read raises `apm.data.datasets.UnreadableImage`, which names it; "record": it is left out. Raises
    ValueError for another on_error and where no image is left.
    """
    if on_error not in ("raise", "record"):
        raise project.unknown("on_error", on_error, ("raise", "record"))
    found: list[int] = []
    for i in range(len(dataset)):
        if most is not None and len(found) == most:
            break
        try:
            dataset.images[i]
        except datasets.UnreadableImage:
            if on_error == "raise":
                raise
        else:
            found.append(i)
    if not found:
        raise ValueError(f"none of the {len(dataset)} images of {dataset.name} can be read")
    return dataset.subset(found)


def chance(dataset: Dataset) -> float:
    """Accuracy in percent of always answering the most frequent class."""
    return 100.0 * float(np.bincount(dataset.labels).max()) / len(dataset)


def overview(
    sets: Sequence[Dataset], counterparts: Mapping[str, str] | None = None, taught: Dataset | None = None
) -> pd.DataFrame:
    """What the columns of a table are, one row per set: images, classes, chance level, whose images they are, how many of the classes
    the teacher was taught under these names, what the set stands for, and notes on its origin, in which DATA is the folder that $DATA
    names.

    counterparts: name of a set -> the published column that it stands for; the others stand for none. taught: the labelled set that
    the teacher was trained on; None where it is unknown. Raises ValueError for a counterpart of a set that is not there.
    """
    counterparts = dict(counterparts or {})
    for name in counterparts:
        if name not in (known := [d.name for d in sets]):
            raise project.unknown("dataset with a counterpart", name, known)
    lines = [
        {
            "set": d.name,
            "images": len(d),
            "classes": len(d.classnames),
            "chance": Number(chance(d)),
            "made from": d.origin or "own images",
            "classes the teacher was taught": len(set(d.classnames) & set(taught.classnames)) if taught else None,
            "stands for": counterparts.get(d.name, "none") if counterparts else None,
            "notes": project.portable(d.notes),
        }
        for d in sets
    ]
    return pd.DataFrame(lines).set_index("set").dropna(axis="columns")


def made_note(sets: Sequence[Dataset]) -> str:
    """How many of the sets are the images of another one, changed, chosen or renamed; "" for none."""
    made = [d for d in sets if d.origin]
    if not made:
        return ""
    origins = ", ".join(dict.fromkeys(d.origin for d in made))
    return f"{len(made)} of the {len(sets)} sets are images of {origins}, changed, chosen or renamed: no independent pictures."


def taught_note(taught: Dataset | None) -> str:
    """What "zero-shot" means of this teacher; "" where nobody knows what it was taught."""
    if taught is None:
        return ""
    return (
        f'"Zero-shot" means without a step on the test image. This teacher was trained on the labels of {taught.name}, with these '
        f"{len(taught.classnames)} class names and these prompts: on the same classes it is a supervised network."
    )


def copies_note(sets: Sequence[Dataset]) -> str:
    """What readers of the published files will see differ, where a set's remark says that its images are copies; else ""."""
    remarks = [d.remark for d in sets if d.remark]
    if not remarks:
        return ""
    will = "are others, and every accuracy of teacher and student will differ"
    may = "may be others, and then every accuracy of teacher and student differs"
    return (
        "The images here are copies in class folders: with torchvision's download the pixels "
        f"{will if any('JPEG' in remark for remark in remarks) else may}, most of all on clean images."
    )


def zero_shot(records: pd.DataFrame, sets: Sequence[Dataset]) -> pd.DataFrame:
    """The teacher's accuracy per set or condition beside chance, whether it is above it, and the usual accuracy where it is known.

    records: of one method on these sets, with the teacher's predictions. Usual: data/published/usual_accuracy.csv.
    """
    usual = published.wide(published.load("usual_accuracy"))["accuracy"]
    lines = []
    for d in sets:
        own = records[(records["dataset"] == d.name) & (records["severity"] == d.severity)]
        found = stats.mean_accuracy(own[own["corruption"] == d.corruption], "teacher")
        if found is None:
            raise ValueError(f"{d.name}: no predictions of the teacher in these records")
        lines.append(
            {
                "set": tables.condition_label(d.name, d.corruption, d.severity),
                "zero-shot": tables.percent(found),
                "chance": Number(chance(d)),
                "above chance": above_chance(found.low, found.high, chance(d)),
                "usual accuracy of a supervised network": usual.get(d.name, np.nan) if d.severity == 0 else np.nan,
            }
        )
    return pd.DataFrame(lines).set_index("set").dropna(axis="columns", how="all")


def above_chance(low: float, high: float, chance: float) -> str:
    """Whether an accuracy's interval lies above, around or below a chance level (all in percent)."""
    return "yes" if low > chance else "no: below chance" if high < chance else "no: as by chance"


def notes(table: pd.DataFrame) -> list[str]:
    """The notes of `overview`, one line per set; one that several sets share stands once.

    table: sets in the index, column notes.
    """
    shared: dict[str, list[str]] = {}
    for name, said in table["notes"].items():
        shared.setdefault(str(said), []).append(str(name))
    return [f"{', '.join(names)}: {said}" for said, names in shared.items() if said]


def by_origin(records: pd.DataFrame, sets: Sequence[Dataset]) -> pd.DataFrame:
    """The records with a column `set`, and in `dataset` the set that each one's images come from.

    Then an interval of a mean over sets draws an image together with its inverted, thickened, renamed ... copies, as
    `apm.analysis.stats` does for corruptions: they are not independent. Raises ValueError for records of other sets.
    """
    origins = {d.name: d.origin or d.name for d in sets}
    for name in records["dataset"].unique():
        if name not in origins:
            raise project.unknown("dataset of the records", str(name), list(origins))
    return records.assign(
        set=records["dataset"], corruption=records["dataset"], dataset=records["dataset"].map(origins)
    )


def paired(records: pd.DataFrame, method: str, references: Mapping[str, str], *, by: str = "dataset") -> pd.DataFrame:
    """A method against references, image by image: one row per (set, reference).

    records: rows as `apm.runs.records` gives them, holding the method and every reference on the same images. references: heading ->
    method. by: column whose values are the sets. Columns: n, reference accuracy, final, step (final - reference in points, with its
    interval over images), gained and lost (images that only one of the two has right), p (McNemar exact; empty for several
    seeds), verdict (of the interval).

    Raises ValueError for unknown methods and where the images of method and reference differ.
    """
    rows = []
    for value, group in records.groupby(by, sort=False):
        for heading, reference in references.items():
            own, right, other = _matched(group, method, reference, str(value))
            groups = {"samples": own["sample"].to_numpy(), "seeds": own["seed"].to_numpy()}
            step = tables.percent(stats.paired_difference(right, other, **groups), kind="difference", unit="points")
            rows.append(
                {
                    "set": value,
                    "reference": heading,
                    "n": step.n,
                    "reference accuracy": tables.percent(stats.mean(other, **groups), interval=False),
                    "final": tables.percent(stats.mean(right, **groups), interval=False),
                    "step": step,
                    "gained": int((right & ~other).sum()),
                    "lost": int((other & ~right).sum()),
                    "p": Number(stats.mcnemar(right, other), unit="", kind="p") if step.n == len(own) else None,
                    "verdict": numbers.verdict(step),
                }
            )
    return pd.DataFrame(rows).set_index(["set", "reference"])


def _matched(
    records: pd.DataFrame, method: str, reference: str, where: str
) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """The rows of a method, and which of them it and the reference have right."""
    known = list(dict.fromkeys(records["method"]))
    for name in (method, reference):
        if name not in known:
            raise project.unknown("method of the records", name, known)
    key = [*tables.CONDITION, "sample", "seed"]
    own, other = (records[records["method"] == name].sort_values(key) for name in (method, reference))
    if not own[key].reset_index(drop=True).equals(other[key].reset_index(drop=True)):
        raise ValueError(
            f"{where}: {method} ran on {len(own)} images and {reference} on {len(other)}, not on the same ones: "
            "run both on the same sets and seeds"
        )
    return own, *((part["prediction"] == part["label"]).to_numpy() for part in (own, other))


def published_steps(
    published: pd.DataFrame, pairs: Mapping[str, tuple[str, str]], columns: Sequence[str]
) -> pd.DataFrame:
    """Steps between rows of a published table, as `paired` has them: index (set, reference), reference accuracy, final, step.

    published: from `apm.data.published.wide`. pairs: label -> (row of the student, row of the reference). columns: the sets. No
    interval: the paper gives none. Cells that either row lacks give no step. Raises ValueError for unknown rows or columns.
    """
    for what, wanted, known in (
        ("published row", [row for pair in pairs.values() for row in pair], list(published.index)),
        ("published column", columns, list(published.columns)),
    ):
        for name in wanted:
            if name not in known:
                raise project.unknown(what, name, known)
    parts = {
        label: pd.DataFrame({"reference accuracy": published.loc[reference], "final": published.loc[student]})
        for label, (student, reference) in pairs.items()
    }
    found = pd.concat(
        {label: part.loc[list(columns)].dropna() for label, part in parts.items()}, names=["reference", "set"]
    )
    # 96.1 - 96.1 of two printed numbers is nothing
    found["step"] = (found["final"] - found["reference accuracy"]).round(9)
    return found.map(lambda value: Number(value, kind="published")).swaplevel()


def steps(sets: pd.DataFrame, source: str, means: Mapping[str, Number] | None = None) -> pd.DataFrame:
    """The answer of a benchmark: per reference the mean step over the sets, each with the same weight, and its verdict.

    sets: from `paired` or `published_steps`. means: reference -> mean step with its interval (`mean_step`), where there is one.
    Index (source, reference); columns: sets, mean reference accuracy and final, step, in how many sets it is higher, equal, lower,
    gained and lost images, verdict.
    """
    lines = {}
    for heading, part in sets.groupby(level="reference", sort=False):
        values = part["step"].map(float).round(9)
        mean = (means or {}).get(str(heading))
        lines[source, heading] = {
            "sets": len(part),
            **{name: numbers.average(part[name]) for name in ("reference accuracy", "final")},
            "step": mean or Number(values.mean(), unit="points", kind=part["step"].iloc[0].kind),
            **{
                name: int(hit.sum())
                for name, hit in (("higher in", values > 0), ("equal in", values == 0), ("lower in", values < 0))
            },
            **(
                {name: Number(part[name].sum(), unit="", kind="count") for name in ("gained", "lost")}
                if "gained" in part
                else {}
            ),
            "verdict": numbers.verdict(mean) if mean else "",
        }
    found = pd.DataFrame.from_dict(lines, orient="index")
    return found.set_axis(pd.MultiIndex.from_tuples(lines, names=["source", "reference"]), axis="index")


def mean_step(records: pd.DataFrame, method: str, reference: str, *, by: str = "set") -> Number:
    """Mean over the sets of a method's accuracy minus a reference's, in points, with its interval over images.

    records: as `by_origin` gives them, so that the copies of an image count as that one. Raises ValueError as `paired` does.
    """
    own, right, other = _matched(records, method, reference, "all sets")
    groups = {"conditions": own[by].to_numpy(), "strata": own["dataset"].to_numpy(), "seeds": own["seed"].to_numpy()}
    found = stats.paired_difference(right, other, own["sample"].to_numpy(), **groups)
    return tables.percent(found, kind="difference", unit="points")


def beside(
    published: pd.DataFrame, ours: pd.DataFrame, counterparts: Mapping[str, str], *, means: Mapping[str, Sequence[str]]
) -> pd.DataFrame:
    """A published table with our rows under it, each of our sets in the column that it stands for.

    published: from `apm.data.published.wide`, columns chosen. ours: from `apm.analysis.tables.accuracies`, columns our sets. counterparts:
    our set -> published column. means: published column of an average -> the published columns that it is over; ours is over
    those of them that have a counterpart. The first of our rows names our sets. Raises ValueError for unknown names.
    """
    for name, column in counterparts.items():
        if name not in ours.columns:
            raise project.unknown("set of ours", name, [str(c) for c in ours.columns])
        if column not in published.columns:
            raise project.unknown("published column", column, [str(c) for c in published.columns])
    if len(set(counterparts.values())) < len(counterparts):
        raise ValueError(f"two sets stand for the same published column: {dict(counterparts)}")
    mine = ours[list(counterparts)].rename(columns=dict(counterparts))
    for heading, members in means.items():
        part = mine[[column for column in members if column in mine]]
        mine[heading] = [numbers.average(line) for _, line in part.iterrows()]
    names = pd.DataFrame({column: [name] for name, column in counterparts.items()}, index=["set"])
    cells = {
        "published": published.map(lambda value: Number(value, kind="published")),
        "ours": pd.concat([names, mine]).reindex(columns=published.columns),
    }
    return pd.concat(cells, names=["source", "row"])


# ----------------------------------------------------------------------------------------------------- the student's setting

PUBLISHED_K, PUBLISHED_RATE = 20, 1e-4  # section 3.6; the released code
AT_PUBLISHED = "APM, published rate and K"  # row of a student trained so


def at_published(config: TTTConfig) -> TTTConfig:
    """The same student, trained with the published rate and number of iterations."""
    return replace(config, iterations=PUBLISHED_K, learning_rate=PUBLISHED_RATE)


def setting_note(config: TTTConfig, selection: Mapping[str, Any] | None) -> str:
    """The rate and K of the student and where they came from: belongs under every table that compares.

    selection: `{set, samples, ...}`, the images that they were chosen on; None: nothing was chosen.
    """
    used = f"APM's setting: rate {config.learning_rate:g}, K = {config.iterations}"
    if config == at_published(config):
        origin = "as published"
    elif selection:
        origin = (
            f"chosen on {selection['samples']} images of {selection['set']}, which no table scores, by loss and without labels (table "
            f"01_setting); published are {PUBLISHED_RATE:g} and {PUBLISHED_K}"
        )
    else:
        origin = f"the profile's; published are {PUBLISHED_RATE:g} and {PUBLISHED_K}"
    return f"{used}, {origin}. The other methods keep the constants of their papers."


def settings_grid(
    teacher: teachers.Teacher,
    data: Dataset,
    config: TTTConfig,
    rates: Sequence[float],
    iterations: Sequence[int],
    *,
    seed: int = 0,
) -> pd.DataFrame:
    """How rate and K were chosen: what a student reaches with each on images that no table scores. Labels are not read.

    Index (rate, K); columns: mean loss, how often it fell, agreement with the teacher's class, whether the loss is the lowest of the
    rates at this K, and whether tables have this setting. Raises ValueError where the grid lacks the setting of `config`.
    """
    if config.learning_rate not in rates or config.iterations not in iterations:
        raise ValueError(
            f"the setting in use, rate {config.learning_rate:g} and K = {config.iterations}, is not among the rates {list(rates)} and "
            f"iterations {list(iterations)} of selection: add it"
        )
    positions = np.arange(len(data))
    said = methods.ZeroShot(teacher).predict(data, positions, seed).prediction
    lines = {}
    for rate in rates:
        run = replace(config, learning_rate=rate, iterations=max(iterations))
        result = methods.adapt_dataset(teacher, data, positions, run, seed=seed)
        classes, losses = result.predictions().cpu().numpy(), result.losses.mean(dim=0).cpu().numpy()
        for k in iterations:
            lines[rate, k] = {
                "mean loss": Number(float(losses[k]), n=len(data), unit="", kind="loss"),
                "loss fell to one in": Number(float(losses[0] / losses[k]), n=len(data), unit="", kind="loss"),
                "agreement with the teacher": tables.percent(stats.accuracy(classes[:, k] == said)),
            }
    found = pd.DataFrame.from_dict(lines, orient="index")
    found.index = pd.MultiIndex.from_tuples(lines, names=["rate", "K"])
    losses = found["mean loss"].map(float)
    lowest = losses == losses.groupby(level="K").transform("min")
    used = [setting == (config.learning_rate, config.iterations) for setting in found.index]
    return found.assign(**{"lowest at this K": np.where(lowest, "yes", ""), "in use": np.where(used, "yes", "")})


# ------------------------------------------------------------------------------------------------- teachers and prompts


def prompts_note(sets: Sequence[Dataset], prompt: str | None = None, entries: Sequence[Any] = ()) -> str:
    """Which prompts a table's rows use, in words: those of the sets, the single one where there is such a row, and those of other
    methods (`apm.analysis.comparison.Entry`) that use neither the sets' own."""
    own = _described(sets, lambda d: prompts.describe(d.templates))
    said = [f"Prompts: {own}."] + ([f'One prompt: "{prompt}".'] if prompt else [])
    others: dict[str, list[str]] = {}
    for entry in entries:
        words = _described(sets, getattr(entry.runs[0][0], "prompts_used", lambda d: prompts.describe(d.templates)))
        if words != own:
            others.setdefault(words, []).append(entry.name)
    said += [f"Prompts of {' and '.join(names)}: {words}." for words, names in others.items()]
    return " ".join(said)


def _described(sets: Sequence[Dataset], words: Callable[[Dataset], str]) -> str:
    """What is said of every set, once where it is the same of all."""
    said: dict[str, list[str]] = {}
    for d in sets:
        said.setdefault(words(d), []).append(d.name)
    if len(said) == 1:
        return next(iter(said))
    return "; ".join(f"{text} on {', '.join(names)}" for text, names in said.items())


def further_teachers(
    lines: Sequence[Mapping[str, Any]],
    sets: Sequence[Dataset],
    prompt: str,
    *,
    student: Mapping[str, Any],
    training: Mapping[str, Any],
    device: str,
    folder: Path | str,
    seed: int,
    on_error: str = "raise",
    precision: str = "fp32",
    feature_dtype: str = "float32",
) -> dict[str, pd.DataFrame]:
    """The benchmark again with other teachers: name -> records of one prompt, ensemble and APM.

    lines: `{teacher: NAME, pretrained: TAG or FILE, name: HEADING}`; further keys are options of `apm.teachers.load`. The student
    has the settings given and the width of its teacher. on_error: as of `apm.runs.records.run`. device, precision, feature_dtype: of
    `apm.teachers.load`, for lines that do not say their own. Raises ValueError for a line without a
    teacher and for two of one name, and as `apm.teachers.load` does.
    """
    defaults = {"device": device, "precision": precision, "feature_dtype": feature_dtype}
    found: dict[str, pd.DataFrame] = {}
    for line in lines:
        if not isinstance(line, Mapping) or "teacher" not in line:
            raise ValueError(
                f"further_teachers: expected {{teacher: NAME, pretrained: TAG, name: HEADING}}, found {line!r}"
            )
        options = {key: value for key, value in line.items() if key not in ("teacher", "name")}
        heading = str(line.get("name", line["teacher"]))
        if heading in found:
            raise ValueError(f"further_teachers: two lines are named {heading!r}")
        model = teachers.load(str(line["teacher"]), **{**defaults, **options})
        ensemble = methods.ZeroShot(model)
        rows = [
            methods.ZeroShot(model, name="zero-shot, one prompt", templates=(prompt,)),
            ensemble,
            methods.APM(model, methods.training_config(model, student, training)),
        ]
        found[heading] = records.run_all(
            rows, sets, folder=folder, seed=seed, teacher_method=ensemble, on_error=on_error
        )
    return found


def with_teacher(table: pd.DataFrame, heading: str) -> pd.DataFrame:
    """A table by (method, counting rule) with the teacher's name in the methods."""
    renamed = table.copy()
    renamed.index = pd.MultiIndex.from_tuples(
        [(f"{method}, {heading}", rule) for method, rule in table.index], names=table.index.names
    )
    return renamed


def against_open_clip(
    rows: Mapping[tuple[str, str | None], pd.DataFrame], *, method: str = "zero-shot", by: str = "dataset"
) -> pd.DataFrame:
    """Measured zero-shot accuracy beside the one that open_clip publishes for the same weights: a check of loading, prompts and data.

    rows: (teacher's open_clip name, tag) -> records. Index (teacher, set); columns: measured (percent), mean per class (which
    open_clip's list has for some small sets), open_clip, difference (measured - open_clip). Sets and weights that the list
    does not have give no row.
    """
    theirs = published.wide(published.load("teacher_zero_shot_openclip"))
    lines = []
    for (name, tag), frame in rows.items():
        tag = (tag or "").partition("=")[0]  # of TAG=FILE
        candidates = [f"{stem} / {tag}" for stem in (name, name.removesuffix("-quickgelu"))]
        row = next((c for c in candidates if c in theirs.index), None)
        if row is None:
            continue
        for key, part in frame[frame["method"] == method].groupby(by, sort=False):
            column = OPEN_CLIP_COLUMNS.get(str(key))
            if column is None or column not in theirs.columns or np.isnan(theirs.loc[row, column]):
                continue
            right = (part["prediction"] == part["label"]).to_numpy()
            measured = tables.percent(stats.accuracy(right, minimum=1))
            per_class = pd.Series(right).groupby(part["label"].to_numpy()).mean().mean()
            lines.append(
                {
                    "teacher": row,
                    "set": str(key),
                    "measured": measured,
                    "mean per class": Number(100.0 * per_class, n=measured.n),
                    "open_clip": Number(theirs.loc[row, column], kind="published"),
                    "difference": Number(
                        measured.value - theirs.loc[row, column], n=measured.n, unit="points", kind="difference"
                    ),
                }
            )
    return pd.DataFrame(lines).set_index(["teacher", "set"]) if lines else pd.DataFrame()
