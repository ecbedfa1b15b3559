"""The same numbers come out on a processor without AVX-512: a slice of notebook 02, in two processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from apm.analysis import numbers, verify

ROOT = Path(__file__).resolve().parents[1]
AVX2 = {name: "AVX2" for name in ("MKL_ENABLE_INSTRUCTIONS", "DNNL_MAX_CPU_ISA", "MKL_CBWR")} | {
    "ATEN_CPU_CAPABILITY": "avx2"
}

SLICE = """
import sys
import pandas as pd
from apm import methods, teachers
from apm.analysis import tables
from apm.data import corruptions, datasets
from apm.runs import records
from apm.analysis.publish import Publisher

publish = Publisher("mini", "02_corruptions")
teacher = teachers.load("mini")
few = datasets.load("digits-test").subset(40, seed=0)
sets = [few, corruptions.corrupted(few, "gaussian_noise", 5), corruptions.corrupted(few, "contrast", 3)]
apm = methods.APM(teacher, methods.training_config(teacher, {"preset": "mini"}, {"iterations": 25, "learning_rate": 2e-3}))
rows = records.run_all([apm], sets, folder=sys.argv[1], seed=0, teacher_method=methods.ZeroShot(teacher))
publish(tables.wide(rows), "02_slice", "A slice")
losses = rows.groupby("corruption", sort=False)[["first_loss", "last_loss"]].mean()
publish(losses, "02_losses", "Losses", kinds="loss")
"""


def made(folder: Path, more: dict[str, str]) -> tuple[Path, dict[str, str]]:
    environment = {
        **os.environ,
        "APM_RESULTS": str(folder),
        "APM_CACHE": str(folder / "cache"),
        "PYTHONPATH": str(ROOT),
        **more,
    }
    command = [sys.executable, "-c", SLICE, str(folder / "records")]
    subprocess.run(command, env=environment, cwd=ROOT, check=True, capture_output=True)
    machine = json.loads((folder / "mini" / "numbers" / "machine.json").read_text())
    return folder / "mini", machine


def test_nothing_is_outside_its_interval_on_another_processor(tmp_path: Path) -> None:
    (ours, here), (theirs, there) = made(tmp_path / "a", {}), made(tmp_path / "b", AVX2)
    if here["capability"] == there["capability"]:
        pytest.skip(f"this processor has no more than {here['capability']}: there is no other to emulate")
    compared = verify.compare(numbers.read(ours), numbers.read(theirs))
    assert len(compared) >= 20
    assert not compared["status"].isin(verify.FAILING).any(), verify.worst(compared)
