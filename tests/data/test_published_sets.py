"""The published sets, read from tiny trees in their true layouts; what is wrong with a folder is said clearly."""

import csv
import hashlib
import json
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import yaml
from PIL import Image
from scipy.io import savemat

from apm.data import check_data, corruptions, datasets, prompts, published_sets
from apm.data.published_sets import SETS, MissingSet, WrongSet
from apm.project import profiles

ROOT = Path(__file__).resolve().parents[2]
TENCH, RETRIEVER, TABBY, TISSUE = "n01440764", "n02099601", "n02123045", "n15075141"  # labels 0, 207, 281, 999
COOP = [name for name, entry in SETS.items() if entry.split and name != "pets"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("APM_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def data(tmp_path):
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def picture(path: Path, value: int = 0) -> Path:
    """A tiny image whose colour is the value, in the format of its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG"}[path.suffix.lower()]
    Image.new("RGB", (6, 5), (value, value, value)).save(path, format=kind)
    return path


def expect(monkeypatch, name: str, images: int, classes: int) -> None:
    """Pretend that the set was published with these counts, so that a tiny tree is whole."""
    monkeypatch.setitem(SETS, name, replace(SETS[name], images=images, classes=classes))


def values(dataset) -> list[int]:
    return [int(np.asarray(dataset.images[i])[2, 2, 0]) for i in range(len(dataset))]


# ------------------------------------------------------------------------------------------------------ names and classes


def test_importing_published_sets_imports_neither_torch_nor_timm():
    code = "import sys, apm.data.published_sets, apm.data.datasets; apm.data.datasets.names(); sys.exit(bool({'torch', 'timm', 'open_clip'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0


def test_the_1000_wordnet_ids_are_in_the_order_of_open_clips_names():
    from timm.data import ImageNetInfo

    wnids, names = published_sets.wnids(), list(published_sets.imagenet_names().values())
    info = ImageNetInfo()
    assert len(set(wnids)) == len(names) == 1000
    assert list(wnids) == sorted(wnids)
    assert (wnids[0], wnids[207], wnids[281], wnids[999]) == (TENCH, RETRIEVER, TABBY, TISSUE)
    assert (names[0], names[207], names[281], names[999]) == ("tench", "Golden Retriever", "tabby cat", "toilet paper")
    words = [set(info.label_name_to_description(wnid).lower().replace(",", " ").split()) for wnid in wnids]
    own = [bool(set(name.lower().split()) & said) for name, said in zip(names, words, strict=True)]
    shifted = [bool(set(name.lower().split()) & said) for name, said in zip(names[1:], words, strict=False)]
    assert np.mean(own) > 0.9  # the names were edited, so not all share a word with WordNet's
    assert np.mean(shifted) < 0.4  # the comparison can tell an order from another


@pytest.mark.parametrize("subset", ["imagenet_a", "imagenet_r"])
def test_the_200_classes_of_a_and_r_are_among_the_1000_in_the_same_order(subset):
    chosen = published_sets.wnids(subset)
    places = [published_sets.wnids().index(wnid) for wnid in chosen]
    assert len(places) == 200
    assert places == sorted(places)
    assert published_sets.wnids("imagenet_a") != published_sets.wnids("imagenet_r")


def test_cifar_names_are_torchvisions_length_and_sorted():
    assert len(set(published_sets.CIFAR100_NAMES)) == 100
    assert list(published_sets.CIFAR100_NAMES) == sorted(published_sets.CIFAR100_NAMES)
    assert list(published_sets.CIFAR10_NAMES) == sorted(published_sets.CIFAR10_NAMES)
    assert "aquarium fish" in published_sets.CIFAR100_NAMES


def test_datasets_know_the_published_names(data):
    assert {"imagenet", "imagenet-c/CORRUPTION/SEVERITY", "eurosat", "digits-test"} <= set(datasets.names())
    with pytest.raises(ValueError, match=r"Did you mean 'imagenet-a'"):
        datasets.load("imagenet_a", root=data)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("imagenet-c", "such as imagenet-c/gaussian_noise/5"),
        ("imagenet-c/gaussian-noise/5", "Did you mean 'gaussian_noise'"),
        ("cifar10-c/fog/6", "1 to 5, found '6'"),
        ("imagenet/fog/5", "has no conditions"),
    ],
)
def test_conditions_must_be_named_and_known(data, name, message):
    with pytest.raises(ValueError, match=message):
        datasets.load(name, root=data)


def test_every_set_names_known_prompts_and_an_existing_torchvision_class():
    import torchvision.datasets

    for entry in SETS.values():
        assert entry.prompts in prompts.names()
        assert entry.images > 0 < entry.classes
        assert not entry.torchvision or hasattr(torchvision.datasets, entry.torchvision)
        assert not entry.origin or entry.origin in SETS


# -------------------------------------------------------------------------------------------------------------- ImageNet


def imagenet_tree(folder: Path, classes=(TABBY, TENCH, TISSUE), per_class=2) -> None:
    numbers = iter(range(50, 0, -1))  # so that the order by number is not that by class
    for wnid in classes:
        for _ in range(per_class):
            number = next(numbers)
            picture(folder / wnid / f"ILSVRC2012_val_{number:08d}.JPEG", number)


def test_imagenet_class_tree_gives_labels_among_all_1000_names(data):
    imagenet_tree(data / "imagenet" / "val")
    found = datasets.load("imagenet", root=data, partial=True)
    assert found.labels.tolist() == [0, 0, 281, 281, 999, 999]
    assert found.classnames[281] == "tabby cat"
    assert len(found.classnames) == 1000
    assert values(found) == [47, 48, 49, 50, 45, 46]
    assert found.templates == prompts.templates("imagenet-80")
    assert "ONLY A PART: 6 of 50,000 images, 3 of 1,000 classes" in found.notes
    assert "80 templates (imagenet-80)" in found.notes


def test_a_part_is_an_error_unless_asked_for(data):
    imagenet_tree(data / "imagenet" / "val")
    with pytest.raises(
        WrongSet, match=r"expected 50,000 images of 1,000 classes; found 6 images of 3 classes in .*val"
    ):
        datasets.load("imagenet", root=data)


def test_a_whole_set_needs_no_permission_and_its_notes_claim_no_part(data, monkeypatch):
    imagenet_tree(data / "imagenet" / "val")
    expect(monkeypatch, "imagenet", 6, 3)
    for partial in (False, True):
        assert "ONLY A PART" not in datasets.load("imagenet", root=data, partial=partial).notes


@pytest.mark.parametrize("place", ["imagenet/images/val", "ILSVRC/Data/CLS-LOC/val"])
def test_other_usual_places_of_imagenet(data, place):
    imagenet_tree(data / place)
    assert len(datasets.load("imagenet", root=data, partial=True)) == 6


def flat(data: Path, tree: Path) -> dict[int, str]:
    """Flat images as in the published archive; returns number -> WordNet id."""
    truth = {}
    for path in sorted(tree.glob("*/*.JPEG")):
        number = int(path.stem[-8:])
        truth[number] = path.parent.name
        picture(data / "imagenet" / "val" / path.name, number)
    return truth


def devkit(folder: Path, truth: dict[int, str]) -> None:
    """The devkit's files; class numbers run against the order of the labels, and an inner synset is listed too."""
    numbers = {wnid: i for i, wnid in enumerate(reversed(published_sets.wnids()), start=1)}
    kind = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O")]
    rows = [(i, wnid, "a word", "a gloss", 0) for wnid, i in numbers.items()] + [(1001, "n00001740", "thing", "", 3)]
    folder.mkdir(parents=True)
    savemat(folder / "meta.mat", {"synsets": np.array(rows, dtype=kind)})
    lines = [str(numbers[truth.get(i, TENCH)]) for i in range(1, 51)]
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_bytes("\r\n".join(lines).encode())


def kaggle(folder: Path, truth: dict[int, str]) -> None:
    rows = [f"ILSVRC2012_val_{n:08d},{wnid} 85 1 499 272 {wnid} 1 2 3 4 " for n, wnid in truth.items()]
    text = "\r\n".join(["ImageId,PredictionString", *rows, ""])
    (folder / "LOC_val_solution.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())


def synset_lines(folder: Path, truth: dict[int, str]) -> None:
    lines = [truth.get(i, TENCH) for i in range(1, 51)]
    (folder / "imagenet_2012_validation_synset_labels.txt").write_bytes("\r\n".join(lines).encode())


@pytest.mark.parametrize("kind", ["devkit", "kaggle", "synsets"])
def test_flat_validation_images_get_the_labels_and_the_order_of_the_tree(data, tmp_path, kind):
    imagenet_tree(tmp_path / "tree" / "imagenet" / "val")
    truth = flat(data, tmp_path / "tree" / "imagenet" / "val")
    if kind == "devkit":
        devkit(data / "imagenet" / "ILSVRC2012_devkit_t12" / "data", truth)
    else:
        (kaggle if kind == "kaggle" else synset_lines)(data / "imagenet", truth)
    tree = datasets.load("imagenet", root=tmp_path / "tree", partial=True)
    found = datasets.load("imagenet", root=data, partial=True)
    assert found.labels.tolist() == tree.labels.tolist()
    assert values(found) == values(tree)


def test_flat_images_without_truth_or_outside_it_are_errors(data, tmp_path):
    imagenet_tree(tmp_path / "tree")
    truth = flat(data, tmp_path / "tree")
    with pytest.raises(MissingSet, match=r"flat validation images.*ILSVRC2012_devkit_t12"):
        datasets.load("imagenet", root=data, partial=True)
    devkit(data / "imagenet" / "ILSVRC2012_devkit_t12" / "data", truth)
    (data / "imagenet" / "ILSVRC2012_devkit_t12" / "data" / "meta.mat").unlink()
    with pytest.raises(MissingSet, match="devkit's own order"):
        datasets.load("imagenet", root=data, partial=True)
    kaggle(data / "imagenet", {n: wnid for n, wnid in truth.items() if n != 50})
    with pytest.raises(WrongSet, match=r"has no label for .*ILSVRC2012_val_00000050"):
        datasets.load("imagenet", root=data, partial=True)
    (data / "imagenet" / "LOC_val_solution.csv").write_text("ImageId,PredictionString\nILSVRC2012_val_00000050,\n")
    with pytest.raises(WrongSet, match="1 lines without a label, the first: ILSVRC2012_val_00000050"):
        datasets.load("imagenet", root=data, partial=True)
    kaggle(data / "imagenet", {**truth, 50: "n99999999"})
    with pytest.raises(WrongSet, match="outside the class list of ImageNet: n99999999"):
        datasets.load("imagenet", root=data, partial=True)


def test_a_quoted_solution_file_is_read(data, tmp_path):
    imagenet_tree(tmp_path / "tree", classes=(TENCH,))
    truth = flat(data, tmp_path / "tree")
    with (data / "imagenet" / "LOC_val_solution.csv").open("w", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow(["ImageId", "PredictionString"])
        writer.writerows([f"ILSVRC2012_val_{n:08d}", f"{wnid} 1 2 3 4"] for n, wnid in truth.items())
    assert len(datasets.load("imagenet", root=data, partial=True)) == 2


def test_devkit_labels_outside_its_numbers_are_named(data, tmp_path):
    imagenet_tree(tmp_path / "tree")
    kit = data / "imagenet" / "ILSVRC2012_devkit_t12" / "data"
    devkit(kit, flat(data, tmp_path / "tree"))
    truth = kit / "ILSVRC2012_validation_ground_truth.txt"
    truth.write_text(truth.read_text().replace("1000", "1001"))
    with pytest.raises(WrongSet, match=r"labels outside 1\.\.1000: 1001"):
        datasets.load("imagenet", root=data, partial=True)
    (kit / "meta.mat").write_bytes(b"no matlab file")
    with pytest.raises(WrongSet, match=r"meta\.mat: expected the devkit's structure"):
        datasets.load("imagenet", root=data, partial=True)


def test_wrong_folder_levels_are_named_with_the_right_one(data):
    imagenet_tree(data / "imagenet" / "val" / "val")
    with pytest.raises(
        WrongSet, match=r"no class folders: they are in .*imagenet/val/val, on another level; move them"
    ):
        datasets.load("imagenet", root=data, partial=True)
    with pytest.raises(MissingSet, match=r"is the folder imagenet itself: give the folder that holds it"):
        datasets.load("imagenet", root=data / "imagenet", partial=True)
    with pytest.raises(MissingSet, match=rf"val holds {TENCH}"):
        datasets.load("imagenet", root=data / "imagenet" / "val" / "val", partial=True)
    imagenet_tree(data / "imagenet-a")
    with pytest.raises(WrongSet, match=rf"imagenet-a holds no class folders \(found {TENCH}, "):
        datasets.load("imagenet-a", root=data, partial=True)


def test_missing_set_says_where_it_was_looked_for_and_who_has_it(data):
    with pytest.raises(
        MissingSet, match=r"found none of .*imagenet-r.* Expected: imagenet-r/<wnid>.* Get it: .*imagenet-r\.tar"
    ):
        datasets.load("imagenet-r", root=data)
    with pytest.raises(MissingSet, match=r"The data folder .*nowhere does not exist"):
        datasets.load("imagenet-r", root=data / "nowhere")
    with pytest.raises(FileNotFoundError, match="no data folder given"):
        datasets.load("imagenet-r")


@pytest.mark.parametrize(("name", "subset"), [("imagenet-a", "imagenet_a"), ("imagenet-r", "imagenet_r")])
def test_a_and_r_are_classified_among_their_own_200(data, name, subset):
    wnids = published_sets.wnids(subset)
    for label in (199, 3):
        picture(data / name / wnids[label] / "0.1_x _ y_0.9.jpg", label)
    (data / name / "README.txt").write_text("not a class")
    found = datasets.load(name, root=data, partial=True)
    assert found.labels.tolist() == values(found) == [3, 199]
    assert len(found.classnames) == 200
    assert found.classnames[3] == published_sets.imagenet_names()[wnids[3]]
    outsider = next(wnid for wnid in published_sets.wnids() if wnid not in wnids)
    picture(data / name / outsider / "x.jpg")
    with pytest.raises(WrongSet, match=rf"1 of 3 folders .* the first: {outsider}"):
        datasets.load(name, root=data, partial=True)


def test_v2_folders_are_labels_in_numeric_order(data):
    for label in (0, 2, 10, 207):
        picture(data / "imagenetv2-matched-frequency-format-val" / str(label) / "abc.jpeg", label)
    found = datasets.load("imagenet-v2", root=data, partial=True)
    assert found.labels.tolist() == values(found) == [0, 2, 10, 207]
    assert found.classnames[207] == "Golden Retriever"


def test_sketch_is_read_as_imagenet(data):
    picture(data / "imagenet-sketch" / "sketch" / RETRIEVER / "sketch_0.JPEG", 7)
    found = datasets.load("imagenet-sketch", root=data, partial=True)
    assert (found.labels.tolist(), values(found)) == ([207], [7])


def test_imagenet_c_has_the_name_and_the_indices_of_the_clean_images(data):
    imagenet_tree(data / "imagenet" / "val")
    imagenet_tree(data / "imagenet-c" / "fog" / "3")
    imagenet_tree(data / "imagenet-c" / "blur" / "glass_blur" / "5")
    clean = datasets.load("imagenet", root=data, partial=True)
    for name, corruption, severity in (("fog/3", "fog", 3), ("glass_blur/5", "glass_blur", 5)):
        found = datasets.load(f"imagenet-c/{name}", root=data, partial=True)
        assert (found.name, found.corruption, found.severity) == ("imagenet", corruption, severity)
        assert found.labels.tolist() == clean.labels.tolist()
        assert [p.name for p in found.images.paths] == [p.name for p in clean.images.paths]
        assert found.fingerprint != clean.fingerprint
        with pytest.raises(ValueError, match="corrupted already"):
            corruptions.corrupted(found, "fog", 1)
    with pytest.raises(MissingSet, match=r"no folder .*fog/4"):
        datasets.load("imagenet-c/fog/4", root=data, partial=True)


def test_one_corrupt_photograph_is_an_error_with_its_path_only_when_it_is_read(data):
    imagenet_tree(data / "imagenet" / "val")
    victim = data / "imagenet" / "val" / TABBY / "ILSVRC2012_val_00000049.JPEG"
    victim.write_bytes(victim.read_bytes()[:200])
    found = datasets.load("imagenet", root=data, partial=True)
    assert found.images[0].shape == (5, 6, 3)
    with pytest.raises(datasets.UnreadableImage, match="ILSVRC2012_val_00000049") as caught:
        found.images[2]
    assert caught.value.path == victim


def test_odd_photographs_are_read_as_rgb(data):
    folder = data / "imagenet" / "val" / TENCH
    folder.mkdir(parents=True)
    Image.new("CMYK", (6, 5), (0, 255, 255, 0)).save(folder / "ILSVRC2012_val_00000001.JPEG")
    Image.new("RGBA", (6, 5), (9, 8, 7, 0)).save(folder / "ILSVRC2012_val_00000002.JPEG", format="PNG")  # as a real one
    Image.new("L", (6, 5), 70).save(folder / "ILSVRC2012_val_00000003.JPEG")
    found = datasets.load("imagenet", root=data, partial=True)
    assert [image.shape for image in (found.images[i] for i in range(3))] == [(5, 6, 3)] * 3
    assert found.images[1][0, 0].tolist() == [9, 8, 7]


# ----------------------------------------------------------------------------------------------------------------- CIFAR


def cifar_batches(data: Path, monkeypatch, name: str, n: int = 4) -> np.ndarray:
    """torchvision's files, with their checksums in place of the published ones. Returns pixels (n, 32, 32, 3) of the test."""
    import torchvision.datasets

    kind = torchvision.datasets.CIFAR100 if name == "cifar100" else torchvision.datasets.CIFAR10
    folder = data / kind.base_folder
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)

    def dump(file: str, content: dict) -> list[str]:
        raw = pickle.dumps(content)
        (folder / file).write_bytes(raw)
        return [file, hashlib.md5(raw).hexdigest()]

    key = "fine_labels" if name == "cifar100" else "labels"
    pixels = {}
    for part in ("train_list", "test_list"):
        listed = []
        for file, _ in getattr(kind, part):
            planes = rng.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8)
            pixels[file] = planes.transpose(0, 2, 3, 1)
            listed.append(dump(file, {"data": planes.reshape(n, -1), key: [3, 1, 0, 2][:n]}))
        monkeypatch.setattr(kind, part, listed)
    names = published_sets.CIFAR100_NAMES if name == "cifar100" else published_sets.CIFAR10_NAMES
    file, md5 = dump(kind.meta["filename"], {kind.meta["key"]: [n.replace(" ", "_") for n in names]})
    monkeypatch.setattr(kind, "meta", {**kind.meta, "filename": file, "md5": md5})
    return pixels[kind.test_list[0][0]]


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_torchvisions_cifar_files(data, monkeypatch, name):
    pixels = cifar_batches(data, monkeypatch, name)
    found = datasets.load(name, root=data, partial=True)
    np.testing.assert_array_equal(found.images, pixels)
    assert found.labels.tolist() == [3, 1, 0, 2]
    assert len(found.classnames) == SETS[name].classes
    assert len(found.templates) == 18
    assert len(found.subset([2, 0]).images) == 2


def test_the_training_split_is_another_set(data, monkeypatch):
    cifar_batches(data, monkeypatch, "cifar10")
    train, test = (datasets.load(name, root=data, partial=True) for name in ("cifar10-train", "cifar10"))
    assert (len(train), len(test)) == (20, 4)
    assert train.fingerprint != test.fingerprint


def test_cifar_files_of_another_checksum_are_never_unpickled(data, monkeypatch):
    cifar_batches(data, monkeypatch, "cifar10")
    evil = data / "cifar-10-batches-py" / "test_batch"
    evil.write_bytes(evil.read_bytes() + b" ")
    monkeypatch.setattr(pickle, "load", lambda *a, **k: pytest.fail("unpickled"))
    with pytest.raises(WrongSet, match=r"incomplete or not those published.*Unpack the archive"):
        datasets.load("cifar10", root=data, partial=True)


def test_cifar_class_folders(data, monkeypatch):
    for i, name in enumerate(("truck", "airplane", "deer")):
        picture(data / "cifar10" / "test" / name / "0000.png", i)
        picture(data / "cifar100" / "test" / ("aquarium_fish", "worm", "lawn mower")[i] / "0000.png", i)
    ten, hundred = (datasets.load(name, root=data, partial=True) for name in ("cifar10", "cifar100"))
    assert ten.labels.tolist() == [0, 4, 9]
    assert values(ten) == [1, 2, 0]
    assert [hundred.classnames[label] for label in hundred.labels] == ["aquarium fish", "lawn mower", "worm"]
    expect(monkeypatch, "cifar10", 3, 10)
    with pytest.raises(WrongSet, match=r"expected 3 images of 10 classes; found 3 images of 3 classes"):
        datasets.load("cifar10", root=data)
    picture(data / "cifar10" / "test" / "plane" / "0000.png")
    with pytest.raises(WrongSet, match=r"1 of 4 folders .* first: plane"):
        datasets.load("cifar10", root=data, partial=True)


@pytest.mark.parametrize(
    ("quality", "where"),
    [
        (95, ""),
        (80, ", that of severity 1 of CIFAR-10-C's JPEG corruption"),
        (75, ", already between severities 1 and 2 of CIFAR-10-C's JPEG corruption"),
        (30, ", beyond severity 5 of CIFAR-10-C's JPEG corruption"),
    ],
)
def test_jpeg_class_folders_are_told_from_the_published_pixels(data, monkeypatch, capsys, quality, where):
    for i, name in enumerate(published_sets.CIFAR10_NAMES):
        path = data / "cifar10" / "test" / name / "0000.jpg"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (32, 32), (20 * i, 0, 0)).save(path, quality=quality)
    remark = f"JPEG copies in class folders, not the published pixels; quality {quality}{where}"
    found = datasets.load("cifar10", root=data, partial=True)
    assert found.remark == remark
    assert f" Images: {remark}." in found.notes
    assert found.subset([0, 1]).remark == corruptions.corrupted(found, "contrast", 1).remark == remark
    for name in ("cifar10-grey", "cifar10-kinds"):
        made = datasets.load(name, root=data, partial=True)
        assert made.remark == remark
        assert remark in made.notes
    expect(monkeypatch, "cifar10", 10, 10)
    check_data.report({"cifar10": frozenset()}, [], data)
    assert capsys.readouterr().out.rstrip().endswith(f"10 classes in {data / 'cifar10' / 'test'}: {remark}")


def test_lossless_class_folders_are_not_compared_and_published_files_are_said_to_be(data, monkeypatch, capsys):
    for name in published_sets.CIFAR10_NAMES:
        picture(data / "cifar10" / "test" / name / "0000.png")
    assert datasets.load("cifar10", root=data, partial=True).remark == (
        "class folders, not compared with the published files"
    )
    check_data.report({"cifar10": frozenset()}, [], data, partial=True)
    assert "not compared" in capsys.readouterr().out
    cifar_batches(data, monkeypatch, "cifar10")
    found = datasets.load("cifar10", root=data, partial=True)
    assert found.remark == ""
    check_data.report({"cifar10": frozenset()}, [], data, partial=True)
    assert "cifar-10-batches-py: The published files: their checksums agree" in capsys.readouterr().out


def test_a_first_file_that_is_no_image_does_not_stop_the_listing(data):
    path = data / "cifar10" / "test" / "cat" / "0000.jpg"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no image")
    assert datasets.load("cifar10", root=data, partial=True).remark.startswith("class folders")


def cifar_c(folder: Path, rows: int = 3) -> tuple[np.ndarray, np.ndarray]:
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(1).integers(0, 256, (5 * rows, 32, 32, 3), dtype=np.uint8)
    labels = np.tile(np.arange(rows) % 10, 5)
    np.save(folder / "fog.npy", pixels)
    np.save(folder / "labels.npy", labels)
    return pixels, labels


@pytest.mark.parametrize(("name", "folder"), [("cifar10", "CIFAR-10-C"), ("cifar100", "CIFAR-100-C")])
def test_cifar_c_severities_are_consecutive_blocks_read_through_a_memory_map(data, name, folder):
    pixels, labels = cifar_c(data / folder)
    one, four = (datasets.load(f"{name}-c/fog/{s}", root=data, partial=True) for s in (1, 4))
    np.testing.assert_array_equal(one.images, pixels[:3])
    np.testing.assert_array_equal(four.images, pixels[9:12])
    assert four.labels.tolist() == labels[:3].tolist()
    assert isinstance(four.images, np.memmap)
    assert (four.name, four.corruption, four.severity) == (name, "fog", 4)
    assert one.fingerprint != four.fingerprint
    with pytest.raises(WrongSet, match=r"expected 10,000 images"):
        datasets.load(f"{name}-c/fog/4", root=data)


@pytest.mark.parametrize(
    ("file", "array", "message"),
    [
        ("fog.npy", np.zeros((15, 32, 32), np.uint8), r"uint8 of shape \(N, 32, 32, 3\), found uint8 \(15, 32, 32\)"),
        ("fog.npy", np.zeros((15, 32, 32, 3), np.float32), r"must hold uint8 .* found float32"),
        ("fog.npy", np.zeros((14, 32, 32, 3), np.uint8), r"5 severities of equal length .* 14 rows and 15 labels"),
        ("labels.npy", np.zeros((15, 1), np.int64), r"labels\.npy must hold integers of shape \(N\)"),
        ("labels.npy", np.zeros(15), "must hold integers"),
        ("labels.npy", np.full(15, 10), r"outside the class list 0\.\.9 of cifar10-c: 10"),
        ("labels.npy", np.arange(15) % 10, "does not repeat the same labels"),
        ("fog.npy", None, "no readable .npy array"),
        ("fog.npy", np.array([{}], dtype=object), "no readable .npy array"),
    ],
)  # fmt: skip
def test_arrays_of_the_wrong_kind_are_refused(data, file, array, message):
    cifar_c(data / "CIFAR-10-C")
    path = data / "CIFAR-10-C" / file
    if array is None:
        path.write_bytes(b"broken")
    else:
        np.save(path, array, allow_pickle=True)
    with pytest.raises(WrongSet, match=message):
        datasets.load("cifar10-c/fog/1", root=data, partial=True)


def test_a_missing_array_is_named(data):
    cifar_c(data / "CIFAR-10-C")
    with pytest.raises(MissingSet, match=r"no file .*snow\.npy"):
        datasets.load("cifar10-c/snow/1", root=data, partial=True)


def test_cifar10_1(data):
    folder = data / "CIFAR-10.1" / "datasets"
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(2).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    np.save(folder / "cifar10.1_v6_data.npy", pixels)
    np.save(folder / "cifar10.1_v6_labels.npy", np.array([9, 0, 4], np.int32))
    found = datasets.load("cifar10.1", root=data, partial=True)
    np.testing.assert_array_equal(found.images, pixels)
    assert found.labels.tolist() == [9, 0, 4]
    np.save(folder / "cifar10.1_v6_labels.npy", np.array([9, 0], np.int32))
    with pytest.raises(WrongSet, match=r"3 images .* 2 labels"):
        datasets.load("cifar10.1", root=data, partial=True)


# ---------------------------------------------------------------------------------------------------- cross-dataset sets


def coop(data: Path, name: str, place: int = 0) -> Path:
    """A split file of CoOp's form and its images; the test list is not in the order of labels. Returns the split file."""
    entry = SETS[name]
    folder = data / entry.places[place]
    lists = {
        "train": [["a/Some_Class/1.jpg", 0, "Some_Class"], ["b/other/1.jpg", 1, "other"]],
        "val": [["c/third/1.jpg", 2, "third"]],
        "test": [["b/other/2.jpg", 1, "other"], ["a/Some_Class/2.jpg", 0, "Some_Class"], ["c/third/2.jpg", 2, "third"]],
    }
    for path, label, _ in lists["test"]:
        picture(folder / path, 10 * label)
    split = folder.parent / entry.split
    split.write_text(json.dumps(lists))
    return split


@pytest.mark.parametrize("name", [*COOP, "pets"])
@pytest.mark.parametrize("place", [0, -1])
def test_coops_split_defines_images_labels_and_names(data, monkeypatch, name, place):
    split = coop(data, name, place)
    expect(monkeypatch, name, 3, 3)
    found = datasets.load(name, root=data)
    assert found.labels.tolist() == [1, 0, 2]
    assert values(found) == [10, 0, 20]
    assert found.classnames == ("Some Class", "other", "third")
    assert found.templates == prompts.COOP[name]
    assert split.name in found.notes
    assert f'"{found.templates[0]}"' in found.notes


def test_the_nine_sets_have_the_counts_of_coops_table():
    # Zhou et al., IJCV 2022, appendix, statistics of the datasets: classes, test images
    table = {
        "caltech101": (100, 2465), "pets": (37, 3669), "flowers102": (102, 2463), "food101": (101, 30300),
        "aircraft": (100, 3333), "sun397": (397, 19850), "dtd": (47, 1692), "eurosat": (10, 8100), "ucf101": (101, 3783),
    }  # fmt: skip
    nine = profiles.load("paper", "03_cross_dataset")["datasets"]
    assert {name: (SETS[name].classes, SETS[name].images) for name in nine} == table


def test_images_that_a_split_names_but_are_missing_are_counted_and_named(data, monkeypatch):
    coop(data, "dtd")
    expect(monkeypatch, "dtd", 3, 3)
    for path in ("b/other/2.jpg", "c/third/2.jpg"):
        (data / "dtd" / "images" / path).unlink()
    with pytest.raises(
        WrongSet, match=r"names 2 of 3 files that do not exist, the first: .*other/2\.jpg, .*third/2\.jpg"
    ):
        datasets.load("dtd", root=data)
    part = datasets.load("dtd", root=data, partial=True)
    assert part.labels.tolist() == [0]
    assert len(part.classnames) == 3
    assert "1 of 3 images" in part.notes


def test_images_one_level_too_deep_are_found(data):
    coop(data, "eurosat")
    (data / "eurosat" / "2750").rename(data / "eurosat" / "deep")
    (data / "eurosat" / "2750").mkdir()
    (data / "eurosat" / "deep").rename(data / "eurosat" / "2750" / "2750")
    with pytest.raises(WrongSet, match=r"one level deeper, in .*2750/2750"):
        datasets.load("eurosat", root=data, partial=True)


def test_a_missing_split_file_is_told_from_missing_images(data):
    coop(data, "food101").unlink()
    with pytest.raises(
        MissingSet, match=r"images are in .*food-101/images, but split_zhou_Food101\.json is neither there"
    ):
        datasets.load("food101", root=data, partial=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: "{", r"split_zhou_EuroSAT\.json: expected"),
        (lambda s: json.dumps({"train": []}), "KeyError"),
        (lambda s: json.dumps([1]), "expected"),
        (lambda s: s.replace("c/third/2.jpg", "../2.jpg"), r"expected paths below .*2750, found \.\./2\.jpg"),
        (lambda s: s.replace('["c/third/1.jpg", 2, "third"]', '["c/third/1.jpg", 2, "fourth"]'), "named both"),
        (lambda s: s.replace('2.jpg", 2', '2.jpg", 7').replace('1.jpg", 2', '1.jpg", 7'), "outside the class list"),
    ],
)
def test_broken_split_files_are_named(data, change, message):
    split = coop(data, "eurosat")
    split.write_text(change(split.read_text()))
    with pytest.raises(WrongSet, match=message):
        datasets.load("eurosat", root=data, partial=True)


def test_split_files_written_on_windows_are_read(data, monkeypatch):
    split = coop(data, "eurosat")
    expect(monkeypatch, "eurosat", 3, 3)
    before = datasets.load("eurosat", root=data)
    text = json.dumps(json.loads(split.read_text()), indent=1).replace("/", "\\\\").replace("\n", "\r\n")
    split.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert datasets.load("eurosat", root=data).fingerprint == before.fingerprint


def test_pets_without_coops_file_use_the_authors_list_which_is_the_same(data, monkeypatch):
    expect(monkeypatch, "pets", 3, 2)
    rows = [("Abyssinian_201", 1), ("american_bulldog_203", 2), ("american_bulldog_204", 2)]
    for i, (name, _) in enumerate(rows):
        picture(data / "oxford-iiit-pet" / "images" / f"{name}.jpg", i)
    listed = data / "oxford-iiit-pet" / "annotations" / "test.txt"
    with pytest.raises(MissingSet, match=r"neither split_zhou_OxfordPets.json nor"):
        datasets.load("pets", root=data)
    listed.parent.mkdir()
    listed.write_bytes(b"#Image CLASS-ID SPECIES BREED ID\r\n" + "\r\n".join(f"{n} {c} 1 1" for n, c in rows).encode())
    found = datasets.load("pets", root=data)
    assert found.labels.tolist() == [0, 1, 1]
    assert found.classnames == ("abyssinian", "american bulldog")
    listed.write_text("Abyssinian_201 one 1 1\n")
    with pytest.raises(WrongSet, match=r"test\.txt: expected lines"):
        datasets.load("pets", root=data)


@pytest.mark.parametrize("place", [0, 1])
def test_aircraft_uses_its_authors_lists(data, monkeypatch, place):
    expect(monkeypatch, "aircraft", 3, 3)
    folder = data / SETS["aircraft"].places[place]
    for i in range(3):
        picture(folder / "images" / f"00{i}.jpg", i)
    (folder / "variants.txt").write_bytes(b"707-320\r\nBoeing 717\r\nF-16A/B\r\n")
    (folder / "images_variant_test.txt").write_bytes(b"002 Boeing 717\r\n000 F-16A/B\r\n001 707-320\r\n")
    found = datasets.load("aircraft", root=data)
    assert found.labels.tolist() == [1, 2, 0]
    assert values(found) == [2, 0, 1]
    assert found.classnames == ("707-320", "Boeing 717", "F-16A/B")
    (folder / "images" / "001.jpg").unlink()
    with pytest.raises(WrongSet, match=r"names 1 of 3 files that do not exist, the first: .*001\.jpg"):
        datasets.load("aircraft", root=data)
    (folder / "images_variant_test.txt").write_text("002 Boeing 718\n")
    with pytest.raises(WrongSet, match=r"outside the class list of variants\.txt: Boeing 718"):
        datasets.load("aircraft", root=data)


def test_the_authors_own_splits_are_read_by_torchvision(data, monkeypatch):
    import torchvision.datasets

    flowers = data / "flowers-102"
    for i in (1, 2, 3):
        picture(flowers / "jpg" / f"image_0000{i}.jpg", i)
    savemat(flowers / "imagelabels.mat", {"labels": [[77, 1, 102]]})
    savemat(flowers / "setid.mat", {"trnid": [[1]], "valid": [[1]], "tstid": [[3, 2]]})
    md5 = {file: hashlib.md5((flowers / file).read_bytes()).hexdigest() for file in ("imagelabels.mat", "setid.mat")}
    files = torchvision.datasets.Flowers102._file_dict
    known = {key: (file, md5.get(file, old)) for key, (file, old) in files.items()}
    with pytest.raises(WrongSet, match="torchvision cannot read"):  # not the published checksums
        datasets.load("flowers102-official", root=data, partial=True)
    monkeypatch.setattr(torchvision.datasets.Flowers102, "_file_dict", known)
    found = datasets.load("flowers102-official", root=data, partial=True)
    assert found.labels.tolist() == [101, 0]
    assert values(found) == [3, 2]
    assert (len(found.classnames), found.classnames[0]) == (102, "pink primrose")

    for i, place in enumerate(("banded/banded_0002.jpg", "dotted/dotted_0001.jpg")):
        picture(data / "dtd" / "dtd" / "images" / place, i)
    (data / "dtd" / "dtd" / "labels").mkdir()
    (data / "dtd" / "dtd" / "labels" / "test1.txt").write_bytes(b"banded/banded_0002.jpg\r\ndotted/dotted_0001.jpg\r\n")
    expect(monkeypatch, "dtd-official", 2, 2)
    assert datasets.load("dtd-official", root=data).labels.tolist() == [0, 1]

    picture(data / "food-101" / "images" / "apple_pie" / "1.jpg", 5)
    (data / "food-101" / "meta").mkdir()
    (data / "food-101" / "meta" / "test.json").write_text(json.dumps({"apple_pie": ["apple_pie/1", "apple_pie/2"]}))
    food = datasets.load("food101-official", root=data, partial=True)
    assert (food.classnames, values(food)) == (("apple pie",), [5])


def test_coco_is_images_without_labels(data, monkeypatch):
    for i in (2, 1):
        picture(data / "coco" / "train2017" / f"00000000000{i}.jpg", i)
    expect(monkeypatch, "coco-train", 2, 1)
    found = datasets.load("coco-train", root=data)
    assert values(found) == [1, 2]
    assert found.labels.tolist() == [0, 0]
    (data / "coco" / "val2017").mkdir()
    with pytest.raises(WrongSet, match="holds no images"):
        datasets.load("coco-val", root=data)


# ----------------------------------------------------------------------------------------------------- fingerprint cache


@pytest.fixture
def hashed(monkeypatch):
    """Names of the files whose bytes were read for a fingerprint."""
    seen: list[str] = []
    original = datasets._file_digest
    monkeypatch.setattr(datasets, "_file_digest", lambda path: seen.append(path.name) or original(path))
    return seen


@pytest.mark.parametrize("name", ["imagenet", "folder:imagenet/val", "cifar10-c/fog/2"])
def test_the_second_load_reads_no_file(data, hashed, name):
    imagenet_tree(data / "imagenet" / "val")
    cifar_c(data / "CIFAR-10-C")
    first = datasets.load(name, root=data, partial=True)
    assert hashed
    hashed.clear()
    second = datasets.load(name, root=data, partial=True)
    assert hashed == []
    assert second.fingerprint == first.fingerprint


def test_the_fingerprint_is_the_documented_sum(data):
    folder = data / "imagenet" / "val"
    imagenet_tree(folder, classes=(TABBY,), per_class=1)
    (file,) = folder.glob("*/*")
    names = ["imagenet", *published_sets.imagenet_names().values()]
    content = hashlib.sha256(file.read_bytes()).hexdigest()
    entry = json.dumps([281, f"{TABBY}/{file.name}", content])
    expected = hashlib.sha256((json.dumps(names) + entry).encode()).hexdigest()
    assert datasets.load("imagenet", root=data, partial=True).fingerprint == expected


def test_a_changed_added_or_renamed_file_is_noticed_and_the_answer_is_that_of_no_cache(
    data, hashed, tmp_path, monkeypatch
):
    folder = data / "imagenet" / "val"
    imagenet_tree(folder)

    def load():
        return datasets.load("imagenet", root=data, partial=True).fingerprint

    prints = [load()]
    victim = folder / TENCH / "ILSVRC2012_val_00000048.JPEG"
    picture(victim, 200)
    prints.append(load())
    picture(folder / TENCH / "ILSVRC2012_val_00000001.JPEG", 1)
    prints.append(load())
    victim.rename(victim.with_name("ILSVRC2012_val_00000002.JPEG"))
    prints.append(load())
    assert len(set(prints)) == 4
    monkeypatch.setenv("APM_CACHE", str(tmp_path / "another"))
    hashed.clear()
    assert load() == prints[-1]
    assert len(hashed) == 7


def test_the_cache_is_no_condition_broken_or_unwritable(data, hashed, tmp_path, monkeypatch):
    imagenet_tree(data / "imagenet" / "val")
    first = datasets.load("imagenet", root=data, partial=True).fingerprint
    (kept,) = (tmp_path / "cache" / "fingerprints").glob("*.json")
    for broken in ("", "[]", '{"listing": 3}', "{"):
        kept.write_text(broken)
        assert datasets.load("imagenet", root=data, partial=True).fingerprint == first
    monkeypatch.setenv("APM_CACHE", str(tmp_path / "file" / "below"))
    (tmp_path / "file").write_text("a file where a folder is needed")
    assert datasets.load("imagenet", root=data, partial=True).fingerprint == first


def test_the_fingerprint_does_not_depend_on_the_place(data, tmp_path):
    imagenet_tree(data / "imagenet" / "val")
    imagenet_tree(tmp_path / "other" / "ILSVRC2012" / "val")
    prints = {datasets.load("imagenet", root=root, partial=True).fingerprint for root in (data, tmp_path / "other")}
    assert len(prints) == 1


# ------------------------------------------------------------------------------------------------------------ check-data


def ask(monkeypatch, *names, also=()):
    monkeypatch.setattr(check_data, "needs", lambda profile: dict.fromkeys(names, frozenset()))
    monkeypatch.setattr(check_data, "ALSO", {names[0]: also})


def test_one_line_a_set_found_missing_and_wrong(data, monkeypatch, capsys):
    expect(monkeypatch, "imagenet", 6, 3)
    imagenet_tree(data / "imagenet" / "val")
    coop(data, "dtd")
    ask(monkeypatch, "imagenet", "dtd", "eurosat", also=("cifar10.1",))
    assert check_data.main(["--profile", "paper", "--data", str(data)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[:4]] == [
        ["found", "imagenet"], ["wrong", "dtd"], ["missing", "eurosat"], ["missing", "cifar10.1"],
    ]  # fmt: skip
    assert "6 images, 3 classes" in lines[0]
    assert "expected 0..46, found 3 labels" in lines[1]
    for part in ("eurosat/2750/<class>", "phelber/EuroSAT", "Licence: MIT", "Size: 0.1 GB"):
        assert part in lines[2]
    assert "(optional)" in lines[3]
    assert lines[4] == "2 of the 3 sets that are needed are missing or wrong"
    assert len(lines) == 5


def test_the_exit_status_is_0_when_all_that_is_needed_is_there(data, monkeypatch, capsys):
    expect(monkeypatch, "imagenet", 6, 3)
    imagenet_tree(data / "imagenet" / "val")
    ask(monkeypatch, "imagenet", also=("cifar10.1",))
    assert check_data.main(["--data", str(data)]) == 0
    coop(data, "dtd")
    assert check_data.main(["--only", "dtd", "--data", str(data)]) == 1
    assert check_data.main(["--only", "dtd", "--partial", "--data", str(data)]) == 0
    assert "a part, 3 of 1,692 images" in capsys.readouterr().out


def test_mini_needs_no_data_and_the_others_say_where_to_name_it(monkeypatch, capsys):
    monkeypatch.delenv("DATA", raising=False)
    assert check_data.main(["--profile", "mini"]) == 0
    assert "needs no downloaded set" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        check_data.main(["--profile", "cifar10"])
    assert "say where the sets are" in capsys.readouterr().err


def test_the_data_folder_may_come_from_the_environment_and_have_spaces(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "my sets"
    imagenet_tree(folder / "imagenet" / "val")
    expect(monkeypatch, "imagenet", 6, 3)
    monkeypatch.setenv("DATA", str(folder))
    assert check_data.main(["--only", "imagenet"]) == 0
    assert str(folder) in capsys.readouterr().out


def test_wrong_counts_are_shown_with_the_expected_ones(data, capsys):
    imagenet_tree(data / "imagenet" / "val")
    assert check_data.main(["--only", "imagenet", "--data", str(data)]) == 1
    out = capsys.readouterr().out
    assert out.startswith("wrong    imagenet  expected 50,000 images of 1,000 classes; found 6 images of 3 classes")


def test_corruption_benchmarks_need_15_types_at_severity_5(data, monkeypatch):
    expect(monkeypatch, "imagenet-c", 2, 1)
    assert check_data.check("imagenet-c", data)[0] == "missing"
    for name in corruptions.NAMES[:-1]:
        imagenet_tree(data / "imagenet-c" / name / "5", classes=(TENCH,))
    state, text = check_data.check("imagenet-c", data)
    assert (state, "missing are jpeg_compression" in text) == ("wrong", True)
    imagenet_tree(data / "imagenet-c" / "jpeg_compression" / "5", classes=(TENCH,))
    imagenet_tree(data / "imagenet-c" / "fog" / "1", classes=(TENCH,))
    assert check_data.check("imagenet-c", data) == (
        "found", f"2 images in each of 16 of 75 conditions in {data / 'imagenet-c'}",
    )  # fmt: skip
    next((data / "imagenet-c" / "fog" / "1" / TENCH).iterdir()).unlink()
    state, text = check_data.check("imagenet-c", data)
    assert (state, "found 1 images" in text, "fog/1" in text) == ("wrong", True, True)


@pytest.mark.parametrize("arguments", [[], ["--only", "imagenet-z", "--data", "x"], ["--profile", "maxi"]])
def test_wrong_calls_say_what_is_known(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        check_data.main(arguments)
    assert stopped.value.code == 2
    assert capsys.readouterr().err


def test_downloads_without_a_connection_end_with_a_clear_line(data, monkeypatch, capsys):
    import torchvision.datasets

    asked = []

    class Offline:
        def __init__(self, root, download):
            asked.append((root, download))
            raise URLError("[Errno -3] Temporary failure in name resolution")

    monkeypatch.setattr(torchvision.datasets, "EuroSAT", Offline)
    ask(monkeypatch, "eurosat", "imagenet")
    assert check_data.main(["--download", "--data", str(data)]) == 1
    assert asked == [(data, True)]
    shown = capsys.readouterr()
    assert "failed   eurosat: no connection to the server" in shown.err
    assert "by hand: github phelber/EuroSAT" in shown.err
    assert "by hand  imagenet: image-net.org" in shown.out


def test_downloads_fetch_each_archive_once_and_only_what_is_not_there(data, monkeypatch, capsys):
    import torchvision.datasets

    asked = []
    for kind in ("CIFAR10", "DTD"):
        monkeypatch.setattr(torchvision.datasets, kind, lambda root, download, kind=kind: asked.append(kind))
    coop(data, "dtd")
    assert check_data.download(["cifar10", "cifar10-train", "dtd"], data) == []
    assert asked == ["CIFAR10"]


def own_profile(tmp_path, monkeypatch, **values):
    """A profile that is not among ours, with one notebook: 02, as profile paper has it but for `values`."""
    (tmp_path / "notebooks").symlink_to(ROOT / "notebooks")
    folder = tmp_path / "profiles" / "mine"
    folder.mkdir(parents=True)
    paper = ROOT / "profiles" / "paper"
    shutil.copy(paper / "common.yaml", folder)
    own = {**yaml.safe_load((paper / "02_corruptions.yaml").read_text()), "baselines": [], "table10": None, **values}
    (folder / "02_corruptions.yaml").write_text(yaml.safe_dump(own))
    monkeypatch.setenv("APM_ROOT", str(tmp_path))


def test_what_a_profile_needs_is_read_from_its_files(tmp_path, monkeypatch):
    assert check_data.needs("mini") == {}
    assert set(check_data.needs("cifar10")) == {"cifar10", "cifar10-train"}  # with the sets derived from it
    paper = check_data.needs("paper")
    nine = profiles.load("paper", "03_cross_dataset")["datasets"]
    assert {*nine, "imagenet", "imagenet-a", "imagenet-train", "cifar100", "coco-val"} <= set(
        paper
    )  # in lists, methods, lines
    assert len(paper["imagenet-c"]) == 75  # all five severities: its curves read them
    assert paper["cifar10-c"] == check_data.USUAL  # Table 10
    assert {also for names in check_data.ALSO.values() for also in names} <= set(SETS)
    own_profile(tmp_path, monkeypatch, dataset="cifar10", corruption_set="cifar10-c", severities=[3], curve_samples=0)
    assert check_data.needs("mine") == {
        "cifar10": frozenset(), "cifar10-c": frozenset((name, 3) for name in corruptions.NAMES),
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"unknown profile 'maxi'\. Known: mine"):
        check_data.needs("maxi")


def test_severities_that_only_the_curves_read_are_asked_for(data, tmp_path, monkeypatch, capsys):
    own_profile(tmp_path, monkeypatch)
    expect(monkeypatch, "imagenet", 6, 3)
    expect(monkeypatch, "imagenet-c", 2, 1)
    imagenet_tree(data / "imagenet" / "val")
    for name in corruptions.NAMES:
        imagenet_tree(data / "imagenet-c" / name / "5", classes=(TENCH,))
    assert check_data.main(["--profile", "mine", "--data", str(data)]) == 1
    assert (
        "missing are all at severity 1; all at severity 2; all at severity 3; all at severity 4"
        in capsys.readouterr().out
    )
    for level in "1234":
        for name in corruptions.NAMES:
            imagenet_tree(data / "imagenet-c" / name / level, classes=(TENCH,))
    assert check_data.main(["--profile", "mine", "--data", str(data)]) == 0


def test_the_readme_holds_the_same_table(tmp_path):
    readme = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    assert check_data.section() in readme, "run: python -m apm.data.check_data --readme"
    copy = tmp_path / "README.md"
    copy.write_text(f"before\n{check_data.BEGIN}\nold\n{check_data.END}\nafter\n")
    check_data.write_section(copy)
    assert copy.read_text() == f"before\n{check_data.section()}\nafter\n"
    copy.write_text("no markers")
    with pytest.raises(ValueError, match="expected the lines"):
        check_data.write_section(copy)


def test_the_table_names_no_package_registry():
    for host in ("pypi", "anaconda", "huggingface", "npmjs"):
        assert host not in check_data.section().lower()


# --------------------------------------------------------------------------------------------------------------- prompts


@pytest.mark.parametrize(
    ("name", "count", "some"),
    [
        ("clip-caltech101", 34, ("a embroidered {}.", "the {} in a video game.", "art of the {}.", "the toy {}.")),
        ("clip-dtd", 8, ("a photo of a {} texture.", "a photo of the {} object.")),
        ("clip-eurosat", 3, ("a centered satellite photo of {}.", "a centered satellite photo of the {}.")),
        ("clip-aircraft", 2, ("a photo of the {}, a type of aircraft.",)),
        ("clip-sun397", 2, ("a photo of the {}.",)),
        ("clip-ucf101", 48, ("a photo of a person {}.", "a demonstration of the person practicing {}.")),
        ("ucf101", 1, ("a photo of a person doing {}.",)),
        ("dtd", 1, ("{} texture.",)),
        ("cifar100", 18, ("a photo of the big {}.",)),
    ],
)
def test_prompts_of_the_literature(name, count, some):
    found = prompts.templates(name)
    assert len(set(found)) == len(found) == count
    assert set(some) <= set(found)
    assert prompts.check(found) == found


def test_prompts_in_a_few_words():
    assert prompts.describe(prompts.SINGLE) == '"a photo of a {}."'
    assert prompts.describe(prompts.CIFAR) == '18 templates (cifar10), the first "a photo of a {}."'
    assert prompts.describe(prompts.templates("imagenet-7")).startswith("7 templates (imagenet-7)")
    assert prompts.describe([f"{i} {{}}" for i in range(7)]) == '7 templates, the first "0 {}"'
