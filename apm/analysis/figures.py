"""Figures: one style, one way to save, and the plots that more than one notebook needs.

Colours are colour-blind safe, one per counting rule; "any" is drawn open or dashed, since it is an upper bound and no score.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import Image as Picture
from IPython.display import display as show_here
from matplotlib import cbook, font_manager
from matplotlib.figure import Figure
from PIL import Image, ImageChops

from apm import project
from apm.analysis import stats, text
from apm.analysis.numbers import SEPARATOR, is_empty
from apm.analysis.tables import RULE_LABELS

COLOURS = {"teacher": "#949494", "final": "#0173b2", "minimum loss": "#029e73", "any": "#de8f05"}  # of "colorblind"
LINES: dict[str, dict[str, Any]] = {
    "final": {"color": COLOURS["final"]},
    "any": {"color": COLOURS["any"], "linestyle": "--"},
    # broad and below: `final` often lies exactly on it
    "teacher": {"color": COLOURS["teacher"], "linewidth": 4.0, "alpha": 0.6, "zorder": 2.0},
    "chance": {"color": "0.3", "linestyle": ":", "linewidth": 1.2},
}
# seaborn's ten "colorblind" colours, and markers: seven, which has no common divisor with ten, so that pairs repeat after 70 only
PALETTE = ("#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc", "#ca9161", "#fbafe4", "#949494", "#ece133", "#56b4e9")
MARKERS = "osD^vPX"
WIDTH = 9.0  # inches: the width of a notebook page
DPI = 150
UNSEEN = 12  # of 255: a channel's change in single pixels that an eye does not see
# for letters that DejaVu Sans lacks, where one of them is installed
FALLBACKS = ("Noto Sans CJK SC", "WenQuanYi Zen Hei", "Droid Sans Fallback", "PingFang SC", "Microsoft YaHei")
MANY = 8192  # colours of a picture that no palette holds


@functools.cache
def style() -> None:
    """Set seaborn's style for the whole package, once; every function here calls it."""
    # names of classes and sets are no formulas; only matplotlib's own labels of logarithmic axes are
    cbook.is_math_text = lambda s: s.startswith(r"$\mathdefault{")
    rc = {
        "figure.figsize": (WIDTH, 4.0),
        # the first ships with matplotlib: the same glyphs on every machine
        "font.family": ["DejaVu Sans", *(name for name in FALLBACKS if name in font_manager.get_font_names())],
        "text.usetex": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": "medium",
        "legend.frameon": False,
        "pdf.fonttype": 42,
        "grid.color": "0.9",
        "image.interpolation": "nearest",
    }
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind", font_scale=0.9, rc=rc)


def save(what: Figure | bytes, name: str, folder: Path | str) -> dict[str, Path]:
    """Write a figure as <name>.png (`lean`) and <name>.pdf, the bytes of an animation as <name>.gif; equal ones give equal bytes.

    Returns the paths by suffix, the one to show first. Raises OSError for a folder that cannot be written.
    """
    contents = {"gif": what} if isinstance(what, bytes) else {}
    if not isinstance(what, bytes):
        for suffix, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
            buffer = io.BytesIO()
            what.savefig(buffer, format=suffix, dpi=DPI, bbox_inches="tight", metadata=metadata)
            contents[suffix] = lean(buffer.getvalue()) if suffix == "png" else buffer.getvalue()
    return {suffix: project.atomic_write(Path(folder) / f"{name}.{suffix}", body) for suffix, body in contents.items()}


def lean(png: bytes) -> bytes:
    """An opaque PNG in fewer bytes: with a palette of 256 colours where no channel of any pixel changes by more than `UNSEEN`,
    as it is for lines and letters; photographs keep all their colours."""
    buffer = io.BytesIO()
    image = Image.open(io.BytesIO(png)).convert("RGB")
    if image.getcolors(MANY):
        few = image.quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE)
        if np.asarray(ImageChops.difference(few.convert("RGB"), image)).max() <= UNSEEN:
            image = few
    image.save(buffer, "PNG", optimize=True, dpi=(DPI, DPI))
    return buffer.getvalue()


def page_width(path: Path) -> int:
    """Pixels of a page that a saved figure is wide: an inch has 100."""
    with Image.open(path) as image:
        return round(image.width * 100 / image.info.get("dpi", (100.0,))[0])


def display(path: Path, caption: str, notes: str = "") -> None:
    """Show a saved figure or animation, the file's own bytes, with its caption below it."""
    show_here(Picture(filename=str(path), width=page_width(path), alt=caption))
    text.say(f"{caption} {notes}")


def dots(panels: Mapping[str, pd.DataFrame]) -> Figure:
    """Tables of `Number`s as marks with their 95 % intervals: rows down, a colour and a marker for each column.

    panels: label of the x axis -> table; they share rows and colours. What is called "any" is drawn open.
    """
    style()
    rows = list(dict.fromkeys(row for cells in panels.values() for row in cells.index))
    columns = list(dict.fromkeys(column for cells in panels.values() for column in cells))
    own = {label: COLOURS[rule] for rule, label in RULE_LABELS.items()}
    filled = {label: ~cells.map(is_empty) for label, cells in panels.items()}
    most = max(int(there.sum(axis="columns").max()) for there in filled.values())  # marks of one row
    figure = plt.figure(figsize=(WIDTH, (0.17 + 0.08 * most) * len(rows) + 1.5), layout="constrained")
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False, width_ratios=[2, *[1] * (len(panels) - 1)])
    for axes, (label, cells) in zip(grid.flat, panels.items(), strict=True):
        place = filled[label].cumsum(axis="columns").sub((filled[label].sum(axis="columns") + 1) / 2, axis="index")
        for column, colour, marker in zip(columns, cycle(PALETTE), cycle(MARKERS), strict=False):
            there = cells.loc[filled[label][column], column]
            y = [rows.index(row) + 0.6 / most * place.loc[row, column] for row in there.index]
            x, ends = there.map(float).to_numpy(), np.array([cell.bounds for cell in there]).reshape(-1, 2).T
            look: dict[str, Any] = {"color": own.get(column, colour), "fmt": marker, "capsize": 2, "label": column}
            look |= {"markerfacecolor": "none"} if column.startswith("any") else {}
            axes.errorbar(x, y, xerr=np.abs(ends - x), **look)
        if np.prod(axes.get_xlim()) < 0:
            axes.axvline(0, color="0.3", linewidth=1.2, zorder=1)
        names = [SEPARATOR.join(row) if isinstance(row, tuple) else row for row in rows]
        axes.set(xlabel=label, ylim=(len(rows) - 0.4, -0.6), yticks=range(len(rows)), yticklabels=names)
        axes.grid(visible=False, axis="y")
    figure.legend(*grid.flat[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


def accuracy_over_iterations(records: pd.DataFrame, *, chance: float | None = None) -> tuple[Figure, str]:
    """Accuracy if the run had been stopped after k = 0..K iterations, against the teacher's and the cumulative `any`; and a caption.

    Several conditions are averaged, each with the same weight. Raises ValueError for several methods, no paths, or too few images.
    """
    if len(methods := records["method"].unique()) != 1:
        raise ValueError(f"this figure shows one method, found {', '.join(methods) or 'none'}: choose one")
    style()
    right = stats.paths(records) == records["label"].to_numpy()[:, None]  # (n, K + 1)
    condition = stats.groups(records)["conditions"]
    last, conditions = right.shape[1] - 1, condition.max() + 1
    figure, axes = plt.subplots(figsize=(WIDTH * 0.75, 4.0), layout="constrained")
    ever = np.logical_or.accumulate(right[:, 1:], axis=1)
    for rule, label, rows in (("final", "final, had K been k", right), ("any", RULE_LABELS["any"], ever)):
        mean = 100.0 * pd.DataFrame(rows).groupby(condition).mean().mean()
        axes.plot(mean.index + last + 1 - len(mean), mean, label=label, **LINES[rule])
    final, teacher = (stats.estimate(records, rule) for rule in ("final", "teacher"))
    assert final is not None
    error = [[final.value - final.low], [final.high - final.value]]
    axes.errorbar([last], [final.value], yerr=error, color=COLOURS["final"], marker="o", capsize=3)
    if teacher is not None:
        axes.axhline(teacher.value, label=RULE_LABELS["teacher"], **LINES["teacher"])
        axes.axhspan(teacher.low, teacher.high, color=COLOURS["teacher"], alpha=0.15, linewidth=0)
    if chance is not None:
        axes.axhline(chance, label=f"chance ({chance:.1f} %)", **LINES["chance"])
    axes.set(xlabel="test-time training iteration k", ylabel="top-1 accuracy (%)", ylim=(0, 100), xlim=(0, last * 1.02))
    figure.legend(loc="outside upper center", ncols=2)
    over = f", mean of {conditions} conditions" if conditions > 1 else ""
    return figure, (
        f"Top-1 accuracy of {methods[0]} after each iteration{over}; n = {final.n} images. Error bar at K and band around the teacher: "
        "95 % intervals over images. Dashed: any, an upper bound that uses the labels."
    )


def components(features: np.ndarray) -> np.ndarray:
    """First three principal components (3, D) of features (..., D), with fixed signs; zeros for those without variation."""
    rows = np.asarray(features, dtype=np.float64).reshape(-1, np.shape(features)[-1])
    centred = rows - rows.mean(axis=0)
    try:
        _, singular, found = np.linalg.svd(centred, full_matrices=False)
    except np.linalg.LinAlgError:  # LAPACK's quick driver gives up on some nearly flat grids; the slow one does not
        from scipy.linalg import svd

        _, singular, found = svd(centred, full_matrices=False, lapack_driver="gesvd")
    found = found[:3] * (singular[:3, None] > 1e-9 * max(float(singular[0]), float(np.abs(rows).max()), 1e-300))
    found = found * np.sign(found[np.arange(len(found)), np.abs(found).argmax(axis=1)])[:, None]
    return np.pad(found, ((0, 3 - len(found)), (0, 0)))


def grid_rgb(features: np.ndarray, *, fit: np.ndarray | None = None, own_range: bool = False) -> np.ndarray:
    """Feature grids (..., h, w, D) as colour (..., h, w, 3) in 0..1: the first three principal components as red, green and blue.

    All have the scale of the component with the largest range (1st to 99th percentile), centred on 0.5, where those without variation
    stay. fit: (..., D) features to take components, centre and scale from; own_range: components only.
    """
    features = np.asarray(features, dtype=np.float64)
    base = features if fit is None else np.asarray(fit, dtype=np.float64)
    axes = components(base).T
    centre = (features if own_range else base).reshape(-1, base.shape[-1]).mean(axis=0)
    shown = (features - centre) @ axes
    ranged = shown if own_range else (base - centre) @ axes
    low, high = np.percentile(ranged.reshape(-1, 3), [1, 99], axis=0)
    span = float((high - low).max())
    if span <= 1e-12 * float(np.abs(features).max()):  # rounding is no variation
        return np.full(shown.shape, 0.5)
    return np.clip(0.5 + (shown - (low + high) / 2) / span, 0.0, 1.0)
