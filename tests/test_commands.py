"""Every command of the pages' shell fences, as it stands there, in a fresh clone on tiny inputs; the snippets: test_readme.py."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
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
# exit status, and words of the output: a clone has no numbers of its own, and nothing is in /data
RUN = {
    "make verify": (2, "it is not kept in the repository: run `make reproduce`"),
    "make check-data PROFILE=paper DATA=/data": (2, "missing"),
}
LONG = {
    "make reproduce LINES=mine": (0, "05_ablations: done in"),
    "make quickstart": (0, "00_quickstart: done in"),
    "make reproduce": (0, "99_report: done in"),
    "make reproduce PROFILE=mine": (0, "99_report: done in"),
    "make rehearse": (0, "notebooks ran"),
}
# of these only what make would do, with the reason
PLANNED = {
    "make test": "these tests",
    "make data PROFILE=cifar10 DATA=data/sets": "a download",
    "make teacher PROFILE=cifar10 DATA=data/sets": "needs CIFAR-10, 40 minutes",
    "make reproduce PROFILE=cifar10 DATA=data/sets": "needs CIFAR-10 and its teacher",
    "make reproduce PROFILE=clip": "downloads 2.8 GB: make rehearse runs it small",
    "make reproduce PROFILE=paper DATA=/data": "needs ImageNet and a GPU: make rehearse runs it small",
}
ELSEWHERE = {
    "cp -r profiles/template profiles/mine": "before make reproduce PROFILE=mine, below",
    "DATA=/data .venv/bin/python examples/slurm.py reproduce PROFILE=paper": "needs SLURM: test_readme.py runs it on a stand-in",
}
# values of these names, wherever they stand in a profile
TINY: dict = {"samples": 36, "published_samples": 10, "train_samples": 40, "curve_samples": 0, "loss_samples": 2}
TINY |= {"iterations": 20, "epochs": 1, "measured_after": 4, "looks": [0, 2, 4], "early": [1, 2], "views": 10}
TINY |= {"severities": [5], "corruptions": ["contrast"], "table10": None, "published_size": None, "selection": None}
TINY |= {"timed_towers": ["ViT-B-16"], "repeats": 1, "timed_iterations": 2, "chunks": [1, 1024], "paper_chunk": 512}
TINY |= {"clustered": 20, "clusters": 3, "cluster_counts": [2, 3], "neighbours": 3, "embedded": 12}
TINY |= {"examples": 3, "shown": [0, 1], "pair": [0, 1], "checked": 4, "start_seeds": [0, 1]}


def small(value: Any, name: str = "") -> Any:
    """A profile's value with fewer and smaller of everything."""
    if name == "tpt":  # 08's claims name its rows
        return value
    if isinstance(value, dict) and TINY.get(name, "") is not None:
        return {key: small(item, key) for key, item in value.items()}
    if isinstance(value, list) and name not in TINY:
        return [small(item) for item in value]
    return [1, 2, 4] if name == "iterations" and isinstance(value, list) else TINY.get(name, value)


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A clone of what git tracks, its environment this one, with small profiles, a tree of images and the ablation of docs/your-own.md."""
    folder = tmp_path_factory.mktemp("clone")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.split("\0")[:-1]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    for kind in range(2):
        for i in range(12):
            trees.photograph(folder / "tree" / f"class{kind}" / f"{i}.png", 20 * i + kind)
    for profile in ("mini", "template"):
        for file in (folder / "profiles" / profile).glob("*.yaml"):
            file.write_text(yaml.safe_dump(small(yaml.safe_load(file.read_text("utf-8"))), sort_keys=False))
    common = folder / "profiles" / "template" / "common.yaml"
    common.write_text(common.read_text().replace("dataset: digits-test", f"dataset: folder:{folder / 'tree'}"))
    (mine,) = re.findall(r"^```yaml\n(- .*?)^```", (ROOT / "docs" / "your-own.md").read_text("utf-8"), re.M | re.S)
    with (folder / "profiles" / "mini" / "05_ablations.lines.yaml").open("a") as file:
        file.write(mine)
    for name in ("requirements.lock", "environment.yml", "pyproject.toml"):
        os.utime(folder / name, (0, 0))
    trees.environment(folder)
    subprocess.run("git init -q; git add -A", shell=True, cwd=folder, check=True)
    return folder


def call(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    outside = ("APM_", "MAKE", "MFLAGS", "DATA", "PROFILE")
    own = {"ENV": "venv", **{name: value for name, value in os.environ.items() if not name.startswith(outside)}}
    return subprocess.run(command, shell=True, cwd=folder, env=own, capture_output=True, text=True, check=False)


def test_every_command_is_run_or_says_why_not():
    assert COMMANDS.keys() == RUN.keys() | LONG.keys() | PLANNED.keys() | ELSEWHERE.keys()


@pytest.mark.parametrize("command", [*RUN, *(pytest.param(line, marks=pytest.mark.slow) for line in LONG)])
def test_a_command_runs_as_written(command: str, clone: Path):
    for before in COMMANDS[command]:
        assert call(before, clone).returncode == 0
    done, (status, words) = call(command, clone), (RUN | LONG)[command]
    said = done.stdout + done.stderr
    assert (done.returncode, words in said, "KeyboardInterrupt" in said) == (status, True, False), said
    changed = subprocess.run(["git", "status", "--porcelain"], cwd=clone, capture_output=True, text=True, check=True)
    if command in ("make quickstart", "make reproduce LINES=mine"):  # a look beside the results
        assert {line[:2] for line in changed.stdout.splitlines()} == {"A "}


@pytest.mark.parametrize("command", PLANNED)
def test_a_command_that_needs_more_is_one_that_make_knows(command: str, clone: Path):
    assert call(command.replace("make ", "make -n ", 1), clone).returncode == 0
