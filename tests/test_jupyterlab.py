"""Open JupyterLab in a browser: a run shows its figures, and opening alone changes nothing."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

ROOT = Path(__file__).resolve().parent.parent
BROWSER = next(filter(None, map(shutil.which, ["chromium", "google-chrome"])), None)
DRIVER = shutil.which("chromedriver")
TOKEN = "test"
NOTEBOOK = "notebooks/01_mnist_gradient_loss.ipynb"

pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="no Chromium with its driver: apt install chromium-driver"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("lab")


@pytest.fixture
def notebook(folder):
    """A copy of notebook 01 without outputs."""
    shutil.copy(ROOT / "notebooks" / "figures.mplstyle", folder)
    book = nbformat.read(ROOT / NOTEBOOK, as_version=4)
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(book, folder / "copy.ipynb")
    return folder / "copy.ipynb"


@pytest.fixture
def clone(folder):
    """A git work tree with notebook 01 added, and the filter for it as in `make lab`."""
    for name in ("Makefile", ".gitattributes", "scripts/run_metadata.txt", NOTEBOOK):
        (folder / "clone" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / "clone" / name)
    (folder / "clone" / ".venv").symlink_to(sys.prefix)
    git(folder / "clone", "init", "--quiet")
    subprocess.run(["make", "git-filter"], cwd=folder / "clone", check=True)
    git(folder / "clone", "add", "notebooks")
    (
        folder / "clone" / NOTEBOOK
    ).unlink()  # It may have been opened before; what was added is clean.
    git(folder / "clone", "checkout", "--quiet", "notebooks")
    return folder / "clone"


def git(folder, *arguments):
    return subprocess.check_output(["git", *arguments], cwd=folder, text=True)


@pytest.fixture(scope="module")
def lab(folder):
    """The address of a JupyterLab that is rooted in the folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += [f"--notebook-dir={folder}", f"--port={port}", "--ServerApp.port_retries=0"]
    command += [f"--IdentityProvider.token={TOKEN}", "--LabApp.news_url=", "--ip=127.0.0.1"]
    folders = {f"JUPYTER_{name}_DIR": str(folder / name) for name in ("CONFIG", "DATA")}
    environment = {**os.environ, **folders, "JUPYTERLAB_WORKSPACES_DIR": str(folder / "spaces")}
    environment["CLAIMS"] = "report"  # The record is read, and not audited again.
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: answers(f"{address}/api?token={TOKEN}"), 60, "JupyterLab doesn't answer")
        yield address
    finally:
        server.terminate()
        server.wait(timeout=30)


@pytest.fixture(scope="module")
def browser(folder):
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
        "--window-size=1400,1000",
        f"--user-data-dir={folder / 'browser'}",
    ):
        options.add_argument(argument)
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def answers(address):
    with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=5) as response:
        return response.status == 200
    return False


def wait_for(condition, seconds, complaint):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, complaint
        time.sleep(0.2)


def click(browser, selector, text):
    """Click the first shown element that holds this text, as soon as there is one."""

    def find(_):
        for element in browser.find_elements(By.CSS_SELECTOR, selector):
            if element.is_displayed() and element.text.startswith(text):
                return element
        return None

    WebDriverWait(browser, 60).until(find, f"no {text!r} to click").click()


def open_notebook(lab, browser, path):
    """Open a notebook, and it alone; return when its kernel is ready.

    JupyterLab says "idle" before there is a kernel, and would ask for one if cells were run then.
    """
    browser.get(f"{lab}/lab/tree/{path}?token={TOKEN}&reset")

    def connected():
        with urllib.request.urlopen(f"{lab}/api/sessions?token={TOKEN}", timeout=60) as response:
            sessions = {session["path"]: session["kernel"] for session in json.load(response)}
        kernel = sessions.get(str(path), {})
        return kernel.get("connections", 0) and kernel["execution_state"] == "idle"

    wait_for(connected, 120, "no kernel")
    idle = "[data-status='idle'].jp-Notebook-ExecutionIndicator"
    WebDriverWait(browser, 120).until(
        lambda _: browser.find_elements(By.CSS_SELECTOR, idle), "no notebook"
    )


def save(browser):
    keys = webdriver.ActionChains(browser)
    keys.key_down(Keys.CONTROL).send_keys("s").key_up(Keys.CONTROL).perform()


def executed(notebook):
    cells = nbformat.read(notebook, as_version=4).cells
    return [cell for cell in cells if cell.cell_type == "code"]


def test_notebook_01_runs_from_the_menu_and_shows_its_figures(lab, browser, notebook):
    open_notebook(lab, browser, notebook.name)
    click(browser, ".lm-MenuBar-item", "Run")
    click(browser, ".lm-Menu-item", "Run All Cells")

    def finished():  # By the file, as JupyterLab draws only the cells that are in view.
        time.sleep(2)
        save(browser)
        with contextlib.suppress(nbformat.reader.NotJSONError):  # It is being written.
            last = executed(notebook)[-1]
            # What a cell prints may be saved before its number, which comes when it has ended.
            return last.execution_count and "no claim is enforced" in str(last.outputs)
        return False

    wait_for(finished, 600, "the last cell printed nothing")

    cells = executed(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert "error" not in {output.output_type for output in outputs}
    figures = sum("image/png" in output.get("data", {}) for output in outputs)
    assert figures > 0
    assert len(figures_shown(browser)) == figures


def figures_shown(browser):
    """The figures that one sees while scrolling through: JupyterLab draws only what is in view."""
    scroll = "const pane = document.querySelector('.jp-WindowedPanel-outer'); pane.scrollTop = {};"
    height = browser.execute_script(scroll.format(0) + "return pane.scrollHeight")
    shown = set()
    for position in range(0, height, 400):
        browser.execute_script(scroll.format(position))
        time.sleep(0.1)
        for image in browser.find_elements(By.CSS_SELECTOR, ".jp-RenderedImage img"):
            if int(image.get_attribute("naturalWidth")) > 100:
                shown.add(image.get_attribute("src"))
    return shown


def test_opening_and_saving_a_notebook_changes_nothing_for_git(lab, browser, clone):
    notebook = clone / NOTEBOOK
    before = notebook.read_bytes()
    open_notebook(lab, browser, notebook.relative_to(clone.parent))

    def changed():  # One save may come too early: a kernel is idle before it has described itself.
        save(browser)
        return notebook.read_bytes() != before

    wait_for(changed, 60, "JupyterLab wrote nothing of its own")
    assert not git(clone, "diff", "notebooks")
