"""A data folder and a cache of their own, and published sets as small as the trees that a test makes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from apm.data.published_sets import SETS


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("APM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.fixture
def expect(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int, int], None]:
    """Pretend that a set was published with these counts, so that a tiny tree is whole."""

    def counts(name: str, images: int, classes: int) -> None:
        monkeypatch.setitem(SETS, name, replace(SETS[name], images=images, classes=classes))

    return counts
