"""The same numbers come out on a processor without AVX-512: a slice of notebook 02, and a field, each in two processes."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

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
from apm import data as datasets
from apm.data import corruptions
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

FIELD = """
import sys
import torch
from apm import methods, teachers
from apm import data as datasets
from apm.experiments import field, material
from safetensors.torch import save_file

teacher = teachers.load("mini", precision="fp64")
student = methods.training_config(teacher, {"hidden": [64, 32], "rgb_hidden": [16]}).student
config = field.FieldConfig(student, epochs=8, precision="float64")
data = material.prepare(teacher, datasets.load("digits-train").subset(256, seed=0), config.student)
trained = field.train(data, config)
seen = field.look(trained, data.batch(range(64)).images)
found = {"tokens": torch.tensor(data.tokens), "features": seen.features, "colours": seen.colours}
found |= dict(trained.model.weights.items())
save_file({name: value.contiguous() for name, value in found.items()}, sys.argv[1])
"""


def made(code: str, folder: Path) -> tuple[Path, Path]:
    """What code made, given the place to make it at, as this processor rounds and with AVX2 alone, in processes of their own."""
    said, code = [], f"{code}\nimport torch\nprint(torch.backends.cpu.get_cpu_capability())"
    for name, more in (("own", {}), ("avx2", AVX2)):
        own = {"APM_RESULTS": str(folder / name), "APM_CACHE": str(folder / name / "cache")}
        environment = {**os.environ, **own, **more, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
        (folder / name).mkdir()
        command = [sys.executable, "-c", code, str(folder / name / "made")]
        said.append(subprocess.run(command, env=environment, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)
    capabilities = {one.split()[-1].decode() for one in said}
    if len(capabilities) == 1:
        pytest.skip(f"this processor has no more than {capabilities}: there is no other to emulate")
    return folder / "own", folder / "avx2"


def test_nothing_is_outside_its_interval_on_another_processor(tmp_path):
    compared = verify.compare(*(numbers.read(folder / "mini") for folder in made(SLICE, tmp_path)))
    assert len(compared) >= 20
    assert not compared["status"].isin(verify.FAILING).any(), verify.worst(compared)


def test_a_field_in_float64_is_the_same_on_another_processor(tmp_path):
    ours, theirs = (load_file(folder / "made") for folder in made(FIELD, tmp_path))
    np.testing.assert_array_equal(ours.pop("tokens"), theirs.pop("tokens"))
    for name, values in ours.items():  # in float32, weights differ by some 1e-2 after as many updates
        close = 1e-7 if values.dtype == np.float32 else 1e-10
        np.testing.assert_allclose(values, theirs[name], atol=close, err_msg=name)
