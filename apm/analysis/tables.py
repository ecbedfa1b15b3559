"""Tables: from records to numbers, to the paper's layout, to CSV, Markdown, LaTeX and the page.

Accuracies are in percent with one decimal. Nothing here depends on the time or the machine: the same records give the same
bytes.
"""

from __future__ import annotations

import hashlib
import html
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from apm import project
from apm.analysis import numbers, stats
from apm.analysis.numbers import Number
from apm.analysis.stats import Interval
from apm.runs.records import provenance

CONDITION = ("dataset", "corruption", "severity")
WIDEST = 12  # columns of the widest table that is not turned
WIDE = 9  # columns from which a table's cells break into lines
LONG_TEXT = 40  # characters from which the cells of a column break into lines
RULE_LABELS = {
    "teacher": "teacher (zero-shot)",
    "final": "final",
    "minimum loss": "minimum loss",
    "any": "any (upper bound, uses labels)",
}
DIFFERENCE = "final - teacher"


# ---------------------------------------------------------------------------------------------------------- from records


def summary(records: pd.DataFrame, *, by: Sequence[str] = (*CONDITION, "method")) -> pd.DataFrame:
    """One row per (dataset, corruption, severity, method), in the order of the records; estimates are `Number`s.

    Columns, after those of `by`: n (images), seeds, n_failed (rows without prediction, counted as wrong); the accuracy under each of
    `stats.RULES`; final - teacher in points (`stats.mean_difference`); agreement of final and teacher; p (McNemar). None where
    the records do not hold what a number needs; p also for several seeds, whose rows are not independent.

    by: other groupings, such as ("dataset", "group", "method"); rows of one group that belong to several conditions are
    averaged over the conditions, all copies of an image together.

    Raises ValueError for no records, and for groups too small for an interval.
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
    asked = group.assign(label=group["teacher_prediction"].fillna(-2))  # a failed one agrees with nothing
    found = {rule: stats.mean_accuracy(group, rule) for rule in stats.RULES}
    difference = stats.mean_difference(group)
    agreement = stats.mean_accuracy(asked, "final") if difference else None
    images = len(group[["dataset", "sample"]].drop_duplicates())
    right, reference = stats.correct(group, "final"), stats.correct(group, "teacher")
    p = None
    if right is not None and reference is not None and images == len(group):
        p = Number(stats.mcnemar(right, reference), n=images, unit="", kind="p")
    return {
        "n": images,
        "seeds": group["seed"].nunique(),
        "n_failed": int((group["prediction"] < 0).sum()),
        **{rule: Number(*interval) if interval else None for rule, interval in found.items()},
        DIFFERENCE: Number(*difference, "points", "difference") if difference else None,
        "agreement": Number(*agreement, "%", "measure") if agreement else None,
        "p (McNemar)": p,
    }


def estimates(summary: pd.DataFrame) -> pd.DataFrame:
    """`summary` to be published: what it is by as the index, with a verdict, and without what says nothing: empty columns, `seeds`
    where it is 1, failures where there are none."""
    names = list(summary)[: list(summary).index("n")]
    found = summary.set_index(names).dropna(axis=1, how="all").rename(columns=RULE_LABELS | {"n_failed": "failed"})
    found = found.drop(columns=[name for name, least in (("seeds", 1), ("failed", 0)) if (found[name] <= least).all()])
    if DIFFERENCE in found:
        found["verdict"] = [numbers.verdict(cell) for cell in found[DIFFERENCE]]
    return found


def accuracies(summary: pd.DataFrame, by: str, rules: Sequence[str] = stats.RULES) -> pd.DataFrame:
    """Counting rules down, the values of a column of `summary` across, as `Number`s that are shown without their intervals."""
    chosen = summary.set_index(by)[[rule for rule in stats.RULES if rule in rules]]
    return chosen.map(lambda cell: cell and replace(cell, brief=True)).T.rename_axis(columns=None)


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

    The teacher's row stands once where all methods share it. Methods without iterations have a single row of their own name: for them
    "any" and "minimum loss" mean nothing. Means show their 95 % intervals; every cell has its own.

    columns: what the columns are: "condition" (dataset or corruption with severity) or a column of the records.
    means: heading -> the columns it averages, each with the same weight; default one "Mean" over all when there are several.

    Raises ValueError for unknown columns in means, and for too few images for a mean's interval.
    """
    if columns == "condition":
        records = label_conditions(records)
    present = list(dict.fromkeys(records[columns]))
    means = ({"Mean": present} if len(present) > 1 else {}) if means is None else means
    for name in {name for members in means.values() for name in members} - set(present):
        raise project.unknown(f"value of column {columns}", str(name), [str(p) for p in present])
    lines: dict[tuple[str, str], dict[str, Number | None]] = {}
    for label, rule, part in _lines(records):
        groups = dict(list(part.groupby(columns, sort=False)))
        lines[label] = {str(name): _cell(groups.get(name), rule, columns, shown=False) for name in present}
        for heading, members in means.items():
            # a mean over fewer conditions than the heading says is none
            chosen = part[part[columns].isin(list(members))] if set(members) <= set(groups) else None
            lines[label][heading] = _cell(chosen, rule, columns, shown=True)
    table = pd.DataFrame.from_dict(lines, orient="index")
    return table.set_axis(pd.MultiIndex.from_tuples(list(lines), names=["method", "counting rule"]))


def _lines(records: pd.DataFrame) -> Iterable[tuple[tuple[str, str], str, pd.DataFrame]]:
    """(method, rule as shown), rule, its records."""
    image = [*CONDITION, "sample"]
    parts = {str(method): part for method, part in records.groupby("method", sort=False, observed=True)}
    asked = {
        method: part.drop_duplicates(image).set_index(image)["teacher_prediction"].sort_index()
        for method, part in parts.items()
        if part["teacher_prediction"].notna().any()
    }
    most = max(asked, key=lambda method: len(asked[method]), default=None)
    if most is not None and all(part.equals(asked[most].reindex(part.index)) for part in asked.values()):
        yield ("teacher", "zero-shot"), "teacher", parts[most].drop_duplicates(image)
        parts = {method: part for method, part in parts.items() if not _is_teacher(part)}
    else:
        for method in asked:
            if not _is_teacher(parts[method]):
                yield (method, RULE_LABELS["teacher"]), "teacher", parts[method]
    for method, part in parts.items():
        iterative = stats.has_path(part)
        for rule in ("final", "minimum loss", "any") if iterative else ("final",):
            yield (method, RULE_LABELS[rule] if iterative else ""), rule, part
        if method in asked:
            yield (method, DIFFERENCE), DIFFERENCE, part


def _is_teacher(part: pd.DataFrame) -> bool:
    """Whether a method without iterations says what the teacher says on each image: then its row is the teacher's."""
    if stats.has_path(part) or part["teacher_prediction"].isna().all():
        return False
    # where the teacher failed, a method that is the teacher failed too
    return bool((part["prediction"] == part["teacher_prediction"].fillna(-1)).all())


def _cell(part: pd.DataFrame | None, rule: str, column: str, *, shown: bool) -> Number | None:
    """shown: whether its interval is shown, and so needs enough images."""
    if part is None:
        return None
    options: dict[str, Any] = {} if shown else {"minimum": 1}
    several = {"conditions": (column, *CONDITION), **options}
    if rule == DIFFERENCE:
        value = stats.mean_difference(part, **several)
    elif len(part[column].unique()) > 1 or part.duplicated(["dataset", "sample"]).any():
        value = stats.mean_accuracy(part, rule, **several)
    else:
        right = stats.correct(part, rule)
        value = None if right is None else stats.accuracy(right, **options)
    kind = "difference" if rule == DIFFERENCE else "accuracy"
    return None if value is None else percent(value, interval=shown, kind=kind)


def percent(value: Interval | float, *, interval: bool = True, kind: str = "accuracy", unit: str = "%") -> Number:
    """A `Number` of an estimate in percent or points, shown with or without its interval."""
    if not isinstance(value, tuple):
        return Number(float(value), unit=unit, kind=kind)
    return Number(*value, unit, kind, brief=not interval, df=getattr(value, "df", None))


def p_value(number: Number, limit: float = 0.0) -> float:
    """Two-sided p of a number being the limit, from its interval (`stats.p_value`); NaN for one without an interval or width."""
    if not number.high > number.low:
        return float("nan")
    interval = Interval(number.value, number.low, number.high, number.n or 0)
    interval.df = number.df
    return stats.p_value(interval, limit)


def footer(records: pd.DataFrame, *, rules: Sequence[str] = stats.RULES, notes: Sequence[str] = ()) -> str:
    """What a reader must know under a table: n, failed images, counting rules, intervals, remarks on the images, and which
    records it came from."""
    # per method too: expensive ones may see a part of the images
    images = records.groupby([*CONDITION, "method"], sort=False, observed=True)["sample"].nunique()
    n = str(images.min()) if images.min() == images.max() else f"{images.min()} to {images.max()}"
    first = f"n = {n} images" + (" per condition" if len(records[list(CONDITION)].drop_duplicates()) > 1 else "")
    by_method = records.groupby("method", sort=False)["seed"]
    seeds = {str(method): ", ".join(map(str, sorted(set(own)))) for method, own in by_method}
    if len(set(seeds.values())) == 1:
        first += "".join(f", seeds {same}" for same in set(seeds.values()) if "," in same)
    else:  # an online method runs over several orders, others once
        first += "".join(f"; {method}: seeds {own}" for method, own in seeds.items() if "," in own)
    parts = [f"{first}."]
    failed = records.loc[records["prediction"] < 0, "status"].astype(str)
    if len(failed):
        reasons = failed.value_counts().sort_index().sort_values(ascending=False, kind="stable")
        shown = "; ".join(f"{reason} ({count})" for reason, count in reasons.head(3).items())
        more = f"; and {len(reasons) - 3} other reasons" if len(reasons) > 3 else ""
        parts.append(f"{len(failed)} of {len(records)} predictions failed and count as wrong: {shown}{more}.")
    if stats.has_path(records):
        k = sorted({len(path) - 1 for path in records["path"].dropna()})
        parts.append(f"final: after {' or '.join(map(str, k))} iterations, fixed beforehand.")
        if "any" in rules:
            parts.append(
                "any: right after at least one iteration; it uses the labels, so it is an upper bound and never a score."
            )
    parts.append(
        "Accuracy in %; brackets: 95 % intervals over images, and seeds where there are several (Wilson; differences Bonett and Price)."
    )
    if "remark" in records:
        for remark, group in records.dropna(subset="remark").groupby("remark"):
            sets = sorted(set(group["dataset"]))
            of = "" if set(sets) == set(records["dataset"]) else f" of {', '.join(sets)}"
            parts.append(f"Images{of}: {remark}.")
    return " ".join([*parts, *notes, f"Made from {provenance(records)}."])


# ------------------------------------------------------------------------------------------------------- saving and showing


def save(
    table: pd.DataFrame, name: str, folder: Path | str, caption: str, footer: str = "", page: str = ""
) -> dict[str, Path]:
    """Write <name>.csv (cells as read), <name>.md and <name>.tex (with caption and footer) into a folder, <name>.html from `page`.

    Numbers are shown with one decimal, a column with a number too small for that with three significant digits, p-values with
    three decimals. Each file is replaced as a whole, and the same table gives the same bytes. Returns the paths by suffix.

    Raises ValueError for an empty table or a name that is no plain file name; OSError for a folder that cannot be written.
    """
    if table.empty:
        raise ValueError(f"table {name!r} is empty: there is nothing to save")
    if not name or name != Path(name).name:
        raise ValueError(f"expected a plain file name for a table, found {name!r}")
    cells, right = _lay_out(_flat(table))
    texts = {
        "csv": cells.to_csv(index=False, lineterminator="\n"),
        "md": _markdown(cells, right, caption, footer),
        "tex": _latex(cells, right, name, caption, footer),
    }
    texts |= {"html": page + "\n"} if page else {}
    return {suffix: project.atomic_write(Path(folder) / f"{name}.{suffix}", text) for suffix, text in texts.items()}


def _flat(table: pd.DataFrame) -> pd.DataFrame:
    """A copy with the index as columns, where it says something, and single-level text headings."""
    named = any(name is not None for name in table.index.names) or table.index.inferred_type in ("string", "mixed")
    flat = table.copy()
    if isinstance(flat.columns, pd.MultiIndex):
        flat.columns = [", ".join(str(level) for level in column if str(level)) for column in flat.columns]
    if named or isinstance(table.index, pd.MultiIndex):
        flat = flat.reset_index(names=[str(n) if n is not None else "" for n in table.index.names])
    flat.columns = [str(column) for column in flat.columns]
    return flat


def _lay_out(flat: pd.DataFrame) -> tuple[pd.DataFrame, list[bool]]:
    """The cells as text, and for each column whether they are numbers, which align at their right."""
    columns = [flat.iloc[:, place] for place in range(flat.shape[1])]
    cells = {
        place: [numbers.text(cell, small=small) for cell in column]
        for place, column in enumerate(columns)
        for small in [numbers.is_small(column)]
    }
    return pd.DataFrame(cells, index=flat.index).set_axis(flat.columns, axis=1), [_is_numeric(c) for c in columns]


def _is_numeric(column: pd.Series) -> bool:
    """Whether what fills the column is numbers."""
    filled = [cell for cell in column if not numbers.is_empty(cell)]
    return bool(filled) and all(isinstance(c, (Number, Real)) and not isinstance(c, (bool, np.bool_)) for c in filled)


def _markdown(cells: pd.DataFrame, right: list[bool], caption: str, footer: str) -> str:
    escaped = cells.map(_one_line).rename(columns=_one_line)
    align = ["right" if number else "left" for number in right]
    body = escaped.to_markdown(index=False, disable_numparse=True, colalign=align)
    return "\n\n".join(part for part in (f"**{caption}**", body, footer) if part) + "\n"


def _one_line(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


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
    return text.translate(_LATEX)


@dataclass(repr=False)
class Shown:
    """A table as a notebook shows it: caption above, footer below, scrolling sideways when it is wider than the page.

    As plain text it is its caption: a notebook keeps both, and the cells stand in the HTML and in the table's CSV.
    """

    html: str
    text: str

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return self.text


def show(
    table: pd.DataFrame,
    caption: str,
    footer: str = "",
    *,
    bold: Callable[[pd.Series], bool | Collection[str]] | None = None,
    upright: bool = False,
) -> Shown:
    """A table for the end of a notebook cell, as `save` writes it.

    bold: what stands out in a row of the flat table: True for all of it, or the columns of the cells that do.
    upright: a table with more columns than fit a page, and fewer rows, is turned: for reading only.

    The HTML holds no random identifiers, so an executed notebook does not change between runs.
    """
    flat = _flat(table)
    texts, right = _lay_out(flat)
    if upright and len(flat.columns) > WIDEST >= len(flat) and True in right[1:] and not right[0]:
        texts = flat = _turned(texts, right.index(True))
        right = [False] + [True] * (len(flat.columns) - 1)
    headings = list(texts.columns)
    wraps = len(headings) > WIDE  # an interval then stands below its estimate
    cells = texts.map(lambda cell: _html(cell.replace(", ", ",\u00a0") if wraps and "[" in cell else cell))
    cells.columns = pd.RangeIndex(len(headings))  # two columns may have one heading
    if bold:
        marks = [bold(row) for _, row in flat.iterrows()]
        strong = [[name in mark if isinstance(mark, Collection) else bool(mark) for name in headings] for mark in marks]
        cells = cells.where(~np.array(strong), "<strong>" + cells + "</strong>")
    name = "T_" + hashlib.sha256((caption + "\n".join(headings) + cells.to_csv()).encode()).hexdigest()[:8]
    rules = [
        ([""], "border-collapse: collapse; font-size: 0.9em; margin: 0"),
        (["th", "td"], f"padding: 0.25em 0.5em; white-space: {'normal' if wraps else 'nowrap'}"),
        (["th"], "text-align: left; border-bottom: 1.5px solid; vertical-align: bottom; white-space: normal"),
        (["td"], "text-align: left; border-bottom: 1px solid rgba(128, 128, 128, 0.25)"),
    ]
    # a rule per column, by place: a class or an id in each cell would be most of the page
    for place in cells:
        if (characters := max(map(len, texts.iloc[:, place]), default=0)) > LONG_TEXT:
            width = 22 if characters > 3 * LONG_TEXT else 13
            rules.append(([f"td:nth-child({place + 1})"], f"white-space: normal; min-width: {width}em"))
    if numeric := [f"{cell}:nth-child({place + 1})" for place in cells if right[place] for cell in ("th", "td")]:
        rules.append((numeric, "text-align: right; font-variant-numeric: tabular-nums"))
    style = "\n".join(f"{', '.join(f'#{name} {s}'.strip() for s in selectors)} {{{what}}}" for selectors, what in rules)
    with pd.option_context("display.max_colwidth", None):  # else pandas cuts long cells
        page = cells.set_axis([_html(heading) for heading in headings], axis=1).to_html(
            index=False, escape=False, border=0, justify="left", table_id=name
        )
    page = "\n".join(line.strip() for line in page.splitlines())
    note = f'<p style="font-size: 0.85em; opacity: 0.8; margin-top: 0.5em; max-width: 60em">{_html(footer)}</p>'
    whole = (
        '<figure class="apm-table" style="margin: 1em 0; max-width: 100%">'
        f'<figcaption style="margin-bottom: 0.5em"><strong>{_html(caption)}</strong></figcaption>'
        f'<div class="apm-scroll" style="overflow-x: auto"><style>\n{style}\n</style>\n{page}</div>'
        f"{note if footer else ''}</figure>"
    )
    return Shown(whole, f"{caption}: {len(flat)} rows")


def _turned(cells: pd.DataFrame, names: int) -> pd.DataFrame:
    """A table's columns down, its rows across under their joined names, those of its first columns."""
    joined = [numbers.SEPARATOR.join(filter(None, row)) for row in cells.iloc[:, :names].itertuples(index=False)]
    return cells.iloc[:, names:].T.set_axis(joined, axis=1).rename_axis("condition").reset_index()


def _html(text: str) -> str:
    return html.escape(text, quote=False)
