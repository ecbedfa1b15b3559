"""What teachers and students see of images, and what teachers say of images and texts."""

from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.transform import PreprocessCfg
from PIL import Image

from apm import teachers
from apm.teachers import images as seen
from apm.teachers import loading


def noise(*sizes):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


# ---- images


def test_transform_is_open_clips_own_image_by_image_and_refuses_what_is_none(tiny):
    own = open_clip.transform.image_transform_v2(tiny.preprocess_config, is_train=False)
    images = noise((16, 16), (40, 23), (7, 9))
    assert torch.equal(tiny.transform(images), torch.stack([own(Image.fromarray(i)) for i in images]))
    for bad in (np.zeros((2, 8, 8, 3)), np.zeros((2, 8, 8), np.uint8), [], np.zeros((2, 8, 8, 4), np.uint8)):
        with pytest.raises(ValueError, match="expected"):
            tiny.transform(bad)
    pixels = teachers.fitted(images[1], tiny.preprocess_config)  # what a network sees: its transform before numbers
    assert (pixels.shape, pixels.dtype) == ((16, 16, 3), np.uint8)
    assert torch.equal(tiny.transform([pixels]), tiny.transform([images[1]]))


def test_pil_images_are_seen_as_their_arrays_also_one_alone_or_turned_by_its_tag(tiny, tmp_path):
    arrays = noise((16, 16), (40, 23))
    pictures = [Image.fromarray(array) for array in arrays]
    assert torch.equal(tiny.transform([pictures[0], arrays[1]]), tiny.transform(arrays))
    assert torch.equal(tiny.transform(pictures[1]), tiny.transform(arrays[1:]))
    assert torch.equal(teachers.student_images(pictures, 16), teachers.student_images(arrays, 16))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying
    pictures[1].save(tmp_path / "a.png", exif=exif)
    assert torch.equal(tiny.transform(Image.open(tmp_path / "a.png")), tiny.transform([np.rot90(arrays[1], -1).copy()]))


def test_a_teacher_says_what_it_is_in_a_line(tiny):
    said = repr(tiny)
    assert said.startswith(f"Teacher {tiny.name}: ")
    assert f"{tiny.image_size} px, mean 0.481/0.458/0.408, std" in said
    assert "\n" not in said


def test_student_images_use_imagenet_statistics_which_patch_colours_undo():
    result = teachers.student_images(np.full((1, 20, 20, 3), 255, np.uint8), 32)
    expected = [(1 - m) / s for m, s in zip(teachers.IMAGENET_MEAN, teachers.IMAGENET_STD, strict=True)]
    assert result.shape == (1, 3, 32, 32)
    np.testing.assert_allclose(result.mean(dim=(0, 2, 3)), expected, rtol=1e-5)
    torch.testing.assert_close(teachers.patch_colours(result, 8), torch.ones(1, 16, 3))


def test_many_pixels_are_transformed_by_threads_with_the_same_result(monkeypatch):
    images = noise(*[(64, 48)] * 10)
    one_by_one = teachers.student_images(images, 32)
    monkeypatch.setattr(seen, "LARGE", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert torch.equal(teachers.student_images(images, 32), one_by_one)
    squashed = teachers.student_images(images, 32, PreprocessCfg(resize_mode="squash"))
    assert not torch.equal(squashed, one_by_one)


# ---- encoding


def test_feature_is_open_clips_own_and_tokens_are_projected_into_its_space_in_grid_order(tiny, some_digits):
    images = tiny.transform(some_digits.images[:3])
    assert tiny.encode(images).tokens is None
    result = tiny.encode(images, tokens=True)
    visual = tiny.model.visual
    with torch.no_grad():
        assert torch.equal(tiny.encode(images).feature, tiny.model.encode_image(images))
        hidden = visual.ln_post(visual.transformer(visual._embeds(images))) @ visual.proj  # (3, 1 + 16, D)
    assert tiny.grid == (4, 4)
    torch.testing.assert_close(result.feature, hidden[:, 0])
    for row in range(4):
        torch.testing.assert_close(result.tokens[:, row], hidden[:, 1 + 4 * row : 5 + 4 * row])
    (torch.ones(16, requires_grad=True) * result.tokens).sum().backward()  # tokens may be targets of a loss
    own = teachers.token_grid(tiny, some_digits.images[:3], (4, 4), batch_size=2)
    torch.testing.assert_close(own, result.tokens.flatten(1, 2))
    halves = teachers.token_grid(tiny, some_digits.images[:3], (2, 2))
    torch.testing.assert_close(halves[:, 0], result.tokens[:, :2, :2].mean(dim=(1, 2)))
    with pytest.raises(ValueError, match=r"\(N, 3, 16, 16\), found \(2, 3, 32, 32\)"):
        tiny.encode(torch.zeros(2, 3, 32, 32))


def test_mean_of_tokens_is_the_feature_of_a_tower_that_pools_by_mean(configure):
    path, model = configure("mean", vision_cfg={"pool_type": "avg"})
    teacher = teachers.Teacher("mean", model, open_clip.get_tokenizer(path.stem), {})
    result = teacher.encode(torch.randn(2, 3, 16, 16), tokens=True)
    torch.testing.assert_close(result.tokens.mean(dim=(1, 2)), result.feature)


TEXT = {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
COCA = {
    "custom_text": True,
    "vision_cfg": {
        "image_size": 32, "patch_size": 8, "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True,
    },
    "text_cfg": {**TEXT, "embed_cls": True, "output_tokens": True},
    "multimodal_cfg": {**TEXT, "attn_pooler_heads": 2},
}  # fmt: skip
RESNET = {"vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8}}


@pytest.mark.parametrize(("name", "parts"), [("coca", COCA), ("resnet", RESNET)])
def test_towers_whose_tokens_have_no_places_classify_and_say_so(configure, name, parts):
    path, model = configure(name, **parts)
    teacher = teachers.Teacher(name, model, open_clip.get_tokenizer(path.stem), parts)
    assert teacher.encode(torch.randn(2, 3, 32, 32)).feature.shape == (2, 16)
    assert teacher.text_features(("cat", "dog"), ("a {}",)).shape == (2, 16)
    assert teacher.grid is None
    with pytest.raises(ValueError, match=rf"teacher {name} has no patch tokens .* attention pool"):
        teacher.encode(torch.randn(2, 3, 32, 32), tokens=True)


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 1e-2), ("fp16", 1e-2), ("fp64", 1e-5)])
def test_other_precisions_are_close_and_return_float32(tiny, tiny_config, checkpoint, few, precision, tolerance):
    def said(teacher):
        encoding = teacher.encode(tiny.transform(few.images[:8]), tokens=True)
        return encoding.feature, encoding.tokens, teacher.text_features(("cat",), ("a {}",))

    other = teachers.load(str(tiny_config), pretrained=checkpoint, precision=precision)
    for own, expected in zip(said(other), said(tiny), strict=True):
        assert own.dtype == torch.float32
        assert F.cosine_similarity(own, expected, dim=-1).min() > 1 - tolerance


# ---- text and probabilities


def test_text_features_are_clips_zero_shot_recipe(tiny):
    names, templates = ("cat", "sea lion"), ("a photo of a {}.", "the {}")
    result = tiny.text_features(names, templates)
    with torch.no_grad():
        library = open_clip.build_zero_shot_classifier(tiny.model, tiny.tokenizer, names, templates).T
    torch.testing.assert_close(result, library)
    torch.testing.assert_close(result.norm(dim=-1), torch.ones(2))
    scores = torch.tensor([[0.3, 0.1], [0.0, 0.2]])
    assert tiny.logit_bias is None
    torch.testing.assert_close(tiny.probabilities(scores), (tiny.logit_scale * scores).softmax(-1))


def test_text_features_are_computed_once_and_safe_from_callers(tiny, monkeypatch):
    first = tiny.text_features(("dog", "cow"), ("a {}",))
    monkeypatch.setattr(tiny.model, "encode_text", lambda *_: pytest.fail("encoded again"))
    kept = first.clone()
    first.requires_grad_().square().sum().backward()  # no inference tensor: may take part in a loss
    first.detach().zero_()
    assert torch.equal(tiny.text_features(["dog", "cow"], ["a {}"]), kept)


def test_impossible_prompts_are_refused(tiny):
    for names, template, message in (
        ((), "a {}", "class names"),
        ("cat", "a {}", "class names"),
        (("cat",), "a photo", "exactly one"),
        (("cat " * 40,), "a {}", "tokens, the text tower reads 24"),
    ):
        with pytest.raises(ValueError, match=message):
            tiny.text_features(names, (template,))


SIGLIP = {
    "embed_dim": 192, "init_logit_bias": -10, "custom_text": True,
    "vision_cfg": {"image_size": 224, "timm_model_name": "vit_tiny_patch16_224", "timm_pool": "map", "timm_proj": "none"},
    "text_cfg": {"context_length": 16, "vocab_size": 300, "hf_tokenizer_name": "apm/no-such-tokenizer", "width": 192},
}  # fmt: skip


@pytest.fixture(scope="module")
def siglip(configure, tmp_path_factory):
    """A small model in SigLIP's layout with random weights: options of `load`."""
    path, model = configure("siglip", **SIGLIP)
    weights = tmp_path_factory.mktemp("siglip") / "siglip.safetensors"
    teachers.save({k: v.clone().contiguous() for k, v in model.state_dict().items()}, weights, {})
    return {"name": str(path), "pretrained": weights}


class Bytes(open_clip.tokenizer.HFTokenizer):
    """A tokenizer as open_clip wraps those of transformers, without transformers: a token is a byte."""

    context_length, clean_fn = 16, staticmethod(str.lower)

    def __init__(self) -> None:
        self.tokenizer = lambda texts: SimpleNamespace(input_ids=[[*text.encode(), 1] for text in texts])

    def __call__(self, texts: list[str], context_length: int | None = None) -> torch.Tensor:
        return torch.tensor([(ids + [1] * 16)[:16] for ids in self.tokenizer(texts).input_ids])


def test_siglip_with_its_bias_where_probabilities_are(siglip, monkeypatch):
    monkeypatch.setattr(loading, "find_spec", lambda name: name)
    monkeypatch.setattr(open_clip, "get_tokenizer", lambda name: Bytes())
    teacher = teachers.load(**siglip)
    scores = torch.tensor([[0.1, 0.3], [0.0, -0.2]])
    theirs = scores * teacher.model.logit_scale.detach().exp() - 10
    torch.testing.assert_close(teacher.probabilities(scores), theirs.sigmoid())
    assert teacher.text_features(("cat", "dog"), ("a {}",)).shape == (2, 192)
    with pytest.raises(ValueError, match="has 18 tokens, the text tower reads 16"):
        teacher.text_features(("a long long cat",), ("a {}",))
    with pytest.raises(ValueError, match="has no patch tokens"):
        teacher.encode(torch.randn(1, 3, 224, 224), tokens=True)


def test_siglip_without_transformers_or_tokenizer_says_what_is_missing(siglip, monkeypatch):
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"needs the package transformers.*pip install 'apm\[hf\]'"):
        teachers.load(**siglip)
    monkeypatch.setattr(loading, "find_spec", lambda name: name)
    monkeypatch.setattr(open_clip, "get_tokenizer", Mock(side_effect=OSError("We couldn't connect")))
    with pytest.raises(FileNotFoundError, match="its tokenizer apm/no-such-tokenizer is not here"):
        teachers.load(**siglip)
