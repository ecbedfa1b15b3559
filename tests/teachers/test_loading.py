"""Teachers by name, tag and file, and what is refused before it gives wrong features."""

import shutil
import time
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock
from urllib.error import HTTPError, URLError

import numpy as np
import open_clip
import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file

from apm import data as datasets
from apm import teachers
from apm.teachers import train, weights

SHIPPED = Path(__file__).resolve().parents[2] / "data" / "teachers"


def test_a_local_checkpoint_loads_exactly_from_every_form_and_in_the_cache(tiny, tiny_config, checkpoint, tmp_path):
    state = tiny.model.state_dict()
    torch.save(state, tmp_path / "a=b.pt")
    torch.save({"epoch": 1, "state_dict": state}, tmp_path / "training.pt")
    (tmp_path / "cache" / "teachers").mkdir(parents=True)
    shutil.copy(checkpoint, tmp_path / "cache" / "teachers")
    for file in (tmp_path / "a=b.pt", tmp_path / "training.pt", "data/cache/teachers/tiny.safetensors"):
        again = teachers.load(str(tiny_config), pretrained=file)
        assert again.hash == tiny.hash  # of every weight
        assert not any(p.requires_grad for p in again.model.parameters())


def test_all_that_changes_a_feature_changes_the_teachers_hash(tiny_config, checkpoint, tiny, tmp_path):
    def load(**options):
        return teachers.load(str(tiny_config), **{"pretrained": checkpoint, **options})

    preprocessing = replace(tiny.preprocess_config, mean=(0.5, 0.5, 0.5))
    other = teachers.Teacher(tiny.name, tiny.model, tiny.tokenizer, tiny.config, preprocessing=preprocessing)
    state = {k: v.clone() for k, v in tiny.model.state_dict().items()}
    state["visual.proj"][0, 0] += 1e-6
    teachers.save(state, tmp_path / "x.safetensors", {})
    changed = [load(feature_dtype="float16"), load(precision="bf16"), load(precision="fp64"), other]
    assert load().hash == tiny.hash
    assert len({one.hash for one in [tiny, *changed, load(pretrained=tmp_path / "x.safetensors")]}) == 6


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("ViT-B-61", {"pretrained": "openai"}, ValueError, "ViT-B-16"),
        ("ViT-B-32", {"pretrained": "/no/where.pt"}, FileNotFoundError, "neither a file nor a tag.*laion2b"),
        ("ViT-B-32", {}, ValueError, "needs weights: pass pretrained=TAG .*openai"),
        ("ViT-B-16", {"pretrained": "nobody=/weights/w.pt"}, ValueError, "unknown tag of ViT-B-16 'nobody'"),
        ("ViT-B-16", {"pretrained": "laion400m_e32=/no/w.pt"}, FileNotFoundError, "'/no/w.pt' is neither a file nor"),
        ("mini", {"precision": "fp8"}, ValueError, "Known: fp32, bf16, fp16, fp64"),
        ("mini", {"feature_dtype": "int8"}, ValueError, "unknown feature_dtype 'int8'. Known: float32, float16"),
        ("mini", {"pretrained": "x.safetensors"}, ValueError, "apm-mini"),
        ("ViT-B-16", {"pretrained": "openai"}, ValueError, "use ViT-B-16-quickgelu"),
        ("timm:vit_small_patch15", {}, ValueError, "unknown timm model 'vit_small_patch15'"),
        ("timm:test_vit", {"pretrained": "/no/w.pth"}, FileNotFoundError, "there is no file"),
        ("mini", {"device": "cuda:1"}, ValueError, r"device 'cuda:1' was asked for.*no CUDA GPU here: set device: cpu"),
    ],
)
def test_what_does_not_exist_or_fit_is_answered_with_what_does(monkeypatch, name, options, error, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(error, match=message):
        teachers.load(name, **options)


@pytest.mark.parametrize(
    ("model", "tag", "file"),
    [
        ("ViT-B-32-quickgelu", "openai", "TAG=/path/to/weights.safetensors"),
        ("hf-hub:nobody/nothing", None, "TAG=/path/to/weights.safetensors"),
        ("timm:vit_large_patch14_reg4_dinov2.lvd142m", None, "/path/to/weights.safetensors"),
    ],
)
def test_weights_out_of_reach_are_a_clear_error_within_seconds(monkeypatch, tmp_path, model, tag, file):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    start = time.perf_counter()
    with pytest.raises(FileNotFoundError) as caught:
        teachers.load(model, pretrained=tag)
    assert time.perf_counter() - start < 10
    for part in (model, tag or "", str(tmp_path), f"pretrained={file!r}"):
        assert part in str(caught.value)


def test_weights_can_be_had_from_the_cache_or_from_a_host_that_answers_with_whatever(monkeypatch, tmp_path):
    def ask(error=None):
        monkeypatch.setattr("urllib.request.urlopen", Mock(side_effect=error))
        weights.check_reachable("x", {"hf_hub": "some/model/w.bin"})

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    ask(HTTPError("url", 404, "not found", {}, None))
    with pytest.raises(FileNotFoundError, match="cannot be reached"):
        ask(URLError("no route"))
    file = tmp_path / "models--some--model" / "snapshots" / "abc" / "w.safetensors"
    file.parent.mkdir(parents=True)
    file.touch()
    ask(URLError("no route"))


# ---- what weights say of themselves


class Asked(BaseException):
    """Raised in the place of building a large model, with the preprocessing asked of the factory."""


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """How a file of a model's weights would be read: (name, tag) -> preprocessing asked of open_clip."""

    def refuse(*_: object, force_preprocess_cfg: object, **__: object) -> None:
        raise Asked(force_preprocess_cfg)

    monkeypatch.setattr(open_clip, "create_model", refuse)
    file = tmp_path / "w.safetensors"
    file.write_bytes(b"")

    def ask(name, tag=None):
        with pytest.raises(Asked) as caught:
            teachers.load(name, pretrained=f"{tag}={file}" if tag else file)
        return caught.value.args[0]

    return ask


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("name", "tag", "beside", "expected"),
    [
        ("ViT-H-14-quickgelu", "dfn5b", "", ("resize_mode", "squash")),
        ("ViT-L-14", "laion2b_s32b_b82k", "", ("mean", (0.5, 0.5, 0.5))),
        (
            "ViT-B-16",
            "openai",
            "",
            "trained with QuickGELU and give wrong features in ViT-B-16: use ViT-B-16-quickgelu",
        ),
        ("ViT-L-14-336-quickgelu", None, "", ("interpolation", "bicubic")),  # what all tags of this model want
        ("ViT-L-14", None, '{"preprocess_cfg": {"mean": [1, 2, 3], "size": 9}}', ("mean", [1, 2, 3])),
        ("ViT-B-16-quickgelu", None, '{"model_cfg": {}}', r"trained without QuickGELU.*use ViT-B-16$"),
        ("ViT-B-16", None, '{"model_cfg": {"quick_gelu": true}}', "trained with QuickGELU.*use ViT-B-16-quickgelu"),
    ],
)
def test_a_tag_or_the_configuration_beside_a_file_says_how_it_wants_its_images_and_its_activation(
    asked, tmp_path, name, tag, beside, expected
):
    if beside:
        (tmp_path / "open_clip_config.json").write_text(beside)
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            asked(name, tag)
    else:
        found = asked(name, tag)
        assert expected in found.items() if expected else found == {}
        assert "size" not in found


def test_a_file_alone_is_warned_of_where_the_tags_differ_in_images_or_activation(asked):
    for name, group in (("ViT-L-14", "laion2b_s32b_b82k"), ("ViT-B-16", r"openai[^;]* \(of ViT-B-16-quickgelu\)")):
        with pytest.warns(UserWarning, match=f"does not say how its weights want their images.*{group}.*say TAG="):
            assert asked(name) == {}


# ---- files that are not what they should be


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [("vision", "patch_size", 8), ("vision", "width", 24), ("vision", "layers", 2), ("text", "context_length", 30)],
)
def test_checkpoints_of_another_architecture_are_refused(checkpoint, configure, part, key, value):
    path, _ = configure(f"{part}-{key}", **{f"{part}_cfg": {key: value}})
    with pytest.raises(ValueError, match=r"architecture"):
        teachers.load(str(path), pretrained=checkpoint)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_damaged_and_other_files_are_refused_by_name(tiny_config, checkpoint, tmp_path):
    cut, code, archive = (tmp_path / name for name in ("cut.safetensors", "code.pt", "archive.pt"))
    cut.write_bytes(checkpoint.read_bytes()[:1000])
    torch.save({"state_dict": tmp_path}, code)  # a Path object: loading it would run code
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(archive))  # as OpenAI published its weights
    for bad in (cut, code, archive):
        with pytest.raises(ValueError, match=rf"{bad.name} cannot be loaded.*TorchScript archives: save"):
            teachers.load(str(tiny_config), pretrained=bad)
    with pytest.raises(ValueError, match=r"written as \.safetensors, found .*x\.pt"):
        teachers.save({"w": torch.zeros(1)}, tmp_path / "x.pt", {})


def test_model_configurations_are_checked(tiny_config, tmp_path):
    (tmp_path / "a.json").write_text("{")
    (tmp_path / "b.json").write_text('{"embed_dim": 3}')
    shutil.copy(tiny_config, tmp_path / "ViT-B-32.json")
    for name, error, message in (
        ("a", ValueError, "no JSON"),
        ("b", ValueError, "lacks vision_cfg, text_cfg"),
        ("ViT-B-32", ValueError, "is taken"),
        ("c", FileNotFoundError, r"c\.json"),
    ):
        with pytest.raises(error, match=message):
            teachers.load(str(tmp_path / f"{name}.json"), pretrained="x.pt")


# ---- weights with a card


def test_the_teacher_of_mini_is_the_shipped_one_in_float32_with_the_rounded_values():
    teacher, digits = teachers.load("mini"), datasets.load("digits-test")
    stored = load_file(str(SHIPPED / "mini.safetensors"))
    for key, value in teacher.model.state_dict().items():
        torch.testing.assert_close(value, stored[key].float(), rtol=0, atol=0)
    said = yaml.safe_load((SHIPPED / "mini.yaml").read_text())
    assert 100 * train.accuracy(teacher, digits) == pytest.approx(said["accuracy"]["digits-test"], abs=0.3)
    assert teacher.grid == (8, 8)


def test_a_teacher_that_was_cut_off_changed_or_lost_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "SHIPPED", tmp_path)
    with pytest.raises(FileNotFoundError, match="git checkout data/teachers"):
        teachers.load("mini")
    for name in ("mini.yaml", "mini.safetensors"):
        shutil.copy(SHIPPED / name, tmp_path)
    whole = (tmp_path / "mini.safetensors").read_bytes()
    for broken in (whole[:-1000], whole[:-1] + bytes([whole[-1] ^ 1])):
        (tmp_path / "mini.safetensors").write_bytes(broken)
        with pytest.raises(ValueError, match=r"not the file that mini\.yaml .*git checkout data/teach.*make teacher"):
            teachers.load("mini")
    (tmp_path / "mini.yaml").unlink()
    with pytest.raises(FileNotFoundError, match=r"mini\.yaml is not there"):
        teachers.load("mini")


@pytest.mark.filterwarnings("error")
def test_other_weights_than_those_of_the_card_of_their_name_are_said(tiny_config, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "SHIPPED", tmp_path)
    held, other = load_file(str(checkpoint)), tmp_path / "elsewhere" / "tiny.safetensors"
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({"weights_sha256": weights.weights_sha256(held)}))
    teachers.save(held, other, {"another": "note"})  # the same weights in another file
    teachers.load(str(tiny_config), pretrained=other)
    teachers.save({key: value * 2 for key, value in held.items()}, other, {})
    with pytest.warns(UserWarning, match="not the weights that the committed results were made with"):
        teachers.load(str(tiny_config), pretrained=other)


# ---- timm


# 160 px, 16 px patches; before them a CLS token, or a register
@pytest.mark.parametrize("name", ["test_vit", "test_vit2"])
def test_a_timm_tower_gives_feature_and_tokens_at_any_size_and_no_text(tmp_path, name):
    file = tmp_path / "weights.pth"
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0).eval()
    torch.save(model.state_dict(), file)
    own, small = (teachers.load(f"timm:{one}", pretrained=file) for one in (name, f"{name}@96"))
    images = [np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)]
    encoding = own.encode(own.transform(images), tokens=True)
    with torch.inference_mode():
        every = model.forward_features(own.transform(images))
        pooled = every[:, 0] if name == "test_vit" else model.fc_norm(every[:, 1:].mean(dim=1))
    assert (own.width, own.grid) == (64, (10, 10))
    assert torch.equal(encoding.tokens.flatten(1, 2), every[:, 1:])
    torch.testing.assert_close(encoding.feature, pooled)
    assert (small.image_size, small.grid) == (96, (6, 6))
    assert small.encode(small.transform(images), tokens=True).tokens.shape == (1, 6, 6, 64)
    assert small.hash != own.hash
    for ask in (lambda: own.text_features(["cat"], ["a {}"]), lambda: own.logit_scale):
        with pytest.raises(ValueError, match="has neither texts nor a linear head"):
            ask()
    for wrong, message in (
        ("test_vit@big", "image size in pixels after @"),
        ("test_vit@97", "97 px are no whole number of patches of 16 px"),
        ("test_resnet@96", "timm cannot build test_resnet for images of another size"),
        ("test_resnet", "cannot be loaded into timm:test_resnet"),
    ):
        with pytest.raises(ValueError, match=message):
            teachers.load(f"timm:{wrong}", pretrained=file)
