"""What is kept of a teacher, damaged, is never taken for what was written; weights that are no numbers are refused; reading images
needs no shared memory and as many processes as there are cores to use."""

import os
import resource
import signal
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from fakes import damaged
from PIL import Image
from safetensors.torch import load_file, save_file

from apm import data as datasets
from apm import teachers
from apm.experiments import material
from apm.model import APMConfig
from apm.teachers import cached, train, weights


@pytest.mark.parametrize("how", ["zeros", "cut", "flipped", "nothing", "zeros at the end"])
def test_damaged_features_are_made_again(tiny, some_digits, tmp_path: Path, how: str) -> None:
    expected = np.array(teachers.features(tiny, some_digits))
    (path,) = (tmp_path / "cache" / "features").iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:256] + bytes(len(whole) - 256) if how == "zeros at the end" else damaged(whole, how))
    with pytest.warns(UserWarning, match="cannot be used.*making it again"):
        np.testing.assert_array_equal(teachers.features(tiny, some_digits), expected)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("how", ["zeros", "cut", "flipped", "nothing"])
def test_damaged_weights_of_a_trained_teacher_are_refused(tiny_config, checkpoint, tmp_path: Path, how: str) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(damaged(checkpoint.read_bytes(), how))
    with pytest.raises(ValueError, match=r"w\.safetensors (is damaged|cannot be loaded)"):
        teachers.load(str(tiny_config), pretrained=path)
    with pytest.warns(UserWarning, match=r"w\.safetensors cannot be used .*making it again"):
        assert weights.kept(path) is None


def test_weights_of_others_need_no_hash(tiny_config, checkpoint, tmp_path: Path) -> None:
    save_file(load_file(checkpoint), tmp_path / "w.safetensors")
    assert teachers.load(str(tiny_config), pretrained=tmp_path / "w.safetensors").width == 16


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("key", ["visual.proj", "ln_final.bias", "logit_scale"])
def test_weights_that_are_no_numbers_are_refused_by_name(tiny_config, checkpoint, tmp_path: Path, key, value) -> None:
    changed = load_file(checkpoint)
    changed[key].view(-1)[0] = value
    save_file(changed, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=rf"weights {key} of .*w\.safetensors are not finite in fp32: damaged"):
        teachers.load(str(tiny_config), pretrained=tmp_path / "w.safetensors")


def test_weights_beyond_a_number_type_are_refused(tiny_config, checkpoint, tmp_path: Path) -> None:
    changed = load_file(checkpoint)
    changed["visual.proj"][0, 0] = 1e6
    save_file(changed, tmp_path / "w.safetensors")
    teachers.load(str(tiny_config), pretrained=tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"not finite in fp16.*another precision"):
        teachers.load(str(tiny_config), pretrained=tmp_path / "w.safetensors", precision="fp16")


# ------------------------------------------------------------------------------------------------------- reading images


@pytest.fixture
def little_shared_memory():
    """Files, as shared memory is one, end at 64 KB here; what hangs for that is stopped."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, before[1]))
    own = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("hangs"))
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, own)
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def photographs(tmp_path: Path) -> datasets.Dataset:
    for i in range(12):
        path = tmp_path / "data" / ("cat" if i % 2 else "dog") / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (160, 160), (20 * i, 0, 0)).save(path)
    return datasets.load(f"folder:{tmp_path / 'data'}")


def test_worker_processes_need_no_shared_memory(photographs, tmp_path: Path, monkeypatch, little_shared_memory) -> None:
    monkeypatch.setattr(cached, "_workers", lambda *_: 2)
    whole = lambda image: torch.tensor(image).float()  # noqa: E731 - 300 KB an image
    options = {"what": "means", "batch_size": 4, "on_error": "raise"}
    mean = lambda found: found.mean(dim=(1, 2))  # noqa: E731
    found = cached.stored(tmp_path / "means.npy", photographs, (3,), "float32", whole, mean, **options)
    assert found[:, 0].tolist() == [20 * i for i in (*range(1, 12, 2), *range(0, 12, 2))]


def test_batches_of_a_training_need_no_shared_memory(photographs, monkeypatch, little_shared_memory) -> None:
    monkeypatch.setattr(cached, "_workers", lambda *_: 2)
    colours = np.zeros((12, 4, 3), dtype=np.float32)
    data = material.Material(photographs, None, colours, np.arange(12), APMConfig(grid=(2, 2), patch=80), {}, {})
    found = torch.cat([batch.images for batch in data.batches(4)])
    torch.testing.assert_close(found, data.batch(range(12)).images)


@pytest.mark.parametrize(("cores", "expected"), [(1, 1), (3, 3), (64, 8)])
def test_as_many_processes_read_as_there_are_cores_to_use(photographs, monkeypatch, cores: int, expected: int) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)  # the machine's
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setattr(joblib.externals.loky.backend.context, "_cpu_count_cgroup", lambda n: n)
    assert cached.reading([], photographs, 2).num_workers == expected
    assert cached.reading([], photographs, 4).num_workers == 0  # few


# ------------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("kind", ["a file", "a folder", "under a file"])
def test_a_training_that_could_not_be_kept_is_not_begun(tmp_path: Path, monkeypatch, capsys, kind: str) -> None:
    monkeypatch.setattr(train, "train", lambda *_, **__: pytest.fail("was trained"))
    out = tmp_path / "file" / "w.safetensors" if kind == "under a file" else tmp_path / "w.safetensors"
    out.mkdir() if kind == "a folder" else (tmp_path / "file").write_text("x")
    if kind == "a file":
        out.write_text("mine")
    assert train.main(["--data", "digits-train", "--out", str(out)]) == 1
    said = capsys.readouterr().err
    assert str(out) in said or str(out.parent) in said
    assert kind != "a file" or out.read_text() == "mine"
    assert not list(tmp_path.glob(".*"))
