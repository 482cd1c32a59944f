"""Open JupyterLab in a browser, run a notebook from its menu, and see its figures."""

import contextlib
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
from selenium.webdriver.support.ui import WebDriverWait

ROOT = Path(__file__).resolve().parent.parent
BROWSER = next(filter(None, map(shutil.which, ["chromium", "google-chrome"])), None)
DRIVER = shutil.which("chromedriver")
TOKEN = "test"

pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="no Chromium with its driver: apt install chromium-driver"
)


@pytest.fixture
def notebook(tmp_path):
    """A copy of notebook 01 without outputs, and so short that one waits for the browser only."""
    shutil.copy(ROOT / "notebooks" / "figures.mplstyle", tmp_path)
    book = nbformat.read(ROOT / "notebooks" / "01_mnist_gradient_loss.ipynb", as_version=4)
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        if "parameters" in cell.metadata.get("tags", []):
            cell.source += "\nepochs = 1"
    nbformat.write(book, tmp_path / "copy.ipynb")
    return tmp_path / "copy.ipynb"


@pytest.fixture
def lab(notebook, tmp_path):
    """The address of a JupyterLab that is rooted in the notebook's folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += [f"--notebook-dir={tmp_path}", f"--port={port}", "--ServerApp.port_retries=0"]
    command += [f"--IdentityProvider.token={TOKEN}", "--LabApp.news_url=", "--ip=127.0.0.1"]
    folders = {f"JUPYTER_{name}_DIR": str(tmp_path / name) for name in ("CONFIG", "DATA")}
    environment = {**os.environ, **folders, "JUPYTERLAB_WORKSPACES_DIR": str(tmp_path / "spaces")}
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: answers(f"{address}/api?token={TOKEN}"), 60, "JupyterLab doesn't answer")
        yield address
    finally:
        server.terminate()
        server.wait(timeout=30)


@pytest.fixture
def browser(tmp_path):
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
        f"--user-data-dir={tmp_path / 'browser'}",
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


def executed(notebook):
    cells = nbformat.read(notebook, as_version=4).cells
    return [cell for cell in cells if cell.cell_type == "code"]


def test_notebook_01_runs_from_the_menu_and_shows_its_figures(lab, browser, notebook):
    browser.get(f"{lab}/lab/tree/{notebook.name}?token={TOKEN}")
    wait = WebDriverWait(browser, 120)
    idle = "[data-status='idle'].jp-Notebook-ExecutionIndicator"
    wait.until(lambda _: browser.find_elements(By.CSS_SELECTOR, idle), "no kernel")
    click(browser, ".lm-MenuBar-item", "Run")
    click(browser, ".lm-Menu-item", "Run All Cells")
    lines = ".jp-OutputArea-output pre"
    wait.until(
        lambda _: [
            element
            for element in browser.find_elements(By.CSS_SELECTOR, lines)
            if "no claim is enforced" in element.text
        ],
        "the last cell printed nothing",
    )
    click(browser, ".lm-MenuBar-item", "File")
    click(browser, ".lm-Menu-item", "Save Notebook")
    wait_for(lambda: executed(notebook)[-1].execution_count, 30, "the notebook isn't saved")

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
