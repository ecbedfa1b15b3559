"""Figures: one style, one way to save, and the plots that more than one notebook needs.

Every function returns (figure, caption): the caption says n and what the intervals are. Colours are seaborn's colour-blind-safe
palette, one fixed colour per counting rule; "any" is always drawn open and dashed, since it is an upper bound and no score.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from PIL import Image, ImageChops

from apm import project
from apm.analysis import stats, text
from apm.analysis.tables import RULE_LABELS, condition_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"teacher": "#949494", "final": "#0173b2", "minimum loss": "#029e73", "any": "#de8f05"}  # of "colorblind"
_COLUMN = {"teacher": "teacher", "final": "final", "minimum loss": "minimum_loss", "any": "any"}
# seaborn's ten "colorblind" colours, and markers: seven, which has no common divisor with ten, so that pairs repeat after 70 only
PALETTE = ("#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc", "#ca9161", "#fbafe4", "#949494", "#ece133", "#56b4e9")
MARKERS = "osD^vPX"
WIDTH = 9.0  # inches: the width of a notebook page
DPI = 150
UNSEEN = 12  # of 255: a channel's change in single pixels that an eye does not see
MANY = 8192  # colours of a picture that no palette holds


@functools.cache
def style() -> None:
    """Set seaborn's style for the whole package, once; every function here calls it."""
    import matplotlib as mpl
    import seaborn as sns

    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind", font_scale=0.9)
    mpl.rcParams.update(
        {
            "figure.figsize": (WIDTH, 4.0),
            "figure.dpi": 100,
            "savefig.dpi": DPI,
            "font.family": "DejaVu Sans",  # ships with matplotlib: the same glyphs on every machine
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": "medium",
            "legend.frameon": False,
            "pdf.fonttype": 42,
            "grid.color": "0.9",
            "image.interpolation": "nearest",
        }
    )


def save(what: Figure | bytes, name: str, folder: Path | str) -> dict[str, Path]:
    """Write a figure as <name>.png (`lean`, 150 dpi) and <name>.pdf, the bytes of an animation as <name>.gif; equal ones give
    equal bytes.

    Each file is replaced as a whole. Returns the paths by suffix, the one to show first. Raises ValueError for a name that is no
    plain file name; OSError for a folder that cannot be written.
    """
    if not name or name != Path(name).name:
        raise ValueError(f"expected a plain file name for a figure, found {name!r}")
    contents: dict[str, bytes] = {}
    if isinstance(what, bytes):
        contents["gif"] = what
    else:
        for suffix, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
            buffer = io.BytesIO()
            what.savefig(buffer, format=suffix, dpi=DPI, bbox_inches="tight", metadata=metadata)
            contents[suffix] = buffer.getvalue()
        contents["png"] = lean(contents["png"])
    paths = {suffix: Path(folder) / f"{name}.{suffix}" for suffix in contents}
    for suffix, content in contents.items():
        project.atomic_write(paths[suffix], content)
    return paths


def lean(png: bytes) -> bytes:
    """An opaque PNG in fewer bytes: with a palette of 256 colours where no channel of any pixel changes by more than `UNSEEN`,
    as it is for lines and letters; photographs keep all their colours."""
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(png)) as opened:
        full = opened.convert("RGB")
    image = full
    if full.getcolors(MANY):
        few = full.quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE)
        if np.asarray(ImageChops.difference(few.convert("RGB"), full)).max() <= UNSEEN:
            image = few
    image.save(buffer, "PNG", optimize=True, dpi=(DPI, DPI))
    return buffer.getvalue()


def page_width(path: Path) -> int:
    """Pixels of a page that a saved figure is wide: an inch has 100."""
    with Image.open(path) as image:
        return round(image.width * 100 / float(image.info.get("dpi", (100.0, 100.0))[0]))


def display(path: Path, caption: str, notes: str = "") -> None:
    """Show a saved figure or animation, the file's own bytes, with its caption below it."""
    from IPython.display import Image as Picture
    from IPython.display import display as shown

    shown(Picture(filename=str(path), width=page_width(path), alt=caption))
    text.say(f"{caption} {notes}")


def series(n: int) -> list[tuple[str, str]]:
    """Colour and marker of n series that must be told apart, also by who does not see all colours."""
    return [(PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)]) for i in range(n)]


# ------------------------------------------------------------------------------------------------------------- accuracies


def accuracy_bars(
    summary: pd.DataFrame,
    *,
    method: str | None = None,
    rules: Sequence[str] = ("teacher", "final", "any"),
    chance: float | Sequence[float] | None = None,
) -> tuple[Figure, str]:
    """Accuracy of one method per condition (rows of `apm.analysis.tables.summary`), one mark with 95 % interval per counting rule.

    chance: accuracy of guessing in percent, drawn as a line; several, one per condition, where it differs, as a mark each.
    Raises ValueError for an unknown method or rule, for several methods when none is named, and for another number of chances.
    """
    import matplotlib.pyplot as plt

    style()
    part, method = _one_method(summary, method)
    rules = _known_rules(part, rules)
    labels = [condition_label(r.dataset, r.corruption, r.severity) for r in part.itertuples()]
    figure, axes = plt.subplots(figsize=(max(WIDTH * 0.6, 0.55 * len(part) + 2.0), 4.2), layout="constrained")
    x = np.arange(len(part))
    width = 0.8 / len(rules)
    for i, rule in enumerate(rules):
        value, low, high = _interval(part, rule)
        error = np.abs(np.stack([value - low, high - value]))
        open_bar = rule == "any"
        axes.bar(
            x + (i - (len(rules) - 1) / 2) * width,
            value,
            width * 0.92,
            yerr=None if np.isnan(error).all() else error,
            label=RULE_LABELS[rule],
            facecolor="none" if open_bar else COLOURS[rule],
            edgecolor=COLOURS[rule],
            linestyle="--" if open_bar else "-",
            linewidth=1.2,
            error_kw={"elinewidth": 1.0, "ecolor": "0.2", "capsize": 1.5},
        )
    if chance is not None:
        _chance(axes, list(chance) if isinstance(chance, Sequence) else [chance] * len(part), len(part))
    crowded = len(part) > 6 or max(map(len, labels)) > 14
    axes.set_xticks(
        x, labels, rotation=40 if crowded else 0, ha="right" if crowded else "center", rotation_mode="anchor"
    )
    axes.set(ylabel="top-1 accuracy (%)", ylim=(0, 100), xlim=(-0.6, len(part) - 0.4))
    axes.grid(visible=False, axis="x")
    _legend_above(figure, axes)
    return figure, f"Top-1 accuracy of {method} by condition; {_n(part)}. Error bars: 95 % intervals.{_any_note(rules)}"


def severity_curves(
    summary: pd.DataFrame,
    *,
    method: str | None = None,
    rules: Sequence[str] = ("teacher", "final", "any"),
    columns: int = 5,
) -> tuple[Figure, str]:
    """Accuracy against severity, one small panel per corruption, one line with 95 % band per counting rule.

    summary: rows of `apm.analysis.tables.summary`; the clean row of the same dataset, if there, is severity 0 in all panels. Raises
    ValueError for several methods or datasets, an unknown rule, or no corrupted rows.
    """
    import matplotlib.pyplot as plt

    style()
    part, method = _one_method(summary, method)
    rules = _known_rules(part, rules)
    corrupted = part[part["severity"] > 0]
    corruptions = list(dict.fromkeys(corrupted["corruption"]))
    if not corruptions:
        raise ValueError("severity curves need rows with severity 1 to 5, found clean rows only")
    datasets = list(dict.fromkeys(corrupted["dataset"]))
    if len(datasets) > 1:
        raise ValueError(f"severity curves show one dataset, found {', '.join(datasets)}: choose one")
    clean = part[(part["severity"] == 0) & (part["dataset"] == datasets[0])]
    columns = min(columns, len(corruptions))
    rows = -(-len(corruptions) // columns)
    figure, grid = plt.subplots(
        rows,
        columns,
        figsize=(max(WIDTH * columns / 5, 3.2), 1.75 * rows + 0.9),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axes, corruption in zip(grid.flat, corruptions, strict=False):
        panel = pd.concat([clean, corrupted[corrupted["corruption"] == corruption]]).sort_values("severity")
        severity = panel["severity"].to_numpy(dtype=float)
        for rule in rules:
            value, low, high = _interval(panel, rule)
            axes.plot(
                severity,
                value,
                marker="" if rule == "teacher" else "o",
                markersize=3,
                label=RULE_LABELS[rule],
                **_line(rule),
            )
            axes.fill_between(severity, low, high, color=COLOURS[rule], alpha=0.13, linewidth=0)
        axes.set_title(corruption.replace("_", " "))
        axes.set(ylim=(0, 100), xticks=sorted(set(part["severity"])))
    for axes in list(grid.flat)[len(corruptions) :]:
        axes.set_axis_off()
    for column in range(columns):  # the lowest panel of each column shows the ticks
        lowest = grid[(len(corruptions) - 1 - column) // columns, column]
        lowest.xaxis.set_tick_params(labelbottom=True)
    figure.supxlabel("severity (0: clean)" if len(clean) else "severity", fontsize="medium")
    figure.supylabel("top-1 accuracy (%)", fontsize="medium")
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(rules))
    caption = f"Top-1 accuracy of {method} on {datasets[0]} by corruption and severity; {_n(part)} per point. "
    return figure, caption + f"Bands: 95 % intervals.{_any_note(rules)}"


def accuracy_over_iterations(records: pd.DataFrame, *, chance: float | None = None) -> tuple[Figure, str]:
    """Accuracy if the run had been stopped after k = 0..K iterations, against the teacher's and the cumulative `any`.

    records: rows of one method with iterations; several conditions are averaged, each with the same weight. The interval
    at K and at the teacher is over images. Raises ValueError for several methods, for records without
    paths, or too few images.
    """
    import matplotlib.pyplot as plt

    style()
    methods = list(dict.fromkeys(records["method"]))
    if len(methods) != 1:
        raise ValueError(f"expected records of one method, found {', '.join(methods) or 'none'}")
    right = stats.paths(records) == records["label"].to_numpy()[:, None]  # (n, K + 1)
    ever = np.logical_or.accumulate(right[:, 1:], axis=1)
    condition = records.groupby(["dataset", "corruption", "severity"], sort=False).ngroup().to_numpy()
    conditions = condition.max() + 1

    def mean(array: np.ndarray) -> np.ndarray:
        return 100.0 * np.mean([array[condition == c].mean(axis=0) for c in range(conditions)], axis=0)

    k = np.arange(right.shape[1])
    figure, axes = plt.subplots(figsize=(WIDTH * 0.75, 4.0), layout="constrained")
    axes.plot(k, mean(right), label="final, had K been k", **_line("final"))
    axes.plot(k[1:], mean(ever), label=RULE_LABELS["any"], **_line("any"))
    final, teacher = stats.mean_accuracy(records, "final"), stats.mean_accuracy(records, "teacher")
    assert final is not None
    axes.errorbar(
        [k[-1]],
        [final.value],
        yerr=[[final.value - final.low], [final.high - final.value]],
        color=COLOURS["final"],
        marker="o",
        capsize=3,
    )
    if teacher is not None:
        axes.axhline(teacher.value, label=RULE_LABELS["teacher"], **_line("teacher"))
        axes.axhspan(teacher.low, teacher.high, color=COLOURS["teacher"], alpha=0.15, linewidth=0)
    if chance is not None:
        axes.axhline(chance, color="0.3", linestyle=":", linewidth=1.2, label=f"chance ({chance:.1f} %)")
    axes.set(
        xlabel="test-time training iteration k", ylabel="top-1 accuracy (%)", ylim=(0, 100), xlim=(0, k[-1] * 1.02)
    )
    _legend_above(figure, axes)
    over = f", mean of {conditions} conditions" if conditions > 1 else ""
    caption = f"Top-1 accuracy of {methods[0]} after each iteration{over}; n = {final.n} images. "
    caption += "Error bar at K and band around the teacher: 95 % intervals over images."
    return figure, caption + _any_note(("any",))


# ------------------------------------------------------------------------------------------------------------------ losses


def loss_curve(losses: np.ndarray, *, target: float | None = None) -> tuple[Figure, str]:
    """Loss per iteration on a log axis: median over images with bands of 50 % and 90 % of them.

    losses: (N, K + 1), before each update and after the last; images with a non-finite loss are left out and counted in the
    caption. target: a loss to mark, such as a hundredth of the first. Raises ValueError for another shape or no finite image.
    """
    import matplotlib.pyplot as plt

    style()
    losses = np.asarray(losses, dtype=np.float64)
    if losses.ndim != 2 or losses.shape[1] < 2:
        raise ValueError(f"expected losses of shape (N, K + 1) with K >= 1, found {losses.shape}")
    finite = np.isfinite(losses).all(axis=1)
    if not finite.any():
        raise ValueError(f"none of {len(losses)} images has finite losses throughout")
    low, quarter, median, three_quarters, high = np.percentile(losses[finite], [5, 25, 50, 75, 95], axis=0)
    k = np.arange(losses.shape[1])
    figure, axes = plt.subplots(figsize=(WIDTH * 0.6, 3.6), layout="constrained")
    if finite.sum() > 1:
        axes.fill_between(k, low, high, color=COLOURS["final"], alpha=0.15, linewidth=0, label="90 % of images")
        axes.fill_between(
            k, quarter, three_quarters, color=COLOURS["final"], alpha=0.3, linewidth=0, label="50 % of images"
        )
    axes.plot(k, median, color=COLOURS["final"], label="median" if finite.sum() > 1 else None)
    if target is not None:
        axes.axhline(target, color="0.3", linestyle=":", linewidth=1.2, label=f"{target:.1e}")
    axes.set(xlabel="test-time training iteration", ylabel="loss (mean squared error)", yscale="log", xlim=(0, k[-1]))
    if finite.sum() > 1 or target is not None:
        axes.legend()
    n, lost = int(finite.sum()), int((~finite).sum())
    images = f"n = {n} image{'s' if n > 1 else ''}"
    fall = median[0] / median[-1]
    caption = f"Loss over iterations, {images}; median from {median[0]:.2e} to {median[-1]:.2e} ({fall:{'.0f' if fall < 1e4 else '.1e'}}-fold)."
    return figure, caption + (f" {lost} images with a non-finite loss are left out." if lost else "")


# ------------------------------------------------------------------------------------------------------------------ images


def _principal(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Singular values and right singular vectors. LAPACK's quick driver gives up on some nearly flat grids; the slow one does not."""
    try:
        return np.linalg.svd(rows, full_matrices=False)[1:]
    except np.linalg.LinAlgError:
        from scipy.linalg import svd

        return svd(rows, full_matrices=False, lapack_driver="gesvd")[1:]


def components(features: np.ndarray) -> np.ndarray:
    """First three principal components (3, D) of features (..., D), with fixed signs; zeros for those without variation."""
    rows = np.asarray(features, dtype=np.float64).reshape(-1, np.shape(features)[-1])
    singular, found = _principal(rows - rows.mean(axis=0))
    found = found[:3] * (singular[:3, None] > 1e-9 * max(float(singular[0]), float(np.abs(rows).max()), 1e-300))
    found = found * np.sign(found[np.arange(len(found)), np.abs(found).argmax(axis=1)])[:, None]
    return np.pad(found, ((0, 3 - len(found)), (0, 0)))


def grid_rgb(features: np.ndarray, *, fit: np.ndarray | None = None, own_range: bool = False) -> np.ndarray:
    """Feature grids as colour: the first three principal components as red, green and blue, on one scale.

    The scale is that of the component with the largest range (1st to 99th percentile), so a component with a hundredth of that range
    takes a hundredth of the contrast; each is centred on 0.5, where those without variation stay.

    features: (h, w, D), or (N, h, w, D) sharing one set of components. fit: (..., D) features to take components, centre and scale
    from, so that several calls share their colours; default the features themselves. own_range: components from fit, centre and scale
    from the features: for looks at one grid whose size changes.

    Returns float64 RGB of the same shape with D replaced by 3. Raises ValueError for other shapes or non-finite values.
    """
    features = np.asarray(features, dtype=np.float64)
    if features.ndim not in (3, 4):
        raise ValueError(f"expected features of shape (h, w, D) or (N, h, w, D), found {features.shape}")
    base = features if fit is None else np.asarray(fit, dtype=np.float64)
    if base.shape[-1] != features.shape[-1]:
        raise ValueError(f"expected features of one width, found {features.shape[-1]} and {base.shape[-1]} in fit")
    if not (np.isfinite(features).all() and np.isfinite(base).all()):
        raise ValueError("features hold NaN or infinite values: they cannot be shown as colours")
    axes = components(base).T
    centre = (features if own_range else base).reshape(-1, base.shape[-1]).mean(axis=0)
    shown = (features - centre) @ axes
    ranged = shown if own_range else (base - centre) @ axes
    low, high = np.percentile(ranged.reshape(-1, 3), [1, 99], axis=0)
    span = float((high - low).max())
    if span <= 1e-12 * float(np.abs(features).max()):  # rounding is no variation
        return np.full(shown.shape, 0.5)
    return np.clip(0.5 + (shown - (low + high) / 2) / span, 0.0, 1.0)


def image_strip(
    images: Sequence[np.ndarray], titles: Sequence[str] | None = None, *, columns: int | None = None, size: float = 1.5
) -> tuple[Figure, str]:
    """Images side by side, without axes, nearest-neighbour: (H, W, 3) uint8 or float in 0..1, or (H, W) grey.

    titles: one per image. columns: images per row, default all up to six. size: inches per image. Raises ValueError for no
    images, another number of titles, or another shape.
    """
    import matplotlib.pyplot as plt

    style()
    if not len(images):
        raise ValueError("expected at least one image, found none")
    if titles is not None and len(titles) != len(images):
        raise ValueError(f"expected {len(images)} titles, one per image, found {len(titles)}")
    for image in images:
        if not (np.ndim(image) == 2 or (np.ndim(image) == 3 and np.shape(image)[-1] == 3)):
            raise ValueError(f"expected images of shape (H, W, 3) or (H, W), found {np.shape(image)}")
    columns = min(len(images), columns or 6)
    rows = -(-len(images) // columns)
    title_lines = max((title.count("\n") + 1 for title in titles), default=0) if titles else 0
    height = size + 0.17 * title_lines
    figure, grid = plt.subplots(
        rows, columns, figsize=(size * columns, height * rows), squeeze=False, layout="constrained"
    )
    for i, axes in enumerate(grid.flat):
        if i >= len(images):
            axes.set_axis_off()
        else:
            image = np.asarray(images[i])
            axes.set(xticks=[], yticks=[])
            for spine in axes.spines.values():  # white pixels at the edge are not the page
                spine.set(visible=True, color="0.7", linewidth=0.5)
            grey = {"cmap": "gray", "vmin": 0, "vmax": 255 if image.dtype == np.uint8 else 1} if image.ndim == 2 else {}
            axes.imshow(image, **grey)
            if titles:
                axes.set_title(titles[i], fontsize="small")
    sizes = sorted({f"{np.shape(image)[1]} x {np.shape(image)[0]} px" for image in images})
    return figure, f"{len(images)} image{'s' if len(images) > 1 else ''}, {', '.join(sizes)}."


def grey(values: np.ndarray) -> np.ndarray:
    """Any map (h, w) stretched from its smallest to its largest value to 0..1, to be shown as grey; a constant one is 0.5."""
    values = np.asarray(values, dtype=np.float64)
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.full_like(values, 0.5)


def class_scores(scores: np.ndarray, teacher: np.ndarray, classnames: Sequence[str]) -> tuple[Figure, str]:
    """Cosine similarity of one image's folded feature to every class over the iterations, beside the teacher's.

    scores: (K + 1, C) after k = 0..K updates. teacher: (C,). Raises ValueError for other shapes.
    """
    import matplotlib.pyplot as plt

    style()
    scores, teacher = np.asarray(scores), np.asarray(teacher)
    if scores.ndim != 2 or teacher.shape != scores.shape[1:] or len(classnames) != len(teacher):
        raise ValueError(
            f"expected scores (K + 1, C), teacher (C,) and C class names, found {scores.shape}, {teacher.shape} and {len(classnames)}"
        )
    winner = int(teacher.argmax())
    shown = np.argsort(-teacher)[: min(6, len(teacher))]
    figure, axes = plt.subplots(figsize=(WIDTH, 3.6), layout="constrained")
    for (colour, marker), c in zip(series(len(shown)), shown, strict=True):
        wide = 2.5 if c == winner else 1.2
        every = max(len(scores) // 8, 1)
        axes.plot(
            scores[:, c],
            color=colour,
            marker=marker,
            markevery=every,
            markersize=4,
            linewidth=wide,
            label=classnames[c],
        )
        axes.plot([len(scores) * 1.02], [teacher[c]], marker, color=colour, markersize=6, clip_on=False)
    axes.set(xlabel="iteration k", ylabel="cosine similarity", xlim=(0, len(scores) * 1.03))
    axes.legend(title="class", loc="center left", bbox_to_anchor=(1.03, 0.5), frameon=False)
    others = f" The {len(shown)} classes nearest to the teacher's feature." if len(shown) < len(teacher) else ""
    return figure, (
        "Cosine similarity of the student's folded feature to the text feature of each class after k iterations; marks at the "
        f"right: the teacher's feature.{others} One image."
    )


# ----------------------------------------------------------------------------------------------------------------- helpers


def _chance(axes: Axes, chance: Sequence[float], conditions: int) -> None:
    """One line where all chances look the same, else a short one at each condition."""
    if len(chance) != conditions:
        raise ValueError(f"expected one chance for all or one for each of {conditions} conditions, found {len(chance)}")
    line: dict[str, Any] = {"color": "0.3", "linestyle": ":", "linewidth": 1.2}
    if len({f"{value:.1f}" for value in chance}) == 1:
        axes.axhline(chance[0], label=f"chance ({chance[0]:.1f} %)", **line)
        return
    low, high = min(chance), max(chance)
    x = np.arange(conditions)
    axes.hlines(chance, x - 0.45, x + 0.45, label=f"chance ({low:.1f} to {high:.1f} %)", **line)


def _one_method(summary: pd.DataFrame, method: str | None) -> tuple[pd.DataFrame, str]:
    methods = list(dict.fromkeys(summary["method"]))
    if method is None:
        if len(methods) != 1:
            raise ValueError(f"this figure shows one method, found {', '.join(methods) or 'none'}: pass method=")
        (method,) = methods
    if method not in methods:
        raise project.unknown("method", method, methods)
    return summary[summary["method"] == method], method


def _known_rules(summary: pd.DataFrame, rules: Sequence[str]) -> list[str]:
    """The rules asked for that the summary has numbers for."""
    for rule in rules:
        if rule not in _COLUMN:
            raise project.unknown("counting rule", rule, list(_COLUMN))
    return [rule for rule in rules if summary[_COLUMN[rule]].notna().any()]


def _interval(summary: pd.DataFrame, rule: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    key = _COLUMN[rule]
    value, low, high = (summary[name].to_numpy(dtype=float) for name in (key, f"{key}_low", f"{key}_high"))
    return value, low, high


def _line(rule: str) -> dict[str, Any]:
    # the teacher is a broad line underneath, because `final` often lies exactly on it
    wide = rule == "teacher"
    return {
        "color": COLOURS[rule],
        "linestyle": "--" if rule == "any" else "-",
        "linewidth": 4.0 if wide else 1.5,
        "alpha": 0.6 if wide else 1.0,
        "zorder": 2.0 if wide else 2.5,
    }


def _legend_above(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda i: labels[i].startswith("chance"))
    columns = min(len(labels), 4 if figure.get_figwidth() >= WIDTH else 2)
    figure.legend([handles[i] for i in order], [labels[i] for i in order], loc="outside upper center", ncols=columns)


def _n(summary: pd.DataFrame) -> str:
    low, high = int(summary["n"].min()), int(summary["n"].max())
    return f"n = {low} images" if low == high else f"n = {low} to {high} images"


def _any_note(rules: Sequence[str]) -> str:
    return " Dashed: any, an upper bound that uses the labels." if "any" in rules else ""


# ------------------------------------------------------------------------------------------------- steps and named classes


def steps(published: pd.DataFrame, ours: pd.DataFrame) -> tuple[Figure, str]:
    """How far a student is from its reference, set by set: published on the left, ours with 95 % intervals on the right.

    Both as `apm.analysis.benchmark.paired` gives them: index (set, reference), column step. Both panels have the same scale. Raises
    ValueError for an empty frame.
    """
    import matplotlib.pyplot as plt

    style()
    if published.empty or ours.empty:
        raise ValueError("expected published steps and ours, found none: run the benchmark first")
    height = 0.34 * max(frame.index.get_level_values("set").nunique() for frame in (published, ours)) + 2.0
    figure, grid = plt.subplots(1, 2, figsize=(WIDTH * 1.1, height), sharex=True, layout="constrained")
    for axes, (title, frame) in zip(grid, {"published": published, "ours": ours}.items(), strict=True):
        order = list(dict.fromkeys(frame.index.get_level_values("set")))
        labels = list(dict.fromkeys(frame.index.get_level_values("reference")))
        for i, (label, (colour, marker)) in enumerate(zip(labels, series(len(labels)), strict=True)):
            part = frame.xs(label, level="reference")["step"]
            y = np.array([order.index(name) for name in part.index]) + 0.6 * ((i + 0.5) / len(labels) - 0.5)
            look: dict[str, Any] = {"fmt": marker, "color": colour, "markersize": 5, "capsize": 2, "elinewidth": 1.2}
            axes.errorbar(part.map(float).to_numpy(), y, xerr=_errors(part), label=label, **look)
        axes.axvline(0, color="0.3", linewidth=1.2, zorder=1)
        axes.set_yticks(range(len(order)), order)
        axes.set(title=title, xlabel="student - reference (percentage points)", ylim=(len(order) - 0.4, -0.6))
        axes.grid(visible=False, axis="y")
        axes.legend(
            title="reference", loc="upper center", bbox_to_anchor=(0.5, -0.62 / height * 1.9), ncols=1, fontsize="small"
        )
    return figure, (
        f"Accuracy of APM's student minus its reference. Ours: final, {_n(ours)} per set, bars are 95 % intervals over images. "
        "Published: differences of printed values, which come without intervals."
    )


def _errors(cells: pd.Series) -> np.ndarray:
    """Distances (2, n) of the ends of `Number`s' intervals from their values."""
    return np.abs(np.array([[cell.value - end for cell in cells for end in [cell.bounds[i]]] for i in (0, 1)]))


def seen_and_named(naming: pd.DataFrame) -> tuple[Figure, str]:
    """Per set what the image features hold, what the text tower can name of it, and what the student makes of it.

    naming: from `apm.experiments.naming.naming`. Raises ValueError for an empty frame.
    """
    import matplotlib.pyplot as plt

    style()
    if naming.empty:
        raise ValueError("expected at least one set, found none")
    figure, axes = plt.subplots(figsize=(WIDTH, 0.42 * len(naming) + 1.7), layout="constrained")
    y = np.arange(len(naming))
    shown = (
        ("probe of image features (uses labels)", "#cc78bc", "D", -0.22),
        (RULE_LABELS["teacher"], COLOURS["teacher"], "s", 0.0),
        ("APM, final", COLOURS["final"], "o", 0.22),
    )
    for label, colour, marker, shift in shown:
        look: dict[str, Any] = {"fmt": marker, "color": colour, "markersize": 5, "capsize": 2}
        axes.errorbar(naming[label].map(float).to_numpy(), y + shift, xerr=_errors(naming[label]), label=label, **look)
    for i, chance in enumerate(naming["chance"].map(float)):
        axes.plot([chance, chance], [i - 0.42, i + 0.42], ":", color="0.3", label="chance" if i == 0 else None)
    axes.set_yticks(y, naming.index)
    axes.set(xlabel="accuracy (%)", xlim=(0, 101), ylim=(len(naming) - 0.4, -0.6))
    axes.grid(visible=False, axis="y")
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2)
    return (
        figure,
        f"Accuracy per label space; {_n(naming)} per set. Bars: 95 % intervals (Wilson). Chance: the most frequent class.",
    )
