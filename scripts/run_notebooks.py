"""Execute the notebooks headless, and replace each only by a complete, successful run.

Each notebook runs in a folder of its own in `runs/`, where its figures and records go, too, and
two of them side by side. If all of it ran, its run's metadata is stripped and it moves into place
together with these. A run with other parameters stays in `runs/`.

usage: run_notebooks.py [--only NB] [--reproduce] [options of papermill, such as -p epochs 2]
"""

import argparse
import multiprocessing
import multiprocessing.connection
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
SIDE_BY_SIDE = 2  # Much of a notebook runs on one core.
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
    # A reproduction has all cores by itself.
    side_by_side = 1 if arguments.reproduce or len(notebooks) == 1 else SIDE_BY_SIDE
    failures = run_all(notebooks, side_by_side, papermill_options)
    if failures:
        sys.exit("\n" + "\n".join(failures))
    if arguments.reproduce and not papermill_options:
        # Not before, so that the next attempt goes on from the notebook that was stopped.
        for notebook in notebooks:
            for partial in ROOT.glob(f"results/{notebook.name[:2]}_*.partial.csv"):
                partial.unlink()


def run_all(notebooks, side_by_side, papermill_options):
    """Run and publish the notebooks; return what went wrong. After a failure, none is started."""
    start = time.monotonic()
    waiting, running, done, failures = list(notebooks), {}, [], []
    try:
        while running or (waiting and not failures):
            while waiting and not failures and len(running) < side_by_side:
                notebook = waiting.pop(0)
                left = time_left(notebooks, done, time.monotonic() - start, side_by_side)
                left = "" if papermill_options else left
                number = len(notebooks) - len(waiting)
                print(f"{number} of {len(notebooks)}, {notebook.name}: running{left}", flush=True)
                running[notebook] = launch(notebook, papermill_options, show=side_by_side == 1)
            multiprocessing.connection.wait([each.sentinel for each in running.values()])
            for notebook in [n for n, process in running.items() if process.exitcode is not None]:
                failure = finish(notebook, running[notebook])
                del running[notebook]
                if failure:
                    failures.append(describe(notebook, failure))
                    continue
                if not papermill_options:
                    publish(notebook)
                done.append(notebook)
                where = executed_at(notebook).relative_to(ROOT)
                what = f"see {where}" if papermill_options else "replaced"
                print(f"{notebook.name}: done, {what}", flush=True)
    except KeyboardInterrupt as signal_name:
        for notebook, process in running.items():
            finish(notebook, process)
            cell = describe_unfinished_cell(executed_at(notebook))
            failures.append(describe(notebook, f"was stopped by {signal_name}{cell}"))
        failures = failures or [f"Stopped by {signal_name}."]
    return failures


def describe(notebook, failure):
    where = executed_at(notebook).relative_to(ROOT)
    return f"{notebook.name} {failure}; it and its figures are unchanged. See {where}"


def executed_at(notebook):
    return ROOT / "runs" / notebook.stem / notebook.name


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


def time_left(notebooks, done, spent, side_by_side):
    """Tell the time left, by what the notebooks' openings state and what those done really took."""
    openings = [notebook.read_text("utf-8").partition('"code"')[0] for notebook in notebooks]
    statements = [re.findall(r"takes about ([1-9]\d*) seconds", text) for text in openings]
    if not all(statements):
        return ""
    stated = {path: int(seconds) for path, (seconds, *_) in zip(notebooks, statements, strict=True)}
    of_done = sum(stated[path] for path in done)
    left = sum(stated.values()) - of_done
    left *= spent / of_done if done else 1 / side_by_side
    return f", about {f'{left:.0f} seconds' if left < 90 else f'{left / 60:.0f} minutes'} left"


def launch(notebook, papermill_options, show):
    """Start to run a notebook in a fresh folder, in a process of its own; show what it prints."""
    executed = executed_at(notebook)
    shutil.rmtree(executed.parent, ignore_errors=True)
    executed.parent.mkdir(parents=True)
    arguments = [str(notebook), str(executed), "--cwd", str(notebook.parent), "--kernel", "python3"]
    if show:
        arguments += ["--progress-bar", "--stdout-file", "-", "--stderr-file", "-"]
    else:
        arguments += ["--no-progress-bar", "--log-level", "WARNING"]
    log = log_of(notebook)
    log.touch()
    environment = {"RUN_FOLDER": str(log.parent), "KERNEL_LOG": str(log)}
    environment |= {"JUPYTER_PREFER_ENV_PATH": "1"}
    environment |= {"CLAIMS": "report"} if papermill_options else {}
    # A fork has everything imported, which takes seconds otherwise.
    process = multiprocessing.get_context("fork").Process(
        target=run_papermill, args=[[*arguments, *papermill_options], environment]
    )
    process.start()
    return process


def log_of(notebook):
    return executed_at(notebook).with_name("kernel.log")


def run_papermill(arguments, environment):
    os.setsid()  # Ctrl-C is for the parent to handle: it ends this process.
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    os.environ.pop("CLAIMS", None)
    os.environ |= environment
    papermill(arguments)


def finish(notebook, process):
    """End what is left of a run; return what went wrong, or None if the notebook ran to its end."""
    end_all(process, str(log_of(notebook)))
    process.join()
    culprit = describe_unfinished_cell(executed_at(notebook))
    if process.exitcode == 138:  # papermill's status for it; a crash's stack takes 30 lines.
        log = log_of(notebook).read_text(errors="replace")
        print(*log.splitlines()[-40:], sep="\n", file=sys.stderr)
        culprit += ": the kernel died"
    elif process.exitcode and not culprit:
        culprit = f": papermill ended with status {process.exitcode}"
    return f"failed{culprit}" if culprit else None


def end_all(papermill, log):
    """End papermill, its kernel and all that these started; orphans are told by KERNEL_LOG."""
    left = set()
    if papermill.is_alive():
        process = psutil.Process(papermill.pid)
        left |= {process, *process.children(recursive=True)}
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


def publish(notebook):
    """Move a stripped run with its figures and records into place, and drop what they replace."""
    executed = executed_at(notebook)
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
