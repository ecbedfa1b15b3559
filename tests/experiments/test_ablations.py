"""Ablations: lines are checked before anything runs, equal settings run once, every number is what it says."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from fakes import FakeTeacher

from apm import methods, teachers, ttt
from apm.analysis import numbers, stats, verify
from apm.analysis.numbers import Number
from apm.data import UnreadableImage, published
from apm.experiments import ablations
from apm.experiments.other_students import OneSampleStudent
from apm.ttt import TTTConfig

STUDENT = {"preset": "mini", "grid": [4, 4], "hidden": [16], "patch": 4}
COMMON = {"seeds": [0, 7, 42], "student": STUDENT, "training": {"iterations": 12, "learning_rate": 5e-3}}


@pytest.fixture(scope="module")
def teacher():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teachers, "features", lambda teacher, dataset: teacher.features(dataset))
        patch.setattr(teachers, "features_at", lambda teacher, data, at: torch.as_tensor(teacher.features(data)[at]))
        yield FakeTeacher()


@pytest.fixture(scope="module")
def rows(teacher, data, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    lines = [
        line(),
        line(name="slow", training={"learning_rate": 1e-5}),
        line(name="again", part="q"),
        line(name="vector", network="vector", against="slow", training={"learning_rate": 5e-2}),
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
        ([line(), line()], r"\(base\): the name 'base' is used twice"),
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


def test_a_broken_line_is_named_with_its_file(tmp_path, monkeypatch) -> None:
    for folder in ("profiles/mini", "notebooks"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "profiles/mini/common.yaml").touch()
    (tmp_path / "profiles/mini/a.b.yaml").write_text("- {part: a, nme: b}")
    monkeypatch.setenv("APM_ROOT", str(tmp_path))
    with pytest.raises(ValueError, match=r"profiles/mini/a\.b\.yaml: ablation 1"):
        ablations.load("mini", "a.b.yaml")


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
        ({"network": "mlp", "training": {"loss_rgb": 1.0}}, r"mlp has no grid.*loss_rgb = 1.0 applies to the APM"),
        ({"size": 64}, r"size and init are options of other networks"),
        ({"samples": 3}, r"samples must be at least 10 \(for an interval\), found 3"),
        ({"seeds": [0, 0, 1]}, "at least 3 different seeds"),
    ],
)
def test_options_that_do_not_exist_or_do_not_fit_are_errors_before_anything_runs(
    options: dict, message: str, teacher, data, tmp_path: Path
) -> None:
    common = {**COMMON, "seeds": options.pop("seeds", COMMON["seeds"])}
    with pytest.raises(ValueError, match=message):
        ablations.run(ablations.parse([line(**options)]), teacher, data, folder=tmp_path, **common)
    assert not list(tmp_path.iterdir())


def test_lines_with_equal_settings_share_one_run_and_every_line_says_what_it_is(rows, teacher) -> None:
    assert rows.groupby("variant").size().to_dict() == {"base": 36, "slow": 36, "again": 36, "vector": 36, "few": 30}
    shards = rows.groupby("variant")["shard"].unique()
    assert set(shards["base"]) == set(shards["again"])
    assert not set(shards["base"]) & set(shards["slow"])
    pictures = ablations.parse([line(picture="squash"), line(name="other")])
    assert [ablations.method(one, teacher, STUDENT, None).picture for one in pictures] == ["squash", "teacher"]
    what = rows.groupby("variant")[["parameters", "same_as"]].first()
    assert what.loc["base", "parameters"] == 49 + (16 + 16) * 16 + 16 + 16 * 12 + 12
    assert what.loc["vector", "parameters"] == 12
    assert what["same_as"].to_dict() == {"base": "", "slow": "", "again": "base", "vector": "", "few": ""}


def test_a_selection_keeps_the_base_and_what_its_lines_are_compared_with(monkeypatch, tmp_path) -> None:
    lines = ablations.parse(
        [line(), line(name="a"), line(name="b", part="mine", against="c"), line(name="c", against="a"), line(name="d")]
    )
    assert [x.name for x in ablations.selected(lines, "mine", "base")] == ["base", "a", "b", "c"]
    assert [x.name for x in ablations.selected(lines, "d")] == ["d"]
    assert ablations.selected(lines, "", "base") == lines
    with pytest.raises(ValueError, match=r"unknown part or line 'mien'. Known: p, base, .*Did you mean 'mine'"):
        ablations.selected(lines, "mien")


def test_the_last_line_runs_first_and_more_samples_than_there_are_take_all(
    teacher, data, tmp_path, monkeypatch
) -> None:
    ran = []
    run = ablations.records.run
    monkeypatch.setattr(ablations.records, "run", lambda m, d, **o: (ran.append((m.name, len(d))), run(m, d, **o))[1])
    lines = ablations.parse([line(), line(name="new", samples=99, training={"iterations": 2})])
    rows = ablations.run(lines, teacher, data, folder=tmp_path, **COMMON)
    assert ran[::3] == [("ablation new", 12), ("ablation base", 12)]
    assert list(dict.fromkeys(rows["variant"])) == ["base", "new"]
    assert list(ablations.after(rows, "base").index.get_level_values("variant")) == ["base", "new"]


@pytest.mark.parametrize("k", [None, 3, 5])
def test_every_number_is_recomputed_from_the_records(rows, k: int | None) -> None:
    table = ablations.after(rows, "base", k).droplevel("part")
    assert ("few" in table.index) == (k != 5)  # it has 3 updates
    parts = {variant: own.set_index(["sample", "seed"]) for variant, own in rows.groupby("variant")}
    for variant, line in table.iterrows():
        own = parts[variant]
        at, label, asked = line["k"], own["label"], own["teacher_prediction"].astype(int)
        assert at == (k or (3 if variant == "few" else 12))
        said = pd.Series(stats.paths(own)[:, at], own.index)
        right = said == label
        assert line["final"].value == pytest.approx(100 * right.mean())
        assert line["as teacher"].value == pytest.approx(100 * (said == asked).mean())
        assert line["final - teacher"].value == pytest.approx(100 * (right.mean() - (asked == label).mean()))
        assert line["sd over seeds"].value == pytest.approx(100 * right.groupby("seed").mean().std())
        if variant == "base":
            assert pd.isna(line["difference"])
            continue
        theirs = parts["slow" if variant == "vector" else "base"].loc[own.index]
        step = right.to_numpy().astype(int) - (np.stack(theirs["path"])[:, at] == theirs["label"]).to_numpy()
        assert line["difference"].value == pytest.approx(100 * step.mean())
        assert line["difference"].low < line["difference"].value < line["difference"].high  # never without width
        assert line["difference"].n == own.index.unique("sample").size
    assert pd.isna(table.loc["base", "compared with"])
    assert table.loc["vector", "compared with"] == (f"slow, k = {k}" if k else "slow")
    assert k == 5 or table.loc["few", "compared with"] == "base, k = 3"


def test_bad_requests(rows) -> None:
    with pytest.raises(ValueError, match=r"unknown variant 'bse'.*Did you mean 'base'"):
        ablations.after(rows, "bse")
    with pytest.raises(ValueError, match="no variant was trained for 99 iterations"):
        ablations.after(rows, "base", 99)
    with pytest.raises(ValueError, match="trained for 12 iterations; found k = 13"):
        ablations.stopped(rows[rows["variant"] == "base"], 13)
    unseen = rows.assign(against=rows["against"].where(rows["variant"] != "base", "few"))
    with pytest.raises(ValueError, match="'base' has 2 images that 'few', with which it is compared, has not seen"):
        ablations.after(unseen, "base", 3)


def test_a_seed_on_which_many_images_fail_widens_the_interval(rows) -> None:
    """Three seeds of which one fails on half its images are no 36 independent images."""
    own = rows[rows["variant"] == "base"].assign(teacher_prediction=rows["label"])
    one_seed = own["seed"].eq(42) & own["sample"].isin(range(6))
    spread = (own["sample"] % 2).eq(0) & (own["sample"] // 2 % 3).eq(own["seed"].map({0: 0, 7: 1, 42: 2}))
    assert one_seed.sum() == spread.sum() == 6
    found = []
    for failed in (one_seed, spread):
        path = [np.full(13, (label + bad) % 3) for label, bad in zip(own["label"], failed, strict=True)]
        found.append(ablations.after(own.assign(path=path), "base").iloc[0])
    together, apart = (line["final - teacher"] for line in found)
    assert together.value == apart.value == pytest.approx(-100 / 6)
    assert together.high - together.low > 1.5 * (apart.high - apart.low)
    assert found[0]["against its teacher"] == "not told apart"


@pytest.mark.parametrize("n", [10, 48])
@pytest.mark.parametrize("wrong", [(0, 0, 0), (1, 0, 0), (1, 1, 0), (4, 0, 2)])
def test_a_spread_over_seeds_holds_where_one_answer_turns(wrong: tuple[int, ...], n: int) -> None:
    def tidy(counts: list[int]) -> pd.DataFrame:
        right, seeds = np.concatenate([np.arange(n) >= bad for bad in counts]), np.repeat([0, 7, 42], n)
        cell = ablations.spread(right, seeds)
        assert cell.value == pytest.approx(float(np.std([100 * bad / n for bad in counts], ddof=1)))
        assert cell.low <= cell.value <= cell.high
        return numbers.tidy(pd.DataFrame({"sd over seeds": {"x": cell}}), "05_ablations")

    expected = tidy(list(wrong))
    for seed in range(3):
        turned = list(wrong)
        turned[seed] += 1 if not wrong[seed] else -1
        assert verify.compare(expected, tidy(turned))["status"].item() in ("same", "within")
    assert n < 48 or verify.compare(expected, tidy([n, 0, 0]))["status"].item() == "outside"


def test_three_outcomes_none_of_which_hangs_on_one_image() -> None:  # one image of 48 is 2.1 points
    ends = [(-9.0, -3.0, 48), (-9.0, -2.0, 48), (-1.0, 4.0, 48), (0.5, 9.0, 128), (2.0, 9.0, 128)]
    found = [ablations.side(Number((low + high) / 2, low, high, n, "points", "difference")) for low, high, n in ends]
    assert found == ["below", *["not told apart"] * 3, "above"]


def test_a_run_of_k_updates_is_the_beginning_of_a_longer_one(rows, teacher, data, tmp_path) -> None:
    own = rows[rows["variant"] == "base"]
    table = pd.DataFrame({k: ablations.stopped(own, k) for k in (3, 12)}).T
    short = ablations.parse([line(name="short", training={"iterations": 3})])
    run = ablations.run(short, teacher, data, folder=tmp_path, **COMMON)
    assert table.loc[3, "final"].value == pytest.approx(100 * (run["prediction"] == run["label"]).mean())
    right = stats.paths(own) == own[["label"]].to_numpy()
    seen = [100 * right[:, 1 : k + 1].any(1).mean() for k in (3, 12)]
    assert [cell.value for cell in table["any"]] == pytest.approx(seen) == sorted(seen)
    step = ablations.compared(own, own, 3, 12)
    assert step is not None
    assert step.value == pytest.approx(100 * (right[:, 3].mean() - right[:, 12].mean()))


def test_how_close_students_come_is_read_from_their_features(teacher, data, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("APM_CACHE", str(tmp_path))
    few = data.subset(np.arange(4))
    config = methods.training_config(teacher, STUDENT, {"iterations": 40, "learning_rate": 2e-2})
    table = ablations.towards_target(teacher, few, config, [0, 40])
    images, targets = teachers.student_images(list(few.images), 16), torch.as_tensor(teacher.features(few))
    result = ttt.adapt(images, targets, config)
    cosine = torch.nn.functional.cosine_similarity(result.features[:, -1], targets)
    assert table.loc[40, "cosine to the target"].value == pytest.approx(cosine.mean().item(), rel=1e-5)
    assert table.loc[40, "loss"].value == pytest.approx(result.losses[:, -1].mean().item(), rel=1e-5)
    assert table.loc[40, "loss"].value < table.loc[0, "loss"].value / 10
    assert all(0 <= loss.low <= loss.high for loss in table["loss"])
    with pytest.raises(ValueError, match="trained for 40 iterations; found k = 41"):
        ablations.towards_target(teacher, few, config, [41])
    monkeypatch.setattr(ttt, "adapt", lambda *_: pytest.fail("these students were trained before"))
    pd.testing.assert_frame_equal(ablations.towards_target(teacher, few, config, [0, 40]), table)
    with pytest.raises(pytest.fail.Exception):
        ablations.towards_target(teacher, few, replace(config, learning_rate=1e-2), [0, 40])


def test_published_cells_come_from_the_file_and_unknown_ones_are_errors() -> None:
    def found(cell: list[str] | None) -> dict:
        return ablations.published_cells(ablations.parse([line(published=cell)]), published.load("table5"))

    assert found(["Lcls only", "CIFAR-10"]) == {"base": Number(94.2, kind="published")}
    assert (found(["ResNet18", "CIFAR-10"]), found(None)) == ({"base": "text: ResNet18 > ResNet34"}, {})
    with pytest.raises(ValueError, match=r"unknown published cell of ablation 'base' \('Lcls', 'CIFAR-10'\)"):
        found(["Lcls", "CIFAR-10"])


def test_a_line_can_have_a_dataset_of_its_own_and_no_step_to_the_base(teacher, data, tmp_path, monkeypatch) -> None:
    other = replace(data, name="other", labels=np.roll(data.labels, 1), fingerprint="e" * 64)
    sets = {"other": other, "toy": data.subset(np.arange(10))}
    monkeypatch.setattr(ablations, "load_dataset", sets.get)
    lines = [line(), line(name="elsewhere", dataset="other"), line(name="places", dataset="toy")]
    part = data.subset(np.arange(2, 12))
    found = ablations.run(ablations.parse(lines), teacher, part, folder=tmp_path, **COMMON)
    assert found.groupby("variant", sort=False)["dataset"].first().tolist() == [data.name, "other", data.name]
    # images of equal number but other places are another run
    seen = found.groupby("variant")["sample"].unique().map(sorted).to_dict()
    assert (seen["base"], seen["places"]) == (list(range(2, 12)), list(range(10)))
    with pytest.raises(ValueError, match="'places' has 2 images that 'base', with which it is compared"):
        ablations.after(found, "base")
    table = ablations.after(found[found["variant"] != "places"], "base").droplevel("part")
    own = found[found["variant"] == "elsewhere"]
    assert set(own["label"][own["sample"] == 0]) == {other.labels[0]}
    assert table.loc["elsewhere", "final"].value == pytest.approx(100 * (own["prediction"] == own["label"]).mean())
    assert pd.isna(table.loc["elsewhere", "difference"])


def test_what_moved_counts_runs_and_not_lines(rows) -> None:
    table = ablations.after(rows, "base")
    wide, far = (Number(v, v - 4, v + 4, 48, "points", "difference") for v in (0.0, -20.0))
    for variant, cell in {"base": wide, "slow": far, "again": far, "vector": wide, "few": wide}.items():
        table.loc[("q" if variant == "again" else "p", variant), "final - teacher"] = cell
    found = ablations.moved({"after the last": table}, ["again"]).loc["after the last", "its teacher"]
    assert (found["runs"], found["below"], found["not told apart"], found["above"]) == (4, 1, 3, 0)
    assert found["which below"] == "slow"  # the repeated line is no finding of its own
    assert found["of them p (Holm) < 0.05"] == 1


@pytest.mark.parametrize(("grid", "cosine"), [((2, 2), 1.0), (None, np.nan)])
def test_where_the_feature_is_the_mean_of_the_tokens_their_cosine_is_one(data, grid, cosine: float) -> None:
    def encode(images: torch.Tensor, *, tokens: bool) -> teachers.Encoding:
        found = images.flatten(1)[:, :16].unflatten(1, (2, 2, 4))
        return teachers.Encoding(3 * found.mean(dim=(1, 2)), found)

    transform = lambda pictures: torch.as_tensor(np.stack(pictures)).float()  # noqa: E731
    teacher = SimpleNamespace(grid=grid, transform=transform, encode=encode)
    assert float(ablations.feature_and_tokens(teacher, data)) == pytest.approx(cosine, nan_ok=True)


def test_an_image_that_cannot_be_read_stops_or_is_recorded_as_the_profile_says(
    teacher, data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = teachers.features_at

    def broken(teacher, dataset, positions):
        if 3 in np.asarray(dataset.indices)[positions]:
            raise UnreadableImage(Path("x.jpg"), "truncated")
        return original(teacher, dataset, positions)

    monkeypatch.setattr(teachers, "features_at", broken)
    options, lines = {"folder": tmp_path, **COMMON}, ablations.parse([line()])
    with pytest.raises(RuntimeError, match=r"cannot read the image x\.jpg"):
        ablations.run(lines, teacher, data, **options)
    found = ablations.run(lines, teacher, data, on_error="record", **options)
    assert (found["prediction"] < 0).sum() == 3
    assert [ablations.after(found, "base", k)["images"].tolist() for k in (None, 2)] == [[12], [12]]


def student(teacher, network="mlp", size=16, *, init="default", **options) -> OneSampleStudent:
    return OneSampleStudent(teacher, network, TTTConfig(**options), size, init=init)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_another_student_starts_anew_for_every_image_whatever_its_neighbours_and_mode(teacher, data, mode) -> None:
    method = student(teacher, iterations=5, learning_rate=1e-3)
    whole = method.predict(data, np.arange(12), 0)
    with mode():
        part = method.predict(data, np.array([7, 2]), 0)
    np.testing.assert_allclose(part.last_loss, whole.last_loss[[7, 2]], rtol=1e-6)
    assert (whole.last_loss < whole.first_loss).all()
    assert not np.allclose(method.predict(data, np.arange(12), 1).last_loss, whole.last_loss)
    state = torch.get_rng_state()
    method.build(3)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_bare_vector_takes_the_steps_of_adam(teacher, data) -> None:
    method = student(teacher, "vector", iterations=1, learning_rate=1e-2)
    image = teachers.student_images([data.images[0]], 16)
    start = method.build(ttt.image_seed(0, image[0])).value.detach()
    target = torch.nn.functional.normalize(torch.as_tensor(teacher.features(data)[0]), dim=-1)
    stepped = start - 1e-2 * torch.sign(start - target)  # Adam's first step is the sign of the gradient
    losses = [(v - target).square().mean().item() for v in (start, stepped)]
    predictions = method.predict(data, np.array([0]), 0)
    assert [predictions.first_loss[0], predictions.last_loss[0]] == pytest.approx(losses, rel=1e-4)


def test_weights_are_drawn_from_the_given_spread_and_resnets_are_torchvisions(teacher, data) -> None:
    drawn = torch.cat([p.flatten() for p in student(teacher, init="normal", init_std=0.01).build(0).parameters()])
    assert (drawn.abs().max() < 0.06, drawn.std().item()) == (True, pytest.approx(0.01, rel=0.05))
    method = student(teacher, "resnet18", 48, iterations=4, learning_rate=1e-3)
    assert method.parameters() == 11_176_512 + 513 * 12  # the published ResNet-18 without its classifier, and a new one
    predictions = method.predict(data, np.array([0, 1]), 0)
    assert (predictions.last_loss < predictions.first_loss).all()
    with pytest.raises(ValueError, match="set size: 64 or larger"):
        student(teacher, "resnet18", 32).build(0)
