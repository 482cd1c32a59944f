"""Many runs side by side, each remembered on disk as soon as it is finished."""

import contextlib
import functools
import inspect
import itertools
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import cloudpickle
import joblib
import numpy as np
import pandas as pd
from joblib.externals.loky import process_executor
from tqdm import tqdm

from lab.data import ROOT
from lab.fingerprint import fingerprint, is_literal

CACHE = ROOT / "cache"
LIBRARIES = ("tensorflow", "keras", "numpy", "scipy", "scikit-image", "scikit-learn")


def sweep(
    run: Callable[..., dict | list[dict]],
    grid: dict[str, Iterable] | list[dict[str, Any]],
    *,
    scheduler: str | None = None,
    cache: str | Path = CACHE,
    fresh: bool = False,
) -> pd.DataFrame:
    """Call `run(**setting)` for each setting of a grid, side by side, and remember the results.

    Each run has one thread. There is a process for each core, or, on a Dask cluster, for each
    thread of its workers. A result is on disk as soon as the run is finished, so a sweep that was
    interrupted continues where it stopped. It is found again only if its setting, the fingerprint
    of `run` (see `lab.fingerprint`) and the versions of Python and the numerical libraries are
    the same. Files that a run reads are not looked at. After editing a
    module, restart the kernel: the processes import what is on disk then.

    Args:
        run: returns what it measured: a dict, or a list of dicts, such as one for each epoch. It
            may be defined in a notebook, and loads or builds there what a setting can't hold.
        grid: a dict from the name of each argument of `run` to the list of its values, whose
            product is run, or a list of settings. Values are names, numbers, None, and lists of
            them.
        scheduler: address of a Dask scheduler, such as "tcp://192.168.0.5:8786". By default, that
            in the environment variable DASK_SCHEDULER_ADDRESS, if there is one.
        cache: folder of the results.
        fresh: run everything again, and replace what is in the cache.

    Returns:
        DataFrame in the order of the grid, a row for each dict that a run returned: a column for
        each name in the settings, and one for each key of the results.

    Raises:
        ValueError, TypeError: before the first run, for a grid that is empty or doesn't fit `run`,
            and for code that has no fingerprint.
        ImportError, OSError: before the first run, if Dask isn't installed, if no scheduler answers
            or if the cache can't be written.
        RuntimeError: after all others have finished, if runs failed; it names their settings. If
            a worker process dies, joblib's TerminatedWorkerError comes at once; what was finished
            before is in the cache.
    """
    settings = settings_of(grid)
    results = rows_of(run, settings, scheduler=scheduler, cache=cache, fresh=fresh)
    return pd.DataFrame(
        [setting | row for setting, rows in zip(settings, results, strict=True) for row in rows]
    )


def rows_of(
    run: Callable[..., dict | list[dict]],
    settings: list[dict[str, Any]],
    *,
    scheduler: str | None = None,
    cache: str | Path = CACHE,
    fresh: bool = False,
    quiet: bool = False,
) -> list[list[dict[str, Any]]]:
    """What a sweep over these settings finds, as the rows of each; see `sweep`.

    quiet: show no progress, so that the output of a cell doesn't depend on what was remembered.
    """
    arguments = [_arguments(run, setting) for setting in settings]
    code = fingerprint(run), sys.version_info[:2], versions()
    keys = [joblib.hash([code, each]) for each in arguments]
    remember = _open_cache(cache)
    results = {} if fresh else _recall(remember, keys)
    waiting = dict(zip(keys, settings, strict=True))
    waiting = {key: setting for key, setting in waiting.items() if key not in results}

    failures = []
    runs = run_side_by_side(run, waiting, scheduler)
    hidden = quiet or not waiting
    for key, rows, _, error in tqdm(runs, "runs", len(waiting), leave=False, disable=hidden):
        if error:
            failures.append(f"{_short(waiting[key])}: {error}")
        else:
            remember.call(key, (rows,))
            results |= {key: rows} | _recall(remember, [key])
    if not hidden:
        clear_progress()
    if failures:
        raise RuntimeError(
            f"{len(failures)} of {len(settings)} runs failed; the others are in the cache. To see "
            "where one fails, call the function with its setting:\n" + "\n".join(failures)
        )
    return [results[key] for key in keys]


def settings_of(grid: dict[str, Iterable] | list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The settings of a grid, as `sweep` takes it, one after another: the last name varies fastest.

    Raises:
        ValueError, TypeError: for a grid that is empty or no grid.
    """
    if isinstance(grid, dict):
        settings = [dict(zip(grid, v, strict=True)) for v in itertools.product(*grid.values())]
    else:
        settings = list(grid)
    if not settings:
        raise ValueError("The grid is empty, so there is nothing to run; give at least one value.")
    for setting in settings:
        if not isinstance(setting, dict):
            raise TypeError(f"The setting {setting!r} is no dict; give the arguments by name.")
    return [
        {n: v.item() if isinstance(v, np.generic) else v for n, v in s.items()} for s in settings
    ]


def run_side_by_side(
    run: Callable[..., dict | list[dict]],
    waiting: dict[Any, dict[str, Any]],
    scheduler: str | None = None,
) -> Iterator[tuple[Any, list[dict[str, Any]], float, str | None]]:
    """Yield key, rows, seconds and error of each run, whichever finishes first."""
    if not waiting:
        return
    scheduler = scheduler or os.environ.get("DASK_SCHEDULER_ADDRESS")
    call = _run
    if scheduler:
        backend = {"backend": "dask", "client": _connect(scheduler)}
        call = _run_in_new_process
    else:
        # Never one: joblib would then run in this process, with all its threads.
        jobs = max(2, min(joblib.cpu_count(), len(waiting)))
        backend = {"backend": "loky", "n_jobs": jobs, "inner_max_num_threads": 1}
    with joblib.parallel_config(**backend):
        parallel = joblib.Parallel(
            return_as="generator_unordered", batch_size=1, pre_dispatch="all"
        )
        runs = parallel(joblib.delayed(call)(key, run, waiting[key]) for key in waiting)
        yield from runs


def clear_progress() -> None:
    """Drop a progress bar, which differs in each run, from the output of a notebook's cell."""
    if "ipykernel" in sys.modules:
        from IPython.display import clear_output

        clear_output()


def _run(key, function, setting):
    """Run one setting in a worker process; see `run_side_by_side`."""
    _end_with_parent()
    start = time.perf_counter()
    try:
        # One thread, as runs share the machine and the number of threads changes the rounding.
        # TensorFlow reads this when it first computes.
        os.environ["TF_NUM_INTRAOP_THREADS"] = "1"
        # joblib replaces a worker that has grown by 300 MB, as a dataset and its copies make it.
        # The next one has to import TensorFlow and to compile again, which takes ten seconds.
        process_executor._MAX_MEMORY_LEAK_SIZE = 3e9
        rows = _rows(function(**setting), setting)
        cloudpickle.dumps(rows)  # What can't be sent back must not take other runs along.
        return key, rows, time.perf_counter() - start, None
    except Exception as error:
        return key, [], 0.0, f"{type(error).__name__}: {error}"
    finally:
        if "keras" in sys.modules:
            sys.modules["keras"].utils.clear_session(free_memory=False)


def _rows(result, setting):
    rows = result if isinstance(result, list) else [result]
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise TypeError(f"the run returned {_short({'result': result})}; return a dict or several")
    twice = setting.keys() & {name for row in rows for name in row}
    if twice:
        raise ValueError(f"{', '.join(twice)} is in the setting, too; rename it in the results")
    return rows


@functools.cache
def _end_with_parent():
    """Have this process end when its parent does, which joblib's would do minutes later."""
    parent = os.getppid()

    def watch():
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run_in_new_process(*arguments):
    """Run one setting from a Dask worker, whose threads would draw from the run's random state."""
    child = subprocess.run(
        [sys.executable, "-c", "from lab import sweeps; sweeps._run_for_parent()"],
        input=cloudpickle.dumps(arguments),
        stdout=subprocess.PIPE,
    )
    if child.returncode:
        return arguments[0], [], 0.0, f"its process ended with status {child.returncode}"
    return cloudpickle.loads(child.stdout)


def _run_for_parent():
    # What a run prints must not get into its result.
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    cloudpickle.dump(_run(*cloudpickle.load(sys.stdin.buffer)), output)


def _connect(scheduler):
    try:
        from distributed import Client
    except ImportError as error:
        raise ImportError(
            f"The scheduler {scheduler} needs Dask; install it: pip install distributed"
        ) from error
    try:
        return Client(scheduler, timeout=5, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ConnectionError(
            f"No Dask scheduler answers at {scheduler!r} ({error}). Start one with `dask "
            "scheduler`, or unset DASK_SCHEDULER_ADDRESS to run on this machine."
        ) from error


def _finished_run(key, result=()):
    """What joblib remembers: called with a result it is stored, called without it is found."""
    if not result:
        raise LookupError(key)
    return result


def _recall(remember, keys):
    results = {}
    for key in keys:
        with contextlib.suppress(LookupError):
            (results[key],) = remember(key)
    return results


def _open_cache(folder):
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(
            f"The cache folder {folder} can't be written ({error.strerror}); give another one as "
            "cache, or change its permissions."
        ) from error
    # Reading a compressed file checks its checksum, so that a damaged one is noticed.
    memory = joblib.Memory(folder, verbose=0, compress=True)
    return memory.cache(_finished_run, ignore=["result"])


def _arguments(run, setting):
    """All arguments of a run, defaults among them, after checking that they can be told apart."""
    try:
        arguments = inspect.signature(run).bind(**setting)
        arguments.apply_defaults()
    except TypeError as error:
        raise TypeError(
            f"The setting {_short(setting)} doesn't fit {run}: {error}. Give its arguments."
        ) from error
    for name, value in arguments.arguments.items():
        if not is_literal(value):
            raise TypeError(
                f"{name} is a {type(value).__name__} in {_short(setting)}; give a name or "
                "a plain number, by which the run finds or builds what it needs."
            )
    return repr(arguments.arguments)


def versions() -> dict[str, str]:
    """The versions of the numerical libraries that are installed, by name."""
    found = {}
    for library in LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            found[library] = version(library)
    return found


def _short(setting):
    text = ", ".join(f"{name}={value!r}" for name, value in setting.items())
    return text if len(text) < 200 else text[:200] + "…"
