"""Ablations: lines are checked before anything runs, equal settings run once, every number is what it says."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fakes import FakeTeacher

from apm import methods, teachers, ttt
from apm.analysis import stats
from apm.analysis.numbers import Number
from apm.data import Dataset, UnreadableImage, published
from apm.experiments import ablations
from apm.experiments.other_students import OneSampleStudent
from apm.ttt import TTTConfig

STUDENT = {"preset": "mini", "grid": [4, 4], "hidden": [16], "patch": 4}
TRAINING = {"iterations": 12, "learning_rate": 5e-3}
COMMON = {"seeds": [0, 7, 42], "student": STUDENT, "training": TRAINING}
PAPER = published.load("table5")


@pytest.fixture(scope="module")
def teacher() -> Iterator[FakeTeacher]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teachers, "features", lambda teacher, dataset: teacher.features(dataset))
        patch.setattr(
            teachers, "features_at", lambda teacher, dataset, at: torch.as_tensor(teacher.features(dataset)[at])
        )
        yield FakeTeacher()


@pytest.fixture(scope="module")
def data() -> Dataset:
    images = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
    return Dataset("toy", images, np.arange(12) % 3, ("ant", "bee", "cow"), ("a {}",), "f" * 64, np.arange(12))


@pytest.fixture(scope="module")
def rows(teacher: FakeTeacher, data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    lines = [
        line(),
        line(name="slow", training={"learning_rate": 1e-5}),
        line(name="again", part="q"),
        line(name="vector", network="vector", training={"learning_rate": 5e-2}),
        line(name="few", samples=10, training={"iterations": 3}),
    ]
    return ablations.run(ablations.parse(lines), teacher, data, folder=tmp_path_factory.mktemp("records"), **COMMON)


def line(**options: object) -> dict:
    return {"part": "p", "name": "base", **options}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([line(lerning_rate=1)], r"ablation 1 \(base\): unknown option 'lerning_rate'. Known: part, name"),
        ([line(), {"name": "x"}], r"ablation 2 \(x\): needs a part and a name, found None and 'x'"),
        ([{"part": "p"}], r"ablation 1 \(without name\): needs a part and a name"),
        ([line(), line()], r"ablation 2 \(base\): the name 'base' is used twice"),
        (["L_cls"], r"ablation 1: expected \{part: ..., name: ..., ...\}, found str 'L_cls'"),
        ([line(training=3)], r"ablation 1 \(base\): Ablation: training: expected a mapping, found 3"),
        ([line(against="bse"), line(name="b")], r"\(base\): unknown line to compare with 'bse'. Known: b"),
        ([line(against="base")], r"\(base\): unknown line to compare with 'base'"),
        ([line(published="Lcls only")], r"published: expected a list of 2, each text or null, found 'Lcls only'"),
    ],
)
def test_a_line_that_cannot_be_meant_is_refused_by_number_and_name(lines: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ablations.parse(lines)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"training": {"rate": 1}}, r"ablation 'base': unknown field of the training 'rate'. Known: iterations"),
        ({"student": {"kernel": 3}}, r"ablation 'base': unknown field of the student 'kernel'.*Did you mean 'kernels'"),
        ({"network": "resnet19"}, r"unknown network 'resnet19'. Known: apm, vector, mlp, resnet18, resnet34"),
        ({"network": "mlp", "init": "zeros"}, r"unknown init 'zeros'. Known: default, normal"),
        ({"network": "mlp", "student": {"kernels": 3}}, r"describe the APM, not the network mlp"),
        ({"network": "mlp", "picture": "squash"}, r"picture describe the APM, not the network mlp"),
        ({"picture": "sqash"}, r"ablation 'base': unknown picture 'sqash'.*Did you mean 'squash'"),
        (
            {"network": "mlp", "training": {"loss_rgb": 1.0}},
            r"network mlp has no grid.*loss_rgb = 1.0 applies to the APM",
        ),
        ({"size": 64}, r"size and init are options of other networks"),
        ({"samples": 3}, r"samples must be 10 \(for an interval\) to 12, found 3"),
        ({"samples": 99}, r"to 12, found 99"),
    ],
)
def test_options_that_do_not_exist_or_do_not_fit_are_errors_before_anything_runs(
    options: dict, message: str, teacher: FakeTeacher, data: Dataset, tmp_path: Path
) -> None:
    lines = ablations.parse([line(**options)])
    with pytest.raises(ValueError, match=message):
        ablations.run(lines, teacher, data, folder=tmp_path, **COMMON)
    assert not list(tmp_path.iterdir())


def test_the_picture_of_a_line_reaches_the_student(teacher: FakeTeacher) -> None:
    squash, own = ablations.parse([line(picture="squash"), line(name="other")])
    assert ablations.method(squash, teacher, STUDENT, TRAINING).picture == "squash"
    assert ablations.method(own, teacher, STUDENT, TRAINING).picture == "teacher"


@pytest.mark.parametrize("seeds", [[0, 1], [0, 0, 1]])
def test_too_few_seeds_for_a_spread_are_refused(
    seeds: list, teacher: FakeTeacher, data: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="at least 3 different seeds"):
        ablations.run(ablations.parse([line()]), teacher, data, folder=tmp_path, seeds=seeds)


def test_a_resnet_on_images_that_end_as_one_pixel_is_refused(teacher: FakeTeacher) -> None:
    with pytest.raises(ValueError, match="set size: 64 or larger"):
        OneSampleStudent(teacher, "resnet18", TTTConfig(), 32).build(0)


def test_lines_with_equal_settings_share_one_run(rows: pd.DataFrame) -> None:
    assert rows.groupby("variant").size().to_dict() == {"base": 36, "slow": 36, "again": 36, "vector": 36, "few": 30}
    shards = rows.groupby("variant")["shard"].unique()
    assert set(shards["base"]) == set(shards["again"])
    assert not set(shards["base"]) & set(shards["slow"])


@pytest.mark.parametrize("k", [None, 3, 5])
def test_every_number_is_recomputed_from_the_records(rows: pd.DataFrame, k: int | None) -> None:
    table = ablations.after(rows, "base", k).droplevel("part")
    assert ("few" in table.index) == (k != 5)  # it has 3 updates
    base = rows[rows["variant"] == "base"].set_index(["sample", "seed"])
    for variant, line in table.iterrows():
        own = rows[rows["variant"] == variant]
        at, label, asked = line["k"], own["label"], own["teacher_prediction"].astype(int)
        assert at == (k or (3 if variant == "few" else 12))
        said = pd.Series(stats.paths(own)[:, at], own.index)
        right = said == label
        assert line["final"].value == pytest.approx(100 * right.mean())
        assert line["as teacher"].value == pytest.approx(100 * (said == asked).mean())
        assert line["final - teacher"].value == pytest.approx(100 * (right.mean() - (asked == label).mean()))
        assert line["sd over seeds"].value == pytest.approx(100 * right.groupby(own["seed"]).mean().std())
        if variant == "base":
            assert pd.isna(line["difference"])
            continue
        theirs = base.loc[list(zip(own["sample"], own["seed"], strict=True))]
        step = right.to_numpy().astype(int) - (np.stack(theirs["path"])[:, at] == theirs["label"]).to_numpy()
        assert line["difference"].value == pytest.approx(100 * step.mean())
        assert line["difference"].low < line["difference"].value < line["difference"].high  # never without width
        assert line["difference"].n == own["sample"].nunique()
    assert k == 5 or table.loc["few", "compared with"] == "base, k = 3"


def test_what_every_line_is_and_bad_requests(rows: pd.DataFrame) -> None:
    what = ablations.settings(rows).droplevel("part")
    assert what.loc["base", "weights"] == 49 + (16 + 16) * 16 + 16 + 16 * 12 + 12
    assert what.loc["vector", "weights"] == 12
    assert what["same run as"].to_dict() == {"base": "", "slow": "", "again": "base", "vector": "", "few": ""}
    assert what.loc["slow", "loss after"] == rows.loc[rows["variant"] == "slow", "last_loss"].median()
    with pytest.raises(ValueError, match=r"unknown variant 'bse'.*Did you mean 'base'"):
        ablations.after(rows, "bse")
    with pytest.raises(ValueError, match="no variant was trained for 99 iterations"):
        ablations.after(rows, "base", 99)


def test_a_seed_on_which_many_images_fail_widens_the_interval(rows: pd.DataFrame) -> None:
    """Three seeds with 21, 21, 17 of 24 right are no 72 independent images."""
    own = rows[rows["variant"] == "base"].copy()
    label = own["label"].to_numpy()
    own["teacher_prediction"] = label
    wrong = (label + 1) % 3
    one_seed = own["seed"].eq(42).to_numpy() & own["sample"].isin(range(6)).to_numpy()
    spread = (own["sample"] % 2).eq(0).to_numpy() & (own["sample"] // 2 % 3).eq(
        own["seed"].map({0: 0, 7: 1, 42: 2})
    ).to_numpy()
    assert one_seed.sum() == spread.sum() == 6

    def line(failed: np.ndarray) -> pd.Series:
        said = np.where(failed, wrong, label)
        path = [np.full(13, p, dtype=np.int16) for p in said]
        return ablations.after(own.assign(prediction=said, path=path), "base").iloc[0]

    together, apart = line(one_seed)["final - teacher"], line(spread)["final - teacher"]
    assert [together.value, apart.value] == pytest.approx([-100 / 6] * 2)
    assert together.high - together.low > 1.5 * (apart.high - apart.low)
    assert line(one_seed)["against its teacher"] == "not told apart"


@pytest.mark.parametrize(
    ("low", "high", "n", "said"),
    [
        (-9.0, -3.0, 48, "below"),
        (-9.0, -2.0, 48, "not told apart"),  # one image of 48 is 2.1 points
        (-1.0, 4.0, 48, "not told apart"),
        (2.0, 9.0, 128, "above"),
        (0.5, 9.0, 128, "not told apart"),
    ],
)
def test_three_outcomes_none_of_which_hangs_on_one_image(low: float, high: float, n: int, said: str) -> None:
    assert ablations.side(Number((low + high) / 2, low, high, n, "points", "difference")) == said


def test_a_run_of_k_updates_is_the_beginning_of_a_longer_one(
    rows: pd.DataFrame, teacher: FakeTeacher, data: Dataset, tmp_path: Path
) -> None:
    table = ablations.over_iterations(rows[rows["variant"] == "base"], [3, 12])
    short = ablations.parse([line(name="short", training={"iterations": 3})])
    run = ablations.run(short, teacher, data, folder=tmp_path, **COMMON)
    assert table.loc["k = 3", "final"].value == pytest.approx(100 * (run["prediction"] == run["label"]).mean())
    own = rows[rows["variant"] == "base"]
    path, label = stats.paths(own), own["label"].to_numpy()
    any_right = [cell.value for cell in table["any"]]
    assert any_right == sorted(any_right)
    assert any_right[0] == pytest.approx(100 * (path[:, 1:4] == label[:, None]).any(1).mean())
    step = table["final - final after 12"]
    assert step["k = 3"].value == pytest.approx(100 * ((path[:, 3] == label).mean() - (path[:, 12] == label).mean()))
    with pytest.raises(ValueError, match="trained for 12 iterations; found k = 13"):
        ablations.over_iterations(own, [13])


def test_how_close_students_come_is_read_from_their_features(teacher: FakeTeacher, data: Dataset) -> None:
    few = data.subset(np.arange(4))
    config = methods.training_config(teacher, STUDENT, {"iterations": 40, "learning_rate": 2e-2})
    table = ablations.towards_target(teacher, few, config, [0, 40])
    images = teachers.student_images([few.images[i] for i in range(4)], 16)
    result = ttt.adapt(images, torch.as_tensor(teacher.features(few)), config)
    cosine = torch.nn.functional.cosine_similarity(result.features[:, -1], torch.as_tensor(teacher.features(few)))
    assert table.loc[40, "cosine to the target"].value == pytest.approx(cosine.mean().item(), rel=1e-5)
    assert table.loc[40, "loss"].value == pytest.approx(result.losses[:, -1].mean().item(), rel=1e-5)
    assert table.loc[40, "loss"].value < table.loc[0, "loss"].value / 10
    assert all(0 <= loss.low <= loss.high for loss in table["loss"])
    with pytest.raises(ValueError, match="trained for 40 iterations; found k = 41"):
        ablations.towards_target(teacher, few, config, [41])


def test_another_student_starts_anew_for_every_image_and_does_not_depend_on_its_neighbours(
    teacher: FakeTeacher, data: Dataset
) -> None:
    config = TTTConfig(iterations=5, learning_rate=1e-3)
    method = OneSampleStudent(teacher, "mlp", config, 16)
    whole = method.predict(data, np.arange(12), 0)
    part = method.predict(data, np.array([7, 2]), 0)
    np.testing.assert_allclose(part.last_loss, whole.last_loss[[7, 2]], rtol=1e-6)
    assert (whole.last_loss < whole.first_loss).all()
    assert not np.allclose(method.predict(data, np.arange(12), 1).last_loss, whole.last_loss)
    state = torch.get_rng_state()
    method.build(3)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_bare_vector_takes_the_steps_of_adam(teacher: FakeTeacher, data: Dataset) -> None:
    config = TTTConfig(iterations=1, learning_rate=1e-2)
    method = OneSampleStudent(teacher, "vector", config, 16)
    image = teachers.student_images([data.images[0]], 16)
    start = method.build(ttt.image_seed(0, image[0])).value.detach()
    target = torch.nn.functional.normalize(torch.as_tensor(teacher.features(data)[0]), dim=-1)
    stepped = start - 1e-2 * torch.sign(start - target)  # Adam's first step is the sign of the gradient
    losses = [(v - target).square().mean().item() for v in (start, stepped)]
    predictions = method.predict(data, np.array([0]), 0)
    assert predictions.first_loss[0] == pytest.approx(losses[0], rel=1e-5)
    assert predictions.last_loss[0] == pytest.approx(losses[1], rel=1e-4)


def test_normal_init_draws_every_weight_from_the_given_spread(teacher: FakeTeacher) -> None:
    build = OneSampleStudent(teacher, "mlp", TTTConfig(init_std=0.01), 16, init="normal").build(0)
    for parameter in build.parameters():
        assert parameter.abs().max() < 0.06
    weight = next(build.parameters())
    assert weight.std().item() == pytest.approx(0.01, rel=0.05)


def test_resnets_of_torchvision_learn_one_image(teacher: FakeTeacher, data: Dataset) -> None:
    config = TTTConfig(iterations=4, learning_rate=1e-3)
    method = OneSampleStudent(teacher, "resnet18", config, 48)
    assert method.parameters() == 11_176_512 + 513 * 12  # the published ResNet-18 without its classifier, and a new one
    predictions = method.predict(data, np.array([0, 1]), 0)
    assert (predictions.last_loss < predictions.first_loss).all()


def test_published_cells_come_from_the_file_and_unknown_ones_are_errors() -> None:
    lines = ablations.parse(
        [line(published=["Lcls only", "CIFAR-10"]), line(name="r", published=["ResNet18", "CIFAR-10"]), line(name="n")]
    )
    cells = ablations.published_cells(lines, PAPER)
    assert cells == {"base": Number(94.2, kind="published"), "r": "text: ResNet18 > ResNet34"}
    wrong = ablations.parse([line(published=["Lcls", "CIFAR-10"])])
    with pytest.raises(ValueError, match=r"ablation 'base': unknown published cell \('Lcls', 'CIFAR-10'\)"):
        ablations.published_cells(wrong, PAPER)


def test_a_broken_line_is_named_with_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "profiles" / "mini"
    folder.mkdir(parents=True)
    (tmp_path / "notebooks").mkdir()
    (folder / "common.yaml").write_text("")
    (folder / "a.b.yaml").write_text("- {part: a, nme: b}")
    monkeypatch.setenv("APM_ROOT", str(tmp_path))
    with pytest.raises(ValueError, match=r"profiles/mini/a\.b\.yaml: ablation 1"):
        ablations.load("mini", "a.b.yaml")


def test_a_line_can_have_a_dataset_of_its_own_and_no_step_to_the_base(
    teacher: FakeTeacher, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = replace(data, name="other", labels=np.roll(data.labels, 1), fingerprint="e" * 64)
    monkeypatch.setattr(ablations, "load_dataset", lambda name: {"other": other}[name])
    lines = ablations.parse([line(), line(name="elsewhere", dataset="other")])
    found = ablations.run(lines, teacher, data, folder=tmp_path, **COMMON)
    table = ablations.after(found, "base").droplevel("part")
    assert ablations.settings(found)["data"].tolist() == [data.name, "other"]
    assert pd.isna(table.loc["elsewhere", "difference"])
    own = found[found["variant"] == "elsewhere"]
    assert table.loc["elsewhere", "final"].value == pytest.approx(100 * (own["prediction"] == own["label"]).mean())
    assert own["label"].tolist()[: len(other)] == other.labels.tolist()


def test_images_of_equal_number_but_other_places_are_another_run(
    teacher: FakeTeacher, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ablations, "load_dataset", lambda name: data.subset(np.arange(10)))
    lines = ablations.parse([line(), line(name="elsewhere", dataset="toy")])
    part = data.subset(np.arange(2, 12))
    found = ablations.run(lines, teacher, part, folder=tmp_path, **COMMON)
    seen = found.groupby("variant")["sample"].unique().map(sorted).to_dict()
    assert seen == {"base": list(range(2, 12)), "elsewhere": list(range(10))}
    with pytest.raises(
        ValueError, match="variant 'elsewhere' has 2 images that 'base', with which it is compared, has not seen"
    ):
        ablations.after(found, "base")


def test_a_line_is_compared_with_the_one_that_it_names(rows: pd.DataFrame) -> None:
    named = rows.assign(against=rows["against"].where(rows["variant"] != "vector", "slow"))
    table = ablations.after(named, "base").droplevel("part")
    right = {v: own["prediction"].to_numpy() == own["label"].to_numpy() for v, own in rows.groupby("variant")}
    assert table.loc["vector", "difference"].value == pytest.approx(
        100 * (right["vector"].mean() - right["slow"].mean())
    )
    assert table["compared with"].fillna("").to_dict() == {
        "base": "", "slow": "base", "again": "base", "vector": "slow", "few": "base, k = 3"
    }  # fmt: skip


def test_what_moved_counts_runs_and_not_lines(rows: pd.DataFrame) -> None:
    table = ablations.after(rows, "base")
    wide, far = (Number(v, v - 4, v + 4, 48, "points", "difference") for v in (0.0, -20.0))
    for variant, cell in {"base": wide, "slow": far, "again": far, "vector": wide, "few": wide}.items():
        table.loc[("q" if variant == "again" else "p", variant), "final - teacher"] = cell
    found = ablations.moved({"after the last": table}, ["again"]).loc["after the last", "its teacher"]
    assert (found["runs"], found["below"], found["not told apart"], found["above"]) == (4, 1, 3, 0)
    assert found["which below"] == "slow"  # the repeated line is no finding of its own
    assert found["of them p (Holm) < 0.05"] == 1


def test_where_the_feature_is_the_mean_of_the_tokens_their_cosine_is_one(data: Dataset) -> None:
    class Pooling:
        grid: tuple[int, int] | None = (2, 2)
        transform = staticmethod(lambda pictures: torch.as_tensor(np.stack(pictures)).float())

        def encode(self, images: torch.Tensor, *, tokens: bool) -> teachers.Encoding:
            found = images.flatten(1)[:, :16].unflatten(1, (2, 2, 4))
            return teachers.Encoding(3 * found.mean(dim=(1, 2)), found)

    teacher = Pooling()
    assert float(ablations.feature_and_tokens(teacher, data)) == pytest.approx(1.0)  # type: ignore[arg-type]
    teacher.grid = None
    assert np.isnan(float(ablations.feature_and_tokens(teacher, data)))  # type: ignore[arg-type]


def test_an_image_that_cannot_be_read_stops_or_is_recorded_as_the_profile_says(
    teacher: FakeTeacher, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = teachers.features_at

    def broken(teacher, dataset, positions):
        if 3 in np.asarray(dataset.indices)[positions]:
            raise UnreadableImage(Path("x.jpg"), "truncated")
        return original(teacher, dataset, positions)

    monkeypatch.setattr(teachers, "features_at", broken)
    options = {"folder": tmp_path, **COMMON}
    lines = ablations.parse([line()])
    with pytest.raises(RuntimeError, match=r"cannot read the image x\.jpg"):
        ablations.run(lines, teacher, data, **options)
    found = ablations.run(lines, teacher, data, on_error="record", **options)
    assert (found["prediction"] < 0).sum() == 3
    assert ablations.after(found, "base")["images"].tolist() == [12]
    assert len(ablations.after(found, "base", 2)) == 1


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_other_students_train_in_any_mode_of_the_caller(teacher: FakeTeacher, data: Dataset, mode: type) -> None:
    method = OneSampleStudent(teacher, "mlp", TTTConfig(iterations=3), 16)
    expected = method.predict(data, np.arange(2), 0)
    with mode():
        found = method.predict(data, np.arange(2), 0)
    np.testing.assert_array_equal(found.last_loss, expected.last_loss)
    assert (found.last_loss < found.first_loss).all()
