"""The published sets, read from tiny trees in their true layouts; what is wrong with a folder is said clearly."""

import hashlib
import json
import pickle
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torchvision.datasets
from PIL import Image
from scipy.io import savemat
from trees import RETRIEVER, TABBY, TENCH, TISSUE, coop_split, imagenet_classes, uniform

from apm.data import check, corruptions, files, load, prompts
from apm.data.published_sets import CLASSES, SETS, MissingSet, WrongSet, imagenet_names, wnids
from apm.project import profiles

COOP = [name for name, entry in SETS.items() if entry.split and name != "pets"]


def part(name: str, data: Path):
    return load(name, root=data, partial=True)


def refused(name: str, data: Path, error: type[Exception], said: str, partial: bool = True) -> None:
    with pytest.raises(error, match=said):
        load(name, root=data, partial=partial)


def values(dataset) -> list[int]:
    return [int(np.asarray(dataset.images[i])[2, 2, 0]) for i in range(len(dataset))]


def test_the_1000_wordnet_ids_are_in_the_order_of_open_clips_names():
    from timm.data import ImageNetInfo

    ids, classes, info = wnids(), list(imagenet_names().values()), ImageNetInfo()
    assert list(ids) == info.label_names()
    assert (ids[0], ids[207], ids[281], ids[999]) == (TENCH, RETRIEVER, TABBY, TISSUE)
    words = [set(info.label_name_to_description(wnid).lower().replace(",", " ").split()) for wnid in ids]
    own = [bool(set(name.lower().split()) & said) for name, said in zip(classes, words, strict=True)]
    assert np.mean(own) > 0.9  # the names were edited, so not all share a word with WordNet's; one further on, 0.3 do


def test_conditions_must_be_named_and_known(data):
    for name, message in (
        ("imagenet-c", "such as imagenet-c/gaussian_noise/5"),
        ("imagenet-c/gaussian-noise/5", "Did you mean 'gaussian_noise'"),
        ("cifar10-c/fog/6", "1 to 5, found '6'"),
        ("imagenet/fog/5", "has no conditions"),
    ):
        refused(name, data, ValueError, message)


def test_the_table_of_sets_fits_prompts_torchvision_and_coops_table():
    for entry in SETS.values():
        assert entry.prompts in prompts.names()
        assert not entry.torchvision or hasattr(torchvision.datasets, entry.torchvision)
        assert not entry.origin or entry.origin in SETS
    # Zhou et al., IJCV 2022, appendix, statistics of the datasets: classes, test images
    table = {
        "caltech101": (100, 2465), "pets": (37, 3669), "flowers102": (102, 2463), "food101": (101, 30300),
        "aircraft": (100, 3333), "sun397": (397, 19850), "dtd": (47, 1692), "eurosat": (10, 8100), "ucf101": (101, 3783),
    }  # fmt: skip
    nine = profiles.load("paper", "03_cross_dataset")["datasets"]
    assert {name: (SETS[name].classes, SETS[name].images) for name in nine} == table


# ---- ImageNet


def test_a_class_tree_gives_labels_among_all_names_and_a_part_is_an_error_unless_asked_for(data, expect):
    imagenet_classes(data / "imagenet" / "val")
    found = part("imagenet", data)
    assert (found.labels.tolist(), values(found)) == ([0, 0, 281, 281, 999, 999], [47, 48, 49, 50, 45, 46])
    assert (len(found.classnames), found.classnames[281]) == (1000, "tabby cat")
    assert found.templates == prompts.templates("imagenet-80")
    assert "ONLY A PART: 6 of 50,000 images, 3 of 1,000 classes" in found.notes
    assert "80 templates (imagenet-80)" in found.notes
    said = r"expected 50,000 images of 1,000 classes; found 6 images of 3 classes in .*val"
    refused("imagenet", data, WrongSet, said, partial=False)
    expect("imagenet", 6, 3)
    assert "ONLY A PART" not in load("imagenet", root=data).notes


TRUTH = {50: TABBY, 49: TABBY, 48: TENCH, 47: TENCH, 46: TISSUE, 45: TISSUE}  # number of an image -> its class


@pytest.fixture
def flat(data):
    """Flat images as in the published archive."""
    for number in TRUTH:
        uniform(data / "imagenet" / "val" / f"ILSVRC2012_val_{number:08d}.JPEG", number)
    return data / "imagenet"


def devkit(folder: Path) -> Path:
    """The devkit's files; class numbers run against the order of the labels, and an inner synset is listed too."""
    kit = folder / "ILSVRC2012_devkit_t12" / "data"
    kit.mkdir(parents=True)
    numbers = {wnid: i for i, wnid in enumerate(reversed(wnids()), start=1)}
    kind = [(key, "O") for key in ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children")]
    rows = [(i, wnid, "a word", "a gloss", 0) for wnid, i in numbers.items()] + [(1001, "n00001740", "thing", "", 3)]
    savemat(kit / "meta.mat", {"synsets": np.array(rows, dtype=kind)})
    lines = [str(numbers[TRUTH.get(i, TENCH)]) for i in range(1, 51)]
    (kit / "ILSVRC2012_validation_ground_truth.txt").write_bytes("\r\n".join(lines).encode())
    return kit


def kaggle(folder: Path, truth: dict[int, str] = TRUTH) -> None:
    rows = [f"ILSVRC2012_val_{n:08d},{wnid} 85 1 499 272 {wnid} 1 2 3 4 " for n, wnid in truth.items()]
    text = "\r\n".join(["ImageId,PredictionString", *rows, ""])
    (folder / "LOC_val_solution.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())


def synset_lines(folder: Path) -> None:
    lines = "\r\n".join(TRUTH.get(i, TENCH) for i in range(1, 51))
    (folder / "imagenet_2012_validation_synset_labels.txt").write_bytes(lines.encode())


@pytest.mark.parametrize("write", [devkit, kaggle, synset_lines])
def test_flat_validation_images_get_the_labels_and_the_order_of_the_tree(data, flat, write):
    write(flat)
    found = part("imagenet", data)
    assert (found.labels.tolist(), values(found)) == ([0, 0, 281, 281, 999, 999], [47, 48, 49, 50, 45, 46])


def test_flat_images_without_truth_or_outside_it_are_errors(data, flat):
    refused("imagenet", data, MissingSet, r"flat validation images.*ILSVRC2012_devkit_t12")
    kit = devkit(flat)
    numbers = kit / "ILSVRC2012_validation_ground_truth.txt"
    numbers.write_text(numbers.read_text().replace("1000", "1001"))
    refused("imagenet", data, WrongSet, "outside the class list of ImageNet: 1001")
    (kit / "meta.mat").write_bytes(b"no matlab file")
    refused("imagenet", data, WrongSet, r"meta\.mat: expected the devkit's structure")
    (kit / "meta.mat").unlink()
    refused("imagenet", data, MissingSet, "devkit's own order")
    kaggle(flat, {n: wnid for n, wnid in TRUTH.items() if n != 50})
    refused("imagenet", data, WrongSet, r"has no label for .*ILSVRC2012_val_00000050")
    (flat / "LOC_val_solution.csv").write_text("ImageId,PredictionString\nILSVRC2012_val_00000050,\n")
    refused("imagenet", data, WrongSet, "expected lines ImageId,PredictionString .* found .*ILSVRC2012_val_00000050")


def test_wrong_folder_levels_and_missing_sets_say_where_it_was_looked_for_and_what_is_there(data):
    imagenet_classes(data / "imagenet" / "val" / "val")
    said = r"no class folders: they are in .*imagenet/val/val, on another level; move them"
    refused("imagenet", data, WrongSet, said)
    refused("imagenet", data / "imagenet", MissingSet, r"is the folder imagenet itself: give the folder that holds it")
    refused("imagenet", data / "imagenet" / "val" / "val", MissingSet, rf"val holds {TENCH}")
    imagenet_classes(data / "imagenet-a")
    refused("imagenet-a", data, WrongSet, rf"imagenet-a holds no class folders \(found {TENCH}, ")
    said = r"found none of .*imagenet-r.* Expected: imagenet-r/<wnid>.* Get it: .*imagenet-r\.tar"
    refused("imagenet-r", data, MissingSet, said)
    refused("imagenet-r", data / "nowhere", MissingSet, r"The data folder .*nowhere does not exist")
    refused("imagenet-r", None, MissingSet, "no data folder given")


@pytest.mark.parametrize("name", ["imagenet-a", "imagenet-r"])
def test_a_and_r_are_classified_among_their_own_200(data, name):
    ids = wnids(name.replace("-", "_"))
    for label in (199, 3):
        uniform(data / name / ids[label] / "0.1_x _ y_0.9.jpg", label)
    (data / name / "README.txt").write_text("not a class")
    found = part(name, data)
    assert found.labels.tolist() == values(found) == [3, 199]
    assert (len(found.classnames), found.classnames[3]) == (200, imagenet_names()[ids[3]])
    outsider = next(wnid for wnid in wnids() if wnid not in ids)
    uniform(data / name / outsider / "x.jpg")
    refused(name, data, WrongSet, rf"1 of 3 folders .* the first: {outsider}")


def test_v2_folders_are_labels_in_numeric_order_and_coco_is_images_without_labels(data, expect):
    for label in (0, 2, 10, 207):
        uniform(data / "imagenetv2-matched-frequency-format-val" / str(label) / "abc.jpeg", label)
    found = part("imagenet-v2", data)
    assert found.labels.tolist() == values(found) == [0, 2, 10, 207]
    assert found.classnames[207] == "Golden Retriever"
    for i in (2, 1):
        uniform(data / "coco" / "train2017" / f"00000000000{i}.jpg", i)
    expect("coco-train", 2, 1)
    found = load("coco-train", root=data)
    assert (values(found), found.labels.tolist()) == ([1, 2], [0, 0])
    (data / "coco" / "val2017").mkdir()
    refused("coco-val", data, WrongSet, "holds no images")


@pytest.mark.parametrize("place", ["fog/3", "blur/fog/3"])
def test_imagenet_c_has_the_name_and_the_indices_of_the_clean_images(data, place):
    imagenet_classes(data / "imagenet" / "val")
    imagenet_classes(data / "imagenet-c" / place)
    clean, found = part("imagenet", data), part("imagenet-c/fog/3", data)
    assert (found.name, found.corruption, found.severity) == ("imagenet", "fog", 3)
    assert found.labels.tolist() == clean.labels.tolist()
    assert [p.name for p in found.images.items] == [p.name for p in clean.images.items]
    assert found.fingerprint != clean.fingerprint
    with pytest.raises(ValueError, match="corrupted already"):
        corruptions.corrupted(found, "fog", 1)
    refused("imagenet-c/fog/4", data, MissingSet, r"no folder .*fog/4")


# ---- CIFAR


def cifar_batches(data: Path) -> np.ndarray:
    """Files as torchvision has them, but for their checksums. Returns the pixels (4, 32, 32, 3) of the test."""
    kind, rng = torchvision.datasets.CIFAR10, np.random.default_rng(0)
    folder = data / kind.base_folder
    folder.mkdir()
    for file, _ in (*kind.train_list, *kind.test_list):
        planes = rng.integers(0, 256, (4, 3, 32, 32), dtype=np.uint8)
        (folder / file).write_bytes(pickle.dumps({"data": planes.reshape(4, -1), "labels": [3, 1, 0, 2]}))
    (folder / kind.meta["filename"]).write_bytes(pickle.dumps({"label_names": CLASSES["cifar10"]}))
    return planes.transpose(0, 2, 3, 1)


def test_torchvisions_files_are_read_and_those_of_another_checksum_never_unpickled(data, monkeypatch):
    pixels = cifar_batches(data)
    with monkeypatch.context() as patched:
        patched.setattr(pickle, "load", lambda *a, **k: pytest.fail("unpickled"))
        refused("cifar10", data, WrongSet, r"incomplete or not those published.*Unpack the archive")
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *_: True)
    found = part("cifar10", data)
    np.testing.assert_array_equal(found.images, pixels)
    assert found.labels.tolist() == [3, 1, 0, 2]
    assert (len(found.classnames), len(found.templates), found.remark) == (10, 18, "")
    said = check.check("cifar10", data, partial=True)[1]
    assert said.endswith("cifar-10-batches-py: The published files: their checksums agree")


def test_cifar_class_folders(data):
    for i, name in enumerate(("truck", "airplane", "deer")):
        uniform(data / "cifar10" / "test" / name / "0000.png", i)
        uniform(data / "cifar100" / "test" / ("aquarium_fish", "worm", "lawn mower")[i] / "0000.png", i)
    ten, hundred = (part(name, data) for name in ("cifar10", "cifar100"))
    assert (ten.labels.tolist(), values(ten)) == ([0, 4, 9], [1, 2, 0])
    assert [hundred.classnames[label] for label in hundred.labels] == ["aquarium fish", "lawn mower", "worm"]
    uniform(data / "cifar10" / "test" / "plane" / "0000.png")
    refused("cifar10", data, WrongSet, r"1 of 4 folders .* first: plane")


@pytest.mark.parametrize(
    ("quality", "where"),
    [(95, ""), (80, ", that of severity 1"), (75, ", already between severities 1 and 2"), (30, ", beyond severity 5")],
)
def test_jpeg_class_folders_are_told_from_the_published_pixels(data, quality, where, expect):
    for i, name in enumerate(CLASSES["cifar10"]):
        path = data / "cifar10" / "test" / name / "0000.jpg"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (32, 32), (20 * i, 0, 0)).save(path, quality=quality)
    remark = f"JPEG copies in class folders, not the published pixels; quality {quality}"
    remark += where and f"{where} of CIFAR-10-C's JPEG corruption"
    found, kinds = part("cifar10", data), part("cifar10-kinds", data)
    for made in (
        found,
        part("cifar10-grey", data),
        kinds,
        found.subset([0, 1]),
        corruptions.corrupted(found, "fog", 1),
    ):
        assert made.remark == remark
    assert f" Images: {remark}." in found.notes
    assert remark in kinds.notes
    expect("cifar10", 10, 10)
    assert check.check("cifar10", data)[1].endswith(f"10 classes in {data / 'cifar10' / 'test'}: {remark}")


def test_lossless_class_folders_are_not_compared(data):
    for name in CLASSES["cifar10"]:
        uniform(data / "cifar10" / "test" / name / "0000.png")
    not_compared = "class folders, not compared with the published files"
    assert check.check("cifar10", data, partial=True)[1].endswith(not_compared)
    (data / "cifar10" / "test" / "cat" / "0000.jpg").write_bytes(b"no image")
    assert part("cifar10", data).remark == not_compared


def arrays(folder: Path, images: str, labels: str, n: int = 15) -> np.ndarray:
    """Two files of noise and labels 0, 1, 2, 0, ... Returns the pixels."""
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(1).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
    np.save(folder / images, pixels)
    np.save(folder / labels, np.arange(n, dtype=np.int32) % 3)
    return pixels


@pytest.mark.parametrize(("name", "folder"), [("cifar10", "CIFAR-10-C"), ("cifar100", "CIFAR-100-C")])
def test_cifar_c_severities_are_consecutive_blocks_read_through_a_memory_map(data, name, folder):
    pixels = arrays(data / folder, "fog.npy", "labels.npy")
    one, four = (part(f"{name}-c/fog/{s}", data) for s in (1, 4))
    np.testing.assert_array_equal(one.images, pixels[:3])
    np.testing.assert_array_equal(four.images, pixels[9:12])
    assert four.labels.tolist() == [0, 1, 2]
    assert isinstance(four.images, np.memmap)
    assert (four.name, four.corruption, four.severity) == (name, "fog", 4)
    assert one.fingerprint != four.fingerprint
    refused(f"{name}-c/fog/4", data, WrongSet, "expected 10,000 images", partial=False)
    pixels = arrays(data / "CIFAR-10.1" / "datasets", "cifar10.1_v6_data.npy", "cifar10.1_v6_labels.npy", 4)
    np.testing.assert_array_equal(part("cifar10.1", data).images, pixels)
    assert part("cifar10.1", data).labels.tolist() == [0, 1, 2, 0]


def test_arrays_of_the_wrong_kind_are_refused(data):
    arrays(data / "CIFAR-10-C", "fog.npy", "labels.npy")
    shapes = ((15, 32, 32), np.uint8), ((15, 32, 32, 3), np.float32), ((14, 32, 32, 3), np.uint8)
    flat, floats, short = (np.zeros(*one) for one in shapes)
    for file, array, message in (
        ("labels.npy", np.arange(15) % 10, "the same labels for each"),
        ("labels.npy", np.full(15, 10), r"outside the class list 0\.\.9 of cifar10-c: 10"),
        ("fog.npy", short, r"14 images in .* but 15 labels"),
        ("fog.npy", floats, r"must hold uint8 .* found float32"),
        ("fog.npy", flat, r"uint8 of shape \(N, 32, 32, 3\), found uint8 \(15, 32, 32\)"),
        ("fog.npy", np.array([{}], dtype=object), "no readable .npy array"),
    ):
        np.save(data / "CIFAR-10-C" / file, array, allow_pickle=True)
        refused("cifar10-c/fog/1", data, WrongSet, message)
    refused("cifar10-c/snow/1", data, MissingSet, r"no file .*snow\.npy")


# ---- lists of files


@pytest.mark.parametrize("name", [*COOP, "pets"])
@pytest.mark.parametrize("place", [0, -1])
def test_coops_split_defines_images_labels_and_names(data, name, place, expect):
    split = coop_split(data, name, place)
    expect(name, 3, 3)
    found = load(name, root=data)
    assert (found.labels.tolist(), values(found)) == ([1, 0, 2], [10, 0, 20])
    assert found.classnames == ("Some Class", "other", "third")
    assert found.templates == prompts.templates(name)
    assert split.name in found.notes
    assert f'"{found.templates[0]}"' in found.notes


def test_images_that_a_split_names_but_are_missing_are_counted_and_named(data, expect):
    coop_split(data, "dtd")
    expect("dtd", 3, 3)
    for name in ("c/third/2.jpg", "b/other/2.jpg"):
        (data / "dtd" / "images" / name).unlink()
    said = r"names 2 of 3 files that do not exist, the first: .*other/2\.jpg, .*third/2\.jpg"
    refused("dtd", data, WrongSet, said, partial=False)
    found = part("dtd", data)
    assert (found.labels.tolist(), len(found.classnames)) == ([0], 3)
    assert "1 of 3 images" in found.notes
    coop_split(data, "food101").unlink()
    said = r"images are in .*food-101/images, but split_zhou_Food101\.json is neither there"
    refused("food101", data, MissingSet, said)
    folder = coop_split(data, "eurosat").parent / "2750"
    (folder / "2750").mkdir()
    for name in "abc":
        (folder / name).rename(folder / "2750" / name)
    refused("eurosat", data, WrongSet, r"they are in .*2750/2750, on another level; move them to .*2750")


def test_broken_split_files_are_named_and_those_of_windows_are_read(data, expect):
    split = coop_split(data, "eurosat")
    whole = split.read_text()
    for broken, message in (
        ("{", r"split_zhou_EuroSAT\.json: expected"),
        (json.dumps({"train": []}), "KeyError"),
        (whole.replace("c/third/2.jpg", "../2.jpg"), r"expected paths below .*2750, found \.\./2\.jpg"),
        (whole.replace('1.jpg", 2, "third"', '1.jpg", 2, "fourth"'), "named both"),
        (whole.replace('2.jpg", 2', '2.jpg", 7').replace('1.jpg", 2', '1.jpg", 7'), "outside the class list"),
    ):
        split.write_text(broken)
        refused("eurosat", data, WrongSet, message)
    text = json.dumps(json.loads(whole), indent=1).replace("/", "\\\\").replace("\n", "\r\n")
    split.write_bytes(b"\xef\xbb\xbf" + text.encode())
    expect("eurosat", 3, 3)
    assert values(load("eurosat", root=data)) == [10, 0, 20]


def test_pets_without_coops_file_use_the_authors_list_which_is_the_same(data, expect):
    expect("pets", 3, 2)
    rows = [("Abyssinian_201", 1), ("american_bulldog_203", 2), ("american_bulldog_204", 2)]
    for i, (name, _) in enumerate(rows):
        uniform(data / "oxford-iiit-pet" / "images" / f"{name}.jpg", i)
    listed = data / "oxford-iiit-pet" / "annotations" / "test.txt"
    refused("pets", data, MissingSet, r"neither split_zhou_OxfordPets.json nor")
    listed.parent.mkdir()
    listed.write_bytes(b"#Image CLASS-ID SPECIES BREED ID\r\n" + "\r\n".join(f"{n} {c} 1 1" for n, c in rows).encode())
    found = load("pets", root=data)
    assert found.labels.tolist() == [0, 1, 1]
    assert found.classnames == ("abyssinian", "american bulldog")
    listed.write_text("Abyssinian_201 one 1 1\n")
    refused("pets", data, WrongSet, r"test\.txt: expected lines")


@pytest.mark.parametrize("place", [0, 1])
def test_aircraft_uses_its_authors_lists(data, expect, place):
    expect("aircraft", 3, 3)
    folder = data / SETS["aircraft"].places[place]
    for i in range(3):
        uniform(folder / "images" / f"00{i}.jpg", i)
    (folder / "variants.txt").write_bytes(b"707-320\r\nBoeing 717\r\nF-16A/B\r\n")
    listed = folder / "images_variant_test.txt"
    listed.write_bytes(b"002 Boeing 717\r\n000 F-16A/B\r\n001 707-320\r\n")
    found = load("aircraft", root=data)
    assert (found.labels.tolist(), values(found)) == ([1, 2, 0], [2, 0, 1])
    assert found.classnames == ("707-320", "Boeing 717", "F-16A/B")
    listed.write_text("002 Boeing 718\n")
    refused("aircraft", data, WrongSet, r"outside the class list of variants\.txt: Boeing 718")


def test_the_authors_own_splits_are_read_by_torchvision(data, monkeypatch):
    flowers = data / "flowers-102"
    for i in (1, 2, 3):
        uniform(flowers / "jpg" / f"image_0000{i}.jpg", i)
    savemat(flowers / "imagelabels.mat", {"labels": [[77, 1, 102]]})
    savemat(flowers / "setid.mat", {"trnid": [[1]], "valid": [[1]], "tstid": [[3, 2]]})
    refused("flowers102-official", data, WrongSet, "torchvision cannot read")  # not the published checksums
    monkeypatch.setattr(torchvision.datasets.flowers102, "check_integrity", lambda *_: True)
    found = part("flowers102-official", data)
    assert (found.labels.tolist(), values(found)) == ([101, 0], [3, 2])
    assert (len(found.classnames), found.classnames[0]) == (102, "pink primrose")

    uniform(data / "food-101" / "images" / "apple_pie" / "1.jpg", 5)
    (data / "food-101" / "meta").mkdir()
    (data / "food-101" / "meta" / "test.json").write_text(json.dumps({"apple_pie": ["apple_pie/1", "apple_pie/2"]}))
    food = part("food101-official", data)
    assert (food.classnames, values(food)) == (("apple pie",), [5])


# ---- fingerprints


@pytest.fixture
def hashed(monkeypatch):
    """The digest of a file, which counts how often it is asked for."""
    counted = Mock(wraps=files._file_digest)
    monkeypatch.setattr(files, "_file_digest", counted)
    return counted


@pytest.mark.parametrize("name", ["imagenet", "folder:imagenet/val", "cifar10-c/fog/2"])
def test_the_second_load_reads_no_file_and_the_cache_is_no_condition(data, hashed, tmp_path, monkeypatch, name):
    imagenet_classes(data / "imagenet" / "val")
    arrays(data / "CIFAR-10-C", "fog.npy", "labels.npy")
    first = part(name, data).fingerprint
    asked = hashed.call_count
    assert part(name, data).fingerprint == first
    assert hashed.call_count == asked > 0
    (kept,) = (tmp_path / "cache" / "fingerprints").glob("*.json")
    for broken in ("", "[]", '{"listing": 3}', "{"):
        kept.write_text(broken)
        assert part(name, data).fingerprint == first
    monkeypatch.setenv("APM_CACHE", str(tmp_path / "file" / "below"))
    (tmp_path / "file").write_text("a file where a folder is needed")
    assert part(name, data).fingerprint == first


def test_a_changed_added_or_renamed_file_is_noticed_and_the_answer_is_that_of_no_cache(data, hashed, monkeypatch):
    def found() -> str:
        return part("imagenet", data).fingerprint

    folder = data / "imagenet" / "val"
    imagenet_classes(folder, classes=(TABBY,), per_class=1)
    (file,) = folder.glob("*/*")
    entry = json.dumps([281, f"{TABBY}/{file.name}", hashlib.sha256(file.read_bytes()).hexdigest()])
    named = json.dumps(["imagenet", *imagenet_names().values()])
    prints = [found()]
    assert prints == [hashlib.sha256((named + entry).encode()).hexdigest()]  # the documented sum
    for change in (
        lambda: uniform(file, 200),
        lambda: uniform(folder / TENCH / "ILSVRC2012_val_00000001.JPEG", 1),
        lambda: file.rename(file.with_name("ILSVRC2012_val_00000002.JPEG")),
    ):
        change()
        prints.append(found())
    assert len(set(prints)) == 4
    monkeypatch.setenv("APM_CACHE", str(data / "another"))
    hashed.reset_mock()
    assert found() == prints[-1]
    assert hashed.call_count == 2
