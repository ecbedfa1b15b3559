"""Ablations by hand: a session's rows are those of `ablations`, what was trained once is read, a saved line is one of the profile."""

import copy
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from apm import methods
from apm.experiments import ablations
from apm.experiments.session import Session
from apm.project import profiles

ROOT = Path(__file__).resolve().parents[2]
FAST = {"training": {"iterations": 3}}


@pytest.fixture(scope="module", autouse=True)
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project whose profiles may be changed."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "profiles", folder / "profiles")
    for name in ("notebooks", "data"):
        (folder / name).symlink_to(ROOT / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("APM_ROOT", str(folder))
        patch.setenv("APM_CACHE", str(folder / "cache"))
        yield folder


@pytest.fixture(scope="module")
def first(project: Path) -> Session:
    return Session("mini", samples=12)


@pytest.fixture
def session(first: Session) -> Session:
    """As it is before anything was asked for."""
    new = copy.copy(first)
    new.lines, new.rows = dict(first.lines), dict(first.rows)
    return new


def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def predict(*_: object) -> None:
        raise TypeError("this would be trained again")

    monkeypatch.setattr(methods.APM, "predict", predict)


def test_a_row_is_that_of_the_notebook_and_equal_settings_are_read_from_records(
    session, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = session.compare(student={"kernels": 5}, **FAST, name="five")
    given = profiles.load("mini", "05_ablations")
    lines = [
        {"part": "p", "name": "L_cls"},
        {"part": "p", "name": "five", "student": {"kernels": 5}, **FAST},
    ]
    options = {name: given[name] for name in ("student", "training", "seeds")}
    rows = ablations.run(ablations.parse(lines), session.teacher, session.data, folder=project / "other", **options)
    expected = ablations.after(rows, "L_cls").droplevel("part")
    assert list(shown.frame.index) == ["teacher", "L_cls", "five"]
    for ours, theirs in (("accuracy", "final"), ("difference", "difference"), ("final - teacher", "final - teacher")):
        assert shown.frame.loc["five", ours] == expected.loc["five", theirs]
    assert shown.frame.loc["teacher", "accuracy"] == expected.loc["L_cls", "teacher"]
    own = rows[rows["variant"] == "five"]
    assert shown.frame.loc["five", "loss"] == pytest.approx(own["last_loss"].median())
    assert shown.frame.loc["five", "weights"] == own["parameters"].iloc[0]

    no_training(monkeypatch)
    again = Session("mini", samples=12)  # as after a restart of the kernel
    found = again.compare(student={"kernels": 5}, **FAST, name="another name").frame
    assert found.loc["another name", "difference"] == shown.frame.loc["five", "difference"]
    assert again.compare(name="nothing changed").frame.loc["nothing changed", "difference"].value == 0
    with pytest.raises(TypeError, match="trained again"):
        again.compare(student={"kernels": 7}, **FAST)


def test_of_lines_with_equal_settings_the_one_that_the_notebook_runs_is_read(session, monkeypatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(ablations, "run", lambda lines, *_, **__: asked.append(lines[0].name) or session.rows["L_cls"])
    session.compare(name="the base by another name")
    assert asked == [
        [name for name, line in session.known.items() if session._key(line) == session._key(session.known["L_cls"])][-1]
    ]
    assert asked != ["L_cls"]


def test_a_sweep_is_every_combination_and_all_that_was_asked_for_prints_renders_and_is_drawn(session) -> None:
    shown = session.sweep(kernels=[1, 3], iterations=[2, 3])
    names = [f"kernels = {k}, iterations = {i}" for k in (1, 3) for i in (2, 3)]
    assert list(shown.frame.index) == ["teacher", "L_cls", *names]
    assert shown.frame.loc[names, "k"].tolist() == [2, 3, 2, 3]
    session.compare(**FAST, name="<three>")
    whole = session.table()
    assert list(whole.frame.index) == ["teacher", "L_cls", *names, "<three>"]
    assert all(name in repr(whole) for name in [*names, "<three>", "printed-digits, 3 seeds", "ms per image"])
    assert "&lt;three&gt;" in whole._repr_html_()
    assert str(whole.frame.loc["L_cls", "accuracy"]) in repr(whole)
    figure = session.figure()
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == list(whole.frame.index)
    plt.close(figure)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (
            lambda s: s.compare(training={"lerning_rate": 1}),
            r"unknown field of the training 'lerning_rate'.*'learning_rate'",
        ),
        (lambda s: s.compare(student={"kernel": 1}), r"unknown field of the student 'kernel'.*Did you mean 'kernels'"),
        (lambda s: s.compare(netwrk="mlp"), r"unknown option 'netwrk'.*Did you mean 'network'"),
        (lambda s: s.compare(student={"kernels": 0}), r"kernels, width and hidden must all be positive"),
        (lambda s: s.compare(training={"learning_rate": -1}), r"rates and init_std positive, found"),
        (lambda s: s.compare(samples=3), r"samples must be at least 10 \(for an interval\), found 3"),
        (lambda s: s.compare(student={"kernels": 5}, name="L_cls"), r"the name 'L_cls' is that of the base: choose"),
        (lambda s: s.compare(student={"kernels": 5}, name="K = 200"), r"'K = 200' is that of iterations = 200: choose"),
        (lambda s: s.sweep(lerning_rate=[1]), r"unknown field of student or training 'lerning_rate'.*'learning_rate'"),
        (lambda s: s.sweep(learning_rate=1e-3), r"sweep: learning_rate: expected a list of values, found 0.001"),
        (lambda s: s.sweep(kernels=[3, 0]), r"must all be positive"),
        (lambda s: s.save("five"), r"unknown variant to save 'five'. Known: L_cls"),
        (lambda s: s.save("L_cls"), r"the name 'L_cls' is used twice"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_trained(
    session, project: Path, ask, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_training(monkeypatch)
    before = (project / "profiles/mini/05_ablations.lines.yaml").read_text()
    with pytest.raises(ValueError, match=message):
        ask(session)
    assert (project / "profiles/mini/05_ablations.lines.yaml").read_text() == before


def test_saved_variants_are_lines_of_the_profile_below_all_that_was_there(session, project: Path) -> None:
    path = project / "profiles/mini/05_ablations.lines.yaml"
    path.write_text(path.read_text().rstrip("\n"))  # as an editor may leave it
    before = path.read_text()
    session.compare(student={"grid": (4, 4)}, training={"learning_rate": 1e-5, "iterations": 2}, name="a: small, #1")
    session.compare(**FAST, name="b")
    with ThreadPoolExecutor() as pool:  # two sessions at once
        written = list(pool.map(session.save, ["a: small, #1", "b"]))
    after = path.read_text()
    assert after.startswith(before + "\n- {part: by hand, name: ")
    assert sorted(after.removeprefix(before + "\n").splitlines(keepends=True)) == sorted(written)
    lines = {line.name: line for line in ablations.load("mini", "05_ablations.lines.yaml")}
    assert lines["a: small, #1"].training == {"learning_rate": 1e-5, "iterations": 2}
    assert lines["a: small, #1"].student == {"grid": [4, 4]}
    assert lines["b"] == session.lines["b"]
