"""The README tells the truth: its excerpt is the committed table, its paths exist, its example runs."""

import csv
import functools
import io
import re
import runpy
import shutil
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path
from unittest.mock import MagicMock, Mock

import numpy as np
import open_clip
import pytest
import torch
import yaml
from colours import Colour, noise, units

from apm import data, methods, model, teachers
from apm.analysis import lineup, numbers
from apm.experiments import ablations, session
from apm.project import profiles

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {path: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")))}
FENCES = [
    (path.name, *found) for path in PAGES for found in re.findall(r"^```(\w*)\n(.*?)^```", PAGES[path], re.M | re.S)
]


def fences(page: str, language: str) -> list[str]:
    """The fenced texts of a page in a language; every test unpacks them, so that a new one makes it fail."""
    return [text for name, kind, text in FENCES if (name, kind) == (page, language)]


SESSION, METHOD, TARGET, DATASET, MODULE, ALONE = fences("your-own.md", "python")


def committed(path: str) -> str:
    """The committed file: results made again on another machine may differ from those the README shows."""
    done = subprocess.run(["git", "show", f"HEAD:{path}"], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else (ROOT / path).read_text()


def excerpt(path: str) -> list[list[str]]:
    """The cells of a page's excerpt of a file, without its heading."""
    text = "".join(PAGES.values()).split(f"<!-- excerpt of {path}")[1].split("<!-- end -->")[0].replace("*", "")
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def test_the_excerpt_is_of_the_expected_numbers():
    path = "data/expected/mini.csv"
    rows, shown = numbers.parse(committed(path).partition("\n")[2], path), excerpt(path)
    assert len(shown) == 5
    for name, *cells in shown:
        row = name.replace(", ", numbers.SEPARATOR, 1)
        for column, cell in zip(("digits-test", "printed-digits", "Mean"), cells, strict=True):
            number = numbers.find(rows, "02_corruptions", row, column)
            assert str(replace(number, brief=column != "Mean")) == cell


def test_the_excerpt_of_the_bench_is_the_committed_measurement():
    path = "results/bench/paper.csv"
    rows = [row for row in csv.DictReader(io.StringIO(committed(path))) if row["times faster"]]
    names = ("s per image and iteration", "times faster", "with its teacher", "of matrix peak")
    assert excerpt(path) == [
        [row["variant"], row["precision"], *map(format, (float(row[n]) for n in names), (".2f", ".1f", ".1f", ".0%"))]
        for row in rows
    ]


def test_the_first_example_prints_what_stands_below_it(capsys):
    (example,), (output,) = fences("README.md", "python"), fences("README.md", "text")
    number = re.compile(r"\d(?:\.\d)?e[+-]\d+")
    names: dict = {}
    exec(example, names)
    said = capsys.readouterr().out
    assert number.sub("#", said) == number.sub("#", output)
    losses = [[float(n) for n in number.findall(text)] for text in (said, output)]
    np.testing.assert_allclose(np.log10(losses[0]), np.log10(losses[1]), atol=0.5)  # another machine rounds otherwise
    assert names["result"].losses.shape == (1, 51)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_file_it_links_and_every_make_target_it_names_exists(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", PAGES[page]):
        assert (page.parent / target).exists(), target
    named = set(re.findall(r"(?:`|^|[A-Z]=\S+ )make ([a-z-]+)", PAGES[page], flags=re.M))
    assert named <= set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M))


def test_the_example_runs_as_written():
    names: dict = {}
    exec(ALONE, names)
    assert names["result"].losses.shape == (8, 51)
    assert names["result"].status == ["ok"] * 8


def test_the_slurm_example_gives_its_workers_what_make_has_and_ends_with_make(tmp_path, monkeypatch):
    tls = types.SimpleNamespace(tls_ca_file="ca", tls_client_cert="cert", tls_client_key="key")
    cluster = MagicMock(scheduler_address="tls://10.0.0.5:8786", security=tls)
    cluster.__enter__.return_value = cluster
    slurm = types.SimpleNamespace(
        SLURMCluster=Mock(return_value=cluster)
    )  # dask-jobqueue is not among the dependencies
    cluster.attach_mock(run := Mock(return_value=subprocess.CompletedProcess([], 3)), "run")
    monkeypatch.setitem(sys.modules, "dask_jobqueue", slurm)
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", ["slurm.py", "reproduce", "PROFILE=paper"])
    monkeypatch.setenv("DATA", str(tmp_path / "my sets"))
    monkeypatch.setenv("APM_CACHE", str(tmp_path))
    assert runpy.run_path(str(ROOT / "examples" / "slurm.py"))["main"]() == 3
    assert [call[0] for call in cluster.mock_calls] == ["__enter__", "scale", "run", "__exit__"]
    cluster.scale.assert_called_once_with(16)
    ((command,), options), asked = run.call_args, slurm.SLURMCluster.call_args.kwargs
    assert command == ["make", "reproduce", "PROFILE=paper"]
    assert (options["cwd"], options["env"]["SCHEDULER"]) == (ROOT, "tls://10.0.0.5:8786")
    names = [f"DASK_DISTRIBUTED__COMM__TLS__{name}" for name in ("CA_FILE", "CLIENT__CERT", "CLIENT__KEY")]
    assert [options["env"][name] for name in names] == ["ca", "cert", "key"]
    assert (asked["protocol"], asked["security"], asked["python"]) == ("tls://", True, sys.executable)
    assert asked["cores"] // asked["processes"] == 1  # a thread is a shard: a GPU is not shared
    prologue = (f"cd {ROOT}", f"export DATA='{tmp_path}/my sets'", f"export APM_CACHE={tmp_path}")
    assert {*prologue} <= {*asked["job_script_prologue"]}


def test_the_commands_for_cifar10_are_targets_with_data_and_profile():
    (block,) = [block for block in fences("larger-profiles.md", "sh") if "PROFILE=cifar10" in block]
    same = ["PROFILE=cifar10", "DATA=data/sets"]
    commands = [line.split("#")[0].split() for line in block.splitlines()]
    assert commands == [["make", target, *same] for target in ("data", "teacher", "reproduce")]


def test_the_yaml_examples_are_accepted():
    texts = fences("README.md", "yaml") + fences("your-own.md", "yaml")
    example, line, compared, mirrored = map(yaml.safe_load, texts)
    assert set(example) <= set(profiles.notebook_parameters(ROOT / "notebooks" / "02_corruptions.ipynb"))
    teacher = types.SimpleNamespace(width=model.PRESETS["mini"].width)
    (ablation,) = ablations.parse(line)
    assert ablations.method(ablation, teacher, {"preset": "mini"}, {}).config.student.kernels == 5
    config = methods.training_config(teacher, example["student"], example["training"])
    assert (config.iterations, config.student.fold) == (20, "attention")
    entries = lineup.parse(compared["baselines"] + mirrored["baselines"], teacher, config)
    assert [entry.name for entry in entries] == ["ZERO", "ZERO, 16 views", "TDA", "APM, mirror image"]


def test_the_example_of_a_new_method_runs_as_written(monkeypatch):
    monkeypatch.setitem(methods.REGISTRY, "mine", None)  # and so it is gone again after the test
    exec(METHOD, {"__name__": "readme"})
    method = methods.create("mine", Colour(), views=5)
    said = method.predict(noise(), np.arange(4), seed=0)
    seen = units(Colour(), noise(), np.arange(4), 5)
    expected = (2.0 * seen @ torch.eye(2)).softmax(-1).mean(1).argmax(-1)
    assert said.prediction.tolist() == expected.tolist()
    assert method.settings()["method"] == "Mine"


def test_the_example_of_a_new_target_is_a_method_that_is_here():
    assert (ROOT / "apm" / "methods" / "mirror.py").read_text(encoding="utf-8") == TARGET


def test_every_fence_is_run_here_or_in_test_commands():
    assert {(page, language) for page, language, _ in FENCES if language != "sh"} == {
        *((page, language) for page in ("README.md", "your-own.md") for language in ("python", "yaml")),
        *(("README.md", language) for language in ("text", "")),  # what the first prints; the map
    }
    assert [len(fences("README.md", language)) for language in ("python", "yaml", "text", "")] == [1, 1, 1, 1]


def test_the_example_of_a_new_dataset_runs_as_written(monkeypatch):
    monkeypatch.setitem(data.OWN, "flipped-digits", None)  # and so it is gone again after the test
    exec(DATASET, {})
    made, known = data.load("flipped-digits"), data.load("digits-test")
    assert np.array_equal(made.images[3][::-1], known.images[3])
    assert made.fingerprint != known.fingerprint
    assert made.name in data.names()


def test_the_example_of_a_session_runs_as_written(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "profiles", tmp_path / "profiles")
    for folder in ("notebooks", "data"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.setenv("APM_ROOT", str(tmp_path))
    monkeypatch.setenv("APM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(session, "Session", functools.partial(session.Session, samples=10))
    names: dict = {}
    exec(SESSION, names)
    assert len(names["session"].table().frame) == 2 + 1 + 4
    assert "name: '5 kernels, slow'" in (tmp_path / "profiles/mini/05_ablations.lines.yaml").read_text()


def test_the_example_of_a_module_runs_as_written_with_a_teacher_that_is_here(monkeypatch):
    mini, asked = teachers.load("mini"), []
    monkeypatch.setattr(teachers, "load", lambda *name, **how: asked.append((name, how)) or mini)
    names: dict = {}
    exec(MODULE, names)
    assert names["scores"].shape == (4, 3)
    (((name,), how),) = asked
    assert how["pretrained"] in open_clip.list_pretrained_tags_by_model(name)


def test_every_entry_of_the_first_floor_is_on_its_map():
    words = set(re.findall(r"[a-z_]+", README.split("## How the pieces fit")[1].split("```")[1]))
    assert {p.stem for p in (ROOT / "apm").iterdir() if not p.name.startswith("__")} <= words
