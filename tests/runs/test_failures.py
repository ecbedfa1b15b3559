"""A method that fails on every image is no result, however it says so."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apm.data import Dataset
from apm.methods import Method, Predictions
from apm.runs.records import RecordError, run

SAID = "non-finite loss at iteration 2"


@dataclass
class Diverges(Method):
    """Fails on all images but those in `good`."""

    teacher: Any = None
    name: str = "diverges"
    good: tuple[int, ...] = ()

    def settings(self) -> dict[str, Any]:
        return {"good": self.good}

    def predict(self, dataset: Dataset, positions: np.ndarray, seed: int) -> Predictions:
        good = np.isin(positions, self.good)
        return Predictions(np.where(good, 0, -1), status=["ok" if one else SAID for one in good])


@pytest.fixture
def data() -> Dataset:
    images = np.zeros((10, 2, 2, 3), dtype=np.uint8)
    return Dataset("shapes", images, np.arange(10) % 2, ("a", "b"), ("a {}.",), "f" * 64, np.arange(10))


@pytest.mark.parametrize("on_error", ["raise", "record"])
def test_a_method_whose_loss_is_finite_on_no_image_is_not_recorded(data, tmp_path: Path, on_error: str) -> None:
    with pytest.raises(RecordError, match=f"each of the first 4 images.*{SAID}.*points at the method"):
        run(Diverges(), data, folder=tmp_path, shard_size=4, on_error=on_error)
    assert not list(tmp_path.glob("*.parquet"))


def test_a_loss_that_is_not_finite_on_some_images_is_theirs_and_recorded_once(data, tmp_path: Path) -> None:
    first = run(Diverges(good=(1, 6)), data, folder=tmp_path, shard_size=4)
    assert first["status"].tolist() == ["ok" if i in (1, 6) else SAID for i in range(10)]
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.parquet")}
    assert run(Diverges(good=(1, 6)), data, folder=tmp_path, shard_size=4).equals(first)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.parquet")} == written
