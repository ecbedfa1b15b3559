"""Prompts that were learned and kept, damaged, are learned again."""

from pathlib import Path

import numpy as np
import pytest
from fakes import damaged

from apm import methods


def test_damaged_vectors_are_learned_again(clip, digits, tmp_path: Path) -> None:
    def confidence() -> np.ndarray:
        method = methods.create("coop", clip, train="digits-train", shots=1, epochs=1)
        return method.predict(digits, np.arange(4), 0).extra["confidence"]

    expected = confidence()
    (path,) = (tmp_path / "cache" / "prompts").glob("*.safetensors")
    whole = path.read_bytes()
    path.write_bytes(damaged(whole, "flipped"))
    with pytest.warns(UserWarning, match="making it again"):
        np.testing.assert_array_equal(confidence(), expected)
    assert path.read_bytes() == whole
