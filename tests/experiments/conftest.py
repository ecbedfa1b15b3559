"""A dataset of random images, and the tables that were accepted for profile mini."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from apm.analysis import numbers
from apm.data import Dataset


@pytest.fixture(scope="session")
def data() -> Dataset:
    images = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
    return Dataset("toy", images, np.arange(12) % 3, ("ant", "bee", "cow"), ("a {}",), "f" * 64, np.arange(12))


@pytest.fixture(scope="session")
def accepted() -> pd.DataFrame:
    """The numbers of data/expected/mini.csv."""
    path = Path(__file__).resolve().parents[2] / "data" / "expected" / "mini.csv"
    return numbers.parse(path.read_text().partition("\n")[2], str(path))


@pytest.fixture
def same_as_accepted(accepted: pd.DataFrame) -> Callable[..., None]:
    """Compares tables of exact numbers, name -> frame, with the accepted ones of their names."""

    def compare(tables: dict[str, pd.DataFrame], **options: str) -> None:
        found = pd.concat([numbers.tidy(frame, name, **options) for name, frame in tables.items()])
        rows, place = accepted[accepted["table"].isin(tables)], ["table", "row", "column"]
        both = found.merge(rows, "outer", place, suffixes=("", " accepted"), indicator=True)
        assert set(both["_merge"]) == {"both"}
        np.testing.assert_allclose(both["value"], both["value accepted"], rtol=1e-6, atol=1e-9)
        assert both["text"].fillna("").equals(both["text accepted"].fillna(""))

    return compare
