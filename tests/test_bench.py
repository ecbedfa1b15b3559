"""The bench: what another process disturbed is measured again or marked, and factors divide like by like."""

from collections.abc import Callable

import bench
import pytest
import torch

from apm import model


def clock(*times: float) -> Callable[[], float]:
    return iter(times).__next__


def test_a_disturbed_round_is_measured_again_and_an_unsteady_variant_marked():
    steady, once, never = clock(9, 1, 1.1, 1), clock(9, 1, 5, 1, 1.05), clock(9, 1, 5, 1, *[5] * 6)
    times, marks = bench.in_turn({"steady": steady, "once": once, "never": never}, repeats=3)
    assert times["steady"] == [1.0, 1.1, 1.0]
    assert times["once"] == [1.0, 1.05, 1.0]
    assert marks == {"never": "unsteady: 1 to 5 s"}


def test_factors_are_within_one_precision_and_split_into_what_makes_them(monkeypatch):
    small = {"grid": (4, 4), "patch": 4, "hidden": (16, 8), "width": 8, "heads": 2}
    monkeypatch.setattr(bench, "preset", lambda name, **changes: model.preset(name, **small, **changes))
    monkeypatch.setattr(bench, "matrix_peak", lambda *args, **options: 100.0)
    monkeypatch.setattr(bench, "adam_bandwidth", lambda *args, **options: 10.0)
    monkeypatch.setattr(bench, "teacher_pass", lambda device, precision, rows: lambda: float(rows))
    table = bench.measure_paper(1, torch.device("cpu")).set_index(["variant", "precision"])
    seconds = table["s per image and iteration"]
    released = next(name for name, _ in table.index if name.startswith("released"))
    for precision in ("float32", "bfloat16"):
        first, ours = seconds[released, precision], seconds["apm", precision]
        line = table.loc[("apm", precision)]
        assert line["times faster"] == pytest.approx(first / ours)
        factors = line[["of it repeats", "of it factorised form", "of it efficiency"]]
        assert factors.astype(float).prod() == pytest.approx(first / ours)
        assert line["of it repeats"] == pytest.approx(8)
        assert line["with its teacher"] == pytest.approx((first + 8) / (ours + 1 / bench.RUN))
        assert table.loc[(released, precision), "with its teacher"] == 1
