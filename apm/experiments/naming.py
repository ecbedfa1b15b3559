"""What a teacher's text tower can name: does zero-shot classification fail because the image is not seen, or not named?

A student cannot name what its teacher's text tower cannot. A linear probe on the frozen image features, fitted with labels, says what the
image tower tells apart. An accuracy above chance is no proof of naming, so the names are also dealt to the classes at random: how many such
namings would have scored as well?
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import permutations
from typing import Any

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from apm import teachers
from apm.analysis import compare, stats
from apm.analysis.numbers import Number
from apm.data import Dataset
from apm.experiments import judge

FOLDS = 5
PROBE = "probe of image features (uses labels)"
PROBE_NOTE = (
    f"The probe is fitted on {FOLDS - 1} of {FOLDS} parts of n images, the teacher on its whole training set: where the probe is lower, it does "
    "not say what the features hold at most. It leaves out images that cannot be read"
    f", and its cell is empty where a class has fewer than {FOLDS}."
)


def unread_words(teacher: Any, texts: Sequence[str], captions: Iterable[str]) -> tuple[str, ...]:
    """The words of texts with a token that no caption has, each once, in order: the tower's idea of them is untrained."""
    known = np.unique(teacher.tokenizer(list(captions)))
    words = dict.fromkeys(re.findall(r"\w+", " ".join(texts)))
    return tuple(word for word in words if not np.isin(teacher.tokenizer([word]), known).all())


@judge.one_thread
def probe(features: np.ndarray, labels: np.ndarray) -> np.ndarray | None:
    """Which images (n,) a linear probe on features (n, D) gets right, each predicted by one not fitted on it. None for a single class and
    where one has fewer images than folds."""
    values, counts = np.unique(labels, return_counts=True)
    if len(values) < 2 or counts.min() < FOLDS:
        return None
    split = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    return cross_val_predict(judge.probe(), np.asarray(features, dtype=np.float64), labels, cv=split) == labels


def random_namings(labels: np.ndarray, prediction: np.ndarray, classes: int) -> float:
    """Share in percent of all ways to deal the names to the classes that score at least what the true one scores: small where names fit.

    labels, prediction: (n,), -1 for a failed one. All ways up to seven classes, else the true one and 10,000 of them.
    """
    confusion = np.zeros((classes, classes), dtype=np.int64)
    named = prediction >= 0
    np.add.at(confusion, (labels[named], prediction[named]), 1)
    if classes <= 7:
        ways = np.array(list(permutations(range(classes))))  # (C!, C)
    else:
        rng = np.random.default_rng(0)
        ways = np.stack([np.arange(classes), *(rng.permutation(classes) for _ in range(10_000))])
    scores = confusion[np.arange(classes), ways].sum(axis=1)  # (ways,)
    return 100.0 * float((scores >= np.trace(confusion)).mean())


def naming(
    teacher: Any, sets: Sequence[Dataset], records: pd.DataFrame, captions: Iterable[str] | None = None
) -> pd.DataFrame:
    """One row per set: chance, zero-shot accuracy of the teacher, of the probe, and how the names fare in the text tower.

    records: of one method. captions: those that taught the teacher, None for unknown.
    """
    captions = None if captions is None else list(captions)
    rows = {}
    for dataset in sets:
        own = records[records["dataset"] == dataset.name]
        features = np.array(teachers.features(teacher, dataset))
        readable = np.isfinite(features).all(axis=1)
        probed = probe(features[readable], dataset.labels[readable])
        named, final = (stats.accuracy(stats.correct(own, rule)) for rule in ("teacher", "final"))  # type: ignore[arg-type]
        chance = compare.chance(dataset)
        answers = own.drop_duplicates("sample")
        said = answers["teacher_prediction"].fillna(-1).to_numpy(dtype=np.int64)
        by_chance = random_namings(answers["label"].to_numpy(), said, len(dataset.classnames))
        text = teacher.text_features(dataset.classnames, dataset.templates).cpu().numpy()
        closest = float((text @ text.T)[~np.eye(len(text), dtype=bool)].max())  # near 1: both names say the same
        rows[dataset.name] = {
            "n": len(dataset),
            "chance": Number(chance),
            "teacher (zero-shot)": named,
            "above chance": compare.above_chance(named.low, named.high, chance),
            "random namings as good": Number(by_chance, kind="measure"),
            PROBE: None if probed is None else stats.accuracy(probed),
            "APM, final": final,
            "largest cosine of two names": Number(closest, unit="", kind="measure"),
        }
        if captions is not None:
            unread = unread_words(teacher, dataset.classnames, captions)
            rows[dataset.name]["words not in the teacher's captions"] = ", ".join(unread) or "none"
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("set")
