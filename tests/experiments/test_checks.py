"""What the audit checks itself: a network that depends on order, a second encoding, a label that is used would be caught."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import FakeTeacher
from safetensors.torch import save_file

from apm import methods, teachers
from apm.experiments import checks
from apm.model import APMConfig, preset
from apm.ttt import TTTConfig

CONFIG = TTTConfig(APMConfig(grid=(4, 4), patch=4, hidden=(32, 16), width=12), iterations=30, learning_rate=5e-3)


@pytest.mark.parametrize("fold", ["mean", "attention"])
@pytest.mark.parametrize("changes", [{}, {"local_patch": True, "kernels": 3}])
def test_order_subset_and_number_at_a_time_change_no_value(fold: str, changes: dict) -> None:
    config = preset("mini", fold=fold, **changes)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    table = checks.invariances(config, images, orders=10)
    assert table["repeats"].tolist() == [10] * 3
    assert table["holds"].all(), table
    assert (table["difference"] > 0).any()  # sums in another order round differently: the values were computed anew


def test_a_network_that_is_not_order_free_would_be_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, original = [0], checks.APM.columns

    def drifting(self, percept, locations=None, shared=None):
        calls[0] += 1
        return original(self, percept, locations, shared) * (1 + 1e-3 * calls[0])

    monkeypatch.setattr(checks.APM, "columns", drifting)
    table = checks.invariances(APMConfig(grid=(4, 4), hidden=(16,)), torch.randn(1, 3, 16, 16), orders=2)
    assert not table["holds"].any()


class Teacher(FakeTeacher):
    """A teacher whose feature is the first twelve pixels, through the true way to its cached features."""

    precision, feature_dtype = "fp32", "float32"

    def transform(self, images: list) -> torch.Tensor:
        return torch.as_tensor(np.stack(images)).permute(0, 3, 1, 2) / 255

    def encode(self, images: torch.Tensor, **options: object) -> teachers.Encoding:
        return teachers.Encoding(images.flatten(1)[:, :12], None)


def test_the_teacher_encodes_every_image_once_and_a_method_that_asks_more_is_found_out(data) -> None:
    teacher = Teacher()
    apm = methods.APM(teacher, CONFIG)
    for _ in range(2):  # what the first run stored is not there for the second
        assert checks.encodings(apm, data) == 1.0
    assert "encode" not in vars(teacher)  # the counter is gone again

    class Asking(methods.APM):
        def predict(self, dataset, positions, seed):
            for _ in range(5):
                self.teacher.encode(torch.zeros(len(positions), 3, 16, 16))
            return super().predict(dataset, positions, seed)

    assert checks.encodings(Asking(teacher, CONFIG), data) == 6.0


def test_a_teacher_says_whether_it_was_trained_here(tmp_path: Path) -> None:
    teachers.save({"w": torch.zeros(1)}, tmp_path / "own.safetensors", {"data": "d"})
    save_file({"w": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "damaged.safetensors").write_bytes(b"x")
    found = [checks.trained_here("m", tmp_path / f"{name}.safetensors") for name in ("own", "other", "damaged", "none")]
    assert found == [True, False, False, False]
    assert checks.trained_here("mini", None)
    assert not checks.trained_here("ViT-B-16-quickgelu", "openai")


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, []),
        ({"augmentation": "crop-flip"}, ["augmentation crop-flip"]),
        ({"loss_grid": 1.0}, ["a loss on the grid"]),
        ({"loss_rgb": 1.0, "loss_cls": 0.0}, ["a pretext task: a loss on colours", "no loss on the teacher's feature"]),
    ],
)
def test_a_departure_from_one_image_and_one_loss_is_named(data, monkeypatch, changes: dict, found: list) -> None:
    student = replace(CONFIG.student, rgb_head=bool(changes.get("loss_rgb")))
    apm = methods.APM(Teacher(), replace(CONFIG, student=student, **changes))
    if changes:
        monkeypatch.setattr(checks, "labels_matter", lambda *a, **k: False)
    assert checks.departures(apm, data) == found

    class Cheat:
        config = CONFIG

        def predict(self, dataset, positions, seed):
            return methods.Predictions(prediction=dataset.labels[positions])

    if not changes:
        assert checks.departures(Cheat(), data) == ["labels change a prediction"]  # type: ignore[arg-type]


def test_the_column_of_a_blend_is_the_blend_of_the_columns() -> None:
    assert checks.midpoint(preset("mini"), torch.rand(3, 32, 32), torch.rand(3, 32, 32)) < 1e-5


def test_times_are_taken_on_one_thread_for_every_way(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[object, int]] = []

    def row(what: object) -> dict:
        seen.append((what, torch.get_num_threads()))
        return {"least": len(seen)}

    monkeypatch.setattr(checks.compute, "time_columns", lambda c, size, **o: row(size))
    monkeypatch.setattr(checks.compute, "time_tower", lambda name, **o: row(name))
    before = torch.get_num_threads()
    assert checks.timed(preset("released")) == {"one": 1, "seven": 2, "all": 3, "tower": 4}
    assert seen == [(1, 1), (7, 1), (1024, 1), ("ViT-B-16", 1)]
    assert torch.get_num_threads() == before
