"""Methods beside each other, and our numbers beside published ones (Tables 1, 2 and 3 of the paper).

A *step* is the accuracy of a student minus that of a reference, in percentage points: the one number of two tables with
other images, other teachers and other scales that can be put side by side.
"""

from __future__ import annotations

import math
import timeit
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from apm import methods, project
from apm.analysis import figures, lineup, numbers, stats, tables
from apm.analysis.numbers import Number
from apm.data import Dataset, layouts, prompts, published
from apm.teachers import Teacher
from apm.ttt import TTTConfig

REFERENCES = {"teacher": "zero-shot", "one prompt": lineup.ONE_PROMPT}  # heading -> method
STUDENT = "APM (Ours) [teacher CLIP ViT-B/16]"
PUBLISHED_ROWS = {  # our row -> the one of Tables 1 and 3 that has the same name, the single prompt first
    lineup.ONE_PROMPT: "CLIP-ViT-B/16",
    "zero-shot": "Ensemble",
    **{name: name for name in ("TPT", "CoOp", "TPT + CoOp")},
    "APM": STUDENT,
}
PUBLISHED_PAIRS = {  # what a step is between: (student, reference), in Tables 1 and 3
    "Ensemble, ViT-B/16": (STUDENT, "Ensemble"),
    "one prompt, ViT-B/16": (STUDENT, "CLIP-ViT-B/16"),
    "one prompt, ViT-L/14": ("APM (Ours) [teacher CLIP ViT-L/14]", "CLIP VIT-L/14"),
    "one prompt, ViT-H/14": ("APM (Ours) [teacher OpenCLIP ViT-H/14]", "OpenCLIP-VIT-H/14"),
}
ENDS = {"lowest": min, "highest": max}
SIDES = {"higher": 1, "equal": 0, "lower": -1}
OFF = 3  # standard errors that a teacher may be off what is published of it
ITS_TARGET = "its target"  # heading of the difference from what a student's target predicts by itself
STEP = "student - reference (percentage points)"
STEPS_CAPTION = (
    "Accuracy of APM's student minus its reference. Ours: final, bars are 95 % intervals over images. Published: differences of "
    "printed values, which come without intervals."
)
COST_CAPTION = (
    "Mean over the sets of accuracy minus the teacher's on the same images, with 95 % intervals over images. Beside it what each "
    "method costs: milliseconds are the median over images on this machine and whatever else it did, views and teacher included, "
    "shared views counted for each."
)
# empty where records lack them
NEEDED = ("confidence", "state", "teacher_passes", "prompts_read", "saved_milliseconds")
CHANCE_NOTE = "chance: always answering the most frequent class."
METHODS_NOTE = (
    f"ECE: expected calibration error over all images of the row, {stats.CALIBRATION_BINS} bins. Small samples bias it upwards and "
    "rows differ in n, so compare each with the teacher's ECE on the same images. Per image: passes of the image tower; prompts that the "
    "text tower reads (those of a fixed classifier are read once for all images); updates of a student. The orders of online methods are "
    "random, each drawn from a seed; the accuracy is the mean over them, beside it the lowest and the highest. What was trained once has "
    "one training seed: its interval is over images and knows nothing of how another training would come out."
)


def notes(
    sets: Sequence[Dataset],
    config: TTTConfig,
    *,
    prompt: str | None = None,
    entries: Sequence[lineup.Entry] = (),
    selection: Mapping[str, Any] | None = None,
    taught: Dataset | None = None,
) -> str:
    """What belongs under every table that compares: whose prompts, the student's rate and K, the images that they were chosen on
    (selection), and what "zero-shot" means where the set that taught the teacher is known."""
    own = _described(sets, lambda d: prompts.describe(d.templates))
    said = [f"Prompts: {own}."] + ([f'One prompt: "{prompt}".'] if prompt else [])
    used = {entry.name: getattr(entry.runs[0][0], "prompts_used", None) for entry in entries}
    others = pd.Series({name: _described(sets, words) for name, words in used.items() if words}, dtype=str)
    for words, names in others[others != own].groupby(others, sort=False):
        said.append(f"Prompts of {' and '.join(names.index)}: {words}.")
    origin = "as published" if lineup.as_published(config) == config else "the profile's"
    if selection and origin != "as published":
        origin = f"chosen on {selection['samples']} images of {selection['set']}, which no table scores, without labels"
    said.append(f"APM's setting: rate {config.learning_rate:g}, K = {config.iterations}, {origin}.")
    taught_on = '"Zero-shot": without a step on the test image, by a teacher trained on the labels of'
    return " ".join([*said, *([f"{taught_on} {taught.name}."] if taught else [])])


def _described(sets: Sequence[Dataset], words: Callable[[Dataset], str]) -> str:
    """What is said of every set, once where it is the same of all."""
    said = pd.Series({d.name: words(d) for d in sets})
    if len(set(said)) == 1:
        return str(said.iloc[0])
    return "; ".join(f"{text} on {', '.join(part.index)}" for text, part in said.groupby(said, sort=False))


def chance(dataset: Dataset) -> float:
    """Accuracy in percent of always answering the most frequent class."""
    return 100.0 * float(np.bincount(dataset.labels).max()) / len(dataset)


def above_chance(low: float, high: float, chance: float) -> str:
    """Whether an accuracy's interval lies above, around or below a chance level (all in percent)."""
    return "yes" if low > chance else "no: below chance" if high < chance else "no: as by chance"


def overview(
    sets: Sequence[Dataset], counterparts: Mapping[str, str] | None = None, taught: Dataset | None = None
) -> pd.DataFrame:
    """What the columns of a table are, one row per set, with notes on its origin; taught: the labelled set of the teacher's training.

    Raises ValueError for a counterpart (set -> published column that it stands for) of a set that is not there.
    """
    project.among("dataset with a counterpart", counterparts or {}, [d.name for d in sets])
    lines = {
        d.name: {
            "images": len(d),
            "classes": len(d.classnames),
            "chance": Number(chance(d)),
            "made from": d.origin or "own images",
            "classes the teacher was taught": len(set(d.classnames) & set(taught.classnames)) if taught else None,
            "stands for": counterparts.get(d.name, "none") if counterparts else None,
            "notes": project.portable(d.notes),
        }
        for d in sets
    }
    return pd.DataFrame.from_dict(lines, orient="index").rename_axis("set").dropna(axis="columns")


def by_origin(records: pd.DataFrame, sets: Sequence[Dataset]) -> pd.DataFrame:
    """The records with a column `set`, and in `dataset` the set that each one's images come from, so that an interval of a mean over sets
    draws an image together with its inverted, thickened, renamed ... copies. Raises KeyError for records of other sets."""
    names, origins = records["dataset"], {d.name: d.origin or d.name for d in sets}
    return records.assign(set=names, corruption=names, dataset=[origins[name] for name in names])


def zero_shot(records: pd.DataFrame, sets: Sequence[Dataset]) -> pd.DataFrame:
    """The teacher's accuracy per set or condition, of the records of one method, beside chance and the usual one where it is known."""
    usual = published.wide(published.load("usual_accuracy"))["accuracy"]
    parts = dict(list(records.groupby(list(stats.CONDITION))))
    lines = {}
    for d in sets:
        found = stats.estimate(parts[d.name, d.corruption, d.severity], "teacher")
        if found is None:
            raise ValueError(f"{d.name}: no predictions of the teacher in these records")
        lines[tables.condition_label(d.name, d.corruption, d.severity)] = {
            "zero-shot": found,
            "chance": Number(chance(d)),
            "above chance": above_chance(found.low, found.high, chance(d)),
            "usual accuracy of a supervised network": usual.get(d.name) if d.severity == 0 else None,
        }
    return pd.DataFrame.from_dict(lines, orient="index").rename_axis("set").dropna(axis="columns", how="all")


def against_open_clip(
    rows: Mapping[tuple[str, str | None], pd.DataFrame], sets: Sequence[Dataset] = ()
) -> pd.DataFrame:
    """Measured zero-shot accuracy beside the one that open_clip publishes for the same weights: a check of loading, prompts and data.

    rows: (open_clip name, tag) -> records. Its list has the mean per class for some small sets. standard errors: how far ours is off on
    those of `sets` that are as in the list (`published.OPEN_CLIP`). Raises ValueError where that is more than `OFF`.
    """
    theirs = published.wide(published.load("teacher_zero_shot_openclip"))
    columns = {column.lower().replace("cifar-", "cifar"): column for column in theirs} | {"flowers102": "Flower102"}
    columns |= {name: said["column"] for name, said in published.OPEN_CLIP.items()}
    held = {d.name for d in sets if _as_published(d)}
    lines = {}
    for (name, tag), frame in rows.items():
        tag = (tag or "").partition("=")[0]  # of TAG=FILE
        candidates = [f"{stem} / {tag}" for stem in (name, name.removesuffix("-quickgelu"))]
        row = next((c for c in candidates if c in theirs.index), None)
        for key, part in frame[frame["method"] == "zero-shot"].groupby("dataset", sort=False):
            value = theirs.loc[row, columns[str(key)]] if row and str(key) in columns else np.nan
            if np.isnan(value):
                continue
            right = (part["prediction"] == part["label"]).groupby(part["label"])
            measured = stats.accuracy(right.obj.to_numpy(), minimum=1)
            lines[row, str(key)] = {
                "measured": measured,
                "mean per class": Number(100.0 * right.mean().mean(), n=measured.n),
                "open_clip": Number(value, kind="published"),
                "difference": Number(measured.value - value, n=measured.n, unit="points", kind="difference"),
                "standard errors": _off(f"{row} on {key}", value, right, published.OPEN_CLIP[key])
                if key in held
                else None,
            }
    if not lines:
        return pd.DataFrame()
    found = pd.DataFrame.from_dict(lines, orient="index").rename_axis(["teacher", "set"])
    return found.dropna(axis="columns", how="all")


def _off(what: str, value: float, right: Any, said: Mapping[str, Any]) -> Number:
    """How many standard errors a teacher is off the published value, in percent; right: grouped by label. Raises as `against_open_clip`."""
    n, sizes = len(right.obj), right.size()
    own, images = 100.0 * right.obj.mean(), float(n)
    if said.get("over") == "class":
        own, images = 100.0 * right.mean().mean(), len(sizes) / (1 / sizes).mean()
    off = (own - value) / math.sqrt(value * (100 - value) * (1 / images + 1 / said.get("images", math.inf)))
    if abs(off) > OFF:
        raise ValueError(
            f"{what}: the zero-shot accuracy {own:.1f} % ({n} images) is {abs(off):.1f} standard errors from the {value:.1f} % that "
            f"open_clip publishes, more than {OFF}: these are not its weights, prompts, images or order of classes. Nothing measured "
            "with them would mean anything"
        )
    return Number(off, n=n, unit="", kind="difference")


def _as_published(d: Dataset) -> bool:
    """Whether images and prompts are those of open_clip's list: what is changed, a part, or asked otherwise has no value there."""
    said = published.OPEN_CLIP.get(d.name)
    if said is None or d.severity or d.remark or layouts.PART in d.notes:
        return False
    return d.templates == prompts.templates(said["prompts"])


def settings_grid(
    teacher: Teacher, data: Dataset, config: TTTConfig, rates: Sequence[float], iterations: Sequence[int], seed: int = 0
) -> pd.DataFrame:
    """How rate and K were chosen: what a student reaches with each on images that no table scores. Labels are not read.

    Raises ValueError where the grid lacks the setting of `config`, which is in use in the tables.
    """
    project.among("rate of selection", [config.learning_rate], rates)
    project.among("K of selection", [config.iterations], iterations)
    positions = np.arange(len(data))
    said = methods.ZeroShot(teacher).predict(data, positions, seed).prediction
    lines = {}
    for rate in rates:
        run = replace(config, learning_rate=rate, iterations=max(iterations))
        result = methods.adapt_dataset(teacher, data, positions, run, seed=seed)
        classes, losses = result.predictions().cpu().numpy(), result.losses.mean(dim=0).tolist()
        for k in iterations:
            lines[rate, k] = {
                "mean loss": Number(losses[k], n=len(data), unit="", kind="loss"),
                "loss fell to one in": Number(losses[0] / losses[k], n=len(data), unit="", kind="loss"),
                "agreement with the teacher": stats.accuracy(classes[:, k] == said),
                "in use": "yes" if (rate, k) == (config.learning_rate, config.iterations) else "",
            }
    found = pd.DataFrame.from_dict(lines, orient="index").rename_axis(["rate", "K"])
    lowest = found["mean loss"] == found["mean loss"].groupby(level="K").transform("min")
    found.insert(3, "lowest at this K", np.where(lowest, "yes", ""))
    return found


def paired(records: pd.DataFrame, *, by: str = "dataset") -> pd.DataFrame:
    """The APM against references, image by image: one row per (set, reference); by: column whose values are the sets.

    gained, lost: images that only one of the two has right; p: McNemar exact, empty for several seeds. Raises ValueError for a reference
    that lacks an image.
    """
    lines = {}
    for value, group in records.groupby(by, sort=False):
        own = group[group["method"] == "APM"]
        grouped = stats.groups(own, [by])
        for heading, reference in REFERENCES.items():
            right, other, _ = _matched(own, group[group["method"] == reference], reference)
            step = stats.paired_difference(right, other, **grouped)
            lines[value, heading] = {
                "n": step.n,
                "reference accuracy": stats.mean(other, **grouped).short,
                "final": stats.mean(right, **grouped).short,
                "step": step,
                "gained": int((right & ~other).sum()),
                "lost": int((other & ~right).sum()),
                "p": Number(stats.mcnemar(right, other), unit="", kind="p") if step.n == len(own) else None,
                "verdict": numbers.verdict(step),
            }
    return pd.DataFrame.from_dict(lines, orient="index").rename_axis(["set", "reference"])


def _matched(own: pd.DataFrame, other: pd.DataFrame, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """On the images of a method: which it has right, which the other one has right, and the other one's confidence."""
    key = [*stats.CONDITION, "sample", *(["seed"] if len(set(other["seed"])) > 1 else [])]
    found = other.set_index(key).reindex(columns=["prediction", "label", "confidence"])
    found = found.reindex(pd.MultiIndex.from_frame(own[key]))
    if lacking := int(found["label"].isna().sum()):
        what = f"{own['method'].iloc[0]} saw {lacking} images that {name} did not"
        raise ValueError(f"{what}: run both on the same sets and seeds")
    right, theirs = ((part["prediction"] == part["label"]).to_numpy() for part in (own, found))
    return right, theirs, found["confidence"].to_numpy(dtype=float)


def published_steps(
    published: pd.DataFrame, columns: Sequence[str], pairs: Mapping[str, tuple[str, str]] = PUBLISHED_PAIRS
) -> pd.DataFrame:
    """Steps between rows of a published table, as `paired` has them, without intervals: the paper gives none.

    pairs: label -> (row of the student, row of the reference); what the table has no student or no cell for is left out.
    """
    cells = published[list(columns)]
    parts = {
        label: pd.DataFrame({"reference accuracy": cells.loc[reference], "final": cells.loc[student]}).dropna()
        for label, (student, reference) in pairs.items()
        if student in published.index
    }
    found = pd.concat(parts, names=["reference", "set"])
    # 96.1 - 96.1 of two printed numbers is nothing
    found["step"] = (found["final"] - found["reference accuracy"]).round(9)
    return found.map(lambda value: Number(value, kind="published")).swaplevel()


def steps(sets: pd.DataFrame, source: str, records: pd.DataFrame | None = None, *, by: str = "set") -> pd.DataFrame:
    """The answer of a benchmark: per reference the mean step over the sets, each with the same weight, and its verdict.

    sets: from `paired` or `published_steps`. records: those of `paired`, from `by_origin`, for the interval of the mean and the verdict.
    """
    lines = {}
    for heading, part in sets.groupby(level="reference", sort=False):
        values = part["step"].map(float).round(9)
        step = Number(values.mean(), unit="points", kind=part["step"].iloc[0].kind)
        if records is not None:
            own, reference = (records[records["method"] == name] for name in ("APM", REFERENCES[str(heading)]))
            step = stats.paired_difference(*_matched(own, reference, str(heading))[:2], **stats.groups(own, [by]))
        lines[source, heading] = {
            "sets": len(part),
            **{name: numbers.average(part[name]) for name in ("reference accuracy", "final")},
            "step": step,
            **{f"{side} in": int((np.sign(values) == sign).sum()) for side, sign in SIDES.items()},
            **{name: Number(part[name].sum(), unit="", kind="count") for name in ("gained", "lost") if name in part},
            "verdict": "" if records is None else numbers.verdict(step),
        }
    return pd.DataFrame.from_dict(lines, orient="index").rename_axis(["source", "reference"])


def beside(
    published: pd.DataFrame, ours: pd.DataFrame, counterparts: Mapping[str, str], *, means: Mapping[str, Sequence[str]]
) -> pd.DataFrame:
    """A published table with our rows (`tables.accuracies`) under it, each of our sets in the column that it stands for (counterparts).

    means: published column of an average -> the columns that it is over. Raises ValueError for unknown names and for two sets in a column.
    """
    project.among("set of ours", counterparts, ours.columns)
    project.among("published column", counterparts.values(), published.columns)
    if len(set(counterparts.values())) < len(counterparts):
        raise ValueError(f"two sets stand for the same published column: {dict(counterparts)}")
    mine = ours[list(counterparts)].rename(columns=dict(counterparts))
    for heading, members in means.items():
        mine[heading] = [numbers.average(line) for _, line in mine[[c for c in members if c in mine]].iterrows()]
    names = pd.DataFrame({column: [name] for name, column in counterparts.items()}, index=["set"])
    theirs = published.map(lambda value: Number(value, kind="published"))
    mine = pd.concat([names, mine]).reindex(columns=published.columns)
    return pd.concat({"published": theirs, "ours": mine}, names=["source", "row"])


def methods_beside(compared: pd.DataFrame, published: pd.DataFrame, column: str = "Average") -> pd.DataFrame:
    """Steps from the single prompt, those of PUBLISHED_ROWS that the published table has beside ours, from `table`; empty where not run."""
    rows = {name: row for name, row in PUBLISHED_ROWS.items() if row in published.index}
    ours, theirs = compared.reindex(list(rows)), published[column][list(rows.values())]
    found = pd.DataFrame({"published row": rows}).rename_axis("method")
    found["published"] = [Number(value, kind="published") for value in theirs]
    steps = [Number(value, unit="points", kind="published") for value in theirs - theirs.iloc[0]]
    found["published step"] = [None, *steps[1:]]  # the single prompt itself
    found["ours"], found["our step"] = ours["accuracy"], ours["difference from one prompt"]
    found["verdict"] = ["" if numbers.is_empty(step) else numbers.verdict(step) for step in found["our step"]]
    return found


def pass_milliseconds(teacher: Teacher, dataset: Dataset) -> float:
    """Milliseconds that the teacher takes to encode one image here and now, preprocessing included; the best of three repeats."""
    chosen = dataset.readable("record", most=32)
    pictures = [chosen.images[i] for i in range(len(chosen))]
    seconds = timeit.repeat(lambda: teacher.encode(teacher.transform(pictures)).feature.cpu(), number=1, repeat=3)
    return 1e3 * min(seconds) / len(pictures)


def table(rows: pd.DataFrame, *, by: str = "set", pass_milliseconds: float = 0.0) -> pd.DataFrame:
    """One row per method, episodic ones first and online ones last: means over the sets in column `by`, with 95 % intervals over images.

    rows: records of all methods. pass_milliseconds: added where a method read stored features of the teacher. Each method is compared with
    the references, the APM and what its own target says on the images that it saw itself (points). n: images of one order. Columns without
    a value are left out. Raises ValueError for a reference that lacks an image.
    """
    rows = rows.reindex(columns=rows.columns.union([*NEEDED], sort=False))
    parts = dict(list(rows.groupby("method", sort=False)))
    lines = [_line(own, parts, by, pass_milliseconds) for own in parts.values()]
    found = pd.DataFrame(lines, pd.Index(parts, name="method"))
    found = found.mask(found.map(numbers.is_empty), None).dropna(axis="columns", how="all")
    found = found.sort_values("state", key=lambda states: states.map(lineup.STATES.index), kind="stable")
    return found if found["failed"].any() else found.drop(columns="failed")


def _line(own: pd.DataFrame, parts: Mapping[Any, pd.DataFrame], by: str, pass_milliseconds: float) -> dict[str, Any]:
    name, state, grouped = own["method"].iloc[0], own["state"].dropna(), stats.groups(own, [by])
    others = {**REFERENCES, "APM": "APM", ITS_TARGET: lineup.target_row(name)}
    same = {heading: _matched(own, parts[other], heading) for heading, other in others.items() if other in parts}
    right, asked, confidence = same["teacher"]
    orders = own.groupby("seed").indices.values()
    by_order = [stats.mean(right[rows], **stats.groups(own.iloc[rows], [by])) for rows in orders]
    steps = {h: stats.paired_difference(right, same[h][1], **grouped) for h in same if others[h] != name}
    counts = {"image passes": own["teacher_passes"].mean(), "prompts read": own["prompts_read"].mean()}
    counts["student updates"] = own["path"].dropna().map(len).mean() - 1
    spent = own["milliseconds"].astype(float) + own["saved_milliseconds"].astype(float).fillna(pass_milliseconds)
    return {
        "state": state.iloc[0] if len(state) else "episodic",
        "n": len(own) // len(by_order),
        "failed": int((own["prediction"] < 0).sum()),
        "accuracy": stats.mean(right, **grouped),
        "teacher on the same images": stats.mean(asked, **grouped).short,
        **{f"difference from {heading}": steps.get(heading) for heading in others},
        **{f"{end} order": pick(by_order).short if len(by_order) > 1 else None for end, pick in ENDS.items()},
        "ECE": _calibration(own["confidence"].to_numpy(dtype=float), right),
        "ECE of teacher": _calibration(confidence, asked),
        **{heading: Number(float(value), unit="", kind="count") for heading, value in counts.items()},
        # median: other work on the machine makes some images far slower
        "ms per image": Number(float(spent.median()), unit="ms", kind="cost"),
    }


def _calibration(confidence: np.ndarray, right: np.ndarray) -> Number:
    """ECE in percent over the rows that have a confidence; empty where none has."""
    sure = ~np.isnan(confidence)
    value = stats.calibration_error(confidence[sure].clip(0, 1), right[sure]) if sure.any() else np.nan
    return Number(value, n=int(sure.sum()), kind="measure")


def by_set(rows: pd.DataFrame, order: Sequence[str], *, by: str = "set") -> pd.DataFrame:
    """Accuracy in percent per method (down) and set (across), each number with its images."""
    right = rows.assign(right=100.0 * (rows["prediction"] == rows["label"]))
    parts = right.groupby(["method", by], sort=False).agg(value=("right", "mean"), n=("sample", "nunique"))
    cells = pd.Series([Number(value, n=n) for value, n in parts.itertuples(index=False)], index=parts.index)
    return cells.unstack(by, sort=False)[list(order)].rename_axis(columns=None)  # noqa: PD010


def cost_figure(compared: pd.DataFrame) -> Figure:
    """What every method gains over the teacher, beside what it costs per image: one line per method, so that none hides another."""
    labels = {"difference from teacher": "accuracy - teacher (points,\nlogarithmic beyond 5)"}
    labels |= {"image passes": "image passes\nof the teacher", "ms per image": "milliseconds\nper image"}
    cells = compared.set_index("state", append=True)
    figure = figures.dots({label: cells[name].unstack("state", sort=False) for name, label in labels.items()})  # noqa: PD010
    gain, *costs = figure.axes
    gain.set_xscale("symlog", linthresh=5, linscale=1.5)  # a few far ones would press all others together
    low, high = (1.5 * end for end in gain.get_xlim())  # margins of a linear axis are too narrow for a logarithmic one
    gain.set_xlim(low, high)
    gain.set_xticks(ticks := [tick for tick in (-80, -20, -5, 0, 5, 20, 80) if low <= tick <= high], map(str, ticks))
    for axes in costs:
        axes.set_xscale("log")
    return figure
