"""A small CLIP, a cache of its own for every test, nothing kept from one test to the next."""

import pytest
from colours import nothing_kept  # noqa: F401

from apm import teachers
from apm.data import Dataset, load
from apm.methods import prompt_tuning


@pytest.fixture(scope="session")
def clip() -> teachers.Teacher:
    return teachers.load("mini")


@pytest.fixture
def digits() -> Dataset:
    return load("digits-test").subset(range(6))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("APM_CACHE", str(tmp_path / "cache"))
    prompt_tuning._load.cache_clear()
