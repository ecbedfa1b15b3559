"""Each baseline's arithmetic on cases small enough to do by hand; none reads a label, one image's failure is its own."""

import copy
import dataclasses
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from colours import CONFIG, Colour, Tower, colours, dataset, noise, normed, nothing_kept, stored_features, units  # noqa: F401
from torch import nn

from apm import methods, teachers
from apm import methods as baselines
from apm.data import UnreadableImage, prompts
from apm.methods import apm as student
from apm.methods import method as room
from apm.methods import mta, tda, tent, views, zero
from apm.project.identity import RUN_MODULES, code_version
from apm.runs import records

NAMES = ("apm-views", "mta", "tda", "tent", "zero")


def build(name: str, teacher=None, /, **options):
    if name == "apm-views":
        options.setdefault("config", CONFIG)
    if name in ("apm-views", "mta", "tent", "zero"):
        options.setdefault("views", 10)
    return baselines.create(name, teacher or normed(), **options)


# ------------------------------------------------------------------------------------------------------------- all of them


@pytest.mark.parametrize("name", NAMES)
def test_labels_have_no_influence_and_the_same_seed_says_the_same(name: str) -> None:
    data, method = noise(), build(name)
    first = method.predict(data, np.arange(6), seed=1)
    views.forget()
    relabelled = dataclasses.replace(data, labels=1 - data.labels)
    second = build(name).predict(relabelled, np.arange(6), seed=1)
    assert np.array_equal(first.prediction, second.prediction)
    assert np.array_equal(first.extra["confidence"], second.extra["confidence"])
    assert first.status == ["ok"] * 6
    assert first.prediction.dtype == np.int64
    assert {c: v.dtype for c, v in first.extra.items() if c in ("confidence", "teacher_passes")} == {
        "confidence": np.float32,
        "teacher_passes": np.float32,
    }


@pytest.mark.parametrize("name", ["apm-views", "mta", "tent", "zero"])
def test_an_episodic_method_says_the_same_whatever_images_are_beside(name: str) -> None:
    data, method = noise(), build(name)
    assert not method.online
    whole = method.predict(data, np.arange(6), seed=0)
    some = method.predict(data, np.array([4, 1]), seed=0)
    assert np.array_equal(some.prediction, whole.prediction[[4, 1]])
    np.testing.assert_allclose(some.extra["confidence"], whole.extra["confidence"][[4, 1]], rtol=1e-5)


@pytest.mark.parametrize("name", ["apm-views", "mta", "zero"])
def test_views_follow_the_seed(name: str) -> None:
    first, second = (build(name).predict(noise(), np.arange(6), seed).extra["confidence"] for seed in (0, 1))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("name", NAMES)
def test_an_image_without_a_feature_fails_alone(name: str) -> None:
    class Blind(Tower):
        def forward(self, x):
            white = (x == 1).all(dim=(1, 2, 3))[:, None]
            return torch.where(white, torch.nan, super().forward(x))

    teacher, data = normed(Blind), noise()
    images = data.images.copy()
    images[2] = 255
    with_white = dataset(images)
    said = build(name, teacher).predict(with_white, np.arange(6), seed=0)
    assert said.prediction[2] == -1
    assert said.status[2].startswith("non-finite")
    assert np.isnan(said.extra["confidence"][2])
    rest = [0, 1, 3, 4, 5]
    alone = build(name, teacher).predict(with_white, np.array(rest), seed=0)
    assert [said.status[i] for i in rest] == ["ok"] * 5
    assert np.array_equal(said.prediction[rest], alone.prediction)
    if said.path is not None:
        assert (said.path[2] == -1).all()


@pytest.mark.parametrize("name", NAMES)
def test_settings_are_plain_and_change_with_the_options(name: str) -> None:
    method = build(name)
    json.dumps(method.settings())
    assert method.modules == (*RUN_MODULES, "methods.views", f"methods.{'apm' if name == 'apm-views' else name}")
    for change in ({"flip": False}, {"augmix": True}, {"templates": ("the {}",)}, {"views": 20}):
        assert build(name, **change).settings() != method.settings(), change
    assert build(name, name="another row").settings() == method.settings()


def test_another_methods_file_does_not_change_the_code_that_a_record_depends_on(tmp_path) -> None:
    shutil.copytree(Path(methods.__file__).parents[1], tmp_path / "apm", ignore=shutil.ignore_patterns("__pycache__"))

    def version(changed: str) -> str:
        with (tmp_path / "apm" / "methods" / f"{changed}.py").open("a") as file:
            file.write(f"\nCHANGED = {changed!r}\n")
        code_version.cache_clear()
        return code_version(zero.Zero.modules, tmp_path / "apm")

    before = code_version(zero.Zero.modules)
    assert version("mta") == version("mine") == before
    assert len({before, version("zero"), version("views"), version("method")}) == 4


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("zero", {"views": 10.5}, "Zero: views: expected a whole number, found 10.5"),
        ("zero", {"views": True}, "expected a whole number, found True"),
        ("zero", {"share": "0.1"}, "Zero: share: expected a number, found '0.1': write it without"),
        ("tent", {"learning_rate": "1e-3"}, "expected a number, found '1e-3'.*YAML reads 1e-3 as text"),
        ("zero", {"flip": "no"}, "Zero: flip: expected true or false, found 'no'"),
        ("zero", {"name": 3}, "Zero: name: expected text, found 3"),
        ("tda", {"order_seed": 1.5}, "expected a whole number or null, found 1.5"),
        ("tda", {"entropy_between": (0.2,)}, "expected a list of 2, each a number"),
        ("zero", {"templates": "a {}"}, "expected a list, each text or null, found 'a {}'"),
        ("tpt", {"coop": {"epochs": 1.5}}, "CoOp: epochs: expected a whole number, found 1.5"),
        ("tpt", {"coop": "digits-train"}, "expected a mapping or null"),
    ],
)
def test_values_of_another_type_are_refused(name: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        baselines.create(name, normed(), **options)


@pytest.mark.parametrize("name", NAMES)
def test_records_take_what_a_baseline_says(name: str, tmp_path) -> None:
    data, method = noise(), build(name)
    frame = records.run(method, data, folder=tmp_path, shard_size=2)
    assert frame["shard"].nunique() == (1 if name == "tda" else 3)  # online: one shard
    views.forget()
    expected = method.predict(data, np.arange(6), 0)
    assert frame["prediction"].tolist() == expected.prediction.tolist()
    np.testing.assert_allclose(frame["confidence"], expected.extra["confidence"], rtol=1e-5)


def test_teacher_passes_are_counted_whether_or_not_another_method_paid_for_them() -> None:
    data, teacher = noise(), normed()
    first = build("zero", teacher).predict(data, np.arange(6), 0).extra
    second = build("mta", teacher).predict(data, np.arange(6), 0).extra
    assert (first["teacher_passes"] == 10).all()
    assert (second["teacher_passes"] == 10).all()
    assert (first["saved_milliseconds"] == 0).all()
    assert (second["saved_milliseconds"] > 0).all()


def test_unknown_names_and_options_list_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown baseline 'zeo'.*Did you mean 'zero'"):
        baselines.create("zeo", Colour())
    with pytest.raises(ValueError, match=r"unknown option of baseline 'zero' 'veiws'.*Did you mean 'views'"):
        baselines.create("zero", Colour(), veiws=3)
    with pytest.raises(ValueError, match="'zero' is taken by"):
        methods.register("zero")(tda.TDA)
    assert methods.register("zero")(zero.Zero) is zero.Zero  # loaded twice: no error
    assert set(NAMES) <= set(baselines.REGISTRY)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("zero", {"views": 3}, "zero confident views: a share of 0.3 of 3 views is less than one; use at least 4"),
        ("apm-views", {"views": 9}, "zero confident views"),
        ("tda", {"views": 9}, "zero confident views"),
        ("tda", {"positive_shots": 0}, "at least one image per class, found 0 and 2"),
        ("mta", {"views": 1}, "at least 2 views"),
        ("mta", {"lambda_y": 0.0}, "lambda_y must be positive"),
        ("tent", {"steps": -1}, "steps at least 0"),
        ("tent", {"steps": 0, "statistics": "running"}, "changes nothing: it is zero-shot"),
        ("tent", {"statistics": "bach"}, "unknown statistics 'bach'.*Did you mean 'batch'"),
        ("tent", {"layers": "layer"}, "unknown layers 'layer'. Known: all, batch"),
        ("tent", {"scores": "befor"}, "unknown scores 'befor'.*Did you mean 'before'"),
        ("zero", {"prompts": "orginal"}, "unknown prompts 'orginal'.*Did you mean 'original'"),
        ("mta", {"prompts": "original", "templates": ("a {}",)}, "remove one of the two"),
        ("tda", {"prompts": "single"}, "unknown prompts 'single'. Known: profile, original"),
    ],
)
def test_options_that_make_no_sense_are_refused(name: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(name, **options)


class Reader(Colour):
    """Says which templates it was asked for."""

    def text_features(self, classnames, templates):
        self.read = tuple(templates)
        return super().text_features(classnames, templates)


@pytest.mark.parametrize("name", ["zero", "mta"])
def test_original_prompts_of_zero_and_mta_are_one_on_every_set(name: str) -> None:
    teacher, data = Reader(), noise(2)
    for options, expected in (
        ({}, data.templates),
        ({"templates": ("the {}",)}, ("the {}",)),
        ({"prompts": "original"}, ("a photo of a {}.",)),
    ):
        method = build(name, teacher, **options)
        method.predict(data, np.arange(2), 0)
        assert teacher.read == expected
        assert method.prompts_used(data) == f'"{expected[0]}"'


# ------------------------------------------------------------------------------------------------------------------- ZERO


def test_zero_counts_votes_and_not_probabilities() -> None:
    # three of three views kept: two say class 0 weakly, one says class 1 strongly
    logits = torch.tensor([[0.2, 0.0], [0.3, 0.0], [0.0, 9.0]])
    assert zero.vote(logits, 1.0) == 0
    assert int(logits.softmax(dim=-1).mean(dim=0).argmax()) == 1  # what averaging would have said
    assert zero.vote(logits, 0.4) == 1  # one of three kept: the most confident


def test_zero_breaks_ties_by_the_discarded_views_from_the_most_confident_on() -> None:
    kept = [[9.0, 0.0, 0.0], [0.0, 9.0, 0.0]]  # one vote for 0 and one for 1
    assert zero.vote(torch.tensor([*kept, [0.0, 0.0, 4.0], [0.0, 3.0, 0.0], [2.0, 0.0, 0.0]]), 0.4) == 1
    assert zero.vote(torch.tensor([*kept, [0.0, 0.0, 4.0], [0.0, 2.0, 0.0], [3.0, 0.0, 0.0]]), 0.4) == 0
    # no discarded view says 0 or 1: the one they score highest among the tied
    assert zero.vote(torch.tensor([*kept, [0.0, 0.5, 5.0], [0.4, 0.0, 4.0], [0.4, 0.0, 4.0]]), 0.4) == 1
    assert zero.vote(torch.tensor([[0.0, 5.0], [9.0, 0.0]]), 1.0) == 0  # nothing discarded: the most confident


def plain_zero(cosines: list[list[float]], scale: float, share: float) -> int:
    """The release's vote in float16, in loops over numbers: views sorted by entropy, softmax of cosines / eps summed over the kept,
    exact ties broken by the dropped views in that order."""
    half = [[float(np.float16(c)) for c in row] for row in cosines]

    def softmax(row, temperature):
        top = max(row)
        e = [math.exp((v - top) / temperature) for v in row]
        return [v / sum(e) for v in e]

    def uncertainty(row):
        return -sum(p * math.log(p) for p in softmax(row, 1 / scale) if p > 0)

    order = sorted(range(len(cosines)), key=lambda i: uncertainty(cosines[i]))
    k = int(len(cosines) * share)
    soft = [softmax(half[i], float(np.finfo(np.float16).eps)) for i in order[:k]]
    votes = [sum(row[c] for row in soft) for c in range(len(cosines[0]))]
    tied = [c for c, v in enumerate(votes) if v == max(votes)]
    said = [int(np.argmax(cosines[i])) for i in order[k:]]
    return next((c for c in said if c in tied), tied[0]) if len(tied) > 1 else tied[0]


def test_the_soft_vote_is_that_of_float16() -> None:
    # class 1 has the whole vote of one view; class 0 leads class 1 by a thousandth in two: whole votes 2 to 1, soft ones 1.5 to 1.5
    cosines = torch.tensor([[0.0, 0.5, 0.0], [0.3005, 0.3, 0.0], [0.3005, 0.3, 0.0]])
    assert zero.vote(100 * cosines, 1.0) == 0
    assert zero.vote(100 * cosines, 1.0, cosines=cosines) == 1
    rng = np.random.default_rng(0)
    differing = 0
    for _ in range(200):
        some = 0.25 + 0.002 * rng.normal(size=(10, 4))
        values = torch.tensor(some)
        soft = zero.vote(100 * values, 0.5, cosines=values)
        assert soft == plain_zero(some.tolist(), 100, 0.5)
        differing += soft != zero.vote(100 * values, 0.5)
    assert 0 < differing < 100
    data, places = noise(40), np.arange(40)
    hard, soft = (build("zero", soft_vote=s).predict(data, places, 0).prediction for s in (False, True))
    assert np.array_equal(hard, soft)  # far from any tie
    teacher = Colour(text=[unit(44.9)[0].tolist(), unit(45.1)[0].tolist()])
    hard, soft = (build("zero", teacher, soft_vote=s).predict(data, places, 0).prediction for s in (False, True))
    cosines = units(teacher, data, places, 10) @ teacher.text.T
    assert soft.tolist() == [plain_zero(one.tolist(), 2.0, 0.3) for one in cosines]
    assert not np.array_equal(hard, soft)


def test_zero_of_equal_views_is_zero_shot_with_its_probability() -> None:
    said = build("zero", Colour()).predict(colours((153, 204), (255, 0)), np.arange(2), 0)
    assert said.prediction.tolist() == [1, 0]
    # features (0.6, 0.8) and (1, 0), times 2: logits differ by 0.4 and 2
    np.testing.assert_allclose(said.extra["confidence"], [1 / (1 + math.exp(-0.4)), 1 / (1 + math.exp(-2))], rtol=1e-5)
    assert said.extra["teacher_passes"].tolist() == [10, 10]


# -------------------------------------------------------------------------------------------------------------------- MTA


def unit(*degrees: float) -> torch.Tensor:
    angles = torch.tensor(degrees, dtype=torch.float64) * math.pi / 180
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


def plain_mta(points: list[list[float]], logits: list[list[float]], lambda_q: float, lambda_y: float):
    """The two steps of MTA in loops over numbers, five rounds of five each, without early stops."""
    n = len(points)

    def squared(a, b):
        return sum((x - y) ** 2 for x, y in zip(a, b, strict=True))

    k = max(1, int(0.3 * (n - 1)))
    h2 = [0.5 * sum(sorted(squared(points[i], points[j]) for j in range(n) if j != i)[:k]) / k for i in range(n)]
    p = [[math.exp(v) / sum(math.exp(w) for w in row) for v in row] for row in logits]
    w = [[sum(a * b for a, b in zip(p[i], p[j], strict=True)) for j in range(n)] for i in range(n)]
    y, mode = [1 / n] * n, points[0]
    for _ in range(5):
        kernel = [math.exp(-squared(points[i], mode) / (2 * h2[i])) for i in range(n)]
        for _ in range(5):
            e = [math.exp((kernel[i] + lambda_q * sum(w[i][j] * y[j] for j in range(n))) / lambda_y) for i in range(n)]
            y = [v / sum(e) for v in e]
        for _ in range(5):
            weight = [y[i] * math.exp(-squared(points[i], mode) / (2 * h2[i])) for i in range(n)]
            moved = [sum(weight[i] * points[i][d] for i in range(n)) for d in range(len(mode))]
            length = math.sqrt(sum(v * v for v in moved))
            mode = [v / length for v in moved]
    return mode, y


def test_bandwidth_is_half_the_mean_square_distance_to_the_nearest_views() -> None:
    points = torch.tensor([[0.0, 0.0], [1.0, 0.0], [3.0, 0.0]])
    assert mta.bandwidths(points).tolist() == [0.5, 0.5, 2.0]  # k = 1: distances 1, 1, 2
    line = torch.arange(8.0)[
        :, None
    ]  # k = int(0.3 * 7) = 2: the first has neighbours at 1 and 2, the second at 1 and 1
    assert mta.bandwidths(line)[:2].tolist() == [0.5 * (1 + 4) / 2, 0.5]


@pytest.mark.parametrize("weights", [(4.0, 0.2), (1.0, 1.0)])
def test_mode_and_inlierness_agree_with_the_definition_in_plain_numbers(weights: tuple[float, float]) -> None:
    points = unit(0, 10, 25, 90, 100, 14)
    logits = points @ torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64) * 2
    mode, inlierness = mta.seek(points, logits, lambda_q=weights[0], lambda_y=weights[1])
    expected_mode, expected_y = plain_mta(points.tolist(), logits.tolist(), *weights)
    np.testing.assert_allclose(mode, expected_mode, atol=1e-5)
    np.testing.assert_allclose(inlierness, expected_y, atol=1e-5)
    assert inlierness[3] < inlierness[1]  # the views of the other class count less


def test_views_that_are_all_alike_make_mta_zero_shot() -> None:
    said = build("mta", Colour()).predict(colours((153, 204)), np.arange(1), 0)
    assert said.status == ["ok"]
    np.testing.assert_allclose(said.extra["confidence"], 1 / (1 + math.exp(-0.4)), rtol=1e-5)


# -------------------------------------------------------------------------------------------------------------------- TDA


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_tda_adds_the_positive_and_takes_away_the_negative_cache() -> None:
    """Features (1, 0) then (0.6, 0.8); text features are the axes; logit scale 2."""
    said = build("tda", Colour()).predict(colours((255, 0), (153, 204)), np.arange(2), 0)
    # First image: entropy of sigmoid(2) = 0.881 is 0.365 nats, / log2(2) inside (0.2, 0.5): it enters both caches, and
    # both probabilities (0.881, 0.119) lie above 0.03: the negative cache lowers both classes alike.
    first = (2 + 2 * 1 - 0.117, 0 - 0.117)
    # Second: says class 1 with entropy 0.674: positive cache only. Cosine to the first is 0.6.
    second = (1.2 + 2 * math.exp(-5 * 0.4) - 0.117 * math.exp(-0.4), 1.6 + 2 - 0.117 * math.exp(-0.4))
    assert said.prediction.tolist() == [0, 1]
    expected = [sigmoid(first[0] - first[1]), sigmoid(second[1] - second[0])]
    np.testing.assert_allclose(said.extra["confidence"], expected, rtol=1e-5)
    assert said.extra["teacher_passes"].tolist() == [1, 1]


def test_tda_takes_the_constants_and_prompts_of_its_release_for_each_set() -> None:
    known = {  # configs/ of the release
        "imagenet": (2.0, 5.0), "imagenet-a": (2.0, 5.0), "imagenet-v2": (1.0, 8.0), "imagenet-r": (1.0, 8.0),
        "imagenet-sketch": (2.363, 7.45), "eurosat": (4.0, 8.0), "ucf101": (3.0, 8.0), "toy": (2.0, 5.0),
    }  # fmt: skip
    data, method = noise(), build("tda", Colour())
    for name, expected in known.items():
        assert method.constants(dataclasses.replace(data, name=name)) == expected, name
    chosen = build("tda", Colour(), alpha=0.5)
    assert chosen.constants(dataclasses.replace(data, name="eurosat")) == (0.5, 8.0)

    teacher = Reader()
    original = build("tda", teacher, prompts="original")
    for name, expected in (
        ("imagenet-v2", prompts.templates("imagenet-7")),
        ("sun397", prompts.templates("imagenet-7")),
        ("imagenet-sketch", prompts.templates("imagenet-80")),
        ("dtd", ("{} texture.",)),
        ("toy", data.templates),
    ):
        original.predict(dataclasses.replace(data, name=name), np.arange(2), 0)
        assert teacher.read == expected, name
    assert original.prompts_used(dataclasses.replace(data, name="imagenet")).startswith("7 templates (imagenet-7)")
    assert build("tda", teacher).prompts_used(dataclasses.replace(data, name="imagenet")) == '"a {}"'

    said = [method.predict(dataclasses.replace(data, name=name), np.arange(6), 0) for name in ("toy", "eurosat")]
    by_hand = build("tda", Colour(), alpha=4.0, beta=8.0).predict(data, np.arange(6), 0)
    assert np.array_equal(said[1].extra["confidence"], by_hand.extra["confidence"])
    assert not np.array_equal(said[0].extra["confidence"], by_hand.extra["confidence"])
    for shift in ("imagenet-r", "eurosat"):
        assert method.data_identity(dataclasses.replace(data, name=shift)) != method.data_identity(data)


def test_the_negative_cache_lowers_only_classes_of_middling_probability() -> None:
    options = {"probability_between": (0.2, 1.0), "negative_alpha": 1.0}
    said = build("tda", Colour(), **options).predict(colours((255, 0)), np.arange(1), 0)
    np.testing.assert_allclose(said.extra["confidence"], sigmoid((2 + 2 - 1) - 0), rtol=1e-5)  # 0.881 in, 0.119 out


def test_a_full_cache_keeps_the_lowest_entropies() -> None:
    cache, one = tda.Cache(2, 2, 2, torch.device("cpu")), torch.tensor([1.0, 0.0])
    for entropy in (0.5, 0.3, 0.4, 0.6):
        cache.add(0, torch.tensor([entropy, 0.0]), entropy, one)
    assert sorted(cache.entropies[0].tolist()) == pytest.approx([0.3, 0.4])
    assert cache.entropies[1].isinf().all()  # the other class is untouched
    # exp(-beta (1 - f.g)) for the two kept keys, empty places add nothing
    expected = 2 * (math.exp(-5 * 0.7) + math.exp(-5 * 0.6))
    torch.testing.assert_close(cache.scores(one, alpha=2, beta=5), torch.tensor([expected, 0.0]))


def test_tda_depends_on_the_order_and_the_order_on_its_seed() -> None:
    data = noise()
    orders = [build("tda", Colour(), order_seed=s) for s in (None, 1, 1, 2)]
    said = [m.predict(data, np.arange(6), 0).extra["confidence"] for m in orders]
    assert np.array_equal(said[1], said[2])
    assert not np.array_equal(said[0], said[1])
    assert not np.array_equal(said[1], said[3])
    assert orders[0].order(4).tolist() == [0, 1, 2, 3]
    assert sorted(orders[1].order(6).tolist()) == list(range(6))
    # the same images given in that order by hand: rows stay with their images
    by_hand = build("tda", Colour()).predict(data, orders[1].order(6), 0).extra["confidence"]
    assert np.array_equal(by_hand, said[1][orders[1].order(6)])
    assert orders[0].online


def test_an_unreadable_image_fails_alone_and_the_caches_go_on(tmp_path) -> None:
    class Damaged(list):
        def __getitem__(self, i):
            if i == 1:
                raise UnreadableImage(tmp_path / "b.png", "cut off")
            return super().__getitem__(i)

    data = noise()
    said = build("tda", Colour()).predict(dataclasses.replace(data, images=Damaged(data.images)), np.arange(6), 0)
    assert said.prediction[1] == -1
    assert "b.png" in said.status[1]
    without = build("tda", Colour()).predict(data, np.array([0, 2, 3, 4, 5]), 0)
    assert np.array_equal(said.extra["confidence"][[0, 2, 3, 4, 5]], without.extra["confidence"])


@pytest.mark.parametrize("number_of_views", [1, 10])
def test_any_error_on_one_image_leaves_the_stream_as_if_it_were_not_there(
    number_of_views: int, monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    data, method = noise(40), build("tda", Colour(), views=number_of_views, order_seed=3)
    faulty = data.images[20].copy()
    order = method.order(40)
    rest = order[order != 20]
    without = build("tda", Colour(), views=number_of_views).predict(data, rest, 0)

    def failing(original):
        def call(teacher, data_, positions, *arguments, **options):
            if 20 in positions:
                raise RuntimeError("CUDA error:\n out of memory")
            return original(teacher, data_, positions, *arguments, **options)

        return call

    if number_of_views > 1:
        monkeypatch.setattr(room, "encoded", failing(views.encoded))
    else:
        original = tda.TDA._seen

        def seen(self, features, text, scale):
            own = torch.nn.functional.normalize(features_of_faulty, dim=-1)
            if torch.equal(features, own):
                raise RuntimeError("CUDA error:\n out of memory")
            return original(self, features, text, scale)

        features_of_faulty = torch.from_numpy(teachers.features(Colour(), data)[20:21])
        monkeypatch.setattr(tda.TDA, "_seen", seen)
    said = method.predict(data, np.arange(40), 0)
    assert np.flatnonzero(said.prediction < 0).tolist() == [20]
    assert said.status[20] == "error: RuntimeError: CUDA error: out of memory"
    assert np.array_equal(said.prediction[rest], without.prediction)
    assert np.array_equal(said.extra["confidence"][rest], without.extra["confidence"])
    assert np.array_equal(data.images[20], faulty)
    frame = records.run(method, data, folder=tmp_path, on_error="record")  # and records keep it so
    assert (frame["status"] != "ok").tolist() == [i == 20 for i in range(40)]


def test_mistakes_in_code_and_errors_on_every_image_of_an_online_method_are_raised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for error in (TypeError("no such argument"), RuntimeError("no device")):

        def broken(*arguments, raised=error):
            raise raised

        monkeypatch.setattr(tda.TDA, "_seen", broken)
        with pytest.raises(type(error), match=str(error)):
            build("tda", Colour()).predict(noise(), np.arange(6), 0)


# ------------------------------------------------------------------------------------------------------------------- TENT


def test_one_step_of_tent_by_hand() -> None:
    """LayerNorm without epsilon maps two numbers to (1, -1); Adam's first step moves a parameter by the learning rate.

    The feature is u = (w1 + b1, -w2 + b2). With text features (1, 0) and (0.6, 0.8) the scores differ by v.u / |u|, v =
    (0.4, -0.8), which class 0 wins at u = (1, -1). The part of v across u is (-0.2, -0.2): both components of u must fall
    for the prediction to become surer. So w1, b1, b2 fall and w2 grows by 0.01.
    """
    teacher = Colour(nn.LayerNorm(2, eps=0), text=((1.0, 0.0), (0.6, 0.8)))
    tower = tent.Tower(teacher)
    pixels, text = teacher.transform(colours((200, 100)).images), teacher.text
    scores, passes = tent.adapt(tower, pixels, text, 2.0, steps=1, learning_rate=0.01)
    after = {name: value.tolist() for name, value in tower.parameters.items()}
    assert after["layers.0.weight"] == pytest.approx([0.99, 1.01], abs=1e-6)
    assert after["layers.0.bias"] == pytest.approx([-0.01, -0.01], abs=1e-6)
    u = np.array([0.98, -1.02])
    expected = 2 * np.array([[1, 0], [0.6, 0.8]]) @ u / np.linalg.norm(u)
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    assert passes == 2
    tower.reset()
    assert tower.parameters["layers.0.weight"].tolist() == [1, 1]
    assert tower.parameters["layers.0.bias"].tolist() == [0, 0]


def test_tent_makes_predictions_surer_and_leaves_the_teacher_as_it_was() -> None:
    teacher = normed()
    before = {name: value.clone() for name, value in teacher.model.visual.state_dict().items()}
    data = noise()
    method = build("tent", teacher, steps=3, learning_rate=0.05)
    said = method.predict(data, np.arange(6), 0)
    zero_shot = [
        (2 * nn.functional.normalize(f, dim=-1) @ teacher.text.T).softmax(dim=-1).max()
        for f in teacher.encode(teacher.transform(data.images)).feature
    ]
    assert said.extra["confidence"].mean() > np.mean(zero_shot)
    for name, value in teacher.model.visual.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not any(p.requires_grad for p in teacher.model.visual.parameters())
    assert (said.extra["teacher_passes"] == 3 * 10 + 1).all()
    assert (said.extra["teacher_backward_passes"] == 30).all()


def test_batch_norm_takes_its_statistics_from_the_views() -> None:
    teacher = Colour(nn.BatchNorm1d(2))
    tower = tent.Tower(teacher)
    assert tower.batch_norm
    pixels = torch.zeros(4, 3, 8, 8)
    pixels[:, 0], pixels[:, 1] = torch.tensor([0.0, 0.2, 0.4, 0.6])[:, None, None], 0.5
    feature = tower.network(pixels)
    torch.testing.assert_close(feature[:, 0].mean(), torch.tensor(0.0), atol=1e-6, rtol=0)
    _, passes = tent.adapt(tower, pixels, teacher.text, 2.0, steps=2, learning_rate=0.01)
    assert passes == 12  # the last pass needs the batch too
    assert teacher.model.visual.layers[0].running_mean.tolist() == [0, 0]  # the teacher's own are as they were
    assert teacher.model.visual.layers[0].track_running_stats


def test_the_parts_of_tent_with_batch_norm_can_be_told_apart() -> None:
    """Without a step only the statistics change, with running statistics only scale and shift do."""
    teacher = Colour(nn.BatchNorm1d(2))
    norm = teacher.model.visual.layers[0]
    norm.running_mean[:] = torch.tensor([0.3, 0.2])
    norm.running_var[:] = torch.tensor([0.09, 0.04])
    data, plain = noise(), []
    for image in data.images:
        plain.append((2 * nn.functional.normalize(teacher.encode(teacher.transform([image])).feature, dim=-1))[0])
    zero_shot = torch.stack(plain).softmax(dim=-1)

    only_statistics = build("tent", teacher, steps=0).predict(data, np.arange(6), 0)
    assert (only_statistics.extra["teacher_passes"] == 10).all()
    assert (only_statistics.extra["teacher_backward_passes"] == 0).all()
    assert (only_statistics.extra["batch_statistics"] == 1).all()
    pixels = views.view_pixels(teacher, data.images[2], 10, seed=0)
    raw = pixels[:, :2].mean(dim=(2, 3))
    by_hand = (raw[0] - raw.mean(dim=0)) / (raw.var(dim=0, unbiased=False) + norm.eps).sqrt()
    expected = (2 * nn.functional.normalize(by_hand, dim=0)).softmax(dim=0).max()
    assert only_statistics.extra["confidence"][2] == pytest.approx(float(expected), rel=1e-4)

    barely = build("tent", teacher, statistics="running", learning_rate=1e-12).predict(data, np.arange(6), 0)
    np.testing.assert_allclose(barely.extra["confidence"], zero_shot.max(dim=-1).values, rtol=1e-4)
    assert (barely.extra["teacher_passes"] == 11).all()  # no batch is needed for the last pass
    assert (barely.extra["batch_statistics"] == 0).all()
    step = build("tent", teacher, statistics="running", learning_rate=0.1).predict(data, np.arange(6), 0)
    assert not np.allclose(step.extra["confidence"], barely.extra["confidence"])
    assert norm.running_mean.tolist() == pytest.approx([0.3, 0.2])


class PlainTent:
    """tent.py of the release on a network of BatchNorm1d layers, in its own order: scores, entropy, step; the scores are returned."""

    def __init__(self, network: nn.Module, rate: float) -> None:
        self.network = network.train()
        for layer in network.modules():
            layer.requires_grad_(isinstance(layer, nn.BatchNorm1d))
            if isinstance(layer, nn.BatchNorm1d):
                layer.track_running_stats, layer.running_mean, layer.running_var = False, None, None
        self.optimiser = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=rate)

    def __call__(self, x: torch.Tensor, text: torch.Tensor, steps: int) -> torch.Tensor:
        for _ in range(steps):
            outputs = 2.0 * nn.functional.normalize(self.network(x), dim=-1) @ text.T
            loss = -(outputs.softmax(1) * outputs.log_softmax(1)).sum(1).mean(0)
            loss.backward()
            self.optimiser.step()
            self.optimiser.zero_grad()
        return outputs


def test_the_original_tent_trains_batch_norm_alone_and_scores_before_the_step() -> None:
    teacher = normed()
    teacher.model.visual = Tower(nn.LayerNorm(2), nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).eval()
    data, options = noise(), {"learning_rate": 0.05, "layers": "batch", "scores": "before"}
    said = {steps: build("tent", teacher, steps=steps, **options).predict(data, np.arange(6), 0) for steps in (1, 3)}
    for steps, found in said.items():
        for i, image in enumerate(data.images):
            plain = PlainTent(copy.deepcopy(teacher.model.visual), 0.05)
            pixels = views.view_pixels(teacher, image, 10, seed=0)
            expected = plain(pixels, teacher.text, steps)[0].detach().softmax(dim=-1).max()
            assert found.extra["confidence"][i] == pytest.approx(float(expected), rel=1e-5)
        assert (found.extra["teacher_passes"] == 10 * steps).all()  # none after the last step
    # one step after a reset: the scores of no step at all
    none = build("tent", teacher, steps=0).predict(data, np.arange(6), 0).extra["confidence"]
    np.testing.assert_allclose(said[1].extra["confidence"], none, rtol=1e-5)
    after = build("tent", teacher, steps=1, learning_rate=0.05, layers="batch").predict(data, np.arange(6), 0)
    assert not np.allclose(after.extra["confidence"], none)
    every, batch = (set(tent.Tower(teacher, layers=layers).parameters) for layers in ("all", "batch"))
    assert batch == {"layers.2.weight", "layers.2.bias"}
    assert every == batch | {"layers.0.weight", "layers.0.bias"}
    with pytest.raises(ValueError, match="has no BatchNorm, the only one that the original trains: set layers: all"):
        build("tent", normed(), layers="batch").predict(data, np.arange(2), 0)


def test_a_tower_without_normalisation_layers_cannot_be_tented() -> None:
    with pytest.raises(ValueError, match=r"image tower of teacher colour has none.*another method"):
        build("tent", Colour(nn.Linear(2, 2))).predict(noise(), np.arange(2), 0)


# --------------------------------------------------------------------------------------------------------- better targets


def test_the_target_is_the_mean_over_the_confident_views() -> None:
    features = unit(0, 10, 45).float() * torch.tensor([[1.0], [3.0], [5.0]])
    text = torch.eye(2)
    mean = student.mean_target(features, text, 2.0, 0.67, unit=True)  # two of three, not the one in between
    torch.testing.assert_close(mean, unit(0, 10).float().mean(dim=0))
    long = student.mean_target(features, text, 2.0, 0.67, unit=False)
    torch.testing.assert_close(long, features[:2].mean(dim=0))


def test_one_view_is_the_apm_of_the_paper_exactly() -> None:
    teacher, data = Colour(), noise()
    ours = build("apm-views", teacher, views=1).predict(data, np.arange(6), 3)
    theirs = methods.APM(teacher, CONFIG).predict(data, np.arange(6), 3)
    for field in ("prediction", "path", "first_loss", "last_loss", "minimum_loss_prediction", "status"):
        assert np.array_equal(getattr(ours, field), getattr(theirs, field)), field
    assert (ours.extra["teacher_passes"] == 1).all()


def test_the_target_has_a_confidence_and_a_time_of_its_own() -> None:
    teacher, data = Colour(), noise()
    said = build("apm-views", teacher, views=1).predict(data, np.arange(6), 0)
    feature = teacher.encode(teacher.transform(data.images)).feature
    expected = (2 * nn.functional.normalize(feature, dim=-1)).softmax(dim=-1)
    np.testing.assert_allclose(said.extra["target_confidence"], expected.max(dim=-1).values, rtol=1e-5)
    assert said.extra["target_prediction"].tolist() == expected.argmax(dim=-1).tolist()
    assert (said.extra["target_milliseconds"] > 0).all()


def test_more_views_give_the_student_another_target() -> None:
    teacher, data = Colour(), noise()
    method = build("apm-views", teacher, views=10, share=0.3)
    targets, _ = method.targets(data, np.arange(6), 0)
    seen = units(teacher, data, np.arange(6), 10)
    expected = [one[views.confident(2 * one, 0.3)].mean(dim=0) for one in seen]
    torch.testing.assert_close(targets, torch.stack(expected))
    said = method.predict(data, np.arange(6), 0)
    assert said.extra["target_prediction"].tolist() == targets.argmax(dim=-1).tolist()
    assert (said.last_loss < said.first_loss).all()
    assert (said.path[:, -1] == said.prediction).all()
    assert (said.last_loss != methods.APM(teacher, CONFIG).predict(data, np.arange(6), 0).last_loss).all()


# ------------------------------------------------------------------------------------------------------------ a real CLIP


def test_all_run_on_a_vision_transformer_and_leave_it_alone() -> None:
    from apm.data import load

    teacher = teachers.load("mini")
    before = {name: value.clone() for name, value in teacher.model.state_dict().items()}
    data = load("digits-test").subset(np.arange(3))
    config = methods.training_config(teacher, {"preset": "mini"}, {"iterations": 2})
    options = {"apm-views": {"config": config}, "tda": {"views": 10}}
    for name in NAMES:
        said = baselines.create(name, teacher, **{"views": 10, "flip": False, **options.get(name, {})}).predict(
            data, np.arange(3), 0
        )
        assert said.status == ["ok"] * 3, name
        assert ((said.prediction >= 0) & (said.prediction < 10)).all(), name
        assert ((said.extra["confidence"] > 0.0) & (said.extra["confidence"] <= 1)).all(), name
    for name, value in teacher.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not teacher.model.training
