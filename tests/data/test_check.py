"""`python -m apm.data.check`: one line a set, found, missing or wrong; what a profile needs."""

import re
import shutil
from pathlib import Path
from unittest.mock import Mock
from urllib.error import URLError

import pytest
import yaml
from trees import TENCH, coop_split, imagenet_classes

from apm.data import check, corruptions
from apm.data.published_sets import SETS
from apm.project import profiles

ROOT = Path(__file__).resolve().parents[2]


def ask(monkeypatch, *names, also=()):
    monkeypatch.setattr(check, "needs", lambda profile: dict.fromkeys(names, frozenset()))
    monkeypatch.setattr(check, "ALSO", {names[0]: also})


def test_one_line_a_set_found_missing_and_wrong(data, monkeypatch, capsys, expect):
    expect("imagenet", 6, 3)
    imagenet_classes(data / "imagenet" / "val")
    coop_split(data, "dtd")
    ask(monkeypatch, "imagenet", "dtd", "eurosat", also=("cifar10.1",))
    assert check.main(["--profile", "paper", "--data", str(data)]) == 1
    shown = capsys.readouterr().out
    eurosat = ".*".join(("missing +eurosat", "eurosat/2750/<class>", "phelber/EuroSAT", "Licence: MIT", "Size: 0.1 GB"))
    assert re.fullmatch(
        r"found +imagenet .*6 images, 3 classes.*\n"
        r"wrong +dtd .*expected 0\.\.46, found 3 labels.*\n"
        rf"{eurosat}.*\n"
        r"missing +cifar10\.1 .*\(optional\).*\n"
        r"2 of the 3 sets that are needed are missing or wrong\n",
        shown,
    ), shown
    assert check.main(["--only", "dtd", "--data", str(data)]) == 1
    assert check.main(["--only", "dtd", "--partial", "--data", str(data)]) == 0
    assert "a part, 3 of 1,692 images" in capsys.readouterr().out
    ask(monkeypatch, "imagenet", also=("cifar10.1",))
    assert check.main(["--data", str(data)]) == 0


def test_corruption_benchmarks_need_15_types_at_severity_5(data, expect):
    expect("imagenet-c", 2, 1)
    assert check.check("imagenet-c", data)[0] == "missing"
    for name in corruptions.NAMES[:-1]:
        imagenet_classes(data / "imagenet-c" / name / "5", classes=(TENCH,))
    state, text = check.check("imagenet-c", data)
    assert (state, "1 of 15 conditions are missing: imagenet-c/jpeg_compression/5" in text) == ("wrong", True)
    assert check.check("imagenet-c", data, partial=True)[0] == "found"
    imagenet_classes(data / "imagenet-c" / "jpeg_compression" / "5", classes=(TENCH,))
    assert check.check("imagenet-c", data) == ("found", f"2 images in each of 15 conditions in {data / 'imagenet-c'}")
    next((data / "imagenet-c" / "fog" / "5" / TENCH).iterdir()).unlink()
    state, text = check.check("imagenet-c", data)
    assert (state, "found 1 images" in text, "fog/5" in text) == ("wrong", True, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--profile", "cifar10"], "say where the sets are"),
        (["--only", "imagenet-z", "--data", "x"], "unknown published set 'imagenet-z'"),
        (["--profile", "maxi"], "unknown profile 'maxi'. Known: "),
    ],
)
def test_wrong_calls_say_what_is_known_and_mini_needs_no_data(arguments, said, capsys, monkeypatch):
    monkeypatch.delenv("DATA", raising=False)
    with pytest.raises(SystemExit, match="2"):
        check.main(arguments)
    assert said in capsys.readouterr().err
    assert check.main(["--profile", "mini"]) == 0
    assert "needs no downloaded set" in capsys.readouterr().out


def test_downloads_without_a_connection_end_with_a_clear_line(data, monkeypatch, capsys):
    offline = Mock(side_effect=URLError("[Errno -3] Temporary failure in name resolution"))
    monkeypatch.setattr("torchvision.datasets.EuroSAT", offline)
    ask(monkeypatch, "eurosat", "imagenet")
    assert check.main(["--download", "--data", str(data)]) == 1
    offline.assert_called_once_with(root=data, download=True)
    shown = capsys.readouterr()
    assert "failed   eurosat: URLError" in shown.err
    assert "by hand: github phelber/EuroSAT" in shown.err
    assert "by hand  imagenet: image-net.org" in shown.out


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
    assert check.needs("mini") == {}
    assert set(check.needs("cifar10")) == {"cifar10", "cifar10-train"}  # with the sets derived from it
    assert set(check.needs("clip")) == {
        "cifar10", "cifar10-train", "dtd-official", "flowers102-official", "pets", "eurosat-whole", "caltech101-whole",
    }  # fmt: skip
    assert all(SETS[name].torchvision for name in check.needs("clip")), "make reproduce fetches them"
    assert check.optional("clip") == ["imagenet-a", "imagenet-v2", "cifar10-c", "cifar10.1"]
    paper = check.needs("paper")
    nine = profiles.load("paper", "03_cross_dataset")["datasets"]
    assert {*nine, "imagenet", "imagenet-train", "cifar100", "coco-val"} <= set(paper)  # in lists, methods, lines
    assert len(paper["imagenet-c"]) == 75  # all five severities: its curves read them
    assert paper["cifar10-c"] == check.USUAL  # Table 10
    assert {also for names in check.ALSO.values() for also in names} <= set(SETS)
    own_profile(tmp_path, monkeypatch, dataset="cifar10", corruption_set="cifar10-c", severities=[3], curve_samples=0)
    assert check.needs("mine") == {
        "cifar10": frozenset(), "cifar10-c": frozenset((name, 3) for name in corruptions.NAMES),
    }  # fmt: skip


def test_severities_that_only_the_curves_read_are_asked_for(data, tmp_path, monkeypatch, capsys, expect):
    own_profile(tmp_path, monkeypatch)
    expect("imagenet", 6, 3)
    expect("imagenet-c", 2, 1)
    imagenet_classes(data / "imagenet" / "val")
    for levels, missing in (("5", "60 of 75 conditions are missing: imagenet-c/brightness/1, "), ("1234", "")):
        for level in levels:
            for name in corruptions.NAMES:
                imagenet_classes(data / "imagenet-c" / name / level, classes=(TENCH,))
        assert check.main(["--profile", "mine", "--data", str(data)]) == bool(missing)
        assert missing in capsys.readouterr().out
