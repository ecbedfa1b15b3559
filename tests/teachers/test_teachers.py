import copy
import json
import time
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from apm import methods, teachers
from apm.data import datasets, prompts

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "patch_size": 4, "width": 16, "layers": 1, "head_width": 8},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
}
QUICK = teachers.TrainConfig(epochs=1, groups=2, threads=1)


@pytest.fixture(scope="module")
def tiny_config(tmp_path_factory):
    path = tmp_path_factory.mktemp("configs") / "apm-test-tiny.json"
    path.write_text(json.dumps(TINY))
    return path


def random_model(config):
    teachers._register_config(str(config))
    torch.manual_seed(0)
    return open_clip.create_model(config.stem).eval()


@pytest.fixture(scope="module")
def checkpoint(tiny_config, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    teachers.save(random_model(tiny_config).state_dict(), path, {"made": "for tests"})
    return path


@pytest.fixture(scope="module")
def tiny(tiny_config, checkpoint):
    return teachers.load(str(tiny_config), pretrained=checkpoint)


@pytest.fixture(scope="module")
def some_digits():
    return datasets.load("digits-test").subset(40)


# ---- images


def test_transform_at_the_models_size_equals_open_clips_own_image_by_image(tiny):
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    own = open_clip.transform.image_transform_v2(tiny.preprocess_config, is_train=False)
    assert torch.equal(tiny.transform(images), torch.stack([own(Image.fromarray(i)) for i in images]))


def test_transform_takes_images_of_different_sizes(tiny):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((16, 16), (40, 23), (7, 9))]
    result = tiny.transform(images)
    assert result.shape == (3, 3, 16, 16)
    assert torch.equal(result[:1], tiny.transform(images[:1]))


@pytest.mark.parametrize(
    "bad", [np.zeros((2, 8, 8, 3)), np.zeros((2, 8, 8), np.uint8), [], np.zeros((2, 8, 8, 4), np.uint8)]
)
def test_images_of_another_kind_are_refused(tiny, bad):
    with pytest.raises(ValueError, match="expected"):
        tiny.transform(bad)


def test_student_images_use_imagenet_statistics():
    image = np.full((1, 20, 20, 3), 255, np.uint8)
    result = teachers.student_images(image, 32)
    expected = [(1 - m) / s for m, s in zip(teachers.IMAGENET_MEAN, teachers.IMAGENET_STD, strict=True)]
    assert result.shape == (1, 3, 32, 32)
    np.testing.assert_allclose(result.mean(dim=(0, 2, 3)), expected, rtol=1e-5)


# ---- encoding


def test_feature_is_open_clips_unnormalised_image_feature(tiny, tiny_config, some_digits):
    images = tiny.transform(some_digits.images)
    with torch.no_grad():
        expected = random_model(tiny_config).encode_image(images)
    result = tiny.encode(images)
    assert torch.equal(result.feature, expected)
    assert result.tokens is None
    assert result.feature.norm(dim=-1).std() > 0


def test_tokens_are_projected_into_the_features_space_in_grid_order(tiny, some_digits):
    images = tiny.transform(some_digits.images[:3])
    result = tiny.encode(images, tokens=True)
    visual = tiny.model.visual
    with torch.no_grad():
        hidden = visual.ln_post(visual.transformer(visual._embeds(images))) @ visual.proj  # (3, 1 + 16, D)
    assert tiny.grid == (4, 4)
    torch.testing.assert_close(result.feature, hidden[:, 0])
    for row in range(4):
        torch.testing.assert_close(result.tokens[:, row], hidden[:, 1 + 4 * row : 5 + 4 * row])
    assert torch.equal(tiny.encode(images).feature, result.feature)
    (torch.ones(16, requires_grad=True) * result.tokens).sum().backward()  # tokens may be targets of a loss


def test_mean_of_tokens_is_the_feature_of_a_tower_that_pools_by_mean(tmp_path):
    path = tmp_path / "apm-test-mean.json"
    path.write_text(json.dumps({**TINY, "vision_cfg": {**TINY["vision_cfg"], "pool_type": "avg"}}))
    model = random_model(path)
    teacher = teachers.Teacher("mean", model, open_clip.get_tokenizer(path.stem), TINY)
    result = teacher.encode(torch.randn(2, 3, 16, 16), tokens=True)
    torch.testing.assert_close(result.tokens.mean(dim=(1, 2)), result.feature)


def test_tower_without_patch_tokens_says_so_where_they_are_asked_for(tmp_path):
    path = tmp_path / "apm-test-resnet.json"
    resnet = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8}
    path.write_text(json.dumps({**TINY, "vision_cfg": resnet}))
    teacher = teachers.Teacher("resnet", random_model(path), None, TINY)
    assert teacher.grid is None
    with pytest.raises(ValueError, match="teacher resnet has no patch tokens"):
        teacher.encode(torch.zeros(2, 3, 32, 32), tokens=True)
    assert teacher.encode(torch.zeros(2, 3, 32, 32)).feature.shape == (2, 16)


COCA = {
    "embed_dim": 16,
    "custom_text": True,
    "vision_cfg": {
        "image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8,
        "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True,
    },
    "text_cfg": {
        "context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1, "embed_cls": True,
        "output_tokens": True,
    },
    "multimodal_cfg": {
        "context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1, "attn_pooler_heads": 2,
    },
}  # fmt: skip


def test_coca_classifies_and_says_that_its_tokens_have_no_places(tmp_path):
    path = tmp_path / "apm-test-coca.json"
    path.write_text(json.dumps(COCA))
    model = random_model(path)
    weights = tmp_path / "coca.safetensors"
    teachers.save(
        {k: v.clone().contiguous() for k, v in model.state_dict().items() if k != "text_decoder.attn_mask"}, weights, {}
    )
    teacher = teachers.load(str(path), pretrained=weights)
    assert teacher.encode(torch.randn(2, 3, 32, 32)).feature.shape == (2, 16)
    assert teacher.text_features(("cat", "dog"), ("a {}",)).shape == (2, 16)
    assert teacher.grid is None
    with pytest.raises(ValueError, match=r"teacher apm-test-coca has no patch tokens .* attention pool"):
        teacher.encode(torch.randn(2, 3, 32, 32), tokens=True)


SIGLIP = {
    "embed_dim": 192,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {
        "image_size": 224, "timm_model_name": "vit_tiny_patch16_224", "timm_model_pretrained": False, "timm_pool": "map",
        "timm_proj": "none",
    },
    "text_cfg": {
        "context_length": 16, "vocab_size": 300, "hf_tokenizer_name": "apm/no-such-tokenizer",
        "tokenizer_kwargs": {"clean": "canonicalize"}, "width": 192, "heads": 2, "layers": 1, "no_causal_mask": True,
        "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-06},
    },
}  # fmt: skip


@pytest.fixture
def siglip(tmp_path) -> tuple[Path, Path]:
    """A small model in SigLIP's layout with random weights: configuration and checkpoint."""
    path, weights = tmp_path / "apm-test-siglip.json", tmp_path / "siglip.safetensors"
    path.write_text(json.dumps(SIGLIP))
    teachers.save({k: v.clone().contiguous() for k, v in random_model(path).state_dict().items()}, weights, {})
    return path, weights


class Bytes(open_clip.tokenizer.HFTokenizer):
    """A tokenizer as open_clip wraps those of transformers, without transformers: a token is a byte."""

    def __init__(self, context_length: int) -> None:
        self.context_length, self.tokenizer_mode, self.strip_sep_token = context_length, "", False
        self.clean_fn = open_clip.tokenizer.get_clean_fn("canonicalize")

        def encode(texts: list[str], return_tensors: str = "", max_length: int = 0, **_: object) -> SimpleNamespace:
            ids = [[*text.encode(), 1] for text in texts]
            if return_tensors:
                return SimpleNamespace(input_ids=torch.tensor([(i + [1] * max_length)[:max_length] for i in ids]))
            return SimpleNamespace(input_ids=ids)

        self.tokenizer = encode


def test_siglip_with_its_bias_where_probabilities_are(siglip, monkeypatch):
    path, weights = siglip
    monkeypatch.setattr(teachers, "find_spec", lambda name: name)
    monkeypatch.setattr(teachers.open_clip, "get_tokenizer", lambda name, **_: Bytes(16))
    teacher = teachers.load(str(path), pretrained=weights)
    image = teacher.encode(torch.randn(3, 3, 224, 224)).feature
    text = teacher.text_features(("cat", "dog"), ("a {}",))
    scores = torch.nn.functional.normalize(image, dim=-1) @ text.T
    assert teacher.logit_bias == -10
    with torch.no_grad():
        theirs = scores * teacher.model.logit_scale.exp() + teacher.model.logit_bias
    torch.testing.assert_close(teacher.probabilities(scores), theirs.sigmoid())
    assert torch.equal(teacher.probabilities(scores).argmax(-1), scores.argmax(-1))
    own = methods.confidence(teacher, scores, scores.argmax(-1))["confidence"]
    np.testing.assert_allclose(own, theirs.sigmoid().max(-1).values.numpy(), rtol=1e-5)
    with pytest.raises(ValueError, match="has 18 tokens, the text tower reads 16"):
        teacher.text_features(("a long long cat",), ("a {}",))
    with pytest.raises(ValueError, match="has no patch tokens"):
        teacher.encode(torch.randn(1, 3, 224, 224), tokens=True)


def test_clip_has_no_bias_and_its_probabilities_are_a_softmax(tiny):
    scores = torch.tensor([[0.3, 0.1], [0.0, 0.2]])
    assert tiny.logit_bias is None
    torch.testing.assert_close(tiny.probabilities(scores), (tiny.logit_scale * scores).softmax(-1))


def test_siglip_without_transformers_says_what_to_install(siglip, monkeypatch):
    path, weights = siglip
    monkeypatch.setattr(teachers, "find_spec", lambda name: None)
    for name, file in ((str(path), weights), ("ViT-B-16-SigLIP", weights)):
        with pytest.raises(ModuleNotFoundError, match=r"needs the package transformers.*pip install 'apm\[hf\]'"):
            teachers.load(name, pretrained=file)


def test_a_tokenizer_that_is_not_here_is_named(siglip, monkeypatch):
    path, weights = siglip

    def unreachable(name: str, **_: object) -> None:
        raise OSError("We couldn't connect")

    monkeypatch.setattr(teachers, "find_spec", lambda name: name)
    monkeypatch.setattr(teachers.open_clip, "get_tokenizer", unreachable)
    with pytest.raises(FileNotFoundError, match="its tokenizer apm/no-such-tokenizer is not in"):
        teachers.load(str(path), pretrained=weights)


def test_images_of_the_wrong_size_are_refused_with_both_shapes(tiny):
    with pytest.raises(ValueError, match=r"\(N, 3, 16, 16\), found \(2, 3, 32, 32\)"):
        tiny.encode(torch.zeros(2, 3, 32, 32))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_is_close_and_returns_float32(tiny, tiny_config, checkpoint, some_digits, precision):
    low = teachers.load(str(tiny_config), pretrained=checkpoint, precision=precision)
    images = tiny.transform(some_digits.images[:8])
    feature = low.encode(images).feature
    assert feature.dtype == torch.float32
    assert F.cosine_similarity(feature, tiny.encode(images).feature).min() > 0.99
    assert low.text_features(("cat",), ("a {}",)).dtype == torch.float32


def test_double_precision_is_rounded_once_at_the_end(tiny, tiny_config, checkpoint, some_digits):
    double = teachers.load(str(tiny_config), pretrained=checkpoint, precision="fp64")
    assert {value.dtype for value in double.model.parameters()} == {torch.float64}
    images = tiny.transform(some_digits.images[:8])
    found, single = (teacher.encode(images, tokens=True) for teacher in (double, tiny))
    for own, other in ((found.feature, single.feature), (found.tokens, single.tokens)):
        assert own.dtype == torch.float32
        torch.testing.assert_close(own, other)
    with torch.no_grad():
        whole = double.model.encode_image(images.double())
    assert torch.equal(found.feature, whole.float())
    assert double.hash != tiny.hash
    texts = (("cat",), ("a {}",))
    torch.testing.assert_close(double.text_features(*texts), tiny.text_features(*texts))


# ---- text


def test_text_features_are_clips_zero_shot_recipe(tiny):
    names, templates = ("cat", "sea lion"), ("a photo of a {}.", "the {}")
    with torch.no_grad():
        by_hand = []
        for name in names:
            unit = F.normalize(
                tiny.model.encode_text(tiny.tokenizer([t.replace("{}", name) for t in templates])), dim=-1
            )
            by_hand.append(F.normalize(unit.mean(dim=0), dim=0))
        library = open_clip.build_zero_shot_classifier(tiny.model, tiny.tokenizer, names, templates).T
    result = tiny.text_features(names, templates)
    torch.testing.assert_close(result, torch.stack(by_hand))
    torch.testing.assert_close(result, library)
    torch.testing.assert_close(result.norm(dim=-1), torch.ones(2))


def test_text_features_are_computed_once_and_safe_from_callers(tiny, monkeypatch):
    first = tiny.text_features(("dog", "cow"), ("a {}",))
    monkeypatch.setattr(tiny.model, "encode_text", lambda *_: pytest.fail("encoded again"))
    kept = first.clone()
    first.requires_grad_().square().sum().backward()  # no inference tensor: may take part in a loss
    first.detach().zero_()
    assert torch.equal(tiny.text_features(["dog", "cow"], ["a {}"]), kept)


def test_impossible_prompts_are_refused(tiny):
    with pytest.raises(ValueError, match="class names"):
        tiny.text_features((), ("a {}",))
    with pytest.raises(ValueError, match="exactly one"):
        tiny.text_features(("cat",), ("a photo",))
    with pytest.raises(ValueError, match="tokens, the text tower reads 24"):
        tiny.text_features(("cat " * 40,), ("a {}",))


# ---- loading


@pytest.mark.parametrize("kind", ["state dict", "training checkpoint"])
def test_a_local_checkpoint_loads_exactly_from_every_form(tiny, tiny_config, tmp_path, kind):
    state = tiny.model.state_dict()
    path = tmp_path / "tiny.pt"
    torch.save(state if kind == "state dict" else {"epoch": 1, "state_dict": state}, path)
    again = teachers.load(str(tiny_config), pretrained=str(path))
    assert again.hash == tiny.hash
    assert all(torch.equal(v, again.model.state_dict()[k]) for k, v in state.items())
    assert not any(p.requires_grad for p in again.model.parameters())


def test_hash_changes_with_one_weight(tiny, tiny_config, tmp_path):
    state = {k: v.clone() for k, v in tiny.model.state_dict().items()}
    state["visual.proj"][0, 0] += 1e-6
    teachers.save(state, tmp_path / "x.safetensors", {})
    assert teachers.load(str(tiny_config), pretrained=tmp_path / "x.safetensors").hash != tiny.hash


def test_names_that_do_not_exist_are_answered_with_those_that_do(tmp_path):
    with pytest.raises(ValueError, match="ViT-B-16"):
        teachers.load("ViT-B-61", pretrained="openai")
    with pytest.raises(FileNotFoundError, match=r"neither a file nor a tag.*laion2b"):
        teachers.load("ViT-B-32", pretrained=str(tmp_path / "nowhere.pt"))
    with pytest.raises(ValueError, match=r"needs weights: pass pretrained=TAG .*openai"):
        teachers.load("ViT-B-32")
    with pytest.raises(ValueError, match="Known: fp32, bf16, fp16, fp64"):
        teachers.load("mini", precision="fp8")
    with pytest.raises(ValueError, match="apm-mini"):
        teachers.load("mini", pretrained="x.safetensors")


def test_weights_trained_with_quick_gelu_need_the_model_that_has_it():
    with pytest.raises(ValueError, match="use ViT-B-16-quickgelu"):
        teachers.load("ViT-B-16", pretrained="openai")


@pytest.mark.parametrize("model", ["ViT-B-32-quickgelu", "hf-hub:nobody/nothing"])
def test_weights_out_of_reach_are_a_clear_error_within_seconds(monkeypatch, tmp_path, model):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    start = time.perf_counter()
    tag = None if model.startswith("hf-hub") else "openai"
    with pytest.raises(FileNotFoundError) as caught:
        teachers.load(model, pretrained=tag, cache=tmp_path)
    assert time.perf_counter() - start < 5
    for part in (model, str(tmp_path), "pretrained='TAG=/path/to/weights.safetensors'", tag or ""):
        assert part in str(caught.value)


def test_a_file_with_its_tag_is_read_as_the_tag_wants_its_images_and_refused_in_another_activation(tmp_path, caplog):
    name, tag = "ViT-B-16", "laion400m_e32"
    assert teachers.split_pretrained(name, tag) == (tag, None)
    assert teachers.split_pretrained(name, f"{tag}=/weights/a=b.pt") == (tag, "/weights/a=b.pt")
    assert teachers.split_pretrained(name, "/weights/a=b.pt") == (None, "/weights/a=b.pt")
    with pytest.raises(ValueError, match=f"unknown tag of {name} 'nobody'"):
        teachers.split_pretrained(name, "nobody=/weights/w.pt")
    file = tmp_path / "w.safetensors"
    file.write_bytes(b"")
    with pytest.raises(
        ValueError, match="trained with QuickGELU and give wrong features in ViT-B-16: use ViT-B-16-quickgelu"
    ):
        teachers.load(name, pretrained=f"openai={file}")
    with pytest.raises(FileNotFoundError, match=r"'/nowhere/w.pt' is neither a file nor a tag"):
        teachers.load(name, pretrained="laion400m_e32=/nowhere/w.pt")
    squash = teachers._preprocessing("ViT-H-14-quickgelu", "dfn5b", file)
    assert squash["resize_mode"] == "squash"
    assert teachers._preprocessing("ViT-L-14", "laion2b_s32b_b82k", file)["mean"] == (0.5, 0.5, 0.5)
    with pytest.warns(UserWarning, match="does not say how its weights want their images.*laion2b_s32b_b82k"):
        assert teachers._preprocessing("ViT-L-14", None, file) == {}
    (tmp_path / "open_clip_config.json").write_text('{"preprocess_cfg": {"mean": [0.1, 0.2, 0.3], "size": 99}}')
    assert teachers._preprocessing("ViT-L-14", None, file) == {"mean": [0.1, 0.2, 0.3]}


def test_the_activation_of_weights_in_a_file_is_asked_for_or_read_beside_it(tmp_path):
    file = tmp_path / "w.safetensors"
    file.write_bytes(b"")
    with pytest.warns(
        UserWarning, match=r"does not say whether.*QuickGELU.*weights of openai, .* need ViT-B-16-quickgelu"
    ):
        assert teachers._check_weights("ViT-B-16", None, str(file), None) == str(file)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no tag of these models has the other activation
        for name in ("ViT-B-16-quickgelu", "ViT-L-14-336-quickgelu"):
            assert teachers._check_weights(name, None, str(file), None) == str(file)
    beside = tmp_path / "open_clip_config.json"
    beside.write_text('{"model_cfg": {"quick_gelu": true}}')
    with pytest.raises(
        ValueError, match="trained with QuickGELU; they give wrong features in ViT-B-16: use ViT-B-16-quickgelu"
    ):
        teachers._check_weights("ViT-B-16", None, str(file), None)
    beside.write_text('{"model_cfg": {}}')
    assert teachers._check_weights("ViT-B-16", None, str(file), None) == str(file)
    with pytest.raises(ValueError, match=r"trained without QuickGELU.*use ViT-B-16$"):
        teachers._check_weights("ViT-B-16-quickgelu", None, str(file), None)


def test_zero_shot_accuracy_of_features_stored_in_half_precision(tiny_config, checkpoint, tiny, some_digits, tmp_path):
    half = teachers.load(str(tiny_config), pretrained=checkpoint, feature_dtype="float16")
    found, exact = (teachers.accuracy(one, some_digits, tmp_path) for one in (half, tiny))
    assert abs(found - exact) <= 2 / len(some_digits)  # half a unit of float16 decides at most a near tie


def test_openais_own_archives_are_named_with_what_to_do(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "ViT-B-16.pt"))
    with pytest.raises(ValueError, match=r"TorchScript archive.*state_dict.*torch\.save"):
        teachers.load("ViT-B-16-quickgelu", pretrained=f"openai={tmp_path / 'ViT-B-16.pt'}")


def test_all_that_changes_a_feature_changes_the_teachers_hash(tiny_config, checkpoint, tiny):
    half = teachers.load(str(tiny_config), pretrained=checkpoint, feature_dtype="float16")
    low = teachers.load(str(tiny_config), pretrained=checkpoint, precision="bf16")
    other = copy.copy(tiny)
    other.__dict__.pop("hash", None)
    other.preprocess_config = replace(tiny.preprocess_config, mean=(0.5, 0.5, 0.5))
    again = teachers.load(str(tiny_config), pretrained=checkpoint)
    assert again.hash == tiny.hash
    assert len({tiny.hash, half.hash, low.hash, other.hash}) == 4


def test_many_pixels_are_transformed_by_threads_with_the_same_result(tiny, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (10, 64, 48, 3), dtype=np.uint8)
    one_by_one = teachers.student_images(images, 32)
    monkeypatch.setattr(teachers, "LARGE", 1)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert torch.equal(teachers.student_images(images, 32), one_by_one)
    finally:
        torch.set_num_threads(before)
    squashed = teachers.student_images(images, 32, resize_mode="squash")
    assert squashed.shape == one_by_one.shape
    assert not torch.equal(squashed, one_by_one)


def test_a_host_that_does_not_answer_counts_as_offline(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    start = time.perf_counter()
    assert not teachers._online("http://127.0.0.1:9")
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize(
    "change",
    [
        {"vision_cfg": {"patch_size": 8}},
        {"vision_cfg": {"width": 24}},
        {"vision_cfg": {"layers": 2}},
        {"text_cfg": {"context_length": 30}},
    ],
)
def test_checkpoints_of_another_architecture_are_refused(checkpoint, tmp_path, change):
    config = {
        key: {**value, **change.get(key, {})} if isinstance(value, dict) else value for key, value in TINY.items()
    }
    path = tmp_path / f"apm-test-{'-'.join(f'{k}{v}' for part in change.values() for k, v in part.items())}.json"
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"architecture"):
        teachers.load(str(path), pretrained=checkpoint)


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_damaged_checkpoints_are_refused_by_name(tiny_config, checkpoint, tmp_path, suffix):
    path = tmp_path / f"cut.{suffix}"
    path.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(ValueError, match=rf"cut\.{suffix}.* cannot be loaded"):
        teachers.load(str(tiny_config), pretrained=path)


def test_checkpoints_that_would_run_code_are_refused(tiny_config, tmp_path):
    torch.save({"state_dict": tmp_path}, tmp_path / "code.pt")  # a Path object: not plain weights
    with pytest.raises(ValueError, match=r"code\.pt.* cannot be loaded"):
        teachers.load(str(tiny_config), pretrained=tmp_path / "code.pt")


def test_model_configurations_are_checked(tmp_path, tiny_config):
    (tmp_path / "a.json").write_text("{")
    (tmp_path / "b.json").write_text('{"embed_dim": 3}')
    (tmp_path / "ViT-B-32.json").write_text(json.dumps(TINY))
    for name, message in (("a", "no JSON"), ("b", "lacks vision_cfg, text_cfg"), ("ViT-B-32", "is taken")):
        with pytest.raises(ValueError, match=message):
            teachers.load(str(tmp_path / f"{name}.json"), pretrained="x.pt")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        teachers.load(str(tmp_path / "c.json"), pretrained="x.pt")


# ---- cached features


def test_features_are_the_encodings_and_come_from_disk_the_second_time(tiny, some_digits, tmp_path, monkeypatch):
    first = teachers.features(tiny, some_digits, tmp_path)
    assert isinstance(first, np.memmap)
    assert first.dtype == np.float32
    np.testing.assert_array_equal(first, tiny.encode(tiny.transform(some_digits.images)).feature)
    monkeypatch.setattr(teachers.Teacher, "encode", lambda *_, **__: pytest.fail("encoded again"))
    np.testing.assert_array_equal(teachers.features(tiny, some_digits, tmp_path), first)
    assert [p.suffix for p in (tmp_path / "features").iterdir()] == [".npy"]


def test_changing_data_or_teacher_changes_the_cached_file(tiny, some_digits, tmp_path):
    other_teacher = teachers.Teacher(tiny.name, tiny.model, tiny.tokenizer, {**tiny.config, "note": "another"})
    resized = teachers.Teacher(tiny.name, tiny.model, tiny.tokenizer, tiny.config)
    resized.preprocess_config = replace(tiny.preprocess_config, mean=(0.5, 0.5, 0.5))
    cases = [
        (tiny, some_digits),
        (tiny, replace(some_digits, fingerprint="another")),
        (tiny, some_digits.subset(np.arange(len(some_digits))[::-1])),
        (tiny, some_digits.subset(7)),
        (tiny, replace(some_digits, corruption="fog", severity=3)),
        (other_teacher, some_digits),
        (resized, some_digits),
    ]
    for count, (teacher, data) in enumerate(cases, start=1):
        assert len(teachers.features(teacher, data, tmp_path)) == len(data)
        assert len(list((tmp_path / "features").iterdir())) == count


@pytest.mark.parametrize("damage", [b"", b"no array", "cut", "shape"])
def test_damaged_cache_files_are_computed_again_with_a_warning(tiny, some_digits, tmp_path, damage):
    expected = np.array(teachers.features(tiny, some_digits, tmp_path))
    (path,) = (tmp_path / "features").iterdir()
    if damage == "shape":
        np.save(path, expected[:3])
    else:
        path.write_bytes(path.read_bytes()[:500] if damage == "cut" else damage)
    with pytest.warns(UserWarning, match="computing them again"):
        np.testing.assert_array_equal(teachers.features(tiny, some_digits, tmp_path), expected)


def tree(folder, images=12):
    """A class-per-folder tree with one file that is no image, and the dataset that reads it."""
    rng = np.random.default_rng(0)
    for i in range(images):
        path = folder / ("cat" if i % 2 else "dog") / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    (folder / "cat" / "bad.png").write_bytes(b"nothing")
    return datasets.load(f"folder:{folder}")


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_leaves_the_others_their_features_and_is_named_when_asked_for(tiny, tmp_path, workers):
    data = tree(tmp_path / "data")
    rows = teachers.features(tiny, data, tmp_path / "cache", batch_size=5, workers=workers)
    bad = int(np.flatnonzero(np.isnan(rows).any(axis=1)).item())
    good = np.array([i for i in range(len(data)) if i != bad])
    alone = tiny.encode(tiny.transform([data.images[int(i)] for i in good])).feature.numpy()
    np.testing.assert_allclose(rows[good], alone, atol=1e-5)
    assert torch.equal(teachers.features_at(tiny, data, good[:3], tmp_path / "cache"), torch.tensor(rows[good[:3]]))
    with pytest.raises(datasets.UnreadableImage, match=r"bad\.png"):
        teachers.features_at(tiny, data, np.array([0, bad]), tmp_path / "cache")


def test_a_corrupt_image_stops_a_run_by_name_or_is_recorded_and_counted_under_the_table(tiny, tmp_path, monkeypatch):
    from apm import methods
    from apm.analysis import tables
    from apm.runs import records

    monkeypatch.setenv("APM_CACHE", str(tmp_path / "cache"))
    data = tree(tmp_path / "data")
    method = methods.ZeroShot(tiny)
    with pytest.raises(records.RecordError, match=r"bad\.png"):
        records.run(method, data, folder=tmp_path / "records")
    rows = records.run(method, data, folder=tmp_path / "records", on_error="record")
    assert (rows["prediction"] == -1).sum() == 1
    assert len(rows) == 13
    assert "1 of 13 predictions failed and count as wrong" in tables.footer(rows)


def test_a_feature_that_is_not_finite_is_an_error_that_names_the_image(tiny, some_digits, tmp_path, monkeypatch):
    rows = np.array(teachers.features(tiny, some_digits, tmp_path))
    right = rows[7].copy()
    rows[7] = np.inf
    monkeypatch.setattr(teachers, "features", lambda *_: rows)
    # as an image that could not be read when the features were made, and can be now
    np.testing.assert_allclose(
        teachers.features_at(tiny, some_digits, np.array([7]), tmp_path)[0], right, rtol=1e-4, atol=1e-5
    )
    monkeypatch.setattr(
        type(tiny), "encode", lambda self, images, **_: teachers.Encoding(torch.full((1, len(right)), torch.nan), None)
    )
    with pytest.raises(
        ValueError, match=f"gives image {some_digits.indices[7]} of digits-test a feature that is not finite"
    ):
        teachers.features_at(tiny, some_digits, np.array([7]), tmp_path)


def test_features_are_kept_in_float16_by_choice_in_half_the_space(tiny_config, checkpoint, some_digits, tmp_path):
    full, half = (
        teachers.load(str(tiny_config), pretrained=checkpoint, feature_dtype=dtype) for dtype in ("float32", "float16")
    )
    a, b = (teachers.features(teacher, some_digits, tmp_path) for teacher in (full, half))
    assert (a.nbytes, b.dtype) == (2 * b.nbytes, np.float16)
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    assert teachers.features_at(half, some_digits, np.array([3]), tmp_path).dtype == torch.float32
    with pytest.raises(ValueError, match=r"unknown feature_dtype 'int8'. Known: float32, float16"):
        teachers.load(str(tiny_config), pretrained=checkpoint, feature_dtype="int8")


# ---- other towers and devices


def test_a_gpu_that_is_not_there_is_said_before_anything_is_loaded(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"device 'cuda:1' was asked for.*no CUDA GPU here: set device: cpu"):
        teachers.load("mini", device="cuda:1")


def test_a_timm_tower_gives_feature_and_tokens_and_no_text(tmp_path):
    import timm

    name = "vit_small_patch14_reg4_dinov2"
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0).eval()
    path = tmp_path / "dino.pth"
    torch.save(model.state_dict(), path)
    teacher = teachers.load(f"timm:{name}", pretrained=path)
    size = teacher.image_size
    image = teacher.transform([np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)])
    assert image.shape == (1, 3, size, size)
    encoding = teacher.encode(image, tokens=True)
    with torch.inference_mode():
        every = model.forward_features(image)
    assert torch.equal(encoding.feature, every[:, 0])  # the CLS token
    assert encoding.tokens.shape == (1, size // 14, size // 14, 384)
    assert torch.equal(encoding.tokens.flatten(1, 2), every[:, 5:])  # after CLS and four registers
    assert (teacher.width, teacher.grid) == (384, (size // 14, size // 14))
    with pytest.raises(ValueError, match="has no text tower"):
        teacher.text_features(["cat"], ["a {}"])
    with pytest.raises(ValueError, match="has no text tower"):
        _ = teacher.logit_scale
    with pytest.raises(ValueError, match="cannot be loaded into timm:vit_tiny_patch16_224"):
        teachers.load("timm:vit_tiny_patch16_224", pretrained=path)
    with pytest.raises(ValueError, match="unknown timm model 'vit_small_patch15'"):
        teachers.load("timm:vit_small_patch15", pretrained=path)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        teachers.load(f"timm:{name}", pretrained=tmp_path / "nothing.pth")


def test_a_timm_tower_reads_images_of_another_size(tmp_path):
    import timm
    from safetensors.torch import save_file

    name = "test_vit"  # 160 px, 16 px patches
    own = timm.create_model(name, num_classes=0)
    file = tmp_path / "test_vit.safetensors"
    save_file(own.state_dict(), str(file))
    teacher = teachers.load(f"timm:{name}@96", pretrained=file)
    assert teacher.image_size == 96
    assert teacher.grid == (6, 6)
    images = np.random.default_rng(0).integers(0, 256, (2, 40, 50, 3), dtype=np.uint8)
    said = teacher.encode(teacher.transform(images), tokens=True)
    assert said.tokens.shape == (2, 6, 6, teacher.width)
    assert said.feature.isfinite().all()
    same = teachers.load(f"timm:{name}", pretrained=file)
    assert same.grid == (10, 10)
    assert same.hash != teacher.hash
    for wrong, message in (
        ("@big", "image size in pixels after @"),
        ("@97", "97 px are no whole number of patches of 16 px"),
    ):
        with pytest.raises(ValueError, match=message):
            teachers.load(f"timm:{name}{wrong}", pretrained=file)
    with pytest.raises(ValueError, match="timm cannot build test_resnet for images of another size"):
        teachers.load("timm:test_resnet@96", pretrained=file)


def test_timm_weights_out_of_reach_say_where_they_are_looked_for_and_how_to_pass_a_file(monkeypatch, tmp_path):
    monkeypatch.setattr(teachers, "_online", lambda url, seconds=4.0: False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"the hub cannot be reached.*pretrained='/path/to/weights"):
        teachers.load("timm:vit_large_patch14_reg4_dinov2.lvd142m", cache=tmp_path)


def test_a_checkpoint_of_vit_b_16_at_its_true_size_loads_and_encodes(tmp_path):
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-B-16-quickgelu", load_weights=False).eval()
    path = tmp_path / "vit-b-16.safetensors"
    teachers.save({k: v.contiguous() for k, v in model.state_dict().items()}, path, {})
    teacher = teachers.load("ViT-B-16-quickgelu", pretrained=path)
    images = teacher.transform([np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)])
    encoding = teacher.encode(images, tokens=True)
    with torch.inference_mode():
        assert torch.allclose(encoding.feature, model.encode_image(images), atol=1e-5)
    assert (teacher.width, teacher.grid, teacher.image_size) == (512, (14, 14), 224)
    assert encoding.tokens.shape == (1, 14, 14, 512)
    assert teacher.text_features(["a cat", "a dog"], ["{}"]).shape == (2, 512)


def test_the_convolutional_teacher_of_cifar10_trains_and_loads_like_any_other(few, tmp_path):
    config = teachers.TrainConfig(model="apm-cifar10", epochs=1, groups=2, precision="bf16")
    weights = teachers.train(few.subset(40), config)
    teachers.save(weights, tmp_path / "w.safetensors", {})
    teacher = teachers.load("apm-cifar10", pretrained=tmp_path / "w.safetensors")
    assert (teacher.width, teacher.image_size, teacher.grid) == (128, 64, (8, 8))
    batch = teacher.transform(few.images[:2])
    tokens = teacher.encode(batch, tokens=True).tokens
    with torch.no_grad():  # a token every 8 px; every 32 px those of the tower's own map
        own = teacher.model.visual.trunk.forward_features(batch).permute(0, 2, 3, 1)
        own = teacher.model.visual.head(own)
    torch.testing.assert_close(tokens[:, ::4, ::4], own, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(own.mean(dim=(1, 2)), teacher.encode(batch).feature, rtol=1e-4, atol=1e-5)
    assert teachers.token_grid(teacher, few.images[:2], (16, 16)).shape == (2, 256, 128)
    assert teacher.encode(teacher.transform(few.images[:2])).feature.shape == (2, 128)
    with pytest.raises(ValueError, match="unknown training precision 'int8'"):
        teachers.TrainConfig(precision="int8")


# ---- training


@pytest.fixture(scope="module")
def few(tiny_config):
    return datasets.load("digits-train").subset(120)


def test_training_is_bit_identical_for_a_seed_and_leaves_torch_as_it_was(few, tiny_config):
    config = replace(QUICK, model=str(tiny_config))
    torch.manual_seed(5)
    expected_draw, threads = torch.rand(1), torch.get_num_threads()
    torch.manual_seed(5)
    first = teachers.train(few, config)
    assert torch.equal(torch.rand(1), expected_draw)
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()
    with torch.inference_mode():  # nor does the caller's mode matter
        again = teachers.train(few, config)
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    other = teachers.train(few, replace(config, seed=1))
    assert not torch.equal(first["visual.proj"], other["visual.proj"])


def test_training_lowers_the_loss_and_changes_only_token_embeddings_of_the_captions(few, tiny_config):
    config = replace(QUICK, model=str(tiny_config), epochs=12, learning_rate=3e-3)
    weights = teachers.train(few, config)
    with teachers._reproducible(config.seed, config.threads):
        start = teachers._untrained(tiny_config.stem).state_dict()
    moved = (weights["token_embedding.weight"] != start["token_embedding.weight"]).any(dim=1)
    used = torch.cat([open_clip.get_tokenizer(tiny_config.stem)(texts) for texts in teachers.captions(few)]).unique()
    assert set(torch.nonzero(moved).flatten().tolist()) <= set(used.tolist())
    assert moved.sum() > 20

    def loss(state):
        model = open_clip.create_model(tiny_config.stem)
        model.load_state_dict(state)
        teacher = teachers.Teacher("x", model, open_clip.get_tokenizer(tiny_config.stem), TINY)
        image = F.normalize(teacher.encode(teacher.transform(few.images)).feature, dim=-1)
        scores = teacher.logit_scale * image @ teacher.text_features(few.classnames, few.templates).T
        return F.cross_entropy(scores, torch.tensor(few.labels)).item()

    assert loss(weights) < 0.9 * loss(start)


def test_compact_token_embedding_gives_the_gradients_of_the_full_one(tiny_config):
    model = random_model(tiny_config)
    ids = open_clip.get_tokenizer(tiny_config.stem)(["a handwritten 7.", "the number seven"])
    full = model.encode_text(ids)
    full.square().sum().backward()
    used = ids.unique()
    gradient = model.token_embedding.weight.grad[used].clone()
    model.token_embedding.weight = torch.nn.Parameter(model.token_embedding.weight.data[used].clone())
    compact = model.encode_text(torch.searchsorted(used, ids))
    compact.square().sum().backward()
    assert torch.equal(full, compact)
    torch.testing.assert_close(model.token_embedding.weight.grad, gradient)


def test_every_group_of_a_batch_holds_one_image_per_class_and_passes_are_complete():
    labels = torch.tensor([0] * 7 + [1] * 5 + [2] * 6)
    batches = teachers._balanced(labels, 3, 2, torch.Generator().manual_seed(0))
    drawn = [next(batches) for _ in range(5)]
    for batch in drawn:
        assert labels[batch].tolist() == [0, 1, 2, 0, 1, 2]
    second = [int(i) for batch in drawn for i in batch if labels[i] == 1]
    assert sorted(second[:5]) == sorted(second[5:]) == [7, 8, 9, 10, 11]


def test_augmentation_of_nothing_is_the_identity_and_mirrors_on_request():
    images = torch.rand(4, 3, 16, 16)
    still = replace(QUICK, rotation=0.0, scale=0.0, shear=0.0, shift=0.0)
    generator = torch.Generator().manual_seed(0)
    torch.testing.assert_close(teachers.augment(images, still, generator), images, atol=1e-5, rtol=0)
    mirrored = teachers.augment(images, replace(still, flip=1.0), generator)
    torch.testing.assert_close(mirrored, images.flip(-1), atol=1e-5, rtol=0)
    moved = teachers.augment(images, QUICK, generator)
    assert moved.shape == images.shape
    assert (moved - images).abs().amax(dim=(1, 2, 3)).min() > 0.1


def test_captions_say_words_and_numerals_and_nothing_of_print():
    per_class = teachers.captions(datasets.load("digits-train"))
    assert {"a photo of the number seven.", "a photo of the number 7."} <= set(per_class[7])
    assert len({len(c) for c in per_class}) == 1
    assert len(set(per_class[3])) == len(per_class[3]) >= 2 * len(prompts.DIGITS)
    assert not any("print" in text for texts in per_class for text in texts)


def test_impossible_trainings_are_refused(few, tiny_config):
    config = replace(QUICK, model=str(tiny_config))
    with pytest.raises(ValueError, match="no images of class 'three'"):
        teachers.train(few.subset(np.nonzero(few.labels != 3)[0]), config)
    with pytest.raises(RuntimeError, match="lower the learning rate"):
        teachers.train(few, replace(config, epochs=30, learning_rate=1e30, clip_norm=1e30))
    with pytest.raises(ValueError, match="must be positive"):
        replace(config, epochs=0)


def test_command_line_trains_on_a_folder_and_prints_the_held_out_accuracy(tiny_config, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("APM_CACHE", str(tmp_path / "cache"))
    for name, value in (("dark", 30), ("light", 220)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(6):
            Image.new("RGB", (20 + i, 18), (value + i,) * 3).save(tmp_path / "data" / name / f"{i}.png")
    data, out = f"folder:{tmp_path / 'data'}", tmp_path / "out.safetensors"
    common = ["train", "--data", data, "--config", str(tiny_config), "--epochs", "2", "--threads", "1", "--flip", "0.5"]
    assert teachers.main([*common, "--out", str(out), "--test", data]) == 0
    assert "% of 12 images" in capsys.readouterr().out
    assert teachers.load(str(tiny_config), pretrained=out).text_features(("dark", "light"), ("a {}",)).shape == (2, 16)
    assert teachers.main([*common, "--out", str(tmp_path / "out.pt")]) == 1
    assert ".safetensors" in capsys.readouterr().err
    assert teachers.main(["train", "--data", "digits-tran", "--out", str(out)]) == 1
    assert "digits-train" in capsys.readouterr().err


def test_the_small_teacher_reads_held_out_digits_and_every_prompt_works():
    teacher, digits = teachers.load("mini"), datasets.load("digits-test")
    assert teachers.accuracy(teacher, digits) >= 0.97
    assert teacher.grid == (8, 8)
    for template in digits.templates:
        assert teachers.accuracy(teacher, replace(digits, templates=(template,))) >= 0.95
