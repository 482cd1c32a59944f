"""A notebook and its figures are replaced by a complete, successful run only."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "run_notebooks.py"
DRAW = "import os, pathlib; pathlib.Path(os.environ['FIGURES'], '01_new.png').write_text('new')"


@pytest.fixture
def project(tmp_path):
    """A project of two notebooks, 01 whose third cell is to be set, and 02 with an old output."""
    for folder in ("scripts", "notebooks", "figures"):
        (tmp_path / folder).mkdir()
    shutil.copy(SCRIPT, tmp_path / "scripts")
    (tmp_path / "figures" / "01_old.png").write_text("old")
    (tmp_path / "figures" / "02_other.png").write_text("other")
    write(tmp_path / "notebooks" / "02_other.ipynb", "print(2)")
    return tmp_path


def write(path, *sources):
    cells = [new_code_cell("epochs = 20", id="parameters", metadata={"tags": ["parameters"]})]
    cells += [new_code_cell(source, id=f"cell-{n}") for n, source in enumerate(sources)]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)


def snapshot(project):
    return {
        path: path.read_bytes()
        for folder in ("notebooks", "figures")
        for path in (project / folder).iterdir()
    }


def start(project, *arguments):
    return subprocess.Popen(
        [sys.executable, project / "scripts" / "run_notebooks.py", *arguments],
        cwd=project,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(project, *arguments):
    process = start(project, *arguments)
    stdout, stderr = process.communicate(timeout=120)
    return process.returncode, stdout, stderr


def test_complete_run_replaces_the_notebook_and_its_figures(project):
    notebook = project / "notebooks" / "01_first.ipynb"
    write(notebook, DRAW, "print('epoch', epochs)")
    status, stdout, stderr = run(project)
    assert status == 0, stderr
    assert "epoch 20" in stdout, "the output is not shown while the notebook runs"
    executed = nbformat.read(notebook, as_version=4)
    assert [cell.execution_count for cell in executed.cells] == [1, 2, 3]
    assert executed.cells[2].outputs[0].text == "epoch 20\n"
    assert "papermill" not in notebook.read_text()
    names = {path.name for path in (project / "figures").iterdir()}
    assert names == {"01_new.png"}, "02 draws nothing, so its figure goes; 01 replaces its own"

    once = snapshot(project)
    assert run(project, "--only", "01")[0] == 0
    assert snapshot(project) == once


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("1 / 0", "ZeroDivisionError"),
        ("import os; os.kill(os.getpid(), 9)", "os.kill"),
        ("import sys; sys.exit(0)", "SystemExit"),
    ],
)
def test_failing_cell_leaves_everything_as_it_was_and_is_named(project, source, named):
    write(project / "notebooks" / "01_first.ipynb", DRAW, source, "print('never reached')")
    before = snapshot(project)
    status, stdout, stderr = run(project)
    assert status != 0
    assert snapshot(project) == before
    last_line = stderr.strip().splitlines()[-1]
    assert "01_first.ipynb failed in code cell 3" in last_line
    assert named in last_line
    assert "never reached" not in stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_in_the_middle_leaves_everything_as_it_was(project, number):
    note_pid = "import os, pathlib; pathlib.Path('../pid').write_text(str(os.getpid()))"
    write(project / "notebooks" / "01_first.ipynb", DRAW, note_pid, "import time; time.sleep(300)")
    before = snapshot(project)
    process = start(project)
    pid = project / "pid"
    wait_until(lambda: pid.exists() and pid.read_text(), 60)
    time.sleep(1)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode not in (0, -number)
    assert snapshot(project) == before
    last_line = stderr.strip().splitlines()[-1]
    assert f"01_first.ipynb was stopped by {number.name} in code cell 4" in last_line
    wait_until(lambda: not is_alive(int(pid.read_text())), 20)


def wait_until(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_run_with_parameters_goes_to_another_folder(project):
    write(project / "notebooks" / "01_first.ipynb", DRAW, "print('epoch', epochs)")
    before = snapshot(project)
    status, stdout, _ = run(project, "--only", "01", "-p", "epochs", "2")
    assert status == 0
    assert "epoch 2\n" in stdout
    assert snapshot(project) == before
    assert (project / "runs" / "01_first" / "01_first.ipynb").exists()
    assert (project / "runs" / "01_first" / "01_new.png").exists()


@pytest.mark.parametrize("name", ["07", ""])
def test_unknown_notebook_is_named(project, name, monkeypatch):
    specification = importlib.util.spec_from_file_location("run_notebooks", SCRIPT)
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)
    monkeypatch.setattr(script, "ROOT", project)
    with pytest.raises(SystemExit, match=f"NB={name} names 0 notebooks.*02_other"):
        script.find_notebooks(name)
