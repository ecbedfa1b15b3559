"""What a teacher's text tower can name: does zero-shot classification fail because the image is not seen, or not named?

A student of test-time training is drawn to the teacher's image feature and classified with the teacher's text features. So it
cannot name what the text tower cannot. Two measurements tell where a label space fails:

- the accuracy of a linear probe on the frozen image features, fitted with labels: what the image tower tells apart;
- which words of the class names never occurred in the captions that taught the teacher, where those are known.

An accuracy above chance is no proof of naming: directions that mean nothing fall somewhere too. So the names are also dealt to the
classes at random: how many such namings would have scored as well?
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from itertools import permutations
from typing import Any

import numpy as np
import pandas as pd

from apm import benchmark, stats, tables, teachers
from apm.datasets import Dataset

FOLDS = 5


def unread_words(teacher: Any, texts: Sequence[str], captions: Iterable[str]) -> tuple[str, ...]:
    """The words of texts with a token that no caption has, each once, in order: the tower's idea of them is untrained."""
    known = set(_tokens(teacher, captions))
    words = dict.fromkeys(word for text in texts for word in re.findall(r"\w+", text))
    return tuple(word for word in words if not _tokens(teacher, [word]) <= known)


def _tokens(teacher: Any, texts: Iterable[str]) -> set[int]:
    return {int(token) for token in np.unique(np.asarray(teacher.tokenizer(list(texts))))}


def probe(features: np.ndarray, labels: np.ndarray, *, folds: int = FOLDS) -> np.ndarray:
    """Which images (n,) a linear probe gets right, each predicted by one that was not fitted on it.

    features: (n, D) of the frozen teacher, finite; standardised, then logistic regression, stratified folds with a fixed seed. It
    uses the labels: it says what the features hold, and is no method. Raises ValueError for a class with fewer images than folds.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    labels = np.asarray(labels)
    values, counts = np.unique(labels, return_counts=True)
    if len(values) < 2 or counts.min() < folds:
        raise ValueError(
            f"a probe with {folds} folds needs two classes or more with {folds} images each, found {len(values)} classes, the "
            f"smallest with {counts.min()} images: raise the number of images"
        )
    split = StratifiedKFold(folds, shuffle=True, random_state=0)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    with threadpool_limits(1):  # one thread: the same rounding on every number of cores
        predicted = cross_val_predict(model, np.asarray(features, dtype=np.float64), labels, cv=split)
    return predicted == labels


def closest_names(teacher: Any, dataset: Dataset) -> float:
    """The largest cosine between the text features of two classes: near 1, the tower says the same for both."""
    text = teacher.text_features(dataset.classnames, dataset.templates).cpu().numpy()
    cosines = text @ text.T
    return float(cosines[~np.eye(len(text), dtype=bool)].max())


def random_namings(
    labels: np.ndarray, prediction: np.ndarray, classes: int, *, draws: int = 10_000, seed: int = 0
) -> float:
    """Share in percent of all ways to deal the names to the classes that score at least what the true one scores.

    labels, prediction: (n,) class indices, -1 for a failed prediction. Small where names fit the images; never below 50 with
    two classes, where there is only one other way. All ways up to seven classes, else `draws` of them and the true one.
    Raises ValueError for arrays of different shapes or labels outside 0..classes-1.
    """
    labels, prediction = np.asarray(labels), np.asarray(prediction)
    if labels.shape != prediction.shape or labels.ndim != 1 or not len(labels):
        raise ValueError(
            f"expected labels and predictions of the same images, found {labels.shape} and {prediction.shape}"
        )
    if labels.min() < 0 or max(labels.max(), prediction.max()) >= classes:
        raise ValueError(f"expected classes in 0..{classes - 1}, found labels {labels.min()} to {labels.max()}")
    confusion = np.zeros((classes, classes), dtype=np.int64)
    named = prediction >= 0
    np.add.at(confusion, (labels[named], prediction[named]), 1)
    if math.factorial(min(classes, 8)) <= 5040:
        ways = np.array(list(permutations(range(classes))))  # (C!, C)
    else:
        rng = np.random.default_rng(seed)
        ways = np.stack([np.arange(classes), *(rng.permutation(classes) for _ in range(draws))])
    scores = confusion[np.arange(classes), ways].sum(axis=1)  # (ways,)
    return 100.0 * float((scores >= np.trace(confusion)).mean())


def verdict(low: float, high: float, chance: float) -> str:
    """Whether an accuracy's interval lies above, around or below a chance level (all in percent)."""
    return "yes" if low > chance else "no: below chance" if high < chance else "no: as by chance"


def naming(
    teacher: Any, sets: Sequence[Dataset], records: pd.DataFrame, captions: Iterable[str] | None = None
) -> pd.DataFrame:
    """One row per set: chance, zero-shot accuracy of the teacher, of the probe, and how the names fare in the text tower.

    records: of one method on these sets, with the teacher's predictions. captions: those that taught the teacher; None where
    unknown, and then the column `unread words` is missing. Accuracies in percent with _low and _high (95 %, Wilson). An image that
    could not be read has no feature: the probe leaves it out, and the column `unread images` counts them (`unread_note`).
    Raises ValueError for sets without records.
    """
    summary = tables.summary(records, by=("dataset", "method")).set_index("dataset")
    rows = []
    for dataset in sets:
        if dataset.name not in summary.index:
            raise ValueError(f"no records of {dataset.name}: run the method on it first")
        found = summary.loc[dataset.name]
        features = np.array(teachers.features(teacher, dataset))
        readable = np.isfinite(features).all(axis=1)
        seen = stats.accuracy(probe(features[readable], dataset.labels[readable]))
        chance = benchmark.chance(dataset)
        row: dict[str, Any] = {
            "set": dataset.name,
            "n": len(dataset),
            "unread images": int((~readable).sum()),
            "chance": chance,
            **{f"{key}{end}": found[f"{key}{end}"] for key in ("teacher", "final") for end in ("", "_low", "_high")},
            **{"probe": seen.value, "probe_low": seen.low, "probe_high": seen.high},
            "above chance": verdict(found["teacher_low"], found["teacher_high"], chance),
            "random namings": random_namings(*_answers(records, dataset.name), len(dataset.classnames)),
            "closest names": closest_names(teacher, dataset),
        }
        if captions is not None:
            captions = list(captions)
            row["unread words"] = ", ".join(unread_words(teacher, dataset.classnames, captions)) or "none"
        rows.append(row)
    return pd.DataFrame(rows)


def unread_note(table: pd.DataFrame) -> str:
    """A footnote that counts the images that the probes of `naming` leave out; "" where there are none."""
    missing = table[table["unread images"] > 0]
    if missing.empty:
        return ""
    counts = ", ".join(f"{row['unread images']} of {row['set']}" for _, row in missing.iterrows())
    return f"The probe leaves out images that could not be read: {counts}."


def reading(table: pd.DataFrame) -> list[str]:
    """What `naming` shows, in sentences computed from its rows."""
    above = table["above chance"] == "yes"
    sentences = [f"Zero-shot accuracy is above chance on {above.sum()} of {len(table)} label spaces."]
    if "unread words" in table:
        read = table["unread words"] == "none"
        sentences.append(
            f"All words were in the teacher's captions for {read.sum()} of them; {(above & read).sum()} of these are above chance, and "
            f"{(above & ~read).sum()} of the other {(~read).sum()}."
        )
    under = table[table["probe"] < table["teacher"]]
    if len(under):
        sentences.append(
            f"The probe is below zero-shot on {len(under)} ({', '.join(under['set'])}): it is fitted on few images, {FOLDS - 1} of "
            f"{FOLDS} parts of n, and the teacher on its whole training set. There it does not say what the features hold at most."
        )
    far = (table["final"] - table["teacher"]).abs().max()
    return [*sentences, f"Largest distance of APM, final, from the teacher: {far:.1f} points."]


def _answers(records: pd.DataFrame, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels and the teacher's predictions, one per image."""
    rows = records[records["dataset"] == name].drop_duplicates("sample")
    return rows["label"].to_numpy(), rows["teacher_prediction"].fillna(-1).to_numpy(dtype=np.int64)


def compact(table: pd.DataFrame) -> pd.DataFrame:
    """`naming` for reading: each accuracy with its interval in one cell."""

    def cells(key: str) -> list[str]:
        return [
            tables.percent(cell) for cell in zip(table[key], table[f"{key}_low"], table[f"{key}_high"], strict=True)
        ]

    shown = {
        "set": table["set"],
        "n": table["n"],
        "chance": table["chance"],
        "teacher (zero-shot)": cells("teacher"),
        "above chance": table["above chance"],
        "random namings as good (%)": [f"{share:.{2 if share < 1 else 1}f}" for share in table["random namings"]],
        "probe of image features (uses labels)": cells("probe"),
        "largest cosine of two names": [f"{value:.2f}" for value in table["closest names"]],
    }
    rest = {"words not in the teacher's captions": table["unread words"]} if "unread words" in table else {}
    return pd.DataFrame({**shown, **rest})
