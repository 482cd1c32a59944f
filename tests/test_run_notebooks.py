"""A notebook and its figures are replaced by a complete, successful run only."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "run_notebooks.py"
CONFIG = SCRIPT.with_name("ipython_kernel_config.py")
DRAW = "import os, pathlib; pathlib.Path(os.environ['RUN_FOLDER'], '01_new.png').write_text('new')"
# Children that would outlive their kernel: the second doesn't end when asked to, the third has a
# session of its own, the fourth is an orphan.
START_CHILDREN = """
import os, pathlib, subprocess
stubborn = "trap '' TERM; exec sleep 300"
quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
children = [
    subprocess.Popen(["sleep", "300"], **quiet),
    subprocess.Popen(["sh", "-c", stubborn], **quiet),
    subprocess.Popen(["sleep", "300"], start_new_session=True, **quiet),
]
orphan = subprocess.check_output(["sh", "-c", "sleep 300 >/dev/null 2>&1 & echo $!"], text=True)
pids = [os.getpid(), *(child.pid for child in children), int(orphan)]
pathlib.Path("../unfinished").write_text(" ".join(map(str, pids)))
pathlib.Path("../unfinished").rename("../pids")
"""


@pytest.fixture
def project(tmp_path):
    """A project of two notebooks, 01 whose third cell is to be set, and 02 with an old output."""
    for folder in ("scripts", "notebooks", "figures"):
        (tmp_path / folder).mkdir()
    for file in (SCRIPT, SCRIPT.with_name("run_metadata.txt")):
        shutil.copy(file, tmp_path / "scripts")
    (tmp_path / "figures" / "01_old.png").write_text("old")
    (tmp_path / "figures" / "02_other.png").write_text("other")
    write(tmp_path / "notebooks" / "02_other.ipynb", "print(2)")
    yield tmp_path
    for pid in noted_pids(tmp_path):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def script():
    """The runner as a module."""
    specification = importlib.util.spec_from_file_location("run_notebooks", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def write(path, *sources):
    cells = [new_code_cell("epochs = 20", id="parameters", metadata={"tags": ["parameters"]})]
    cells += [new_code_cell(source, id=f"cell-{n}") for n, source in enumerate(sources)]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)


def noted_pids(project):
    pids = project / "pids"
    return [int(pid) for pid in pids.read_text().split()] if pids.exists() else []


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


def test_complete_run_replaces_the_notebook_and_its_figures(project, monkeypatch):
    monkeypatch.delenv("CLAIMS", raising=False)
    notebook = project / "notebooks" / "01_first.ipynb"
    claims = "import os; print('epoch', epochs, os.environ.get('CLAIMS'))"
    write(notebook, DRAW + START_CHILDREN, claims, "_ = os.write(2, b'start-up line\\n')")
    status, stdout, stderr = run(project)
    assert status == 0, stderr
    assert not any(map(is_alive, noted_pids(project)))
    assert "1 of 2, 01_first.ipynb: running\n" in stdout
    assert "2 of 2, 02_other.ipynb: running\n" in stdout
    executed = nbformat.read(notebook, as_version=4)
    assert [cell.execution_count for cell in executed.cells] == [1, 2, 3, 4]
    assert executed.cells[2].outputs[0].text == "epoch 20 None\n"
    assert not executed.cells[3].outputs
    assert "papermill" not in notebook.read_text()
    assert "start-up line\n" in (project / "runs" / "01_first" / "kernel.log").read_text()
    names = {path.name for path in (project / "figures").iterdir()}
    assert names == {"01_new.png"}, "02 draws nothing, so its figure goes; 01 replaces its own"

    once = snapshot(project)
    status, stdout, _ = run(project, "--only", "01")
    assert status == 0
    assert "epoch 20 None" in stdout, "the output is not shown while the notebook runs"
    assert snapshot(project) == once


MEET = """
import pathlib, time
pathlib.Path("../{mine}").touch()
for _ in range(600):
    time.sleep(0.1)
    if pathlib.Path("../{other}").exists():
        break
else:
    raise TimeoutError
"""


def test_two_notebooks_run_side_by_side(project):
    write(project / "notebooks" / "01_first.ipynb", MEET.format(mine="a", other="b"))
    write(project / "notebooks" / "02_other.ipynb", MEET.format(mine="b", other="a"))
    status, stdout, stderr = run(project)
    assert status == 0, stderr
    assert stdout.index("2 of 2") < stdout.index("done")


def test_after_a_failure_what_runs_is_completed_and_no_more_is_started(project):
    failed = "raise OSError('no more')"
    write(project / "notebooks" / "01_first.ipynb", MEET.format(mine="a", other="b"), failed)
    longer = "time.sleep(5); print(2)"
    write(project / "notebooks" / "02_other.ipynb", MEET.format(mine="b", other="a"), longer)
    write(project / "notebooks" / "03_last.ipynb", "print(3)")
    before = snapshot(project)
    status, stdout, stderr = run(project)
    assert status != 0 and "03_last" not in stdout
    assert "01_first.ipynb failed in code cell 3" in stderr and "02_other" not in stderr
    after = snapshot(project)
    changed = {path.name for path in before if after.get(path) != before[path]}
    assert changed == {"02_other.ipynb", "02_other.png"}, "it draws nothing, so its figure goes"


RECORD = """
import os, pathlib
made = pathlib.Path(os.environ["RUN_FOLDER"], "results")
(made / "networks").mkdir(parents=True)
for name in ("01_a.csv", "01_a.json", "networks/01_a_new.keras"):
    (made / name).write_text("new")
print(os.environ.get("REPRODUCE"))
"""
STAMP = RECORD.replace('"01_a.csv", ', "").replace(', "networks/01_a_new.keras"', ",")


def test_a_record_is_replaced_with_its_networks_and_a_stamp_leaves_these(project):
    results = project / "results"
    (results / "networks").mkdir(parents=True)
    kept = ["01_a.partial.csv", "02_b.partial.csv", "networks/02_b_old.keras"]
    for name in (*kept, "01_a.csv", "01_a.json", "networks/01_a_old.keras"):
        (results / name).write_text("old")

    def contents():
        paths = sorted(path for path in results.rglob("*") if path.is_file())
        return {str(path.relative_to(results)): path.read_text() for path in paths}

    write(project / "notebooks" / "01_first.ipynb", STAMP)
    before = contents()
    assert run(project, "--only", "01")[0] == 0
    assert contents() == before | {"01_a.json": "new"}
    write(project / "notebooks" / "01_first.ipynb", RECORD)
    status, stdout, _ = run(project, "--reproduce", "--only", "01")
    assert status == 0 and "\n01\n" in stdout
    made = {"01_a.csv", "01_a.json", "networks/01_a_new.keras"}
    assert contents() == dict.fromkeys(kept[1:], "old") | dict.fromkeys(made, "new")


def test_partial_records_stay_until_all_is_reproduced(project):
    (project / "results").mkdir()
    (project / "results" / "01_a.partial.csv").write_text("old")
    write(project / "notebooks" / "01_first.ipynb", RECORD)
    write(project / "notebooks" / "02_other.ipynb", "1 / 0")
    assert run(project, "--reproduce")[0] != 0
    assert (project / "results" / "01_a.partial.csv").exists()
    assert (project / "results" / "01_a.csv").read_text() == "new"


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("1 / 0", "ZeroDivisionError"),
        ("os.kill(os.getpid(), 9)", "(`os.kill(os.getpid(), 9)`): the kernel died"),
        ("import sys; sys.exit(0)", "SystemExit"),
    ],
)
def test_failing_cell_leaves_everything_as_it_was_and_is_named(project, source, named):
    cells = [DRAW + START_CHILDREN, source, "print('never reached')"]
    write(project / "notebooks" / "01_first.ipynb", *cells)
    before = snapshot(project)
    status, stdout, stderr = run(project, "--only", "01")
    assert status != 0
    assert len(noted_pids(project)) == 5
    assert not any(map(is_alive, noted_pids(project)))
    assert snapshot(project) == before
    last_line = stderr.strip().splitlines()[-1]
    assert "01_first.ipynb failed in code cell 3" in last_line
    assert named in last_line
    assert "never reached" not in stdout


@pytest.mark.parametrize(
    ("source", "log"),
    [
        ("import ctypes; ctypes.string_at(0)", ["Fatal Python error: Segmentation fault"]),
        ("import os; os.write(2, b'\\n'.join(b'%d' % n for n in range(99))); os._exit(0)",
         [str(n) for n in range(59, 99)]),
    ],
)  # fmt: skip
def test_what_a_dying_kernel_wrote_is_shown(project, source, log):
    write(project / "notebooks" / "01_first.ipynb", source)
    status, _, stderr = run(project)
    assert status != 0
    *lines, last_line = stderr.strip().splitlines()
    assert f"01_first.ipynb failed in code cell 2 (`{source}`): the kernel died" in last_line
    assert set(log) <= set(lines)
    assert "58" not in lines, "more than the last 40 lines"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_in_the_middle_leaves_everything_as_it_was(project, number):
    cells = [DRAW, START_CHILDREN, "import time; time.sleep(300)"]
    write(project / "notebooks" / "01_first.ipynb", *cells)
    write(project / "notebooks" / "02_other.ipynb", "open('../other', 'w')", cells[-1])
    before = snapshot(project)
    process = start(project)
    wait_until(lambda: noted_pids(project) and (project / "other").exists(), 60)
    time.sleep(1)
    papermills = psutil.Process(process.pid).children()
    process.send_signal(number)
    time.sleep(0.2)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=10)
    assert process.returncode not in (0, -number)
    assert snapshot(project) == before
    lines = stderr.strip().splitlines()[-2:]
    assert lines[0].startswith(f"01_first.ipynb was stopped by {number.name} in code cell 4")
    assert lines[1].startswith(f"02_other.ipynb was stopped by {number.name} in code cell 3")
    pids = [papermill.pid for papermill in papermills]
    assert len(pids) == 2
    assert not any(map(is_alive, [*pids, *noted_pids(project)]))


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
    claims = "print('epoch', epochs, os.environ.get('CLAIMS'))"
    write(project / "notebooks" / "01_first.ipynb", DRAW, claims)
    before = snapshot(project)
    status, stdout, _ = run(project, "--only", "01", "-p", "epochs", "2")
    assert status == 0
    assert "epoch 2 report\n" in stdout
    assert snapshot(project) == before
    assert (project / "runs" / "01_first" / "01_first.ipynb").exists()
    assert (project / "runs" / "01_first" / "01_new.png").exists()


@pytest.mark.parametrize("name", ["07", ""])
def test_unknown_notebook_is_named(project, name, monkeypatch, script):
    monkeypatch.setattr(script, "ROOT", project)
    with pytest.raises(SystemExit, match=f"NB={name} names 0 notebooks.*02_other"):
        script.find_notebooks(name)


def test_time_left_is_what_the_notebooks_state_scaled_by_the_time_spent(tmp_path, script):
    notebooks = [tmp_path / f"0{seconds}.ipynb" for seconds in (40, 100, 200)]
    for path in notebooks:
        opening = new_markdown_cell(f"It takes about {path.stem[1:]} seconds on 2 cores.")
        later = [new_code_cell(), new_markdown_cell("Training takes about 5 seconds.")]
        nbformat.write(new_notebook(cells=[opening, *later]), path)
    assert script.time_left(notebooks, [], 0, 1) == ", about 6 minutes left"  # 340 s
    assert script.time_left(notebooks, [], 0, 2) == ", about 3 minutes left"
    assert script.time_left(notebooks, notebooks[:1], 20, 2) == ", about 2 minutes left"  # 300 s/2
    left = script.time_left(notebooks, notebooks[:2], 56, 2)
    assert left == ", about 80 seconds left"  # 200 s · 56/140
    nbformat.write(new_notebook(cells=later), notebooks[2])
    assert script.time_left(notebooks, notebooks[:1], 20, 2) == ""


@pytest.mark.parametrize("name", [None, "named/kernel.log", "file/kernel.log"])
def test_kernel_writes_its_standard_error_to_its_log(tmp_path, name):
    (tmp_path / "file").touch()
    stub = """if True:
        import os, sys
        from types import SimpleNamespace
        sys.prefix, config = sys.argv[1:]
        get_config = lambda: SimpleNamespace(IPKernelApp=SimpleNamespace())
        exec(open(config).read())
        os.write(2, b"noise")
    """
    environment = {k: value for k, value in os.environ.items() if k != "KERNEL_LOG"}
    if name:
        environment["KERNEL_LOG"] = str(tmp_path / name)
    command = [sys.executable, "-c", stub, tmp_path / ".venv", CONFIG]
    for _ in range(2):
        done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, check=True)
        assert done.stderr == b""
    written = [path.relative_to(tmp_path) for path in tmp_path.rglob("kernel.log")]
    if name == "file/kernel.log":
        assert written == [], "a log that can't be written is done without"
    else:
        assert written == [Path(name or "runs/kernel.log")]
        assert (tmp_path / written[0]).read_text() == "noisenoise", "the log is appended to"
