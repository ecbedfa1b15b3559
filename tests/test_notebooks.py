"""Clean notebooks, and executed references that match them."""

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from apm.experiments import ablations
from apm.project import depends, profiles

ROOT = Path(__file__).resolve().parents[1]
CLEAN = sorted((ROOT / "notebooks").glob("*.ipynb"))
EVERY = pytest.mark.parametrize("path", [*map(profiles.notebook_path, profiles.notebooks())], ids=lambda p: p.stem)
EXECUTED = ROOT / "results" / "mini" / "notebooks"


def test_notebooks_are_kept_without_outputs():
    command = [Path(sys.executable).parent / "nbstripout", "--verify", *CLEAN]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"run nbstripout on them: {done.stdout}"


# a folder without a manifest was made by an earlier state of the code, and is read as it is until it is made again
MADE = sorted(p.parent.name for p in ROOT.glob("results/*/manifest.json"))


@pytest.mark.parametrize(("profile", "name"), [(one, name) for one in MADE for name in profiles.runs(one)])
def test_the_executed_copy_ran_to_its_end_and_has_the_source_of_the_notebook(profile, name):
    path = ROOT / "notebooks" / f"{name}.ipynb"
    reference = nbformat.read(ROOT / "results" / profile / "notebooks" / path.name, 4)
    if profile == "mini":  # others take an hour and more: the report says of which commit they are
        own = [c for c in reference.cells if "injected-parameters" not in c.metadata.get("tags", [])]
        assert [c.source for c in own] == [c.source for c in nbformat.read(path, 4).cells], "run `make reproduce` again"
    code = [c for c in reference.cells if c.cell_type == "code"]
    assert all(c.execution_count for c in code)
    assert not [o for c in code for o in c.outputs if o.output_type == "error" or o.get("name") == "stderr"]


@EVERY
def test_defaults_of_a_notebook_opened_by_hand_are_those_of_profile_mini(path):
    defaults = profiles.notebook_parameters(path)
    assert {**defaults, **profiles.load("mini", path.stem)} == defaults


@pytest.mark.parametrize("profile", sorted(p.parent.name for p in ROOT.glob("results/*/report.html")))
def test_results_hold_no_path_of_a_machine(profile):
    folder = ROOT / "results" / profile
    paths = [path for kind in ("*.html", "*.json", "notebooks/*.ipynb", "tables/*") for path in folder.glob(kind)]
    assert len(paths) > 50
    # a folder in front of data/ is one of the machine that made the table: shared paths start with data/ or DATA/
    absolute = re.compile(r"(?<![\w.])/(?:home|root|Users|tmp)/|(?<![\w.:/])/[\w./-]*/data/|" + re.escape(f"{ROOT}/"))
    for path in paths:
        found = absolute.search(re.sub(r"base64,[\w+/=]+|\"image/png\": \"[^\"]*\"", "", path.read_text()))
        assert not found, f"{path}: {found.group()}"


@EVERY
def test_notebooks_define_no_functions_and_fetch_tensors_from_a_gpu_before_they_become_arrays(path):
    code = "\n".join(depends.cells(path))
    assert "def " not in code
    for place in re.finditer(r"\.numpy\(\)", code):
        line = code[: place.start()].rsplit("\n", 1)[-1]
        assert line.endswith(".cpu()") or "positional_encoding(" in line, line  # the code is made on the CPU


def test_every_notebook_that_nbval_runs_has_a_checked_cell_with_an_output():
    (names,) = re.findall(r"^NBVAL \?= (.+)$", (ROOT / "Makefile").read_text(), flags=re.M)
    for name in names.split():
        cells = nbformat.read(EXECUTED / f"{name}.ipynb", 4).cells
        checked = [c for c in cells if "nbval-check-output" in c.metadata.get("tags", [])]
        assert checked
        assert all(c.outputs for c in checked)


@pytest.mark.parametrize("iterations", [3, 100])
def test_the_ablations_of_a_profile_with_base_and_one_line_skip_what_is_not_there(iterations, tmp_path, monkeypatch):
    monkeypatch.setenv("APM_RESULTS", str(tmp_path))
    lines = ablations.parse(
        [
            {"part": "losses", "name": "L_cls", "training": {"iterations": 3}},
            {"part": "mine", "name": "mine", "training": {"iterations": iterations}},
        ]
    )
    monkeypatch.setattr(ablations, "load", lambda *_: lines)
    published = {"samples": 2, "counts": [0, 2], "student": {}, "training": {"iterations": 2}}
    small = {"samples": 10, "published_size": published if iterations == 100 else None}
    names: dict = {}
    for cell in nbformat.read(ROOT / "notebooks" / "05_ablations.ipynb", 4).cells:
        if cell.cell_type == "code":
            exec(cell.source, names)
            if "parameters" in cell.metadata.get("tags", []):
                names.update(small)
    made = {path.stem for path in tmp_path.glob("mini/*/*.*")}
    assert {"05_ablations", "05_iterations"} <= made
    assert not {"05_protocol", "05_size"} & made
    assert ("05_early_5" in made) == ("05_published_size" in made) == (iterations == 100)
    assert names["iterations"][-1] == (2 if iterations == 3 else 100)
