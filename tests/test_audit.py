"""The audit: numbers are found again in tables, verdicts follow their rules, published sums are recomputed, orders do not matter."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from open_clip.transform import PreprocessCfg
from safetensors.torch import save_file
from test_methods import CONFIG, FakeTeacher

from apm import audit, islands, methods, published, stats, tables, teachers
from apm.datasets import Dataset, UnreadableImage
from apm.model import APMConfig, preset
from apm.teachers import Encoding


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    frame = pd.DataFrame(
        {"method": ["APM", "APM", "teacher"], "rule": ["final", "step", ""], "Mean": ["70.1 [60.0, 80.2]", "-0.3 [-1.0, 0.4]", "n/a"]}
    )  # fmt: skip
    tables.save(frame, "02_x", tmp_path / "tables", "Caption")
    return tmp_path


def test_a_cell_is_found_by_its_row_and_column_with_its_interval(folder: Path) -> None:
    cell = audit.cell(folder, "02_x", {"method": "APM", "rule": "step"}, "Mean")
    assert (cell.value, cell.low, cell.high, cell.source) == (-0.3, -1.0, 0.4, "02_x.csv")
    assert cell.rounding == 0.05
    assert cell.text() == "-0.3 [-1.0, 0.4]"


@pytest.mark.parametrize(
    ("where", "column", "message"),
    [
        ({"method": "APM"}, "Mean", r"expected one row with \{'method': 'APM'\}, found 2"),
        ({"method": "TPT"}, "Mean", r"found 0. Rows there: \[\{'method': 'APM'\}"),
        ({"method": "APM", "rule": "step"}, "mean", r"02_x.csv: unknown column 'mean'.*Did you mean 'Mean'"),
        ({"method": "teacher"}, "Mean", "expected a number, found 'n/a'"),
    ],
)
def test_a_cell_that_is_not_there_is_an_error_that_says_what_is(
    folder: Path, where: dict, column: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        audit.cell(folder, "02_x", where, column)


def test_a_missing_table_names_the_notebook_to_run(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"run the notebook that begins with 05_ first"):
        audit.read(folder, "05_ablations")


@pytest.mark.parametrize(
    ("low", "high", "up", "within"),
    [
        (0.1, 2.0, audit.HOLDS, audit.FAILS),
        (-1.0, 1.0, audit.FAILS, audit.HOLDS),
        (-2.0, -0.1, audit.FAILS, audit.FAILS),
    ],
)
def test_a_verdict_follows_from_the_interval(low: float, high: float, up: str, within: str) -> None:
    cell = audit.Cell((low + high) / 2, low, high, "t.csv")
    assert audit.above("c", "n", cell).verdict == up
    assert audit.around("c", "n", cell, 0.0).verdict == within
    exact = audit.Cell(1.0, float("nan"), float("nan"), "t.csv")
    assert audit.above("c", "n", exact).verdict == audit.HOLDS
    assert audit.above("c", "n", exact, 1.0).verdict == audit.FAILS


def test_digits_that_a_table_rounds_away_decide_nothing() -> None:
    # printed 0.0: the end of the interval may be 0.04 or -0.04
    assert audit.above("c", "n", audit.Cell(0.3, 0.0, 0.9, "t", 0.05)).verdict == audit.UNTESTED
    assert audit.above("c", "n", audit.Cell(0.3, 0.0, 0.9, "t")).verdict == audit.FAILS
    assert audit.above("c", "n", audit.Cell(0.3, 0.1, 0.9, "t", 0.05)).verdict == audit.HOLDS
    assert audit.within("c", "n", audit.Cell(-0.6, -1.0, 0.0, "t", 0.05)).verdict == audit.UNTESTED
    assert audit.within("c", "n", audit.Cell(-0.6, -0.9, 0.0, "t", 0.05)).verdict == audit.HOLDS


@pytest.mark.parametrize(
    ("cell", "expected", "verdict"),
    [
        (audit.Cell(3.0, 1.0, 5.0, "t"), 0.3, audit.HOLDS),
        (audit.Cell(0.0, -1.0, 1.0, "t"), 1.6, audit.FAILS),  # a step of 1.6 would show
        (audit.Cell(0.0, -2.0, 2.0, "t"), 1.6, audit.UNTESTED),  # it would not
        (audit.Cell(-3.0, -5.0, -1.0, "t"), -0.3, audit.HOLDS),
        (audit.Cell(3.0, 1.0, 5.0, "t"), -3.2, audit.FAILS),
        (audit.Cell(0.0, 0.0, 0.0, "t", n=48), 1.9, audit.UNTESTED),  # 3 of 48 are 6.25 points
        (audit.Cell(0.0, 0.0, 0.0, "t", n=48), -21.9, audit.FAILS),
        (audit.Cell(0.0, 0.0, 0.0, "t", n=1000), 1.9, audit.FAILS),
        (audit.Cell(4.7, 0.5, 9.9, "t"), -1.0, audit.FAILS),  # wide, but on the other side
        (audit.Cell(-2.0, -3.5, -0.5, "t"), 1.0, audit.FAILS),
        (audit.Cell(1.0, -0.2, 2.2, "t"), 2.0, audit.UNTESTED),  # narrow, but the step is inside
        (audit.Cell(-1.0, -2.2, 0.2, "t"), -2.0, audit.UNTESTED),
        (audit.Cell(0.5, -0.5, 1.95, "t", rounding=0.05), 2.0, audit.UNTESTED),  # the printed 1.95 may be 2.0
    ],
)
def test_a_step_that_the_images_cannot_show_is_not_refuted(cell: audit.Cell, expected: float, verdict: str) -> None:
    assert audit.step("c", "n", cell, expected).verdict == verdict


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(-0.9, 0.5, audit.HOLDS), (-3.0, -1.1, audit.FAILS), (-3.0, 2.0, audit.UNTESTED)],
)
def test_competitive_has_three_outcomes(low: float, high: float, verdict: str) -> None:
    assert audit.within("c", "n", audit.Cell((low + high) / 2, low, high, "t")).verdict == verdict


def test_a_check_can_hold_fail_or_be_impossible_here() -> None:
    verdicts = [audit.decided("c", "n", "f", value, "s").verdict for value in (True, False, None)]
    assert verdicts == [audit.HOLDS, audit.FAILS, audit.UNTESTED]
    frame = audit.table([audit.decided("c", "n", "f", True, "s")])
    assert frame.to_dict("records") == [
        {"claim": "c", "holds when": "n", "figure": "f", "verdict": "holds", "from": "s"}
    ]
    assert list(frame.columns)[:2] == ["claim", "verdict"]
    assert audit.counts(frame) == "1 hold, 0 do not hold, 0 cannot be tested in this profile"
    with pytest.raises(ValueError, match="no claims"):
        audit.table([])


@pytest.mark.parametrize("fold", ["mean", "attention"])
@pytest.mark.parametrize("changes", [{}, {"local_patch": True, "kernels": 3}])
def test_order_subset_and_number_at_a_time_change_no_value(fold: str, changes: dict) -> None:
    config = preset("mini", fold=fold, **changes)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    table = audit.invariances(config, images, orders=10)
    assert len(table) == 3
    assert (table["repeats"] == 10).all()
    assert table["holds"].all(), table
    assert (table["difference"] > 0).any()  # sums in another order round differently: the values were computed anew


def test_a_network_that_is_not_order_free_would_be_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = [0]

    original = audit.APM.columns

    def drifting(self, percept, locations=None, shared=None):
        calls[0] += 1
        return original(self, percept, locations, shared) * (1 + 1e-3 * calls[0])

    monkeypatch.setattr(audit.APM, "columns", drifting)
    table = audit.invariances(APMConfig(grid=(4, 4), hidden=(16,)), torch.randn(1, 3, 16, 16), orders=2)
    assert not table["holds"].any()


@pytest.fixture
def teacher(monkeypatch: pytest.MonkeyPatch) -> FakeTeacher:
    monkeypatch.setattr(teachers, "features", lambda teacher, dataset: teacher.features(dataset))
    own = FakeTeacher()
    own.transform = lambda images: torch.as_tensor(np.stack(images)).permute(0, 3, 1, 2) / 255
    return own


@pytest.fixture
def data() -> Dataset:
    images = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
    return Dataset("toy", images, np.arange(12) % 3, ("ant", "bee", "cow"), ("a {}",), "f" * 64, np.arange(12))


class Counted(FakeTeacher):
    """A teacher with the true way to its cached features."""

    preprocess_config = PreprocessCfg(size=16)
    precision, feature_dtype = "fp32", "float32"

    def encode(self, images: torch.Tensor, **options: object) -> Encoding:
        return Encoding(images.flatten(1)[:, :12], None)


def test_the_teacher_encodes_every_image_once_and_a_method_that_asks_more_is_found_out(data: Dataset) -> None:
    teacher = Counted()
    apm = methods.APM(teacher, CONFIG)
    for _ in range(2):  # what the first run stored is not there for the second
        assert audit.encodings(apm, data) == 1.0
    assert "encode" not in vars(teacher)  # the counter is gone again

    class Asking(methods.APM):
        def predict(self, dataset, positions, seed):
            for _ in range(5):
                self.teacher.encode(torch.zeros(len(positions), 3, 16, 16))
            return super().predict(dataset, positions, seed)

    assert audit.encodings(Asking(teacher, CONFIG), data) == 6.0


def test_a_teacher_says_whether_it_was_trained_here(tmp_path: Path) -> None:
    teachers.save({"w": torch.zeros(1)}, tmp_path / "own.safetensors", {"data": "d"})
    save_file({"w": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "damaged.safetensors").write_bytes(b"x")
    found = [audit.trained_here("m", tmp_path / f"{name}.safetensors") for name in ("own", "other", "damaged", "none")]
    assert found == [True, False, False, False]
    assert audit.trained_here("mini", None)
    assert not audit.trained_here("ViT-B-16-quickgelu", "openai")


class Torn:
    """Images of which some cannot be read."""

    def __init__(self, images: np.ndarray, broken: set[int]) -> None:
        self.images, self.broken = images, broken

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> np.ndarray:
        if i in self.broken:
            raise UnreadableImage(Path(f"{i}.jpg"), "truncated")
        return self.images[i]


def test_an_image_that_cannot_be_read_stops_the_audit_or_counts_as_wrong(data: Dataset, monkeypatch) -> None:
    teacher = Counted()
    torn = replace(data, images=Torn(np.asarray(data.images), {3, 7}))
    with pytest.raises(UnreadableImage, match=r"3\.jpg"):
        audit.untrained(teacher, torn, CONFIG)
    whole = audit.untrained(teacher, data, CONFIG)
    good = np.setdiff1d(np.arange(12), [3, 7])
    said = methods.adapt_dataset(teacher, data, good, CONFIG, seed=0).predictions()[:, 0].numpy()
    found = audit.untrained(teacher, torn, CONFIG, on_error="record")
    assert found.value == pytest.approx(100 * (said == data.labels[good]).sum() / 12)
    assert (found.n, whole.n) == (12, 12)
    few = audit.readable(torn, "record")
    assert few.indices.tolist() == good.tolist()
    assert audit.readable(torn) is torn
    assert not audit.labels_matter(methods.APM(teacher, CONFIG), few)
    with pytest.raises(ValueError, match="none of the 12 images"):
        audit.readable(replace(data, images=Torn(np.asarray(data.images), set(range(12)))), "record")
    with pytest.raises(ValueError, match="unknown on_error 'skip'"):
        audit.readable(torn, "skip")


def test_labels_change_nothing_for_our_methods_and_would_be_noticed(teacher: FakeTeacher, data: Dataset) -> None:
    assert not audit.labels_matter(methods.APM(teacher, CONFIG), data)

    class Cheat:
        def predict(self, dataset, positions, seed):
            return methods.Predictions(prediction=dataset.labels[positions])

    assert audit.labels_matter(Cheat(), data)


def test_accuracy_at_the_end_is_recomputed_from_the_records() -> None:
    paths = [np.array([k % 3, 0, k % 2]) for k in range(12)]
    records = pd.DataFrame(
        {"path": paths, "label": 0, "sample": range(12), "prediction": [p[-1] for p in paths], "method": "m",
         "teacher_prediction": 0, "minimum_loss_prediction": 0}
    )  # fmt: skip
    final = audit.at_end(records, "final", "s")
    assert final.value == pytest.approx(50.0)
    expected = stats.accuracy(records["prediction"].to_numpy() == 0)
    assert (final.low, final.high) == (
        expected.low,
        expected.high,
    )  # Wilson's, as the paired tables have for equal images
    with pytest.raises(ValueError, match="several times"):
        audit.at_end(pd.concat([records, records]), "final", "s")
    assert audit.at_end(records, "any", "s").value == pytest.approx(100.0)
    with pytest.raises(ValueError, match="counting rule 'any'"):
        audit.at_end(records.assign(path=None), "any", "s")


def test_recomputed_published_sums_are_those_of_the_consistency_file() -> None:
    noted = published.load("consistency")
    means = audit.published_means().set_index(["table", "row", "mean of"])
    one = noted[noted["table"] == "Table 2"].iloc[4]  # OpenCLIP ViT-L/14: "44.19 vs 42.1"
    computed, printed = (float(part) for part in one["text"].split(" vs "))
    row = means.loc[("Table 2", "OpenCLIP ViT-L/14", "15 columns")]
    assert row["computed"] == pytest.approx(computed, abs=0.005)
    assert row["printed"] == printed
    assert row["agrees"] == "no"
    assert (means.loc["Table 1"]["agrees"] == "yes").all()
    assert len(means.loc["Table 2"]) == 6
    nine = means.loc[("Table 3", "TPT", "9 columns")]
    assert nine["computed"] == pytest.approx(64.91, abs=0.005)
    sums = audit.published_arithmetic().set_index("check")
    assert sums.loc["teacher once + 19 x student, GFLOPs", "computed"] == pytest.approx(20.5 + 19 * 10)
    assert sums.loc["teacher once + 19 x student, GFLOPs", "agrees"] == "yes"
    measured = sums.loc["teacher once + 19 x student, against the measured GFLOPs of APM: not reconstructable"]
    assert (measured["computed"], measured["printed"], measured["agrees"]) == (210.5, 241.7, "no")
    ratios = [
        sums.loc[f"measured over ideal GFLOPs, {n}, %: no common factor", "computed"]
        for n in ("APM", "CLIP ViT-B/16", "TPT")
    ]
    assert ratios == pytest.approx([100 * 241.7 / 210.5, 100 * 462 / 410, 100 * 529 / 476])
    assert sums.loc["corruptions (of 15) in which APM is above TTT-MAE", "computed"] == 11
    assert sums.loc["TPT: mean over the ten sets of the TPT paper, Cars included", "agrees"] == "yes"
    assert sums.loc["TPT: mean over the nine sets that the table shows", "agrees"] == "no"


def test_published_teachers_are_held_against_open_clips_values() -> None:
    table = audit.published_teachers().set_index(["teacher", "set"])
    row = table.loc[("ViT-L-14 / openai", "ImageNet-R")]
    assert row["open_clip"] == pytest.approx(87.84)
    assert row["printed APM"] == pytest.approx(87.1)
    assert row["APM - open_clip"] == pytest.approx(87.1 - 87.84)
    assert len(table) == 20


def test_accuracy_at_random_weights_counts_every_image_under_every_seed(teacher: FakeTeacher, data: Dataset) -> None:
    cell = audit.untrained(teacher, data, CONFIG, seeds=[0, 1], source="s")
    paths = [methods.adapt_dataset(teacher, data, np.arange(12), CONFIG, seed=s).predictions()[:, 0] for s in (0, 1)]
    expected = np.mean([(p.numpy() == data.labels).mean() for p in paths])
    assert cell.value == pytest.approx(100 * expected)
    assert cell.low <= cell.value <= cell.high


# variant: n, weights, compared with, step, low, high
ABLATIONS = {
    "crop and mirror": (48, 7e4, "L_cls", 0.0, 0.0, 0.0),
    "L_cls + L_grid": (48, 7e4, "L_cls", 0.0, 0.0, 0.0),
    "all losses, I_xy": (900, 7e4, "L_cls + L_grid + L_rgb", 0.4, 0.1, 0.7),
    "all losses, T_vit": (900, 7e4, "L_cls", 5.0, 4.0, 6.0),
    "ResNet-18": (10, 1e7, "ResNet-34", 0.0, -10.0, 10.0),
    "bare vector": (48, 64, "L_cls", -10.0, -18.0, -2.0),
    "bare vector, lr 2e-2": (1000, 64, "L_cls", 0.0, 0.0, 0.0),
    "big": (900, 1.2e8, "five", -2.0, -3.0, -1.0),
    "five": (900, 5.35e7, "L_cls", -9.0, -10.0, -8.0),
}


def ablations_table(folder: Path, rows: dict) -> None:
    lines = [
        {"variant": name, "n": n, "parameters": p, "against": other, "step": a, "step_low": b, "step_high": c,
         "final": 50.0 + a, "final_low": 40.0, "final_high": 60.0, "agreement": 90.0}
        for name, (n, p, other, a, b, c) in rows.items()
    ]  # fmt: skip
    tables.save(pd.DataFrame(lines), "05_measures", folder / "tables", "Caption")


def verdicts(folder: Path) -> dict[str, audit.Claim]:
    return {claim.claim.split(" (")[0]: claim for claim in audit._ablations(folder)}


def test_claims_of_the_text_are_tested_against_the_line_they_are_about_and_by_what_the_images_can_show(
    tmp_path: Path,
) -> None:
    ablations_table(
        tmp_path, ABLATIONS | {"L_cls": (48, 7e4, "L_cls", 0, 0, 0), "ResNet-34": (10, 2e7, "L_cls", 0, 0, 0)}
    )
    steps = pd.DataFrame(
        {"k": [25, 200], "n": 1000, "step": [2.0, 0.0], "step_low": [1.0, 0.0], "step_high": [3.0, 0.0]}
    )
    tables.save(steps, "05_iterations", tmp_path / "tables", "Caption")
    found = verdicts(tmp_path)
    assert len(found) == 12
    expected = {
        "Augmentation during test-time training lowers accuracy": audit.FAILS,  # 21.9 points would show on 48 images
        "L_grid beside L_cls raises accuracy": audit.UNTESTED,  # 1.9 would not
        "The local patch raises accuracy": audit.HOLDS,
        "Routed tokens T_vit are better still": audit.UNTESTED,  # compared with another line
        "ResNet-18 is a better student than ResNet-34": audit.UNTESTED,  # [-10, 10] on 10 images
        "Accuracy peaks at about 25 iterations": audit.HOLDS,
        "A larger student than 53 M loses accuracy": audit.HOLDS,
        "The score takes a network that sees the image": audit.FAILS,  # the better of the two vectors
        "L_rgb beside L_cls lowers accuracy": audit.UNTESTED,
    }
    assert {name: found[name].verdict for name in expected} == expected
    assert found["L_rgb beside L_cls lowers accuracy"].figure == "no such row"
    assert "; step tested +1.9" in found["L_grid beside L_cls raises accuracy"].figure
    assert found["The local patch raises accuracy"].claim.endswith("(96.5 to 96.8)")
    small = {name: row for name, row in ABLATIONS.items() if name not in ("big", "five")}
    ablations_table(tmp_path, small | {"width x 10": (900, 4.5e6, "L_cls", -5.0, -6.0, -4.0)})
    assert verdicts(tmp_path)["A larger student than 53 M loses accuracy"].verdict == audit.UNTESTED


def field_tables(folder: Path, *, nearest: str = "5-NN", ours: str = "80.0 [79.0, 81.0]", pixels: str = "60.0 [55.0, 65.0]",
                 clusters: tuple[float, ...] = (50.0, 20.0, 10.0, 60.0), paired: str = "-0.003 [-0.005, -0.002]",
                 blend: str = "0.038 [0.035, 0.041]", fell: float = 2.0) -> None:  # fmt: skip
    own = ("field: teacher + RGB", "field: RGB alone", "raw pixels", "teacher")
    folded = (
        "field: teacher + RGB, folded",
        "field: RGB alone, folded",
        "student before training, folded",
        "raw pixels",
    )
    frames = {
        "07_clusters": {"features": own, "images: NMI with class": clusters},
        "07_features": {"features": folded, nearest: [ours, "30.0 [20.0, 40.0]", "10.0 [5.0, 20.0]", pixels]},
        "07_crossing": {
            "picture": ["T interpolated, decoded", "pixels interpolated", "decoded - pixels, paired"],
            "halfway - ends": ["0.035 [0.031, 0.038]", blend, paired],
        },
        "07_field": {
            "answer": ["field: teacher + RGB", "field: RGB alone", "control: mean of the training images"],
            "PSNR (dB)": ["26.0 [25.8, 26.1]", "27.7 [27.5, 27.8]", "13.1 [13.0, 13.2]"],
        },
        "07_training": {"field": ["teacher + RGB"], "epochs": [20], "fell over the last fifth (%)": [fell]},
    }
    for name, columns in frames.items():
        tables.save(pd.DataFrame(columns), name, folder / "tables", "C")


@pytest.mark.parametrize(
    ("changes", "place", "verdict"),
    [
        ({}, 0, audit.HOLDS),
        ({"clusters": (50.0, 55.0, 10.0, 60.0)}, 0, audit.FAILS),  # a field without teacher clusters better
        ({"clusters": (50.0, 20.0, 51.0, 60.0)}, 0, audit.FAILS),
        ({}, 1, audit.HOLDS),
        ({"pixels": "80.1 [79.0, 82.0]"}, 1, audit.FAILS),  # raw pixels are as good
        ({"pixels": "79.0 [78.0, 80.0]"}, 1, audit.UNTESTED),
        ({}, 2, audit.HOLDS),
        ({"ours": "12.0 [6.0, 22.0]"}, 2, audit.FAILS),
        ({}, 3, audit.HOLDS),  # the two intervals overlap, the paired one leaves out 0
        ({"paired": "-0.003 [-0.007, 0.001]"}, 3, audit.FAILS),
        ({"paired": "-0.003 [-0.007, 0.000]"}, 3, audit.UNTESTED),
        # blends move closer to real images: being further than they are is no unlikeness
        ({"paired": "0.023 [0.021, 0.025]", "blend": "-0.036 [-0.038, -0.034]"}, 3, audit.UNTESTED),
        ({"paired": "-0.010 [-0.012, -0.008]", "blend": "-0.036 [-0.038, -0.034]"}, 3, audit.UNTESTED),
        # a training that was cut short refutes nothing, and proves what it shows all the same
        ({"clusters": (50.0, 55.0, 10.0, 60.0), "fell": 6.0}, 0, audit.UNTESTED),
        ({"fell": 6.0}, 0, audit.HOLDS),
        ({"pixels": "80.1 [79.0, 82.0]", "fell": 6.0}, 1, audit.UNTESTED),
        ({"fell": 6.0}, 1, audit.HOLDS),
    ],
)
def test_claims_of_the_field_have_their_controls(tmp_path: Path, changes: dict, place: int, verdict: str) -> None:
    field_tables(tmp_path, **changes)
    claim = audit._field(tmp_path)[place]
    assert claim.verdict == verdict
    if place < 2:
        assert ("cut short" in claim.figure) == ("fell" in changes)
    if place == 3 and "blend" not in changes:
        assert claim.figure.endswith("8 % of the 0.038 that blends move away")


def test_claims_follow_other_numbers_of_neighbours_and_views(tmp_path: Path) -> None:
    save = tables.save
    field_tables(tmp_path, nearest="3-NN")
    assert audit._field(tmp_path)[1].needs.startswith("3-NN accuracy")
    forms = [f"image to feature, {form}" for form in ("plain", "factorised")]
    save(
        pd.DataFrame({"network": "released", "counted": forms, "/ ViT-B-16 image": "1.0"}),
        "04_conventions",
        tmp_path / "tables",
        "C",
    )
    counted = [
        f"ViT-B-16 image once, then the whole student, {form}, forward and backward" for form in ("plain", "factorised")
    ]
    counted += [
        "ViT-B-16 image and one text in every iteration, forward only",
        "4 views, 10 texts forward and backward, 10 texts again to classify",
    ]
    costs = pd.DataFrame(
        {"counted": counted, "once (GMAC)": ["0", "0", "0", "0.5"], "total (GMAC)": ["1", "0.5", "0.5", "4.5"],
         "total (GFLOP)": ["2", "1", "1", "9"]}
    )  # fmt: skip
    save(costs, "04_ttt_cost", tmp_path / "tables", "C")
    # 10 texts cost 4 GMAC beside the views' 0.5: two of them and the views cost more than 1
    assert audit._efficiency(tmp_path)[2].figure == "2 against 9 GFLOP at 10 classes; TPT costs less below 2 classes"
    save(costs[:3], "04_ttt_cost", tmp_path / "tables", "C")
    (untested,) = audit._or_untested("Efficient", audit._efficiency, tmp_path)
    assert (untested.verdict, untested.source) == (audit.UNTESTED, "04_ttt_cost.csv")


def test_students_at_random_weights_see_the_images_in_parts_with_the_same_result(
    teacher: FakeTeacher, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = audit.untrained(teacher, data, CONFIG, seeds=[0, 1])
    sizes = []
    original = methods.adapt_dataset
    monkeypatch.setattr(audit, "UNTRAINED_PART", 5)
    monkeypatch.setattr(
        methods, "adapt_dataset", lambda t, d, part, *a, **k: sizes.append(len(part)) or original(t, d, part, *a, **k)
    )
    assert audit.untrained(teacher, data, CONFIG, seeds=[0, 1]) == whole
    assert sizes == [5, 5, 2] * 2


def test_two_images_of_different_sizes_cannot_be_blended_and_of_one_size_give_the_blend_of_their_columns() -> None:
    a, b, c = torch.rand(3, 32, 32), torch.rand(3, 32, 32), torch.rand(3, 16, 16)
    assert audit.midpoint(preset("mini"), a, b) < 1e-5
    with pytest.raises(ValueError, match=r"same size to be blended, found \(3, 32, 32\) and \(3, 16, 16\)"):
        audit.midpoint(preset("mini"), a, c)


def measured(grids: dict[str, np.ndarray], masks: np.ndarray) -> pd.DataFrame:
    found = {name: islands.measure(grid, masks, counts=[2], seed=0) for name, grid in grids.items()}
    return islands.summary(found)


def test_islands_emerge_for_maps_of_the_object_and_not_for_maps_of_the_place() -> None:
    rng = np.random.default_rng(0)
    n, side = 16, 8
    rows, columns = np.mgrid[:side, :side]
    centres = rng.uniform(1.5, 5.5, (n, 2, 1, 1))
    masks = (rows - centres[:, 0]) ** 2 + (columns - centres[:, 1]) ** 2 < 5
    place = np.stack([rows, columns], axis=-1)[None].repeat(n, axis=0).astype(float)
    noise = rng.normal(size=(n, side, side, 4))
    grids = {
        audit.BEFORE: np.concatenate([place, 0.1 * noise], axis=-1),
        "student, k = 9": place + 0.01 * noise[..., :2],  # smooth, and blind
        "object": masks[..., None] * np.ones(3) + 0.1 * noise[..., :3],
    }
    measures = measured(grids, masks)
    assert audit.emerged(measures, "object").low > 0.3
    blind = audit.emerged(measures, "student, k = 9")
    assert blind.low <= 0 <= blind.high or blind.value < 0


def test_raw_pixels_and_the_teachers_tokens_pass_the_rule_for_islands_and_the_positional_code_does_not() -> None:
    measures = audit.read(RESULTS, "06_measures")
    passed = {
        source: audit.emerged(measures, source).low > 0
        for source in (
            "raw pixels, mean of patch",
            "raw pixels, patch",
            "teacher's patch tokens",
            "positional code alone",
        )
    }
    assert passed == {
        "raw pixels, mean of patch": True, "raw pixels, patch": True, "teacher's patch tokens": True, "positional code alone": False
    }  # fmt: skip


def test_times_are_taken_on_one_thread_for_every_way(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[object, int]] = []
    monkeypatch.setattr(
        audit.compute, "time_columns", lambda c, size, **o: seen.append((size, torch.get_num_threads()))
    )
    monkeypatch.setattr(audit.compute, "time_tower", lambda name, **o: seen.append((name, torch.get_num_threads())))
    before = torch.get_num_threads()
    assert list(audit.timed(preset("released"))) == ["one", "seven", "all", "tower"]
    assert seen == [(1, 1), (7, 1), (1024, 1), ("ViT-B-16", 1)]
    assert torch.get_num_threads() == before


RESULTS = Path(__file__).resolve().parents[1] / "results" / "mini"


def live(**changes: object) -> audit.Live:
    records = pd.DataFrame(
        {"path": [np.array([0, 1])] * 20, "label": 1, "sample": range(20), "prediction": 1, "teacher_prediction": 1,
         "minimum_loss_prediction": 1, "method": "APM", "dataset": "d", "corruption": "none", "severity": 0}
    )  # fmt: skip
    orders = pd.DataFrame({"check": ["c"], "repeats": [10], "difference": [1e-7], "holds": [True]})
    values: dict = {"records": records, "start": audit.Cell(10.0, 9.0, 11.0, "s"), "chance": 10.0, "orders": orders,
                    "encodings": 1.0, "labels_matter": False, "midpoint": 1e-8, "teacher_trained_here": True,
                    "seconds": {"one": 3.0, "seven": 0.5, "all": 0.1, "tower": 0.1}}  # fmt: skip
    return audit.Live(**{**values, **changes})


def test_every_claim_of_the_abstract_finds_its_figure_in_the_committed_results() -> None:
    claims = audit.abstract(RESULTS, live())
    text = [c.claim for c in claims]
    assert len(set(text)) == len(text)
    assert not [c for c in claims if c.figure.startswith("no ") and c.figure.endswith(".csv")]
    step = audit.cell(RESULTS, "02_corruptions", {"method": "APM", "counting rule": "final - teacher"}, "Mean")
    better = next(c for c in claims if c.claim == "Better than its teacher on corruptions (Table 2)")
    assert better.figure.startswith(f"{step.text()}; step tested +5.5")
    assert better.verdict == (audit.HOLDS if step.low - 0.05 > 0 else audit.FAILS)
    assert "published step 5.5" in better.needs
    assert audit.text(RESULTS)
    counted = audit.counting(RESULTS)
    assert len(counted) == 3
    assert not [c for c in claims if "matter of counting" in c.claim]
    shown = next(c for c in claims if c.claim == "The islands show the image")
    assert "photographs" in shown.figure


def test_memory_is_shown_with_the_digits_that_it_has() -> None:
    (claim,) = audit._memory(RESULTS)
    assert not claim.figure.startswith("0.0 ")
    assert "in all" in claim.figure


def test_the_result_is_said_in_words() -> None:
    abstract, said = (audit.table(claims) for claims in (audit.abstract(RESULTS, live()), audit.text(RESULTS)))
    lines = audit.result(RESULTS, live(), abstract, said)
    assert lines[0].startswith("final equals the teacher within 15.0 points on the audit's own 20 images")  # 3 of 20
    assert "corruptions (Table 2)" in lines[2]
    assert "the published step of 5.5 lies outside the interval" in lines[2]
    assert lines[-2] == f"claims of the abstract: {audit.counts(abstract)}"


def test_verdicts_turn_when_the_figures_do() -> None:
    changed = live(
        start=audit.Cell(30.0, 25.0, 35.0, "s"),
        encodings=2.0,
        labels_matter=True,
        midpoint=0.5,
        orders=live().orders.assign(holds=False),
        teacher_trained_here=False,
        seconds={"one": 0.1, "seven": 1.0, "all": 0.2, "tower": 5.0},
    )
    before, after = ({c.claim: c.verdict for c in audit.abstract(RESULTS, x)} for x in (live(), changed))
    turned = {claim for claim in before if before[claim] != after[claim]}
    assert {claim.split(":")[0].split(",")[0] for claim in turned} == {
        "No pre-training",
        "The test image's representation is distilled once",
        "No augmentation",
        "The input percept is a field",
        "Patches can be processed one at a time",
        "One patch at a time takes more time than all at once (the price of the memory)",
        "All patches at once it is faster than CLIP ViT-B/16 (Figure 2",
        "Seven patches at a time it is still faster than CLIP ViT-B/16 (Figure 2",
    }


def test_a_profile_without_a_notebook_leaves_its_claims_untested(tmp_path: Path) -> None:
    claims = audit.abstract(tmp_path, live())
    missing = [c for c in claims if c.figure.startswith("no ") and c.figure.endswith(".csv")]
    assert {c.verdict for c in missing} == {audit.UNTESTED}
    assert len(missing) == 10
    assert [c.verdict for c in audit.text(tmp_path)] == [audit.UNTESTED] * 2
    assert set(audit.counting(tmp_path)["final"]) == {"not run in this profile"}


HEAD = "method,state,n,difference from teacher,difference from APM\n"


@pytest.mark.parametrize(
    ("rows", "verdict", "figure"),
    [
        (
            'TENT,episodic,9,,"1.9 [1.2, 2.8]"\nMTA,episodic,9,,"2.4 [-0.3, 5.5]"\n',
            audit.FAILS,
            "1 of 2 above: TENT by 1.9 [1.2, 2.8] points",
        ),
        (
            'MTA,episodic,9,,"2.4 [-0.3, 5.5]"\nZERO,episodic,9,,"-1.0 [-3.0, 0.5]"\n',
            audit.UNTESTED,
            "1 of 2 may be above: MTA by 2.4 [-0.3, 5.5] points",
        ),
        (
            'ZERO,episodic,9,,"-1.0 [-3.0, 0.5]"\nCoOp,episodic,9,,"8.0 [7.0, 9.0]"\nTPT + CoOp,episodic,9,,"8.0 [7.0, 9.0]"\n',
            audit.HOLDS,  # CoOp has learned from labels
            "none of 1; the highest, ZERO, by -1.0 [-3.0, 0.5] points",
        ),
        ("", audit.UNTESTED, "no other method in this profile"),
    ],
)
def test_other_methods_are_compared_with_the_apm_by_their_paired_differences(tmp_path, rows, verdict, figure) -> None:
    (tmp_path / "tables").mkdir()
    own = 'APM,episodic,9,,"0.0 [0.0, 0.0]"\n"APM, views",episodic,9,,"9.0 [8.0, 9.5]"\n'
    (tmp_path / "tables" / "01_methods.csv").write_text(HEAD + own + rows)
    (claim,) = audit._others(tmp_path, "natural shifts", "01_natural_shifts")
    assert claim.verdict == verdict
    assert claim.figure.startswith(figure)


def test_without_a_comparison_the_claim_is_untested(tmp_path) -> None:
    (claim,) = audit._or_untested("Competitive", audit._others, tmp_path, "corruptions", "02_corruptions")
    assert (claim.verdict, claim.figure) == (audit.UNTESTED, "no 02_methods.csv")
