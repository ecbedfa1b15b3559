"""A teacher, a student that trains in a moment, and two sets of images."""

import pytest

from apm import teachers
from apm.data.sets import load_sets
from apm.model import APMConfig
from apm.ttt import TTTConfig


@pytest.fixture(scope="session")
def teacher():
    return teachers.load("mini")


@pytest.fixture(scope="session")
def config(teacher):
    student = APMConfig(grid=(2, 2), patch=4, hidden=(16, 8), width=teacher.width, position_width=8)
    return TTTConfig(student, iterations=3, learning_rate=5e-3)


@pytest.fixture(scope="session")
def sets():
    return load_sets(["digits-test", "digits-inverted"], 20)
