"""Benchmarks over many datasets (Tables 1 and 3 of the paper): which sets, a method against its references, published steps.

A *step* is the accuracy of a student minus that of a reference, in percentage points: the one number of two tables with
other images, other teachers and other scales that can be put side by side.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from apm import corruptions, datasets, methods, project, prompts, published, records, stats, tables, teachers
from apm.datasets import Dataset

NO_WIDTH_NOTE = "Where no image differs an interval has no width; up to about 3/n of all images may still differ."
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

    samples: a count, or "all". ensemble: name of the prompts of all of them, such as "imagenet-7" (`apm.prompts.names`); None: each
    set's own. partial: take published sets of which a part is missing.
    Raises ValueError for no names, a name given twice, another `samples`, unknown prompts, and as `apm.datasets.load` does.
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

    source: None: made by `apm.corruptions`; "cifar10-c", "imagenet-c", ...: the published download of the same images, read
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

    on_error: "raise": an image that cannot be read raises `apm.datasets.UnreadableImage`, which names it; "record": it is left out. Raises
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


def overview(sets: Sequence[Dataset], counterparts: Mapping[str, str] | None = None) -> pd.DataFrame:
    """What the columns of a table are: name, images, classes, chance level, what it stands for, and notes on its origin, in
    which DATA is the folder that $DATA names.

    counterparts: name of a set -> the published column that it stands for; the others stand for none. Raises ValueError for
    a counterpart of a set that is not there.
    """
    counterparts = dict(counterparts or {})
    known = [d.name for d in sets]
    for name in counterparts:
        if name not in known:
            raise project.unknown("dataset with a counterpart", name, known)
    lines = [
        {
            "set": d.name,
            "images": len(d),
            "classes": len(d.classnames),
            "chance": chance(d),
            "stands for": counterparts.get(d.name, "none"),
            "notes": project.portable(d.notes),
        }
        for d in sets
    ]
    table = pd.DataFrame(lines)
    return table if counterparts else table.drop(columns="stands for")


def notes(table: pd.DataFrame) -> list[str]:
    """The notes of `overview`, one line per set; a sentence that several sets share stands once, at the end.

    table: columns set and notes.
    """
    sentences = {row.set: _sentences(row.notes) for row in table.itertuples()}
    holders: dict[str, list[str]] = {}
    for name, said in sentences.items():
        for sentence in dict.fromkeys(said):
            holders.setdefault(sentence, []).append(name)
    lines = []
    for name, said in sentences.items():
        own = [sentence for sentence in said if len(holders[sentence]) == 1]
        lines += [f"{name}: {' '.join(own)}"] if own else []
    shared: dict[tuple[str, ...], list[str]] = {}
    for sentence, names in holders.items():
        if len(names) > 1:
            shared.setdefault(tuple(names), []).append(sentence)
    for group, together in shared.items():
        who = "All sets" if len(group) == len(sentences) else ", ".join(group)
        lines.append(f"{who}: {' '.join(together)}")
    return lines


def _sentences(text: str) -> list[str]:
    return [part for part in re.split(r"(?<=[.!?])\s+(?=[A-Z])", text.strip()) if part]


def conclusion(records: pd.DataFrame, over: str, published: Mapping[str, float] | None = None) -> list[str]:
    """The answer of a benchmark in sentences: what the student adds to its teacher, with its interval.

    records: of one method with iterations and of the conditions that the answer is over, with equal weights (`by_origin` where sets
    share images). over: what these are, in words. published: label -> mean step of the published table (percentage points).
    Raises ValueError for several methods and for records without the teacher's predictions or without iterations.
    """
    names = list(dict.fromkeys(records["method"]))
    if len(names) != 1:
        raise ValueError(f"expected records of one method, found {', '.join(names) or 'none'}")
    step = stats.mean_difference(records)
    final, right = stats.correct(records, "final"), stats.correct(records, "any")
    if step is None or final is None or right is None:
        raise ValueError(f"{names[0]}: a conclusion needs the teacher's predictions and those of every iteration")
    gain = stats.paired_difference(
        right,
        final,
        records["sample"].to_numpy(),
        conditions=records.groupby(list(tables.CONDITION), sort=False).ngroup().to_numpy(),
        strata=records["dataset"].to_numpy(),
    )
    meaning = (
        "the student is better than its teacher"
        if step.low > 0
        else "the student is worse than its teacher"
        if step.high < 0
        else "the student cannot be told from its teacher on these images"
    )
    sentences = [
        f"Over {over} ({step.n:,} distinct images): final - teacher = {tables.percent(step)} points (95 % interval): {meaning}.",
        f"any - final = {tables.percent(gain)} points: what choosing the iteration by the label would add to the same run.",
    ]
    if published:
        steps = "; ".join(f"{value:+.1f} ({label})" for label, value in published.items())
        sentences.append(f"Published mean steps, of other images and teachers and without interval: {steps} points.")
    return sentences


def by_origin(records: pd.DataFrame, sets: Sequence[Dataset]) -> pd.DataFrame:
    """The records with a column `set`, and in `dataset` the set that each one's images come from.

    Then an interval of a mean over sets draws an image together with its inverted, thickened, renamed ... copies, as
    `apm.stats` does for corruptions: they are not independent. Raises ValueError for records of other sets.
    """
    origins = {d.name: d.origin or d.name for d in sets}
    for name in records["dataset"].unique():
        if name not in origins:
            raise project.unknown("dataset of the records", str(name), list(origins))
    return records.assign(
        set=records["dataset"], corruption=records["dataset"], dataset=records["dataset"].map(origins)
    )


def paired(records: pd.DataFrame, method: str, references: Sequence[str], *, by: str = "dataset") -> pd.DataFrame:
    """A method against references, image by image: one row per (set, reference).

    records: rows as `apm.records` gives them, holding the method and every reference on the same images. by: column whose
    values are the sets. Columns: that column, reference, n, reference accuracy, final accuracy (percent), difference in
    percentage points with low and high (95 %, bootstrap over images), gained and lost (images that only one of the two has
    right), p (McNemar exact; empty for several seeds).

    Raises ValueError for unknown methods and where the images of method and reference differ.
    """
    known = list(dict.fromkeys(records["method"]))
    for name in (method, *references):
        if name not in known:
            raise project.unknown("method of the records", name, known)
    key = [*tables.CONDITION, "sample", "seed"]
    rows = []
    for value, group in records.groupby(by, sort=False):
        own = group[group["method"] == method].set_index(key)
        for reference in references:
            other = group[group["method"] == reference].set_index(key)
            if len(own) != len(other) or not own.index.sort_values().equals(other.index.sort_values()):
                raise ValueError(
                    f"{by} {value}: {method} ran on {len(own)} images and {reference} on {len(other)}, not on the same ones: "
                    "run both on the same sets and seeds"
                )
            right, theirs = stats.correct(own, "final"), stats.correct(other.loc[own.index], "final")
            assert right is not None
            assert theirs is not None
            samples = own.index.get_level_values("sample").to_numpy()
            difference = stats.paired_difference(right, theirs, samples)
            rows.append(
                {
                    by: value,
                    "reference": reference,
                    "n": len(np.unique(samples)),
                    "reference accuracy": 100.0 * theirs.mean(),
                    "final": 100.0 * right.mean(),
                    "difference": difference.value,
                    "low": difference.low,
                    "high": difference.high,
                    "gained": int((right & ~theirs).sum()),
                    "lost": int((theirs & ~right).sum()),
                    "p": stats.mcnemar(right, theirs) if len(np.unique(samples)) == len(samples) else np.nan,
                }
            )
    return pd.DataFrame(rows)


def compact(table: pd.DataFrame) -> pd.DataFrame:
    """`paired` for reading: the difference with its interval in one cell."""
    cells = zip(table["difference"], table["low"], table["high"], strict=True)
    shown = table.drop(columns=["difference", "low", "high", "p"])
    shown.insert(5, "final - reference", [tables.percent(cell) for cell in cells])
    return shown.assign(**{tables.HEADERS["p"]: [tables.p_value(p) for p in table["p"]]})


def published_steps(
    published: pd.DataFrame, pairs: Mapping[str, tuple[str, str]], columns: Sequence[str]
) -> pd.DataFrame:
    """Steps between rows of a published table: columns set, pair, reference accuracy, final, difference.

    published: from `apm.published.wide`. pairs: label -> (row of the student, row of the reference). columns: the sets. No
    interval: the paper gives none. Raises ValueError for unknown rows or columns.
    """
    for what, wanted, known in (
        ("published row", [row for pair in pairs.values() for row in pair], list(published.index)),
        ("published column", columns, list(published.columns)),
    ):
        for name in wanted:
            if name not in known:
                raise project.unknown(what, name, known)
    rows = [
        {
            "set": column,
            "pair": label,
            "reference accuracy": published.loc[reference, column],
            "final": published.loc[student, column],
            "difference": published.loc[student, column] - published.loc[reference, column],
        }
        for label, (student, reference) in pairs.items()
        for column in columns
    ]
    return pd.DataFrame(rows)


def signs(steps: pd.DataFrame, source: str, *, by: str = "pair") -> pd.DataFrame:
    """Per pair of methods: sets, mean reference, mean student, mean step, and in how many sets the student is higher, equal, lower.

    steps: rows of `published_steps` or `paired` (with by="reference"). Means give each set the same weight.
    """
    rows = []
    for label, part in steps.groupby(by, sort=False):
        difference = part["difference"].round(9)  # 96.1 - 96.1 of two printed numbers is nothing
        rows.append(
            {
                "source": source,
                "final against": label,
                "sets": len(part),
                "reference accuracy": part["reference accuracy"].mean(),
                "final": part["final"].mean(),
                "final - reference": part["difference"].mean(),
                "smallest": part["difference"].min(),
                "largest": part["difference"].max(),
                "higher in": int((difference > 0).sum()),
                "equal in": int((difference == 0).sum()),
                "lower in": int((difference < 0).sum()),
            }
        )
    return pd.DataFrame(rows)


def beside(
    published: pd.DataFrame, ours: pd.DataFrame, counterparts: Mapping[str, str], *, means: Mapping[str, Sequence[str]]
) -> pd.DataFrame:
    """A published table with our rows under it, each of our sets in the column that it stands for; cells as text.

    published: from `apm.published.wide`, columns chosen. ours: rows by name, columns our sets, in percent. counterparts:
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
    filled = mine.reindex(columns=published.columns).astype(object)
    for heading, members in means.items():
        filled[heading] = mine[[column for column in members if column in mine]].mean(axis=1)
    names = pd.DataFrame({column: [name] for name, column in counterparts.items()}, index=["set"])
    text = filled.map(lambda value: tables.percent(float(value)))
    both = {
        "published": published.map(lambda value: tables.percent(float(value))),
        "ours": pd.concat([names.astype(object).reindex(columns=published.columns, fill_value=""), text]),
    }
    return pd.concat(both, names=["source", "row"])


# ------------------------------------------------------------------------------------------------- teachers and prompts


def prompts_note(sets: Sequence[Dataset], prompt: str | None = None, entries: Sequence[Any] = ()) -> str:
    """Which prompts a table's rows use, in words: those of the sets, the single one where there is such a row, and those of other
    methods (`apm.comparison.Entry`) that use neither the sets' own."""
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
    has the settings given and the width of its teacher. on_error: as of `apm.records.run`. device, precision, feature_dtype: of
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

    rows: (teacher's open_clip name, tag) -> records. Columns: teacher, set, n, measured (percent), mean per class (which
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
            right = (part["prediction"] == part["label"]).astype(float)
            lines.append(
                {
                    "teacher": row,
                    "set": str(key),
                    "n": len(part),
                    "measured": 100.0 * right.mean(),
                    "mean per class": 100.0 * right.groupby(part["label"].to_numpy()).mean().mean(),
                    "open_clip": theirs.loc[row, column],
                    "difference": 100.0 * right.mean() - theirs.loc[row, column],
                }
            )
    return pd.DataFrame(lines)
