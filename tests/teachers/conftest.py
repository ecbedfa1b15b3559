"""A tiny CLIP with random weights, its configuration and its checkpoint."""

import json
from pathlib import Path

import open_clip
import pytest
import torch

from apm import data as datasets
from apm import teachers
from apm.teachers import loading

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "patch_size": 4, "width": 16, "layers": 1, "head_width": 8},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """No test finds the features of another."""
    monkeypatch.setenv("APM_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def configure(tmp_path_factory):
    """Writes a configuration, TINY with other settings in its parts, and makes a random model of it: (path, model)."""

    def make(name: str, **parts: object) -> tuple[Path, torch.nn.Module]:
        path = tmp_path_factory.mktemp("configs") / f"apm-test-{name}.json"
        merged = {k: {**TINY.get(k, {}), **v} if isinstance(v, dict) else v for k, v in parts.items()}
        path.write_text(json.dumps({**TINY, **merged}))
        torch.manual_seed(0)
        return path, open_clip.create_model(loading.register(str(path))).eval()

    return make


@pytest.fixture(scope="session")
def tiny_config(configure):
    return configure("tiny")[0]


@pytest.fixture(scope="session")
def checkpoint(tiny_config, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    torch.manual_seed(0)
    teachers.save(open_clip.create_model(tiny_config.stem).state_dict(), path, {"made": "for tests"})
    return path


@pytest.fixture(scope="session")
def tiny(tiny_config, checkpoint):
    return teachers.load(str(tiny_config), pretrained=checkpoint)


@pytest.fixture(scope="session")
def some_digits():
    return datasets.load("digits-test").subset(40)


@pytest.fixture(scope="session")
def few():
    return datasets.load("digits-train").subset(120)
