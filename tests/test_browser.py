"""A real browser on a real JupyterLab: the panel of notebook 10 answers while it trains, and 05 compares a variant.

`make test-browser` runs it. Screenshots, 1366 x 768, stay in .make/browser.
"""

import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest

pytestmark = pytest.mark.browser
sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright in this environment: make env")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    pytest.skip("no Chromium on PATH: install your system's package, such as chromium", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[1]
SHOTS = ROOT / ".make" / "browser"
PATIENCE = 150_000  # ms, for a busy machine
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a JupyterLab with copies of the start page and notebooks 05 and 10, and its token."""
    folder, token = tmp_path_factory.mktemp("lab"), secrets.token_hex()
    (copies := folder / "notebooks").mkdir()
    for name in ("start.ipynb", "10_playground.ipynb"):
        shutil.copy(ROOT / "notebooks" / name, copies)
    book = nbformat.read(ROOT / "notebooks" / "05_ablations.ipynb", 4)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    book.cells = [*code[:2], *(cell for cell in code if "Session(" in cell.source)]  # all between trains for minutes
    nbformat.write(book, copies / "05_ablations.ipynb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {f"JUPYTER_{name}_DIR": str(folder / name) for name in ("CONFIG", "DATA", "RUNTIME")}
    own |= {"JUPYTER_TOKEN": token, "JUPYTER_PREFER_ENV_PATH": "1", "APM_ROOT": str(ROOT)}
    command = [sys.executable, "-m", "jupyter", "lab", "--ip", "127.0.0.1", "--port", str(port), "--no-browser"]
    command += ["--allow-root", f"--ServerApp.root_dir={folder}", "--LabApp.expose_app_in_browser=True"]
    with (folder / "log").open("w") as log:
        env = {**os.environ, **own, "APM_RESULTS": str(folder / "results")}
        server = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    try:
        for _ in range(PATIENCE // 500):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api?token={token}", timeout=5)
                break
            except OSError:
                assert server.poll() is None, (folder / "log").read_text()
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}", token
    finally:
        server.terminate()
        server.wait(60)


@pytest.fixture
def page():
    """A page at laptop width."""
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        page = browser.new_page(viewport={"width": 1366, "height": 768})
        page.set_default_timeout(PATIENCE)
        yield page
        browser.close()


def opened(page, lab, name: str) -> None:
    """Open a notebook, its kernel there, the list of files folded away as on a small screen; run it."""
    address, token = lab
    page.goto(f"{address}/lab/tree/notebooks/{name}.ipynb?token={token}&reset")
    page.wait_for_selector(".jp-CodeCell")
    page.wait_for_function("jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel?.status == 'idle'")
    page.evaluate("jupyterapp.shell.collapseLeft()")
    page.evaluate("jupyterapp.commands.execute('notebook:run-all-cells')")


def shot(page, name: str) -> None:
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}.png")


def button(page, label: str):
    return page.locator(f".apm-box button:has-text('{label}')")


def said(page, words: str) -> str:
    """What the panel says, once it holds the words."""
    page.wait_for_selector(f".apm-said:has-text('{words}')")
    return page.inner_text(".apm-said")


def test_it_opens_on_a_page_that_says_what_to_open(page, lab) -> None:
    address, token = lab
    (start,) = re.findall(r"default_url=(\S+)", (ROOT / "Makefile").read_text())
    page.goto(f"{address}{start}?token={token}&reset")
    page.wait_for_selector(".jp-RenderedMarkdown h1:has-text('Where to begin')")
    shot(page, "start")
    page.locator(".jp-RenderedMarkdown a:has-text('10_playground')").click()
    page.wait_for_selector(".jp-Notebook .jp-CodeCell")


def test_the_panel_trains_answers_and_stops(page, lab) -> None:
    opened(page, lab, "10_playground")
    page.wait_for_selector(".apm-picture")
    page.wait_for_function("jupyterapp.shell.currentWidget.sessionContext.session.kernel.status == 'idle'")
    page.locator(".apm-box").scroll_into_view_if_needed()
    picture = page.locator(".apm-picture")
    before, first = said(page, "press run"), picture.get_attribute("src")
    shot(page, "10-first")

    page.get_by_label("position").fill("1")
    page.get_by_label("position").press("Enter")
    button(page, "run").click()
    after = said(page, "done")
    assert picture.get_attribute("src") != first
    assert re.findall("says (\\w+)", after) != re.findall("says (\\w+)", before)
    shot(page, "10-another-image")

    page.get_by_label("K", exact=True).first.fill("5000")
    page.get_by_label("K", exact=True).first.press("Enter")
    button(page, "run").click()
    said(page, "training")
    second = picture.get_attribute("src")
    page.wait_for_function("src => document.querySelector('.apm-picture').src != src", arg=second)
    numbers = page.locator(".jp-CodeCell .jp-InputPrompt")
    counted = numbers.nth(2).inner_text()
    page.evaluate("() => { jupyterapp.shell.currentWidget.content.activeCellIndex = 4 }")
    page.evaluate("jupyterapp.commands.execute('notebook:run-cell')")  # the kernel answers this cell meanwhile
    assert numbers.nth(2).inner_text() not in (counted, "[*]:")
    assert button(page, "stop").is_enabled()
    shot(page, "10-at-work")
    button(page, "stop").click()
    (updates,) = re.findall(r"left: (\d+) of 5000 updates", said(page, "stopped"))
    assert 0 < int(updates) < 5000
    shot(page, "10-stopped")


def test_a_session_compares_a_variant(page, lab) -> None:
    opened(page, lab, "05_ablations")
    table = page.locator(".jp-RenderedHTMLCommon table").last
    table.wait_for()
    rows = table.inner_text()
    assert all(name in rows for name in ("teacher", "L_cls", "kernels = 3"))
    table.scroll_into_view_if_needed()
    shot(page, "05-session")
