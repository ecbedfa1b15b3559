"""Records: nothing is computed twice, nothing is lost, nothing is silently wrong, and no method sees a label."""

import dataclasses
import functools
import json
import multiprocessing
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from apm.data import Dataset
from apm.methods import Method, Predictions
from apm.runs import records, shards
from apm.runs.records import RecordError, plan, provenance, provenance_table, run


def data(n: int = 10, **changes: Any) -> Dataset:
    """Images whose pixels are their number."""
    images, numbers = np.arange(n)[:, None, None, None] * np.ones((1, 2, 2, 3), dtype=np.int64), np.arange(n)
    plain = Dataset("shapes", images, numbers % 4, ("a", "b", "c", "d"), ("a {}.",), "f" * 64, numbers + 100)
    return dataclasses.replace(plain, **changes)


@dataclass
class Fake(Method):
    """Predicts from pixels: the image's number modulo 3; images in `broken` cannot be handled."""

    teacher: Any = None
    name: str = "fake"
    factor: int = 1
    broken: tuple[int, ...] = ()
    error: type[Exception] = ValueError
    split: str = "a"
    asked: list[list[int]] = field(default_factory=list)
    seen_labels: list[np.ndarray] = field(default_factory=list)
    code: tuple[str, ...] = ("runs.records",)  # any module that exists: these tests need no model

    def __post_init__(self) -> None:
        self.modules = self.code

    def settings(self) -> dict[str, Any]:
        return {"factor": self.factor}

    def data_identity(self, dataset: Any) -> str:
        return self.split

    def prepare(self, dataset: Any) -> None:
        self.seen_labels.append(dataset.labels)

    def predict(self, dataset: Any, positions: np.ndarray, seed: int) -> Predictions:
        self.asked.append([int(i) for i in positions])
        self.seen_labels.append(dataset.labels[positions])
        number = dataset.images[positions, 0, 0, 0]
        for i in number:
            if i in self.broken:
                raise self.error(f"truncated file img{i}.png")
        return Predictions(number * self.factor % 3)


@dataclass
class FakeTTT(Fake):
    name: str = "fake TTT"

    def predict(self, dataset: Any, positions: np.ndarray, seed: int) -> Predictions:
        base = super().predict(dataset, positions, seed).prediction
        n, bad = len(base), dataset.indices[positions] == 105
        path = np.stack([np.zeros(n), base, np.where(bad, -1, base)], axis=1).astype(np.int16)
        return Predictions(
            path[:, 2].astype(int), path, np.full(n, 1e-3), np.where(bad, np.nan, 1e-6), path[:, 2],
            ["non-finite loss at iteration 2" if b else "ok" for b in bad],
            {"views": np.full(n, 7), "confidence": np.linspace(0, 1, n)},
        )  # fmt: skip


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.parquet"))


def test_rows_hold_what_the_method_said_and_the_labels(tmp_path):
    frame = run(FakeTTT(), data(), folder=tmp_path, seed=3, shard_size=4, teacher_method=Fake(factor=2))
    assert list(frame["sample"]) == list(range(100, 110))  # the full dataset's positions, in the dataset's order
    assert list(frame["label"]) == [i % 4 for i in range(10)]
    assert list(frame["prediction"]) == [0, 1, 2, 0, 1, -1, 0, 1, 2, 0]
    assert list(frame["teacher_prediction"]) == [2 * i % 3 for i in range(10)]
    assert [list(frame["path"][i]) for i in (0, 1, 5)] == [[0, 0, 0], [0, 1, 1], [0, 2, -1]]
    assert list(frame["status"]) == ["non-finite loss at iteration 2" if i == 5 else "ok" for i in range(10)]
    assert list(frame["last_loss"].isna()) == [i == 5 for i in range(10)]
    assert (frame["milliseconds"] > 0).all()
    assert set(frame["seed"]) == {3}
    assert list(frame["views"]) == [7] * 10
    assert frame["confidence"][3] == 1.0
    assert len(frame["shard"].unique()) == 3  # 4 + 4 + 2 images


def test_columns_of_which_a_method_says_nothing_are_empty_and_it_may_be_its_own_teacher(tmp_path):
    frame = run(Fake(), data(), folder=tmp_path)
    assert frame[["path", "first_loss", "minimum_loss_prediction", "teacher_prediction", "group"]].isna().all(axis=None)
    assert (frame["status"] == "ok").all()
    method = Fake()
    frame = run(method, data(), folder=tmp_path, teacher_method=method)
    assert (frame["teacher_prediction"] == frame["prediction"]).all()
    assert len(method.asked) == 1  # not twice


def test_methods_never_see_labels(tmp_path):
    method, teacher = Fake(), Fake(factor=2)
    run(method, data(), folder=tmp_path, teacher_method=teacher)
    assert len(method.seen_labels) == len(teacher.seen_labels) == 2  # when they prepare, and when they predict
    for seen in method.seen_labels + teacher.seen_labels:
        assert (seen == 0).all()


def test_groups_and_a_remark_of_the_dataset_go_with_its_rows(tmp_path):
    remark = "copies, not the published pixels"
    assert "remark" not in run(Fake(), data(4), folder=tmp_path)
    dataset = data(4, name="copied", remark=remark, groups=("x", "y", "x", "y"))
    for _ in ("made", "read"):
        frame = run(Fake(), dataset, folder=tmp_path)
        assert list(frame["group"]) == ["x", "y", "x", "y"]
        assert set(frame["remark"]) == {remark}
    assert sorted(provenance_table(tmp_path)["remark"]) == ["", remark]


def test_whatever_determines_a_result_makes_another_shard(tmp_path):
    changes = [
        ({}, {}, {}),
        ({"factor": 2}, {}, {}),
        ({"split": "b"}, {}, {}),  # other data of the method's own
        ({"code": ("analysis.stats",)}, {}, {}),
        ({}, {"fingerprint": "e" * 64}, {}),
        ({}, {"templates": ("the {}.",)}, {}),
        ({}, {"indices": np.arange(10)}, {}),
        ({}, {"corruption": "fog", "severity": 5}, {}),
        ({}, {}, {"seed": 1}),
        ({}, {}, {"teacher_method": Fake(factor=5)}),
    ]
    keys = [plan(Fake(**m), data(**d), folder=tmp_path, **options)[0].key for m, d, options in changes]
    assert len(set(keys)) == len(changes)


def test_what_was_computed_is_read_again_also_for_a_subset(tmp_path):
    method = FakeTTT()
    first, second = (run(method, data(), folder=tmp_path, shard_size=4) for _ in range(2))
    pd.testing.assert_frame_equal(first, second)  # milliseconds too: read, not measured again
    run(method, data().subset(range(4)), folder=tmp_path, shard_size=4)
    assert len(method.asked) == 3


@pytest.mark.parametrize("damage", ["cut", "foreign", "of another shard"])
def test_a_damaged_shard_is_named_and_computed_again(tmp_path, damage):
    good = run(Fake(), data(), folder=tmp_path)
    (path,) = files(tmp_path)
    if damage == "foreign":
        pq.write_table(pa.table({"x": [1, 2]}), path)
    elif damage == "of another shard":
        run(Fake(factor=2), data(), folder=tmp_path / "other")
        files(tmp_path / "other")[0].rename(path)
    else:
        path.write_bytes(path.read_bytes()[:2000])
    with pytest.warns(UserWarning, match=f"{path.name}.*computed again"):
        again = run(Fake(), data(), folder=tmp_path)
    pd.testing.assert_frame_equal(again.drop(columns="milliseconds"), good.drop(columns="milliseconds"))


@pytest.mark.filterwarnings("ignore:.*unreadable record shard")
def test_no_flipped_byte_becomes_another_result(tmp_path):
    """A whole file with one flipped bit either reads as it was or is computed again."""
    run(FakeTTT(), data(60), folder=tmp_path)
    (shard,) = plan(FakeTTT(), data(60), folder=tmp_path)
    content, good = shard.path.read_bytes(), pq.read_table(shard.path)
    for place in range(4, len(content), 23):
        shard.path.write_bytes(content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :])
        table = shards.read(shard)
        if table is not None:
            pd.testing.assert_frame_equal(table.to_pandas(), good.to_pandas(), obj=f"byte {place}")


def test_stale_temporary_files_go_and_fresh_ones_of_other_runs_stay(tmp_path):
    places = [tmp_path / name for name in (".a.parquet.12.tmp", ".a.parquet.56.tmp", "notes.txt")]
    for file in places:
        file.write_text("x")
        os.utime(file, (time.time() - (0 if file == places[1] else 10 * records.STALE_SECONDS),) * 2)
    run(Fake(), data(), folder=tmp_path)
    assert [file.exists() for file in places] == [False, True, True]


class Slow(Fake):
    def predict(self, dataset, positions, seed):
        time.sleep(0.05)
        return super().predict(dataset, positions, seed)


@pytest.mark.filterwarnings("error:.*unreadable record shard")  # in the forked runs too
def test_a_killed_run_leaves_whole_shards_which_two_runs_at_once_complete(tmp_path):
    run_slowly = functools.partial(run, Slow(), data(40), folder=tmp_path, shard_size=2)
    killed, *both = (multiprocessing.get_context("fork").Process(target=run_slowly) for _ in range(3))
    killed.start()
    while len(files(tmp_path)) < 3:
        time.sleep(0.01)
    killed.kill()
    killed.join()
    assert len(files(tmp_path)) < 20
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    method = Slow()
    frame = run(method, data(40), folder=tmp_path, shard_size=2)
    assert method.asked == []
    assert list(frame["prediction"]) == [i % 3 for i in range(40)]
    assert len(files(tmp_path)) == 20


def test_a_failing_image_is_recorded_when_asked(tmp_path):
    teacher = Fake(name="teacher", broken=(7, 8))
    frame = run(Fake(broken=(6, 7)), data(), folder=tmp_path, shard_size=5, on_error="record", teacher_method=teacher)
    assert list(frame["prediction"]) == [0, 1, 2, 0, 1, 2, -1, -1, -1, 0]
    assert frame["status"][6] == "error: ValueError: truncated file img6.png"
    assert frame["teacher_prediction"][6] == 0  # the teacher can handle it: its accuracy does not depend on the method
    assert list(np.flatnonzero(frame["teacher_prediction"].isna())) == [7, 8]
    assert list(np.flatnonzero(frame["milliseconds"].isna())) == [6, 7, 8]


def test_a_failing_image_stops_a_run_and_is_named_also_where_it_was_recorded(tmp_path):
    broken, fog = Fake(broken=(6,)), data(corruption="fog", severity=5)
    said = r"image 106 of 'shapes' with fog 5: ValueError: truncated file img6.png"
    with pytest.raises(RecordError, match=said):
        run(broken, fog, folder=tmp_path, shard_size=4)
    assert len(files(tmp_path)) == 1  # the images before it are kept
    run(broken, fog, folder=tmp_path, on_error="record")
    with pytest.raises(RecordError, match=said):
        run(broken, fog, folder=tmp_path)
    assert (run(Fake(), fog, folder=tmp_path)["status"] == "ok").all()  # mended


def test_a_method_that_fails_on_every_image_is_not_recorded(tmp_path):
    with pytest.raises(RecordError, match=r"each of the first 4 images.*points at the method"):
        run(Fake(broken=tuple(range(10))), data(), folder=tmp_path, shard_size=4, on_error="record")
    assert files(tmp_path) == []


@pytest.mark.parametrize("error", [TypeError, OSError, MemoryError])
def test_mistakes_in_code_and_what_the_machine_lacks_stop_a_run_and_are_never_recorded(tmp_path, error):
    with pytest.raises(error, match="img3"):
        run(Fake(broken=(3,), error=error), data(), folder=tmp_path, on_error="record")
    assert files(tmp_path) == []


class Online(Fake):
    """Counts the images it has seen; images in `broken` stop it, number `marked` gets a failed row by itself."""

    online = True
    marked = -1

    def predict(self, dataset, positions, seed):
        super().predict(dataset, positions, seed)
        bad = positions == self.marked
        said = np.where(bad, "error: ValueError: marked", "ok").tolist()
        return Predictions(np.where(bad, -1, np.cumsum(~bad) % 3), status=said)


def test_an_online_method_is_never_asked_for_parts_of_its_images(tmp_path):
    method = Online(broken=(6,))
    for on_error in ("raise", "record"):
        with pytest.raises(RecordError, match=r"img6\.png\. It carries state from image to image"):
            run(method, data(), folder=tmp_path, on_error=on_error, shard_size=2)
    assert method.asked == [list(range(10))] * 2
    assert files(tmp_path) == []


def test_failed_rows_that_a_method_gives_itself_are_recorded_when_asked_and_stop_else(tmp_path, monkeypatch):
    monkeypatch.setattr(Online, "marked", 4)
    with pytest.raises(RecordError, match="failed on image 104 of 'shapes': ValueError: marked"):
        run(Online(), data(), folder=tmp_path)
    frame = run(Online(), data(), folder=tmp_path, on_error="record")
    assert list(frame["prediction"]) == [1, 2, 0, 1, -1, 2, 0, 1, 2, 0]


def test_images_that_fail_only_together_go_on_in_halves_with_a_warning(tmp_path):
    class Greedy(Fake):
        def predict(self, dataset, positions, seed):
            if len(positions) > 4:
                raise RuntimeError("out of memory")
            return super().predict(dataset, positions, seed)

    method = Greedy()
    with pytest.warns(UserWarning, match="8 images .*out of memory"):
        frame = run(method, data(8), folder=tmp_path)
    assert method.asked == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert list(frame["prediction"]) == [i % 3 for i in range(8)]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"prediction": np.zeros(11, dtype=int)}, r"prediction: expected shape \(10,\).*found \(11,\)"),
        ({"prediction": np.zeros(10)}, "expected integers, found float64"),
        ({"prediction": np.full(10, -1)}, "prediction -1 but status 'ok'"),
        ({"status": ["ok"]}, "10 entries of status"),
        ({"status": ["bad"] * 10}, "prediction 0 but status 'bad'"),
        ({"path": np.zeros((10, 1), dtype=int)}, r"path: expected shape \(10, K \+ 1\), K >= 1"),
        ({"path": np.full((10, 3), 40_000)}, "must fit int16"),
        ({"extra": {"views": np.zeros((10, 2))}}, r"views: expected shape \(10,\)"),
        ({"extra": {"label": np.zeros(10)}}, "'label' has the name"),
    ],
)
def test_malformed_predictions_are_refused(tmp_path, monkeypatch, said, message):
    made = Predictions(**{"prediction": np.zeros(10, dtype=int), **said})
    monkeypatch.setattr(Fake, "predict", lambda *_: made)
    with pytest.raises(TypeError, match=message):
        run(Fake(), data(), folder=tmp_path, on_error="record")
    assert files(tmp_path) == []


def test_bad_arguments_say_what_was_expected(tmp_path):
    for changes, options, message in (
        ({}, {"shard_size": 0}, "shard_size must be at least 1"),
        ({}, {"on_error": "skip"}, r"unknown on_error 'skip'.*raise.*record"),
        ({"indices": np.zeros(10, dtype=int)}, {}, "same image appears twice"),
    ):
        with pytest.raises(ValueError, match=message):
            run(Fake(), data(**changes), folder=tmp_path, **options)
    with pytest.raises(ValueError, match="nothing to run"):
        records.run_all([], [data()], folder=tmp_path)
    (tmp_path / "records").write_text("x")
    with pytest.raises(OSError, match="cannot make the folder of the records"):
        run(Fake(), data(), folder=tmp_path / "records")


def test_a_full_disk_keeps_earlier_shards_and_the_next_run_goes_on_from_there(tmp_path, monkeypatch):
    def full(table, where, **options):
        if len(files(tmp_path)) == 2:
            Path(where).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        write(table, where, **options)

    write = pq.write_table
    monkeypatch.setattr(shards.pq, "write_table", full)
    with pytest.raises(OSError, match=r"(?i)space"):
        run(Fake(), data(), folder=tmp_path, shard_size=4)
    assert len(list(tmp_path.iterdir())) == 2  # no half file either
    monkeypatch.undo()
    method = Fake()
    run(method, data(), folder=tmp_path, shard_size=4)
    assert method.asked == [[8, 9]]


def test_provenance_depends_on_content_alone(tmp_path):
    a = run(Fake(), data(), folder=tmp_path / "a", shard_size=4)
    b = run(Fake(), data(), folder=tmp_path / "b", shard_size=4)
    line = provenance(a)
    assert line == provenance(b)  # other time, other milliseconds
    assert line.endswith("(3 shards)")
    assert provenance(a.iloc[:4]).endswith("(1 shard)")
    c = run(Fake(factor=2), data(), folder=tmp_path / "c", shard_size=4)
    assert provenance(c) != line
    with pytest.raises(ValueError, match="column 'shard'"):
        provenance(a.drop(columns="shard"))


def test_provenance_table_says_commit_versions_device_data_seed_and_whose_code(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"no record shards .* in .*nowhere"):
        provenance_table(tmp_path / "nowhere")
    frame = run(Fake(), data(), folder=tmp_path, seed=5, shard_size=4)
    monkeypatch.setattr(shards, "code_version", lambda modules: "other")
    run(Fake(name="newer"), data(), folder=tmp_path)
    table = provenance_table(tmp_path)
    assert list(table["n"]) == [4, 4, 2, 10]
    assert list(table["current"]) == [True, True, True, False]
    assert list(table["shard"][:3]) == list(frame["shard"].unique())
    row = table.iloc[0]
    assert (row["seed"], row["data"], row["device"], json.loads(row["settings"])) == (5, "f" * 64, "cpu", {"factor": 1})
    assert row["numpy"] == np.__version__
    assert row["commit"]
    assert row["time"].endswith("Z")
    files(tmp_path)[0].write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="not a whole record shard"):
        provenance_table(tmp_path)
