"""Every command of the pages' shell fences, as it stands there, in a fresh clone on tiny inputs; the snippets: test_readme.py."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import rehearsal
import trees
import yaml

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")))
FENCES = [block for page in PAGES for block in re.findall(r"^```sh\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)]
# the commands of each fence, without their comments
LINES = [[line.split("  #")[0].strip() for line in block.splitlines() if line.strip()] for block in FENCES]
COMMANDS = {
    line: [other for other in lines[:i] if "make" not in other] for lines in LINES for i, line in enumerate(lines)
}
# exit status 2: nothing is in /data. The others are of `make`'s plan alone, with the reason
RUN = {"make verify": 0, "make check-data PROFILE=paper DATA=/data": 2}
RUN |= {"make reproduce LINES=mine": 0, "make reproduce PROFILE=mine": 0}
LONG = {"make quickstart", "make reproduce", "make rehearse"}
PLANNED = {
    "make test": "these tests",
    "make data PROFILE=cifar10 DATA=data/sets": "a download",
    "make teacher PROFILE=cifar10 DATA=data/sets": "needs CIFAR-10, 40 minutes",
    "make reproduce PROFILE=cifar10 DATA=data/sets": "needs CIFAR-10 and its teacher",
    "make reproduce PROFILE=paper DATA=/data": "needs ImageNet and a GPU: make rehearse runs it small",
}
ELSEWHERE = {
    "cp -r profiles/template profiles/mine": "before make reproduce PROFILE=mine, below",
    "DATA=/data .venv/bin/python examples/slurm.py reproduce PROFILE=paper": "needs SLURM: test_readme.py runs it on a stand-in",
}
TINY = {
    "samples": 10,
    "published_samples": 10,
    "train_samples": 40,
    "curve_samples": 0,
    "severities": [5],
    "published_size": None,
}
TINY |= {
    "shown": [0, 1],
    "corruptions": ["contrast"],
    "seeds": [0],
    "selection": None,
    "timed_towers": [],
    "pair": [0, 1],
}


def shrink(profile: Path) -> None:
    """The profile's own files, with fewer and smaller of everything."""
    for file in profile.glob("*.yaml"):
        values = yaml.safe_load(file.read_text("utf-8"))
        if file.stem == "05_ablations.lines":
            values = [rehearsal.small_line(line) for line in values]
        else:
            small = {**rehearsal.OVERRIDES.get(file.stem, {}), **TINY}
            for name in small.keys() & values.keys():
                both = isinstance(values[name], dict) and isinstance(small[name], dict) and name != "photo_student"
                values[name] = {**values[name], **small[name]} if both else small[name]
            if "iterations" in (values.get("training") or {}):
                values["training"]["iterations"] = rehearsal.ITERATIONS
            if "baselines" in values:
                values["baselines"] = [rehearsal.small_method(line) for line in values["baselines"]]
        file.write_text(yaml.safe_dump(values, sort_keys=False))


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A clone of what git tracks, with profiles that are small, a tree of images and the ablation of docs/your-own.md; its environment is this one."""
    folder = tmp_path_factory.mktemp("clone")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.split("\0")[:-1]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    for kind in range(2):
        for i in range(12):
            trees.uniform(folder / "tree" / f"class{kind}" / f"{i}.png", 20 * i + kind)
    for profile in ("mini", "template"):
        shrink(folder / "profiles" / profile)
    common = folder / "profiles" / "template" / "common.yaml"
    common.write_text(common.read_text().replace("dataset: digits-test", f"dataset: folder:{folder / 'tree'}"))
    (mine,) = re.findall(r"^```yaml\n(- .*?)^```", (ROOT / "docs" / "your-own.md").read_text("utf-8"), re.M | re.S)
    with (folder / "profiles" / "mini" / "05_ablations.lines.yaml").open("a") as file:
        file.write(mine)
    for name in ("requirements.lock", "environment.yml", "pyproject.toml"):
        os.utime(folder / name, (0, 0))
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{folder}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    (folder / ".make").mkdir()
    (folder / ".make" / "venv").touch()
    subprocess.run("git init -q; git add -A", shell=True, cwd=folder, check=True)
    return folder


def call(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    own = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("APM_", "MAKE", "MFLAGS")) and k not in ("DATA", "PROFILE")
    }
    own |= {"ENV": "venv", "APM_CACHE": str(folder / "cache.tmp")}
    return subprocess.run(command, shell=True, cwd=folder, env=own, capture_output=True, text=True, check=False)


def test_every_command_is_run_or_says_why_not():
    assert COMMANDS.keys() == RUN.keys() | LONG | PLANNED.keys() | ELSEWHERE.keys()


@pytest.mark.parametrize("command", [*RUN, *(pytest.param(line, marks=pytest.mark.slow) for line in sorted(LONG))])
def test_a_command_runs_as_written(command: str, clone: Path):
    for before in COMMANDS[command]:
        assert call(before, clone).returncode == 0
    done = call(command, clone)
    assert done.returncode == RUN.get(command, 0), done.stdout + done.stderr
    if command == "make quickstart":
        changed = subprocess.run(
            ["git", "status", "--porcelain"], cwd=clone, capture_output=True, text=True, check=True
        )
        assert {line[:2] for line in changed.stdout.splitlines()} == {"A "}
    if command.startswith("make reproduce"):
        assert "done in" in done.stdout
        assert "KeyboardInterrupt" not in done.stderr


@pytest.mark.parametrize("command", PLANNED)
def test_a_command_that_needs_more_is_one_that_make_knows(command: str, clone: Path):
    assert call(command.replace("make ", "make -n ", 1), clone).returncode == 0
