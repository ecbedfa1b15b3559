"""A data folder and a cache of their own, and published sets as small as the trees that a test makes."""

from dataclasses import replace

import pytest

from apm.data import load
from apm.data.published_sets import SETS


@pytest.fixture(scope="session")
def held_out():
    return load("digits-test")


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("APM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.fixture
def expect(monkeypatch):
    """Pretend that a set was published with these counts, so that a tiny tree is whole."""

    def counts(name: str, images: int, classes: int) -> None:
        monkeypatch.setitem(SETS, name, replace(SETS[name], images=images, classes=classes))

    return counts
