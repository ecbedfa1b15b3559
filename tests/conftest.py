"""Every test works in its own results folder and may share the cache of trained teachers; nothing reaches the network."""

import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
sys.path.insert(0, str(Path(__file__).parent))  # tests/plain.py, the oracle

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def own_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """No test writes into the repository's results."""
    monkeypatch.setenv("APM_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("APM_RUN", "1")  # as in a run of `apm.project.run`
