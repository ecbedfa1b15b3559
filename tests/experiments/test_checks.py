"""What the audit checks itself: a network that depends on order, a second encoding, a label that is used would be caught."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from open_clip.transform import PreprocessCfg
from safetensors.torch import save_file
from test_methods import CONFIG, FakeTeacher

from apm import methods, teachers
from apm.data.datasets import Dataset, UnreadableImage
from apm.experiments import checks
from apm.model import APMConfig, preset
from apm.teachers import Encoding


@pytest.mark.parametrize("fold", ["mean", "attention"])
@pytest.mark.parametrize("changes", [{}, {"local_patch": True, "kernels": 3}])
def test_order_subset_and_number_at_a_time_change_no_value(fold: str, changes: dict) -> None:
    config = preset("mini", fold=fold, **changes)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    table = checks.invariances(config, images, orders=10)
    assert len(table) == 3
    assert (table["repeats"] == 10).all()
    assert table["holds"].all(), table
    assert (table["difference"] > 0).any()  # sums in another order round differently: the values were computed anew


def test_a_network_that_is_not_order_free_would_be_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = [0]

    original = checks.APM.columns

    def drifting(self, percept, locations=None, shared=None):
        calls[0] += 1
        return original(self, percept, locations, shared) * (1 + 1e-3 * calls[0])

    monkeypatch.setattr(checks.APM, "columns", drifting)
    table = checks.invariances(APMConfig(grid=(4, 4), hidden=(16,)), torch.randn(1, 3, 16, 16), orders=2)
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
        checks.untrained(teacher, torn, CONFIG)
    whole = checks.untrained(teacher, data, CONFIG)
    good = np.setdiff1d(np.arange(12), [3, 7])
    said = methods.adapt_dataset(teacher, data, good, CONFIG, seed=0).predictions()[:, 0].numpy()
    found = checks.untrained(teacher, torn, CONFIG, on_error="record")
    assert found.value == pytest.approx(100 * (said == data.labels[good]).sum() / 12)
    assert (found.n, whole.n) == (12, 12)
    few = checks.readable(torn, "record")
    assert few.indices.tolist() == good.tolist()
    assert checks.readable(torn) is torn
    assert not checks.labels_matter(methods.APM(teacher, CONFIG), few)
    with pytest.raises(ValueError, match="none of the 12 images"):
        checks.readable(replace(data, images=Torn(np.asarray(data.images), set(range(12)))), "record")
    with pytest.raises(ValueError, match="unknown on_error 'skip'"):
        checks.readable(torn, "skip")


def test_labels_change_nothing_for_our_methods_and_would_be_noticed(teacher: FakeTeacher, data: Dataset) -> None:
    assert not checks.labels_matter(methods.APM(teacher, CONFIG), data)

    class Cheat:
        def predict(self, dataset, positions, seed):
            return methods.Predictions(prediction=dataset.labels[positions])

    assert checks.labels_matter(Cheat(), data)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, []),
        ({"augmentation": "crop-flip"}, ["augmentation crop-flip"]),
        ({"loss_grid": 1.0}, ["a loss on the grid"]),
        ({"loss_rgb": 1.0, "loss_cls": 0.0}, ["a pretext task: a loss on colours", "no loss on the teacher's feature"]),
    ],
)
def test_a_departure_from_one_image_and_one_loss_is_named(
    teacher: FakeTeacher, data: Dataset, monkeypatch: pytest.MonkeyPatch, changes: dict, found: list[str]
) -> None:
    student = replace(CONFIG.student, rgb_head=bool(changes.get("loss_rgb")))
    apm = methods.APM(teacher, replace(CONFIG, student=student, **changes))
    monkeypatch.setattr(checks, "labels_matter", lambda *a, **k: False)
    assert checks.departures(apm, data) == found


def test_accuracy_at_random_weights_counts_every_image_under_every_seed(teacher: FakeTeacher, data: Dataset) -> None:
    cell = checks.untrained(teacher, data, CONFIG, seeds=[0, 1])
    paths = [methods.adapt_dataset(teacher, data, np.arange(12), CONFIG, seed=s).predictions()[:, 0] for s in (0, 1)]
    expected = np.mean([(p.numpy() == data.labels).mean() for p in paths])
    assert cell.value == pytest.approx(100 * expected)
    assert cell.low <= cell.value <= cell.high


def test_students_at_random_weights_see_the_images_in_parts_with_the_same_result(
    teacher: FakeTeacher, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = checks.untrained(teacher, data, CONFIG, seeds=[0, 1])
    sizes = []
    original = methods.adapt_dataset
    monkeypatch.setattr(checks, "UNTRAINED_PART", 5)
    monkeypatch.setattr(
        methods, "adapt_dataset", lambda t, d, part, *a, **k: sizes.append(len(part)) or original(t, d, part, *a, **k)
    )
    assert checks.untrained(teacher, data, CONFIG, seeds=[0, 1]) == whole
    assert sizes == [5, 5, 2] * 2


def test_two_images_of_different_sizes_cannot_be_blended_and_of_one_size_give_the_blend_of_their_columns() -> None:
    a, b, c = torch.rand(3, 32, 32), torch.rand(3, 32, 32), torch.rand(3, 16, 16)
    assert checks.midpoint(preset("mini"), a, b) < 1e-5
    with pytest.raises(ValueError, match=r"same size to be blended, found \(3, 32, 32\) and \(3, 16, 16\)"):
        checks.midpoint(preset("mini"), a, c)


def test_times_are_taken_on_one_thread_for_every_way(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[object, int]] = []
    monkeypatch.setattr(
        checks.compute, "time_columns", lambda c, size, **o: seen.append((size, torch.get_num_threads()))
    )
    monkeypatch.setattr(checks.compute, "time_tower", lambda name, **o: seen.append((name, torch.get_num_threads())))
    before = torch.get_num_threads()
    assert list(checks.timed(preset("released"))) == ["one", "seven", "all", "tower"]
    assert seen == [(1, 1), (7, 1), (1024, 1), ("ViT-B-16", 1)]
    assert torch.get_num_threads() == before
