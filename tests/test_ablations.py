"""Ablations: lines are checked before anything runs, equal settings run once, every number is what it says."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from test_methods import FakeTeacher

from apm import ablations, published, stats, teachers, ttt
from apm.datasets import Dataset
from apm.project import root
from apm.ttt import TTTConfig

STUDENT = {"preset": "mini", "grid": [4, 4], "hidden": [16], "patch": 4}
TRAINING = {"iterations": 12, "learning_rate": 5e-3}
PAPER = published.load("table5")


@pytest.fixture
def teacher(monkeypatch: pytest.MonkeyPatch) -> FakeTeacher:
    monkeypatch.setattr(teachers, "features", lambda teacher, dataset: teacher.features(dataset))
    return FakeTeacher()


@pytest.fixture
def data() -> Dataset:
    images = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
    return Dataset("toy", images, np.arange(12) % 3, ("ant", "bee", "cow"), ("a {}",), "f" * 64, np.arange(12))


def line(**options: object) -> dict:
    return {"part": "p", "name": "base", **options}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([line(lerning_rate=1)], r"ablation 1 \(base\): unknown option 'lerning_rate'. Known: part, name"),
        ([line(), {"name": "x"}], r"ablation 2 \(x\): needs a part, found None"),
        ([{"part": "p"}], r"ablation 1 \(without name\): needs a name"),
        ([line(), line()], r"ablation 2 \(base\): the name 'base' is used twice"),
        (["L_cls"], r"ablation 1: expected \{part: ..., name: ..., ...\}, found str 'L_cls'"),
        ([line(training=3)], r"training must be \{field: value\}, found 3"),
        ([line(against="bse"), line(name="bases")], r"ablation 1 \(base\): against: unknown line 'bse'. Known: bases"),
        ([line(against="base")], r"ablation 1 \(base\): against: unknown line 'base'"),
        ([line(published="Lcls only")], r"published must be \[row, column\], found 'Lcls only'"),
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
        ablations.run(lines, teacher, data, folder=tmp_path, seeds=[0, 1, 2], student=STUDENT, training=TRAINING)
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
        ablations.OneSampleStudent(teacher, "resnet18", TTTConfig(), 32).build(0)


@pytest.fixture
def rows(teacher: FakeTeacher, data: Dataset, tmp_path: Path) -> pd.DataFrame:
    lines = ablations.parse(
        [
            line(),
            line(name="slow", training={"learning_rate": 1e-5}),
            line(name="again", part="q"),
            line(name="vector", network="vector", training={"learning_rate": 5e-2}),
            line(name="few", samples=10, training={"iterations": 3}),
        ]
    )
    return ablations.run(lines, teacher, data, folder=tmp_path, seeds=[0, 7, 42], student=STUDENT, training=TRAINING)


def test_lines_with_equal_settings_share_one_run(rows: pd.DataFrame) -> None:
    assert rows.groupby("variant")["same_as"].unique().str[0].to_dict() == {
        "base": "", "slow": "", "again": "base", "vector": "", "few": ""
    }  # fmt: skip
    sizes = rows.groupby("variant", sort=False).size().to_dict()
    assert sizes == {"base": 36, "slow": 36, "again": 36, "vector": 36, "few": 30}
    shards = rows.groupby("variant")["shard"].unique()
    assert set(shards["base"]) == set(shards["again"])
    assert not set(shards["base"]) & set(shards["slow"])


def test_every_number_of_the_summary_is_recomputed_from_the_records(rows: pd.DataFrame) -> None:
    table = ablations.summary(rows, "base").set_index("variant")
    base = rows[rows["variant"] == "base"].set_index(["sample", "seed"])
    for variant, own in rows.groupby("variant"):
        right = own["prediction"] == own["label"]
        assert table.loc[variant, "final"] == pytest.approx(100 * right.mean())
        by_seed = [100 * right[own["seed"] == seed].mean() for seed in (0, 7, 42)]
        assert table.loc[variant, "spread"] == pytest.approx(np.std(by_seed, ddof=1))
        theirs = base.loc[list(zip(own["sample"], own["seed"], strict=True))]
        k = min(len(own["path"].iloc[0]), 13) - 1  # "few" has 3 updates: the base after 3
        step = right.to_numpy().astype(int) - (np.stack(theirs["path"])[:, k] == theirs["label"]).to_numpy()
        assert (table.loc[variant, "k"], table.loc[variant, "at"]) == (k, k)
        assert table.loc[variant, "step"] == pytest.approx(100 * step.mean())
        assert table.loc[variant, "step_low"] <= table.loc[variant, "step"] <= table.loc[variant, "step_high"]
        assert table.loc[variant, "last_loss"] == pytest.approx(own["last_loss"].median())
    assert table.loc["base", "parameters"] == 49 + (16 + 16) * 16 + 16 + 16 * 12 + 12
    assert table.loc["vector", "parameters"] == 12
    with pytest.raises(ValueError, match=r"unknown base variant 'bse'.*Did you mean 'base'"):
        ablations.summary(rows, "bse")
    shown = ablations.compact(table.reset_index(), {"slow": "12.3"})
    reached, compared = ablations.split(shown)
    assert list(compared)[:4] == ["part", "variant", "final", "final - teacher"]
    assert [*reached, *list(compared)[3:]] == list(shown)
    assert shown.set_index("variant").loc["slow", "published"] == "12.3"
    assert shown.set_index("variant").loc["base", "published"] == ""


def test_a_run_of_k_updates_is_the_beginning_of_a_longer_one(
    rows: pd.DataFrame, teacher: FakeTeacher, data: Dataset, tmp_path: Path
) -> None:
    table = ablations.over_iterations(rows, "base", [3, 12])
    short = ablations.parse([line(name="short", training={"iterations": 3})])
    run = ablations.run(short, teacher, data, folder=tmp_path, seeds=[0, 7, 42], student=STUDENT, training=TRAINING)
    assert table["final"][0] == pytest.approx(100 * (run["prediction"] == run["label"]).mean())
    assert table["any"].is_monotonic_increasing
    own = rows[rows["variant"] == "base"]
    path = stats.paths(own)
    assert table["any"][0] == pytest.approx(100 * (path[:, 1:4] == own["label"].to_numpy()[:, None]).any(1).mean())
    with pytest.raises(ValueError, match="trained for 12 iterations; found k = 13"):
        ablations.over_iterations(rows, "base", [13])


def test_another_student_starts_anew_for_every_image_and_does_not_depend_on_its_neighbours(
    teacher: FakeTeacher, data: Dataset
) -> None:
    config = TTTConfig(iterations=5, learning_rate=1e-3)
    method = ablations.OneSampleStudent(teacher, "mlp", config, 16)
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
    method = ablations.OneSampleStudent(teacher, "vector", config, 16)
    image = teachers.student_images([data.images[0]], 16)
    start = method.build(ttt.image_seed(0, image[0])).value.detach()
    target = torch.nn.functional.normalize(torch.as_tensor(teacher.features(data)[0]), dim=-1)
    stepped = start - 1e-2 * torch.sign(start - target)  # Adam's first step is the sign of the gradient
    losses = [(v - target).square().mean().item() for v in (start, stepped)]
    predictions = method.predict(data, np.array([0]), 0)
    assert predictions.first_loss[0] == pytest.approx(losses[0], rel=1e-5)
    assert predictions.last_loss[0] == pytest.approx(losses[1], rel=1e-4)


def test_normal_init_draws_every_weight_from_the_given_spread(teacher: FakeTeacher) -> None:
    build = ablations.OneSampleStudent(teacher, "mlp", TTTConfig(init_std=0.01), 16, init="normal").build(0)
    for parameter in build.parameters():
        assert parameter.abs().max() < 0.06
    weight = next(build.parameters())
    assert weight.std().item() == pytest.approx(0.01, rel=0.05)


def test_resnets_of_torchvision_learn_one_image(teacher: FakeTeacher, data: Dataset) -> None:
    config = TTTConfig(iterations=4, learning_rate=1e-3)
    method = ablations.OneSampleStudent(teacher, "resnet18", config, 48)
    assert method.parameters() == 11_176_512 + 513 * 12  # the published ResNet-18 without its classifier, and a new one
    predictions = method.predict(data, np.array([0, 1]), 0)
    assert (predictions.last_loss < predictions.first_loss).all()


def test_published_cells_come_from_the_file_and_unknown_ones_are_errors() -> None:
    lines = ablations.parse(
        [line(published=["Lcls only", "CIFAR-10"]), line(name="r", published=["ResNet18", "CIFAR-10"]), line(name="n")]
    )
    assert ablations.published_cells(lines, PAPER) == {"base": "94.2", "r": "text: ResNet18 > ResNet34"}
    wrong = ablations.parse([line(published=["Lcls", "CIFAR-10"])])
    with pytest.raises(ValueError, match=r"ablation 'base': unknown published cell '\[Lcls, CIFAR-10\]'"):
        ablations.published_cells(wrong, PAPER)


def test_the_lines_of_every_profile_are_valid_and_their_published_cells_exist() -> None:
    files = sorted((root() / "profiles").glob("*/05_ablations.lines.yaml"))
    assert files
    for file in files:
        lines = ablations.load(file.parent.name, file.name)
        assert ablations.published_cells(lines, PAPER)


def test_a_missing_or_broken_list_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"x\.yaml does not exist. Lists of profile mini: 05_ablations.lines.yaml"
    ):
        ablations.load("mini", "x.yaml")
    for folder in ("notebooks", "profiles/mini"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "profiles/mini/common.yaml").write_text("")
    monkeypatch.setenv("APM_ROOT", str(tmp_path))
    file = tmp_path / "profiles/mini/a.b.yaml"
    for text, message in (
        ("{part: a}", "expected a list of `- {...}` lines, found dict"),
        ("- {part: a, name: b, training: {learning_rate: 1e-5}}", r"\[0\].training.learning_rate is the text '1e-5'"),
        ("- {part: a, nme: b}", "a.b.yaml: ablation 1"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            ablations.load("mini", "a.b.yaml")


def test_figures_show_every_variant(rows: pd.DataFrame) -> None:
    table = ablations.summary(rows, "base")
    figure, caption = ablations.overview(table)
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    numbers = dict(zip(table["variant"], table["n"], strict=True))
    assert sorted(labels) == sorted(f"{variant} ({n})" for variant, n in numbers.items())
    assert numbers["few"] == 10
    assert "same run as an earlier line" in caption
    figure, caption = ablations.along_sequence(rows, ["base", "slow"])
    assert len(figure.axes[0].lines) == 6
    with pytest.raises(ValueError, match="unknown variant"):
        ablations.along_sequence(rows, ["none"])
    figure, _ = ablations.by_size(table, pd.DataFrame({"parameters": [7.0, 53.0], "accuracy": [47.0, 49.1]}))
    assert [axes.get_title() for axes in figure.axes] == ["ours: final - teacher", "published (DTD): accuracy"]
    shown = figure.axes[0].containers[0].lines[0].get_ydata()
    np.testing.assert_allclose(shown, table.sort_values("parameters")["difference"])
    assert {text.get_text() for text in figure.axes[0].texts} == {"n = 10", "n = 12"}


def test_a_line_can_have_a_dataset_of_its_own_and_no_step_to_the_base(
    teacher: FakeTeacher, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = replace(data, name="other", labels=np.roll(data.labels, 1), fingerprint="e" * 64)
    monkeypatch.setattr(ablations.datasets, "load", lambda name: {"other": other}[name])
    lines = ablations.parse([line(), line(name="elsewhere", dataset="other")])
    found = ablations.run(lines, teacher, data, folder=tmp_path, seeds=[0, 1, 2], student=STUDENT, training=TRAINING)
    table = ablations.summary(found, "base").set_index("variant")
    assert table["data"].to_dict() == {"base": data.name, "elsewhere": "other"}
    assert table.loc["base", "step"] == 0
    assert np.isnan(table.loc["elsewhere", "step"])
    own = found[found["variant"] == "elsewhere"]
    assert table.loc["elsewhere", "final"] == pytest.approx(100 * (own["prediction"] == own["label"]).mean())
    assert own["label"].tolist()[: len(other)] == other.labels.tolist()
    shown = ablations.compact(ablations.summary(found, "base"))
    assert shown["data"].tolist() == [data.name, "other"]
    assert shown["difference"].tolist()[1] == ""


def test_images_of_equal_number_but_other_places_are_another_run(
    teacher: FakeTeacher, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ablations.datasets, "load", lambda name: data.subset(np.arange(10)))
    lines = ablations.parse([line(), line(name="elsewhere", dataset="toy")])
    part = data.subset(np.arange(2, 12))
    found = ablations.run(lines, teacher, part, folder=tmp_path, seeds=[0, 1, 2], student=STUDENT, training=TRAINING)
    seen = found.groupby("variant")["sample"].unique().map(sorted).to_dict()
    assert seen == {"base": list(range(2, 12)), "elsewhere": list(range(10))}
    with pytest.raises(
        ValueError, match="variant 'elsewhere' has 2 images that 'base', with which it is compared, has not seen"
    ):
        ablations.summary(found, "base")


def test_a_line_is_compared_with_the_one_that_it_names(rows: pd.DataFrame) -> None:
    named = rows.assign(against=rows["against"].where(rows["variant"] != "vector", "slow"))
    table = ablations.summary(named, "base").set_index("variant")
    assert table.loc["vector", "against"] == "slow"
    assert table.loc["slow", "against"] == "base"
    right = {v: own["prediction"].to_numpy() == own["label"].to_numpy() for v, own in rows.groupby("variant")}
    assert table.loc["vector", "step"] == pytest.approx(100 * (right["vector"].mean() - right["slow"].mean()))
    shown = ablations.compact(table.reset_index()).set_index("variant")
    assert shown["compared with"].to_dict() == {
        "base": "", "slow": "base", "again": "base", "vector": "slow", "few": "base, k = 3"
    }  # fmt: skip
    assert shown["same run as"].to_dict() == {"base": "", "slow": "", "again": "base", "vector": "", "few": ""}
    assert next(iter(shown.columns)) == "part"


def test_accuracies_after_few_updates_are_read_from_the_paths(rows: pd.DataFrame) -> None:
    table = ablations.early(rows, "base", [2, 5])
    assert set(table[table["k"] == 5]["variant"]) == {"base", "slow", "again", "vector"}  # "few" has 3 updates
    for _, row in table.iterrows():
        own, base = rows[rows["variant"] == row["variant"]], rows[rows["variant"] == "base"]
        right = stats.paths(own)[:, row["k"]] == own["label"].to_numpy()
        theirs = base[base["sample"].isin(own["sample"])]
        reference = stats.paths(theirs)[:, row["k"]] == theirs["label"].to_numpy()
        assert row["accuracy"] == pytest.approx(100 * right.mean())
        assert row["step"] == pytest.approx(100 * (right.mean() - reference.mean()))
    shown = ablations.compact_early(table)
    assert shown["variant"].tolist() == ["base", "slow", "vector", "few"]
    assert shown.set_index("variant").loc["few", "k = 5"] == ""
    with pytest.raises(ValueError, match="trained for 99 iterations"):
        ablations.early(rows, "base", [99])


def test_what_is_read_counts_runs_and_not_lines(rows: pd.DataFrame) -> None:
    table = ablations.summary(rows, "base").assign(step_low=0.0, step_high=0.0)
    lines = ablations.reading(table)
    assert lines[0] == "5 lines are 4 distinct runs"
    assert lines[1].startswith("0 of the 3 compared differ")
    assert lines[-1].startswith("3 show no difference on any image: with n = 12, up to about 3/n = 25.0 points")
    up = ablations.reading(table.assign(step_low=np.where(table["same_as"] == "base", 1.0, 0.0)))
    assert up[1].startswith("0 of the 3")  # the repeated line is no finding of its own


def test_times_and_iterations_are_shown_with_sensible_digits(rows: pd.DataFrame) -> None:
    shown = ablations.times(rows.assign(milliseconds=np.where(rows["variant"] == "slow", 1234.5, 1.234)))
    assert shown.set_index("variant")["ms per image"].to_dict()["slow"] == "1,234"
    assert shown["ms per image"].iloc[0] == "1.2"
    assert "again" not in set(shown["variant"])
    steps = ablations.over_iterations(rows, "base", [3, 12])
    own = rows[rows["variant"] == "base"]
    path, label = stats.paths(own), own["label"].to_numpy()
    assert steps["step"].tolist() == pytest.approx(
        [100 * ((path[:, 3] == label).mean() - (path[:, 12] == label).mean()), 0]
    )
    assert list(ablations.compact_iterations(steps).columns)[-1] == "final - final after 12"


def test_where_the_feature_is_the_mean_of_the_tokens_their_cosine_is_one(data: Dataset) -> None:
    class Pooling:
        grid: tuple[int, int] | None = (2, 2)
        transform = staticmethod(lambda pictures: torch.as_tensor(np.stack(pictures)).float())

        def encode(self, images: torch.Tensor, *, tokens: bool) -> teachers.Encoding:
            found = images.flatten(1)[:, :16].unflatten(1, (2, 2, 4))
            return teachers.Encoding(3 * found.mean(dim=(1, 2)), found)

    teacher = Pooling()
    assert ablations.feature_and_tokens(teacher, data) == pytest.approx(1.0)  # type: ignore[arg-type]
    teacher.grid = None
    assert np.isnan(ablations.feature_and_tokens(teacher, data))  # type: ignore[arg-type]


def test_an_image_that_cannot_be_read_stops_or_is_recorded_as_the_profile_says(
    teacher: FakeTeacher, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = teachers.features_at

    def broken(teacher, dataset, positions, cache=None):
        if 3 in np.asarray(dataset.indices)[positions]:
            raise ablations.datasets.UnreadableImage(Path("x.jpg"), "truncated")
        return original(teacher, dataset, positions)

    monkeypatch.setattr(teachers, "features_at", broken)
    options = {"folder": tmp_path, "seeds": [0, 1, 2], "student": STUDENT, "training": TRAINING}
    lines = ablations.parse([line()])
    with pytest.raises(RuntimeError, match=r"cannot read the image x\.jpg"):
        ablations.run(lines, teacher, data, **options)
    found = ablations.run(lines, teacher, data, on_error="record", **options)
    assert (found["prediction"] < 0).sum() == 3
    table = ablations.summary(found, "base")
    assert table["n"].tolist() == [12]
    assert len(ablations.early(found, "base", [2])) == 1


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_other_students_train_in_any_mode_of_the_caller(teacher: FakeTeacher, data: Dataset, mode: type) -> None:
    method = ablations.OneSampleStudent(teacher, "mlp", TTTConfig(iterations=3), 16)
    expected = method.predict(data, np.arange(2), 0)
    with mode():
        found = method.predict(data, np.arange(2), 0)
    np.testing.assert_array_equal(found.last_loss, expected.last_loss)
    assert (found.last_loss < found.first_loss).all()
