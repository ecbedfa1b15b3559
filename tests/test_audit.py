"""The audit: numbers are found again in tables, verdicts follow their rules, published sums are recomputed, orders do not matter."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from test_methods import CONFIG, FakeTeacher

from apm import audit, methods, published, tables, teachers
from apm.datasets import Dataset
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
    ("low", "high", "up", "down", "within"),
    [
        (0.1, 2.0, audit.HOLDS, audit.FAILS, audit.FAILS),
        (-1.0, 1.0, audit.FAILS, audit.FAILS, audit.HOLDS),
        (-2.0, -0.1, audit.FAILS, audit.HOLDS, audit.FAILS),
    ],
)
def test_a_verdict_follows_from_the_interval(low: float, high: float, up: str, down: str, within: str) -> None:
    cell = audit.Cell((low + high) / 2, low, high, "t.csv")
    assert audit.above("c", "n", cell).verdict == up
    assert audit.below("c", "n", cell, 0.0).verdict == down
    assert audit.around("c", "n", cell, 0.0).verdict == within
    exact = audit.Cell(1.0, float("nan"), float("nan"), "t.csv")
    assert audit.above("c", "n", exact).verdict == audit.HOLDS
    assert audit.below("c", "n", exact, 1.0).verdict == audit.FAILS


def test_a_check_can_hold_fail_or_be_impossible_here() -> None:
    verdicts = [audit.decided("c", "n", "f", value, "s").verdict for value in (True, False, None)]
    assert verdicts == [audit.HOLDS, audit.FAILS, audit.UNTESTED]
    frame = audit.table([audit.decided("c", "n", "f", True, "s")])
    assert frame.to_dict("records") == [
        {"claim": "c", "holds when": "n", "figure": "f", "verdict": "holds", "from": "s"}
    ]
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


def test_the_teacher_encodes_every_image_once(teacher: FakeTeacher, data: Dataset) -> None:
    type(teacher).encode = lambda self, images, **options: Encoding(images.flatten(1)[:, :12], None)
    try:
        count, result = audit.encodings(teacher, data, CONFIG)
        assert count == 1.0
        assert result.losses.shape == (12, 31)
        assert "encode" not in vars(teacher)  # the counter is gone again
    finally:
        del type(teacher).encode


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
    assert audit.at_end(records, "final", "s").value == pytest.approx(50.0)
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


ABLATIONS = {
    "crop and mirror": ("50.0 [40.0, 60.0]", "-3.0 [-5.0, -1.0]", "90.0"),
    "ResNet-18": ("50.0 [40.0, 60.0]", "0.0 [-1.0, 1.0]", "90.0"),
    "DTD, width x 3 (120 M)": ("40.0 [39.0, 41.0]", "nan", "90.0"),
    "DTD, five layers (53 M)": ("45.0 [44.0, 46.0]", "nan", "90.0"),
    "DTD, width x 0.5 (7 M)": ("30.0 [29.0, 31.0]", "nan", "90.0"),
}


def test_a_claim_whose_row_a_profile_does_not_have_is_untested_and_the_others_are_tested(tmp_path: Path) -> None:
    rows = [(name, *cells) for name, cells in ABLATIONS.items()]
    frame = pd.DataFrame(rows, columns=["variant", "final", "final - base", "as teacher"])
    tables.save(frame, "05_ablations", tmp_path / "tables", "Caption")
    steps = pd.DataFrame({"k": ["1", "20"], "final": ["40.0 [30.0, 50.0]", "41.0"]})
    tables.save(steps, "05_iterations", tmp_path / "tables", "Caption")
    verdicts = {claim.claim.split(" (")[0]: claim for claim in audit.text(tmp_path)}
    assert len(verdicts) == 10
    assert verdicts["Augmentation during test-time training lowers accuracy"].verdict == audit.HOLDS
    for name in ("ResNet-18 is a better student than ResNet-34", "Accuracy peaks at about 25 iterations"):
        assert (verdicts[name].verdict, verdicts[name].figure) == (audit.UNTESTED, "no such row")
    larger = verdicts["A larger student than 53 M loses accuracy"]
    assert larger.verdict == audit.HOLDS
    assert larger.claim.endswith("120 M against 53 M")
    assert larger.figure == "45.0 [44.0, 46.0] against 40.0 [39.0, 41.0] %"


def test_claims_follow_other_numbers_of_neighbours_and_views(tmp_path: Path) -> None:
    own = ("field: teacher + RGB", "raw pixels", "teacher")
    save = tables.save
    save(
        pd.DataFrame({"features": own, "images: NMI with class": ["50.0", "10.0", "60.0"]}),
        "07_clusters",
        tmp_path / "tables",
        "C",
    )
    folded = {
        "features": ["field: teacher + RGB, folded", "student before training, folded"],
        "3-NN": ["80.0 [70.0, 90.0]", "10.0 [5.0, 20.0]"],
    }
    save(pd.DataFrame(folded), "07_features", tmp_path / "tables", "C")
    ways = {
        "picture": ["T interpolated, decoded", "pixels interpolated"],
        "halfway - ends": ["0.1 [0.1, 0.1]", "0.2 [0.2, 0.2]"],
    }
    save(pd.DataFrame(ways), "07_crossing", tmp_path / "tables", "C")
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
    costs = pd.DataFrame({"counted": counted, "total (GFLOP)": ["2", "1", "1", "9"]})
    save(costs, "04_ttt_cost", tmp_path / "tables", "C")
    assert audit._efficiency(tmp_path)[2].figure == "2 against 9 GFLOP"
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


RESULTS = Path(__file__).resolve().parents[1] / "results" / "mini"


def live(**changes: object) -> audit.Live:
    records = pd.DataFrame(
        {"path": [np.array([0, 1])] * 20, "label": 1, "sample": range(20), "prediction": 1, "teacher_prediction": 1,
         "minimum_loss_prediction": 1, "method": "APM"}
    )  # fmt: skip
    orders = pd.DataFrame({"check": ["c"], "repeats": [10], "difference": [1e-7], "holds": [True]})
    values: dict = {"records": records, "start": audit.Cell(10.0, 9.0, 11.0, "s"), "chance": 10.0, "orders": orders,
                    "encodings": 1.0, "labels_matter": False, "midpoint": 1e-8}  # fmt: skip
    return audit.Live(**{**values, **changes})


def test_every_claim_of_the_abstract_finds_its_figure_in_the_committed_results() -> None:
    claims = audit.abstract(RESULTS, live())
    text = [c.claim for c in claims]
    assert len(set(text)) == len(text)
    assert not [c for c in claims if c.figure.startswith("no ") and c.figure.endswith(".csv")]
    step = audit.cell(RESULTS, "02_corruptions", {"method": "APM", "counting rule": "final - teacher"}, "Mean")
    better = next(c for c in claims if c.claim == "Better than its teacher on corruptions (Table 2)")
    assert better.figure == step.text()
    assert better.verdict == (audit.HOLDS if step.low > 0 else audit.FAILS)
    assert audit.text(RESULTS)


def test_verdicts_turn_when_the_figures_do() -> None:
    changed = live(
        start=audit.Cell(30.0, 25.0, 35.0, "s"),
        encodings=2.0,
        labels_matter=True,
        midpoint=0.5,
        orders=live().orders.assign(holds=False),
    )
    before, after = ({c.claim: c.verdict for c in audit.abstract(RESULTS, x)} for x in (live(), changed))
    turned = {claim for claim in before if before[claim] != after[claim]}
    assert {claim.split(":")[0].split(",")[0] for claim in turned} == {
        "No pre-training",
        "The test image's representation is distilled once",
        "No augmentation",
        "The input percept is a field",
        "Patches can be processed one at a time",
    }


def test_a_profile_without_a_notebook_leaves_its_claims_untested(tmp_path: Path) -> None:
    claims = audit.abstract(tmp_path, live())
    missing = [c for c in claims if c.figure.startswith("no ") and c.figure.endswith(".csv")]
    assert {c.verdict for c in missing} == {audit.UNTESTED}
    assert len(missing) == 10
    assert [c.verdict for c in audit.text(tmp_path)] == [audit.UNTESTED]


HEAD = "method,state,n,difference from teacher,difference from APM\n"


@pytest.mark.parametrize(
    ("rows", "verdict", "figure"),
    [
        (
            'TENT,episodic,9,,"1.6 [0.5, 2.8]"\nMTA,episodic,9,,"2.4 [-0.3, 5.5]"\n',
            audit.FAILS,
            "1 of 2 methods: TENT by 1.6 [0.5, 2.8] points",
        ),
        (
            'MTA,episodic,9,,"2.4 [-0.3, 5.5]"\nZERO,episodic,9,,"-1.0 [-3.0, 1.0]"\n',
            audit.HOLDS,
            "none of 2; the highest, MTA, by 2.4 [-0.3, 5.5] points",
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
