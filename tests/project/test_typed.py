"""Every settings class holds its values to their fields' types; work that needs gradients runs in any mode; `import apm` is light."""

import dataclasses
import subprocess
import sys
from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch

import apm
from apm import methods, model, ttt, typed
from apm.experiments import ablations, compute, field
from apm.methods import REGISTRY, prompt_tuning
from apm.teachers import train

BAD = {int: ("3", True, 20.5, None), float: ("1e-4", True, float("nan"), None), bool: ("no", 1, None), str: (3,)}
SETTINGS = [
    *(model.APMConfig, ttt.TTTConfig, field.FieldConfig, train.TrainConfig, ablations.Ablation),
    *(methods.ZeroShot, methods.APM, ablations.OneSampleStudent, *REGISTRY.values()),
]
NEEDED = {"teacher": None, "config": ttt.TTTConfig(), "part": "p", "name": "n", "student": {}, "training": {}}
NEEDED |= {"network": "mlp", "size": 8}


def made(cls: type, **values: object) -> object:
    needed = [f.name for f in dataclasses.fields(cls) if f.default is f.default_factory is dataclasses.MISSING]
    return cls(**{**{name: NEEDED[name] for name in needed}, **values})


CASES = [
    (cls, name, value)
    for cls in SETTINGS
    for name, hint in typed.hints(cls).items()
    if name in {f.name for f in dataclasses.fields(cls)}
    for value in (*BAD.get(hint, ()), *(("text",) if str(hint).startswith("tuple") else ()))
]


@pytest.mark.parametrize(("cls", "name", "value"), CASES, ids=lambda part: getattr(part, "__name__", repr(part)))
def test_a_value_of_another_type_is_refused_with_class_field_and_value(cls: type, name: str, value: object) -> None:
    assert len(CASES) > 100
    with pytest.raises(ValueError, match=rf"{cls.__name__}: {name}: expected .*found {value!r}"):
        made(cls, **{name: value})


def test_lists_become_tuples_and_whole_numbers_floats() -> None:
    config = model.APMConfig(grid=[4, 4], hidden=[8], width=np.int64(16))
    assert (config.grid, config.hidden, type(config.width)) == ((4, 4), (8,), int)
    assert repr(ttt.TTTConfig(learning_rate=1)) == repr(ttt.TTTConfig(learning_rate=1.0))
    with pytest.raises(ValueError, match=r"grid: expected a list of 2, each a whole number, found \[4\]"):
        model.APMConfig(grid=[4])
    with pytest.raises(ValueError, match=r"student: expected APMConfig, found \{\}"):
        ttt.TTTConfig(student={})
    with pytest.raises(ValueError, match=r"learning_rate.*'1e-4': write it without quotation marks"):
        ttt.TTTConfig(learning_rate="1e-4")


def test_types_written_for_a_checker_only_are_left_alone() -> None:
    assert typed.fitted(3, Mapping | int) == 3
    assert typed.fitted(None, str | None) is None
    with pytest.raises(ValueError, match="expected text or null, found 3"):
        typed.fitted(3, str | None)


def test_a_line_s_value_is_refused_by_its_line() -> None:
    line = {"part": "p", "name": "n", "training": {"iterations": True}}
    with pytest.raises(
        ValueError, match=r"ablation 1 \(n\): training\.iterations: expected a whole number, found True"
    ):
        ablations.parse([line])
    with pytest.raises(ValueError, match=r"ablation 1 \(n\): Ablation: samples: expected a whole number or null"):
        ablations.parse([{"part": "p", "name": "n", "samples": "3"}])


# ------------------------------------------------------------------------------------------------------ the caller's mode

MODES = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}


class Words:
    """Stands for class prompts: features linear in the vectors."""

    def features(self, vectors: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(torch.eye(4) + vectors[:1], dim=-1)


VIEWS = torch.linspace(-1, 1, 24).reshape(6, 4).softmax(-1)
SHOTS, LABELS = torch.eye(4).expand(2, 4, 4).clone(), torch.arange(4)
WORK: dict[str, Callable[[], object]] = {
    "tune": lambda: prompt_tuning.tune(Words(), torch.zeros(1, 4), VIEWS, 10.0, share=0.5, steps=2, rate=0.1).tolist(),
    "learn": lambda: prompt_tuning.learn(
        Words(), torch.ones(1, 4), SHOTS, LABELS, 10.0, epochs=2, rate=0.1, seed=0
    ).tolist(),
    "student_cost": lambda: compute.student_cost(model.APMConfig()),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("work", WORK)
def test_work_that_needs_gradients_is_done_in_any_mode(work: str, mode: str) -> None:
    expected = WORK[work]()
    with MODES[mode]():
        found = WORK[work]()
    assert found == expected


# ---------------------------------------------------------------------------------------------------------- import apm


def test_import_apm_is_light_and_gives_its_names_when_asked() -> None:
    code = "import sys, time; t = time.perf_counter(); import apm; assert time.perf_counter() - t < 1; "
    code += "assert 'torch' not in sys.modules; from apm import adapt, TTTConfig, preset; print(TTTConfig(preset('mini')).iterations)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "20\n"), done.stderr
    assert {"adapt", "TTTConfig", "preset"} <= set(dir(apm)) & set(apm.__all__)
    assert all(getattr(apm, name) is not None for name in apm.__all__)
    with pytest.raises(AttributeError, match=r"no attribute 'adopt'\. Known: .*adapt"):
        apm.adopt  # noqa: B018
