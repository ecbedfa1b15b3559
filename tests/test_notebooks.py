"""Clean notebooks, executed references that match them, and nbval that notices an edited number."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from apm.project import depends, profiles

ROOT = Path(__file__).resolve().parents[1]
CLEAN = sorted((ROOT / "notebooks").glob("*.ipynb"))
EXECUTED = ROOT / "results" / "mini" / "notebooks"


@pytest.mark.parametrize("path", CLEAN, ids=lambda p: p.stem)
def test_notebooks_are_kept_without_outputs(path: Path) -> None:
    done = subprocess.run(
        [Path(sys.executable).parent / "nbstripout", "--verify", path], capture_output=True, check=False
    )
    assert done.returncode == 0, f"{path.name} has outputs: run nbstripout on it"


# a folder without a manifest was made by an earlier state of the code, and is read as it is until it is made again
@pytest.mark.parametrize("profile", sorted(p.parent.name for p in ROOT.glob("results/*/manifest.json")))
@pytest.mark.parametrize("path", CLEAN, ids=lambda p: p.stem)
def test_the_executed_copy_has_the_source_of_the_notebook_and_ran_to_its_end(path: Path, profile: str) -> None:
    reference = nbformat.read(ROOT / "results" / profile / "notebooks" / path.name, 4)
    own = [c for c in reference.cells if "injected-parameters" not in c.metadata.get("tags", [])]
    assert [c.source for c in own] == [c.source for c in nbformat.read(path, 4).cells], "run `make reproduce` again"
    code = [c for c in reference.cells if c.cell_type == "code"]
    assert all(c.execution_count for c in code)
    assert not [o for c in code for o in c.outputs if o.output_type == "error" or o.get("name") == "stderr"]


@pytest.mark.parametrize("path", CLEAN, ids=lambda p: p.stem)
def test_defaults_of_a_notebook_opened_by_hand_are_those_of_profile_mini(path: Path) -> None:
    defaults = profiles.notebook_parameters(path)
    assert {**defaults, **profiles.load("mini", path.stem)} == defaults


@pytest.mark.parametrize("profile", sorted(p.parent.name for p in ROOT.glob("results/*/report.html")))
def test_results_hold_no_path_of_a_machine(profile: str) -> None:
    folder = ROOT / "results" / profile
    paths = [path for kind in ("*.html", "*.json", "notebooks/*.ipynb", "tables/*") for path in folder.glob(kind)]
    assert len(paths) > 50
    # a folder in front of data/ is one of the machine that made the table: shared paths start with data/ or DATA/
    absolute = re.compile(r"(?<![\w.])/(?:home|root|Users|tmp)/|(?<![\w.:/])/[\w./-]*/data/|" + re.escape(f"{ROOT}/"))
    for path in paths:
        found = absolute.search(re.sub(r"base64,[\w+/=]+|\"image/png\": \"[^\"]*\"", "", path.read_text()))
        assert not found, f"{path}: {found.group()}"


@pytest.mark.parametrize("path", CLEAN, ids=lambda p: p.stem)
def test_notebooks_define_no_functions_and_fetch_tensors_from_a_gpu_before_they_become_arrays(path: Path) -> None:
    code = "\n".join(depends.cells(path))
    assert "def " not in code
    for place in re.finditer(r"\.numpy\(\)", code):
        line = code[: place.start()].rsplit("\n", 1)[-1]
        assert line.endswith(".cpu()") or "positional_encoding(" in line, line  # the code is made on the CPU


@pytest.mark.parametrize(("printed", "passes"), [("42", True), ("43", False)])
def test_nbval_fails_on_one_edited_number_in_a_checked_cell(tmp_path: Path, printed: str, passes: bool) -> None:
    cell = new_code_cell("print(6 * 7)", execution_count=1, metadata={"tags": ["nbval-check-output"]})
    cell.outputs = [new_output("stream", text=f"{printed}\n")]
    free = new_code_cell("import time\nprint(time.time())", execution_count=2)
    free.outputs = [new_output("stream", text="0\n")]
    kernel = {"name": "python3", "display_name": "", "language": ""}
    nbformat.write(new_notebook(cells=[cell, free], metadata={"kernelspec": kernel}), tmp_path / "book.ipynb")
    command = [sys.executable, *shlex.split("-m pytest --nbval-lax --nbval-current-env -p no:cacheprovider book.ipynb")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == passes, done.stdout


def test_every_notebook_that_nbval_runs_has_a_checked_cell_with_an_output() -> None:
    makefile = (ROOT / "Makefile").read_text()
    names = next(line for line in makefile.splitlines() if line.startswith("NBVAL ?=")).split("=")[1].split()
    assert names
    for name in names:
        cells = json.loads((EXECUTED / f"{name}.ipynb").read_text())["cells"]
        checked = [c for c in cells if "nbval-check-output" in c["metadata"].get("tags", [])]
        assert checked
        assert all(c["outputs"] for c in checked)
