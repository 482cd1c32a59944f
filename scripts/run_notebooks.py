"""Execute the notebooks headless, and replace each only by a complete, successful run.

Each notebook runs in a folder of its own in `runs/`, where its figures go, too. If everything in
it ran, its run's metadata is stripped and it moves into place together with its figures. A run
with other parameters stays in `runs/`.

usage: run_notebooks.py [--only NB] [options of papermill, such as -p epochs 2]
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
# What differs from run to run or from one Python to the next.
RUN_METADATA = (
    "metadata.papermill metadata.language_info.version"
    " cell.metadata.papermill cell.metadata.execution"
)


def main():
    parser = argparse.ArgumentParser(usage=__doc__.split("usage: ")[1])
    parser.add_argument("--only", metavar="NB")
    arguments, papermill_options = parser.parse_known_args()
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        signal.signal(getattr(signal, name), stop)

    for notebook in find_notebooks(arguments.only):
        folder = ROOT / "runs" / notebook.stem
        executed = execute(notebook, folder, papermill_options)
        if papermill_options:
            print(f"{notebook.name}: done; see {executed.relative_to(ROOT)}", flush=True)
        else:
            publish(notebook, executed)
            print(f"{notebook.name}: done; replaced it and its figures", flush=True)


def stop(signum, frame):
    sys.exit(f"{signal.Signals(signum).name}: stopped; no notebook or figure is half written")


def find_notebooks(only):
    notebooks = sorted((ROOT / "notebooks").glob("*.ipynb"))
    if only is None:
        return notebooks
    chosen = [notebook for notebook in notebooks if only and notebook.name.startswith(only)]
    if len(chosen) != 1:
        names = ", ".join(notebook.stem for notebook in notebooks)
        sys.exit(f"NB={only} names {len(chosen)} notebooks; name one, such as NB=01, of: {names}")
    return chosen


def execute(notebook, folder, papermill_options):
    """Run a notebook into a fresh folder; exit and name the cell if it doesn't run to its end."""
    print(f"{notebook.name}: running", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    executed = folder / notebook.name
    command = [sys.executable, "-m", "papermill", str(notebook), str(executed), "--cwd"]
    command += [str(notebook.parent), "--kernel", "python3", "--progress-bar"]
    command += ["--stdout-file", "-", "--stderr-file", "-"]
    process = subprocess.Popen(
        [*command, *papermill_options],
        env={**os.environ, "FIGURES": str(folder), "JUPYTER_PREFER_ENV_PATH": "1"},
        start_new_session=True,  # Ctrl-C is for this process to handle: it ends papermill itself.
    )
    try:
        status = process.wait()
    finally:
        end(process)
    culprit = unfinished_cell(executed)
    if status or culprit:
        sys.exit(
            f"{notebook.name} failed{culprit or f': papermill ended with status {status}'}; "
            "the notebook and its figures are as they were. "
            f"The failed run: {executed.relative_to(ROOT)}"
        )
    return executed


def end(process):
    """End papermill, which ends its kernel; the kernel notices by itself if papermill is killed."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()


def unfinished_cell(executed):
    """Describe the first code cell that didn't run to its end, or return '' if all did."""
    if not executed.exists():
        return ""
    cells = [
        cell
        for cell in nbformat.read(executed, as_version=4).cells
        if cell.cell_type == "code" and cell.source.strip()
    ]
    for number, cell in enumerate(cells, 1):
        errors = [output for output in cell.outputs if output.output_type == "error"]
        if errors or cell.execution_count != number:
            error = f": {errors[0].ename}: {errors[0].evalue}" if errors else ""
            first_line = cell.source.strip().splitlines()[0]
            return f" in code cell {number} (`{first_line}`){error}"
    return ""


def publish(notebook, executed):
    """Move a stripped run and its figures into place, and drop figures no longer drawn."""
    strip = [sys.executable, "-m", "nbstripout", "--keep-output", "--keep-count"]
    subprocess.run([*strip, "--extra-keys", RUN_METADATA, str(executed)], check=True)
    figures = ROOT / "figures"
    figures.mkdir(exist_ok=True)
    drawn = {path.name for path in executed.parent.glob(f"{notebook.name[:2]}_*.*")}
    drawn.discard(executed.name)
    signals = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    for name in drawn:
        (executed.parent / name).replace(figures / name)
    for old in figures.glob(f"{notebook.name[:2]}_*"):
        if old.name not in drawn:
            old.unlink()
    executed.replace(notebook)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)


if __name__ == "__main__":
    main()
