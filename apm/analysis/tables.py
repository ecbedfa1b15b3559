"""Tables: from records to numbers, to the paper's layout, to CSV, Markdown, LaTeX and the page.

Accuracies are in percent with one decimal. Nothing here depends on the time or the machine: the same records give the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from apm import project
from apm.analysis import numbers, stats
from apm.analysis.numbers import Number
from apm.analysis.stats import CONDITION, DIFFERENCE
from apm.analysis.text import markdown
from apm.runs.records import provenance

WIDEST = 12  # columns of the widest table that is not turned
WIDE = 9  # columns from which a table's cells break into lines
LONG_TEXT = 40  # characters from which the cells of a column break into lines
RULE_LABELS = {"teacher": "teacher (zero-shot)", "final": "final", "minimum loss": "minimum loss"}
RULE_LABELS["any"] = "any (upper bound, uses labels)"
ANY = "any: right after at least one iteration; it uses the labels, so it is an upper bound and never a score."
Bold = Callable[[pd.Series], bool]  # whether a row of a flat table stands out
INTERVALS = "Accuracy in %; brackets: 95 % intervals over images, and seeds where there are several (Wilson; differences Bonett and Price)."


def summary(records: pd.DataFrame, *, by: Sequence[str] = (*CONDITION, "method")) -> pd.DataFrame:
    """One row per (dataset, corruption, severity, method), in the order of the records; estimates are `Number`s.

    None where the records do not hold what a number needs; p (McNemar) also for several seeds, whose rows are not independent. Several
    conditions of one group are averaged. Raises ValueError for no records, and for groups too small for an interval.
    """
    if records.empty:
        raise ValueError("no records: run a method first")
    rows = []
    for values, group in records.groupby(list(by), sort=False, observed=True):
        name = dict(zip(by, values, strict=True))
        try:
            rows.append(name | _estimates(group))
        except ValueError as error:
            where = ", ".join(f"{column} {value}" for column, value in name.items())
            raise ValueError(f"{where}: {error}") from error
    return pd.DataFrame(rows)


def _estimates(group: pd.DataFrame) -> dict[str, Any]:
    right, reference = (stats.correct(group, rule) for rule in ("final", "teacher"))
    images = len(group[["dataset", "sample"]].drop_duplicates())
    agreement = p = None
    if group["teacher_prediction"].notna().any():
        asked = group.assign(label=group["teacher_prediction"].fillna(-2))  # a failed one agrees with nothing
        agreement = replace(stats.estimate(asked, "final"), kind="measure")  # type: ignore[type-var]
        if images == len(group) and right is not None and reference is not None:
            p = Number(stats.mcnemar(right, reference), n=images, unit="", kind="p")
    return {
        "n": images,
        "seeds": group["seed"].nunique(),
        "n_failed": int((group["prediction"] < 0).sum()),
        **{rule: stats.estimate(group, rule) for rule in (*stats.RULES, DIFFERENCE)},
        "agreement": agreement,
        "p (McNemar)": p,
    }


def estimates(summary: pd.DataFrame) -> pd.DataFrame:
    """`summary` to be published: what it is by as the index, with a verdict, without columns that say nothing."""
    names = list(summary)[: list(summary).index("n")]
    found = summary.set_index(names).dropna(axis=1, how="all").rename(columns=RULE_LABELS | {"n_failed": "failed"})
    found = found.drop(columns=[name for name, least in (("seeds", 1), ("failed", 0)) if (found[name] <= least).all()])
    if DIFFERENCE in found:
        found["verdict"] = [numbers.verdict(cell) for cell in found[DIFFERENCE]]
    return found


def accuracies(summary: pd.DataFrame, by: str, rules: Sequence[str] = stats.RULES) -> pd.DataFrame:
    """Counting rules down, the values of a column of `summary` across, as `Number`s that are shown without their intervals."""
    chosen = summary.set_index(by)[[rule for rule in stats.RULES if rule in rules]]
    return chosen.map(lambda cell: cell and cell.short).T.rename_axis(columns=None)


def condition_label(dataset: str, corruption: str, severity: int) -> str:
    """Heading of one condition: the corruption, with its severity, or the dataset's name for clean images."""
    return dataset if severity == 0 else f"{corruption.replace('_', ' ')} {severity}"


def label_conditions(records: pd.DataFrame) -> pd.DataFrame:
    """The records with a column `condition` of readable headings (`condition_label`)."""
    unique = records[list(CONDITION)].drop_duplicates()
    headings = {row: condition_label(*row) for row in unique.itertuples(index=False, name=None)}
    if len(set(headings.values())) < len(headings):  # two datasets with the same corruptions
        headings = {row: label if row[2] == 0 else f"{row[0]}, {label}" for row, label in headings.items()}
    return records.assign(condition=[headings[row] for row in zip(*(records[name] for name in CONDITION), strict=True)])


def wide(
    records: pd.DataFrame, *, columns: str = "condition", means: Mapping[str, Sequence[str]] | None = None
) -> pd.DataFrame:
    """The paper's layout: methods and counting rules down, conditions across, means at the end. Cells are `Number`s.

    The teacher's row stands once where all methods share it. Only means show their 95 % intervals. columns: "condition" (dataset or
    corruption with severity) or a column of the records. means: heading -> the columns it averages, each with the same weight; default one
    "Mean" over all when there are several. Raises ValueError for unknown columns in means, and for too few images for a mean's interval.
    """
    if columns == "condition":
        records = label_conditions(records)
    present = list(dict.fromkeys(records[columns]))
    means = ({"Mean": present} if len(present) > 1 else {}) if means is None else means
    for members in means.values():
        project.among(f"value of column {columns}", members, present)
    headings = {str(name): [name] for name in present} | dict(means)
    lines: dict[tuple[str, str], dict[str, Number | None]] = {}
    for label, rule, part in _lines(records):
        lines[label] = dict.fromkeys(headings)
        for heading, members in headings.items():
            chosen = part[part[columns].isin(members)]
            if chosen[columns].nunique() < len(set(members)):  # a mean over fewer conditions than it says is none
                continue
            least = stats.MINIMUM_SAMPLES if heading in means else 1  # an interval that is shown needs enough images
            cell = stats.estimate(chosen, rule, conditions=(columns, *CONDITION), minimum=least)
            lines[label][heading] = cell if cell is None or heading in means else cell.short
    table = pd.DataFrame.from_dict(lines, orient="index")
    return table.set_axis(pd.MultiIndex.from_tuples(list(lines), names=["method", "counting rule"]))


def _lines(records: pd.DataFrame) -> Iterable[tuple[tuple[str, str], str, pd.DataFrame]]:
    """(method, rule as shown), rule, its records."""
    image, said = [*CONDITION, "sample"], "teacher_prediction"
    asked = records[records.groupby("method", observed=True)[said].transform("count") > 0]
    shared = len(asked) > 0 and asked.groupby(image)[said].nunique().max() <= 1
    if shared:
        yield ("teacher", "zero-shot"), "teacher", asked.drop_duplicates(image)
    for name, part in records.groupby("method", sort=False, observed=True):
        method, iterative, has_teacher = str(name), stats.has_path(part), part[said].notna().any()
        # what says on each image what the teacher says, and fails where it fails, is the teacher
        itself = has_teacher and not iterative and (part["prediction"] == part[said].fillna(-1)).all()
        if itself and shared:
            continue
        if has_teacher and not itself and not shared:
            yield (method, RULE_LABELS["teacher"]), "teacher", part
        for rule in ("final", "minimum loss", "any") if iterative else ("final",):
            yield (method, RULE_LABELS[rule] if iterative else ""), rule, part
        if has_teacher:
            yield (method, DIFFERENCE), DIFFERENCE, part


def footer(records: pd.DataFrame, *, rules: Sequence[str] = stats.RULES, notes: Sequence[str] = ()) -> str:
    """What a reader must know under a table: n, failed images, counting rules, intervals, remarks on the images, whose records."""
    # per method too: expensive ones may see a part of the images
    images = records.groupby([*CONDITION, "method"], sort=False, observed=True)["sample"].nunique()
    first = f"n = {images.min()}" + (f" to {images.max()}" if images.min() < images.max() else "") + " images"
    first += " per condition" if len(records[list(CONDITION)].drop_duplicates()) > 1 else ""
    seeds = records.groupby("method", sort=False)["seed"].unique()
    named = seeds[seeds.map(len) > 1].map(lambda own: ", ".join(map(str, sorted(own))))
    for said, own in named.groupby(named, sort=False):  # an online method runs over several orders, others once
        first += f", seeds {said}" if len(own) == len(seeds) else f"; {', '.join(own.index)}: seeds {said}"
    parts = [f"{first}."]
    failed = records.loc[records["prediction"] < 0, "status"].astype(str)
    if len(failed):
        reasons = failed.value_counts().sort_index().sort_values(ascending=False, kind="stable")
        shown = [f"{reason} ({count})" for reason, count in reasons.head(3).items()]
        shown += [f"and {len(reasons) - 3} other reasons"] if len(reasons) > 3 else []
        parts.append(f"{len(failed)} of {len(records)} predictions failed and count as wrong: {'; '.join(shown)}.")
    if stats.has_path(records):
        k = sorted(records["path"].dropna().map(len).unique() - 1)
        parts.append(f"final: after {' or '.join(map(str, k))} iterations, fixed beforehand.")
        parts += [ANY] if "any" in rules else []
    parts.append(INTERVALS)
    for remark, group in records.dropna(subset="remark").groupby("remark") if "remark" in records else ():
        sets = sorted(set(group["dataset"]))
        of = "" if set(sets) == set(records["dataset"]) else f" of {', '.join(sets)}"
        parts.append(f"Images{of}: {remark}.")
    return " ".join([*parts, *notes, f"Made from {provenance(records)}."])


def save(
    table: pd.DataFrame, name: str, folder: Path | str, caption: str, footer: str = "", page: str = ""
) -> dict[str, Path]:
    """Write <name>.csv (cells as read), <name>.md and <name>.tex (with caption and footer) into a folder, <name>.html from `page`.

    The same table gives the same bytes. Returns the paths by suffix. Raises ValueError for an empty table, OSError for a bad folder.
    """
    if table.empty:
        raise ValueError(f"table {name!r} is empty: there is nothing to save")
    _, cells, right = _lay_out(table)
    lines = cells.map(markdown).rename(columns=markdown)
    align = ["right" if number else "left" for number in right]
    body = lines.to_markdown(index=False, disable_numparse=True, colalign=align)
    texts = {
        "csv": cells.to_csv(index=False, lineterminator="\n"),
        "md": "\n\n".join(part for part in (f"**{markdown(caption)}**", body, markdown(footer)) if part) + "\n",
        "tex": _latex(cells, right, name, caption, footer),
    }
    texts |= {"html": page + "\n"} if page else {}
    return {suffix: project.atomic_write(Path(folder) / f"{name}.{suffix}", text) for suffix, text in texts.items()}


def _lay_out(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, list[bool]]:
    """A table with its rows' names as columns and headings of one level; its cells as text; which columns are numbers, at the right."""
    flat = table.copy()
    flat.columns = [", ".join(filter(None, map(str, c))) if isinstance(c, tuple) else str(c) for c in flat.columns]
    if not isinstance(flat.index, pd.RangeIndex):
        flat = flat.reset_index(names=["" if name is None else str(name) for name in flat.index.names])
    texts = {name: [numbers.text(cell, small=numbers.is_small(flat[name])) for cell in flat[name]] for name in flat}
    return flat, pd.DataFrame(texts, index=flat.index, dtype=object), [_is_numeric(flat[name]) for name in flat]


def _is_numeric(column: pd.Series) -> bool:
    """Whether what fills the column is numbers."""
    filled = [cell for cell in column if not numbers.is_empty(cell)]
    return bool(filled) and all(isinstance(c, (Number, Real)) and not isinstance(c, (bool, np.bool_)) for c in filled)


def _latex(cells: pd.DataFrame, right: list[bool], name: str, caption: str, footer: str) -> str:
    shown = cells.set_axis([_escape(column) for column in cells], axis=1).style.hide(axis="index").format(_escape)
    text = shown.to_latex(
        hrules=True,
        column_format="".join("r" if number else "l" for number in right),
        caption=_escape(caption),
        label=f"tab:{name}",
        position="tb",
        position_float="centering",
    )
    if len(right) > 7:  # wider than a page: scaled to it
        text = text.replace("\\begin{tabular}", "\\resizebox{\\linewidth}{!}{%\n\\begin{tabular}")
        text = text.replace("\\end{tabular}", "\\end{tabular}}")
    if footer:
        note = f"\\par\\smallskip\\footnotesize {_escape(footer)}\n"
        text = text.replace("\\end{table}", note + "\\end{table}")
    return "% needs \\usepackage{booktabs, graphicx}\n" + text


_NAMED = {"\\": "backslash", "~": "asciitilde", "^": "asciicircum", "<": "less", ">": "greater"}
_LATEX = str.maketrans({c: f"\\text{n}{{}}" for c, n in _NAMED.items()} | {c: f"\\{c}" for c in "&%$#_{}"})


def _escape(text: str) -> str:
    return "{}" * text.startswith(("[", "*")) + text.translate(_LATEX)  # else an option of the line's end before it


@dataclass(repr=False)
class Shown:
    """A table as a notebook shows it. As plain text it is its caption: a notebook keeps both, and the cells stand in the HTML."""

    html: str
    text: str
    frame: pd.DataFrame

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return self.text


def show(
    table: pd.DataFrame, caption: str, footer: str = "", *, bold: Bold | None = None, upright: bool = False
) -> Shown:
    """A table for the end of a notebook cell, as `save` writes it: caption above, footer below, scrolling sideways when it is wide.

    upright: a table with more columns than fit a page, and fewer rows, is turned.
    """
    flat, texts, right = _lay_out(table)
    if upright and len(flat.columns) > WIDEST >= len(flat) and True in right[1:] and not right[0]:
        names = right.index(True)
        joined = texts.iloc[:, :names].agg(lambda row: numbers.SEPARATOR.join(filter(None, row)), axis="columns")
        texts = flat = texts.iloc[:, names:].T.set_axis(joined, axis=1).rename_axis("condition").reset_index()
        right = [False] + [True] * len(joined)
    wraps = len(flat.columns) > WIDE  # an interval then stands below its estimate
    cells = texts.map(lambda cell: escape(cell.replace(", ", ",\u00a0") if wraps and "[" in cell else cell))
    strong = np.array([bool(bold and bold(row)) for _, row in flat.iterrows()], dtype=bool)
    cells[strong] = "<strong>" + cells[strong] + "</strong>"
    name = "T_" + hashlib.sha256((caption + cells.to_csv()).encode()).hexdigest()[:8]
    rules = {
        "": "border-collapse: collapse; font-size: 0.9em; margin: 0",
        "th, td": f"padding: 0.25em 0.5em; white-space: {'normal' if wraps else 'nowrap'}; text-align: left",
        "th": "border-bottom: 1.5px solid; vertical-align: bottom; white-space: normal",
        "td": "border-bottom: 1px solid rgba(128, 128, 128, 0.25)",
    }
    # a rule per column, by place: a class or an id in each cell would be most of the page
    for place, (heading, number) in enumerate(zip(texts, right, strict=True), start=1):
        if (characters := max(map(len, texts[heading]), default=0)) > LONG_TEXT:
            width = 22 if characters > 3 * LONG_TEXT else 13
            rules[f"td:nth-child({place})"] = f"white-space: normal; min-width: {width}em"
        if number:
            both = f"th:nth-child({place}), td:nth-child({place})"
            rules[both] = "text-align: right; font-variant-numeric: tabular-nums"
    style = "\n".join(f"#{name}{f' :is({part})' if part else ''} {{{what}}}" for part, what in rules.items())
    with pd.option_context("display.max_colwidth", None):  # else pandas cuts long cells
        page = cells.rename(columns=escape).to_html(index=False, escape=False, border=0, justify="left", table_id=name)
    page = "\n".join(line.strip() for line in page.splitlines())
    note = f'<p style="font-size: 0.85em; opacity: 0.8; margin-top: 0.5em; max-width: 60em">{escape(footer)}</p>'
    whole = (
        '<figure class="apm-table tex2jax_ignore mathjax_ignore" style="margin: 1em 0; max-width: 100%">'
        f'<figcaption style="margin-bottom: 0.5em"><strong>{escape(caption)}</strong></figcaption>'
        f'<div class="apm-scroll" style="overflow-x: auto"><style>\n{style}\n</style>\n{page}</div>'
        f"{note if footer else ''}</figure>"
    )
    return Shown(whole, f"{caption}: {len(flat)} rows", table)
