"""Execute the notebooks headless, and replace each only by a complete, successful run.

Each notebook runs in a folder of its own in `runs/`, where its figures and records go, too. If
all of it ran, its run's metadata is stripped and it moves into place together with these. A run
with other parameters stays in `runs/`.

usage: run_notebooks.py [--only NB] [--reproduce] [options of papermill, such as -p epochs 2]
"""

import argparse
import multiprocessing
import os
import re
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import nbformat
import psutil
from nbconvert.preprocessors import CoalesceStreamsPreprocessor
from nbstripout import strip_output
from papermill.cli import papermill

ROOT = Path(__file__).resolve().parent.parent
SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
# What differs from run to run, from one Python to the next, or by what was folded in JupyterLab.
RUN_METADATA = Path(__file__).with_name("run_metadata.txt").read_text().split()


def main():
    parser = argparse.ArgumentParser(usage=__doc__.split("usage: ")[1])
    parser.add_argument("--only", metavar="NB")
    parser.add_argument("--reproduce", action="store_true", help="compute all records anew")
    arguments, papermill_options = parser.parse_known_args()
    for number in SIGNALS:
        signal.signal(number, stop)

    notebooks = find_notebooks(arguments.only)
    os.environ.pop("REPRODUCE", None)
    if arguments.reproduce:
        os.environ["REPRODUCE"] = notebooks[0].name[:2] if arguments.only else "all"
    start = time.monotonic()
    for done, notebook in enumerate(notebooks):
        left = "" if papermill_options else time_left(notebooks, done, time.monotonic() - start)
        print(f"{done + 1} of {len(notebooks)}, {notebook.name}: running{left}", flush=True)
        executed = ROOT / "runs" / notebook.stem / notebook.name
        try:
            failure = execute(notebook, executed, papermill_options)
            if failure is None and not papermill_options:
                publish(notebook, executed)
        except KeyboardInterrupt as signal_name:
            failure = f"was stopped by {signal_name}{describe_unfinished_cell(executed)}"
        where = executed.relative_to(ROOT)
        if failure:
            sys.exit(f"\n{notebook.name} {failure}; it and its figures are unchanged. See {where}")
        print(f"{notebook.name}: done, {f'see {where}' if papermill_options else 'replaced'}")
    if arguments.reproduce and not papermill_options:
        # Not before, so that the next attempt goes on from the notebook that was stopped.
        for notebook in notebooks:
            for partial in ROOT.glob(f"results/{notebook.name[:2]}_*.partial.csv"):
                partial.unlink()


def stop(signum, frame):
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # A second Ctrl-C must not stop the clean-up.
    raise KeyboardInterrupt(signal.Signals(signum).name)


def find_notebooks(only):
    notebooks = sorted((ROOT / "notebooks").glob("*.ipynb"))
    if only is None:
        return notebooks
    chosen = [notebook for notebook in notebooks if only and notebook.name.startswith(only)]
    if len(chosen) != 1:
        names = ", ".join(notebook.stem for notebook in notebooks)
        sys.exit(f"NB={only} names {len(chosen)} notebooks; name one, such as NB=01, of: {names}")
    return chosen


def time_left(notebooks, done, spent):
    """Tell the time left, by what the notebooks' openings state and what those done really took."""
    openings = [notebook.read_text("utf-8").partition('"code"')[0] for notebook in notebooks]
    statements = [re.findall(r"takes about ([1-9]\d*) seconds", text) for text in openings]
    if not all(statements):
        return ""
    stated = [int(seconds) for seconds, *_ in statements]
    left = sum(stated[done:]) * (spent / sum(stated[:done]) if done else 1)
    return f", about {f'{left:.0f} seconds' if left < 90 else f'{left / 60:.0f} minutes'} left"


def execute(notebook, executed, papermill_options):
    """Run a notebook in a fresh folder; return what went wrong, or None if it ran to its end."""
    shutil.rmtree(executed.parent, ignore_errors=True)
    executed.parent.mkdir(parents=True)
    arguments = [str(notebook), str(executed), "--cwd", str(notebook.parent)]
    arguments += ["--kernel", "python3", "--progress-bar"]
    arguments += ["--stdout-file", "-", "--stderr-file", "-", *papermill_options]
    log = executed.with_name("kernel.log")
    log.touch()
    os.environ.update(RUN_FOLDER=str(log.parent), KERNEL_LOG=str(log), JUPYTER_PREFER_ENV_PATH="1")
    os.environ.pop("CLAIMS", None)
    os.environ |= {"CLAIMS": "report"} if papermill_options else {}
    # A fork has everything imported, which takes seconds otherwise.
    process = multiprocessing.get_context("fork").Process(target=run_papermill, args=[arguments])
    try:
        process.start()
        process.join()
    finally:
        end_all(str(log))
    culprit = describe_unfinished_cell(executed)
    if process.exitcode == 138:  # papermill's status for it; a crash's stack takes 30 lines.
        print(*log.read_text(errors="replace").splitlines()[-40:], sep="\n", file=sys.stderr)
        culprit += ": the kernel died"
    elif process.exitcode and not culprit:
        culprit = f": papermill ended with status {process.exitcode}"
    return f"failed{culprit}" if culprit else None


def run_papermill(arguments):
    os.setsid()  # Ctrl-C is for the parent to handle: it ends this process.
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    papermill(arguments)


def end_all(log):
    """End papermill, its kernel and all that these started; orphans are told by KERNEL_LOG."""
    left = set(psutil.Process().children(recursive=True))
    for end in (psutil.Process.terminate, psutil.Process.kill):
        others = psutil.process_iter(["environ"], ad_value={})
        left |= {other for other in others if other.info["environ"].get("KERNEL_LOG") == log}
        for process in left:
            with suppress(psutil.NoSuchProcess):
                end(process)
        left = set(psutil.wait_procs(left, timeout=3)[1])


def describe_unfinished_cell(executed):
    """Describe the first code cell that didn't run to its end, or return '' if all did."""
    try:
        cells = nbformat.read(executed, as_version=4).cells
    except (FileNotFoundError, nbformat.reader.NotJSONError):  # Stopped before or while writing it.
        return ""
    code_cells = [cell for cell in cells if cell.cell_type == "code" and cell.source.strip()]
    for number, cell in enumerate(code_cells, 1):
        errors = [output for output in cell.outputs if output.output_type == "error"]
        done = "shell.execute_reply" in cell.metadata.get("execution", {})
        if errors or not done or cell.execution_count != number:
            error = f": {errors[0].ename}: {errors[0].evalue}" if errors else ""
            first_line = cell.source.strip().splitlines()[0]
            return f" in code cell {number} (`{first_line}`){error}"
    return ""


def publish(notebook, executed):
    """Move a stripped run with its figures and records into place, and drop what they replace."""
    # The kernel sends what a cell prints in pieces that depend on its speed: join them.
    joined, _ = CoalesceStreamsPreprocessor().preprocess(nbformat.read(executed, as_version=4), {})
    kept = {"keep_output": True, "keep_count": True, "keep_id": False}
    nbformat.write(strip_output(joined, **kept, extra_keys=RUN_METADATA), executed)
    figures, results = ROOT / "figures", ROOT / "results"
    for folder in (figures, results):
        folder.mkdir(exist_ok=True)
    paths = executed.parent.glob(f"{notebook.name[:2]}_*.*")
    drawn = {path.name for path in paths if path != executed}
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    for name in drawn:
        (executed.parent / name).replace(figures / name)
    for old in figures.glob(f"{notebook.name[:2]}_*"):
        if old.name not in drawn:
            old.unlink()
    made = executed.parent / "results"
    for new in made.glob("*.csv"):
        # It goes first and comes last: without it, what a crash left half replaced is no record.
        (results / f"{new.stem}.json").unlink(missing_ok=True)
        for old in results.glob(f"networks/{new.stem}_*"):
            old.unlink()
    files = [path for path in made.rglob("*") if path.is_file()]
    for new in sorted(files, key=lambda path: path.suffix == ".json"):
        (results / new.relative_to(made)).parent.mkdir(exist_ok=True)
        new.replace(results / new.relative_to(made))
    executed.replace(notebook)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


if __name__ == "__main__":
    main()
