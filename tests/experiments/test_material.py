"""What a field reads: files made once, images read when they are asked for, and memory that does not grow."""

import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from bars import CONFIG, STUDENT, same_weights
from open_clip.transform import PreprocessCfg
from PIL import Image

from apm import data as datasets
from apm import teachers
from apm.experiments import answers, field, material
from apm.teachers import cached

SHORT = replace(CONFIG, epochs=2)


class Tower:
    """A teacher whose tokens are quadrants of the image: grid 2 x 2, as wide as the student."""

    def __init__(self, hash: str = "t", precision: str = "fp32") -> None:
        self.name, self.hash, self.precision, self.width, self.grid = "tower", hash, precision, 8, (2, 2)
        self.device = torch.device("cpu")
        self.preprocess_config = PreprocessCfg(size=8, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        self.encoded = 0

    def transform(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        return teachers.preprocess(images, self.preprocess_config)

    def encode(self, images: torch.Tensor, *, tokens: bool = False) -> teachers.Encoding:
        self.encoded += len(images)
        means = torch.nn.functional.avg_pool2d(images, 4)  # (n, 3, 2, 2)
        wide = torch.cat([means, 1 - means, means[:, :2] + 0.1], dim=1).permute(0, 2, 3, 1)  # (n, 2, 2, 8)
        return teachers.Encoding(wide.mean(dim=(1, 2)), wide)


class Painted(Sequence[np.ndarray]):
    """Images that are made on access; those at `broken` cannot be read."""

    def __init__(self, n: int, broken: Sequence[int] = (), side: int = 8) -> None:
        self.n, self.broken, self.side, self.read = n, set(broken), side, 0

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i):
        if int(i) in self.broken:
            raise datasets.UnreadableImage(Path(f"/there/{i}.jpg"), "cut short")
        self.read += 1
        return np.random.default_rng(int(i)).integers(0, 256, (self.side, self.side, 3), dtype=np.uint8)


def lazy(n: int, broken: Sequence[int] = (), side: int = 8) -> datasets.Dataset:
    images, fingerprint = Painted(n, broken, side), f"painted-{n}-{side}"
    return datasets.Dataset("painted", images, np.arange(n) % 2, ("a", "b"), ("a {}",), fingerprint, np.arange(n))


@pytest.fixture
def prepare(tmp_path: Path):
    """`material.prepare` of 20 painted images in a folder of its own."""

    def made(data: datasets.Dataset | None = None, tower: Tower | None = None, **options) -> material.Material:
        return material.prepare(tower or Tower(), data or lazy(20), STUDENT, **{"folder": tmp_path} | options)

    return made


@pytest.mark.parametrize("side", [8, 13])
def test_a_dataset_is_encoded_once_into_files_that_are_mapped(tmp_path: Path, prepare, side: int) -> None:
    tower, data = Tower(), lazy(20, side=side)
    first = prepare(data, tower)
    assert isinstance(first.tokens, np.memmap)
    assert isinstance(first.colours, np.memmap)
    read = data.images.read
    batch = prepare(data, tower).batch([3, 7])
    assert (tower.encoded, data.images.read) == (20, read + 2)
    assert len(list(tmp_path.iterdir())) == 2
    shown = [data.images[3], data.images[7]]
    # the pixels of the teacher's own transform
    np.testing.assert_allclose(batch.tokens, teachers.token_grid(tower, shown, (4, 4)), atol=1e-6)
    torch.testing.assert_close(batch.images, teachers.student_images(shown, 8))
    torch.testing.assert_close(batch.colours, teachers.patch_colours(batch.images, 2))


def test_worker_processes_give_what_the_caller_alone_gives(prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = field.train(prepare(), SHORT)
    monkeypatch.setattr(cached, "_workers", lambda *_: 2)
    assert same_weights(field.train(prepare(), SHORT), alone)


def test_memory_does_not_grow_with_the_number_of_images(prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached, "_workers", lambda *_: 0)
    monkeypatch.setattr(material, "BLOCK", 4096)

    def peak(n: int) -> int:
        tracemalloc.start()
        data = prepare(lazy(n))
        trained = field.train(data, replace(CONFIG, epochs=1, batch=16))
        answers.measure({"x": (trained, trained), "mean": (data.spread("tokens").mean, None)}, data)
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    peak(64)  # what is imported at first use
    small, large = peak(512), peak(2048)
    tokens = 2048 * 16 * 8 * 4
    assert large - small < tokens / 4, (small, large)


def test_tokens_can_be_kept_in_half_the_space(prepare) -> None:
    whole, half = prepare(), prepare(token_dtype="float16")
    assert half.tokens.dtype == np.float16
    np.testing.assert_allclose(half.tokens, whole.tokens, atol=1e-3)
    assert half.batch([0]).tokens.dtype == torch.float32
    with pytest.raises(ValueError, match="unknown token_dtype 'float8'"):
        prepare(token_dtype="float8")


def test_an_unreadable_image_stops_and_is_named_or_is_left_out_and_counted(tmp_path: Path, prepare) -> None:
    data = lazy(20, broken=[4, 9])
    with pytest.raises(datasets.UnreadableImage, match=r"/there/4\.jpg"):
        prepare(data)
    assert not list(tmp_path.iterdir())
    found = prepare(data, on_error="record")
    assert found.dataset.indices.tolist() == [i for i in range(20) if i not in (4, 9)]
    assert found.left_out == " 2 of 20 images of painted cannot be read and are left out."
    batch, shown = found.batch([4]), [data.images[5]]  # positions count the readable ones
    torch.testing.assert_close(batch.images, teachers.student_images(shown, 8))
    np.testing.assert_allclose(batch.tokens[0], teachers.token_grid(Tower(), shown, (4, 4))[0], atol=1e-6)
    field.train(found, SHORT)
    with pytest.raises(datasets.UnreadableImage, match=r"/there/4\.jpg"):  # the file made by `record` is there
        prepare(data)
    assert prepare(folder=tmp_path / "b").left_out == ""
    with pytest.raises(ValueError, match="none of the 2 images"):
        prepare(lazy(2, broken=[0, 1]), on_error="record")
    with pytest.raises(ValueError, match=r"unknown on_error 'skip'"):
        prepare(data, on_error="skip")


def test_files_are_named_by_teacher_data_and_code(tmp_path: Path, prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    def names(*arguments, **options) -> set[str]:
        found = prepare(*arguments, **options)
        made = {path.name for path in tmp_path.iterdir()}
        for path in tmp_path.iterdir():
            path.unlink()
        return {*made, str(found.identity)}  # the identity names the checkpoint

    first = names()
    assert names() == first
    # tokens and checkpoint; the colours are the same
    for changed in ({"tower": Tower("u")}, {"tower": Tower(precision="bf16")}, {"token_dtype": "float16"}):
        assert len(first - names(**changed)) == 2
    assert not first & names(replace(lazy(20), fingerprint="other"))
    assert not first & names(lazy(21).subset(range(1, 21)))
    monkeypatch.setattr(material, "code_version", lambda _: "another")
    assert not first & names()


def test_a_training_without_a_teacher_does_not_depend_on_one(prepare) -> None:
    one, other = prepare(tokens=False), prepare(tower=Tower("u")).without_tokens()
    assert one.identity == other.identity
    assert one.tokens is None


def test_mean_and_spread_are_those_of_all_images_at_once(prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(material, "BLOCK", 300)  # a few images at a time
    data = prepare()
    for what in ("tokens", "colours"):
        values = torch.cat([batch.target(what) for batch in data.batches()]).double()
        found = data.spread(what)
        np.testing.assert_allclose(found.mean, values.mean(dim=0), atol=1e-6)
        assert found.left == pytest.approx(float((values - values.mean(dim=0)).square().mean()), rel=1e-5)


def test_images_on_disk_train_as_images_in_memory(tmp_path: Path, prepare) -> None:
    for i in range(12):
        folder = tmp_path / "tree" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(Painted(12)[i]).save(folder / f"{i:02d}.png")
    disk = datasets.load("folder:tree", root=tmp_path)
    memory = replace(disk, images=np.stack(list(disk.images)))
    one, other = (field.train(prepare(data, folder=tmp_path / data.images.__class__.__name__), SHORT) for data in (disk, memory))  # fmt: skip
    assert same_weights(one, other)
