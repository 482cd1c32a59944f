"""Many training runs side by side, each remembered on disk as soon as it is finished.

Import from utils, as the notebooks do.
"""

import contextlib
import dis
import functools
import inspect
import numbers
import os
import subprocess
import sys
import sysconfig
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import cloudpickle
import joblib
import numpy as np
from joblib.externals.loky import process_executor
from tqdm import tqdm

CACHE = Path(__file__).resolve().parent / "cache"
LIBRARIES = ("tensorflow", "keras", "numpy", "scipy", "scikit-learn")


def sweep(function, settings, *, scheduler=None, cache=CACHE, fresh=False):
    """Call `function(**setting)` for each setting, side by side, and remember the results.

    Each run has one thread. There is a process for each core, or, on a Dask cluster, for each
    thread of its workers. A result is on disk as soon as the run is finished, so a sweep that was
    interrupted continues where it stopped. It is found again only if nothing has changed that it
    may depend on: the code of `function` and of all that it calls in this project, the values that
    they refer to, the setting, and the versions of TensorFlow, Keras, NumPy, SciPy and
    scikit-learn. Files that a run reads, and modules that it imports itself, are not looked at.
    After editing a module, restart the kernel: the processes import what is on disk then.

    Args:
        function: what to run. It may be defined in a notebook. What it gets, and what it returns,
            goes from process to process: arrays, numbers, texts, and nests of them.
        settings: a dict of keyword arguments for each run. Arguments named epochs, batch_size and
            seed, and arrays, are checked as `train` does, before the first run starts.
        scheduler: address of a Dask scheduler, such as "tcp://192.168.0.5:8786". By default, that
            in the environment variable DASK_SCHEDULER_ADDRESS, if there is one.
        cache: folder of the results.
        fresh: run everything again, and replace what is in the cache.

    Returns:
        list of results, in the order of the settings.

    Raises:
        ValueError, TypeError: before the first run, for settings that are empty, don't fit
            `function`, can't be sent to another process or don't make sense.
        ImportError, OSError: before the first run, if Dask isn't installed, if no scheduler answers
            or if the cache can't be written.
        RuntimeError: after all others have finished, if runs failed; it names their settings. If
            a worker process dies, joblib's TerminatedWorkerError comes at once; what was finished
            before is in the cache.
    """
    settings = list(settings)
    if not settings:
        raise ValueError("settings is empty, so there is nothing to run; give at least one dict.")
    known = {}
    keys = [_key(function, setting, known) for setting in settings]
    remember = _open_cache(cache)
    results = {} if fresh else _recall(remember, keys)
    waiting = dict(zip(keys, settings, strict=True))
    waiting = {key: setting for key, setting in waiting.items() if key not in results}

    failures = []
    for key, result, error in _run_all(function, waiting, scheduler):
        if error:
            failures.append(f"{_short(waiting[key])}: {error}")
        else:
            remember.call(key, (result,))
            results |= {key: result} | _recall(remember, [key])
    if failures:
        raise RuntimeError(
            f"{len(failures)} of {len(settings)} runs failed; the others are in the cache. To see "
            "where one fails, call the function with its setting:\n" + "\n".join(failures)
        )
    return [results[key] for key in keys]


def check_run(*, seed=0, epochs=1, batch_size=1, **others):
    """Raise ValueError or TypeError, with the culprit and the mend, for what can't be a run."""
    for name, value, least in (
        ("seed", seed, 0),
        ("epochs", epochs, 1),
        ("batch_size", batch_size, 1),
    ):
        if not isinstance(value, numbers.Integral) or isinstance(value, bool):
            raise TypeError(f"{name} is {value!r}; make it an integer of at least {least}.")
        if value < least:
            raise ValueError(f"{name} is {value}; make it at least {least}.")
    for name, value in others.items():
        if not isinstance(value, np.ndarray):
            continue
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            first = np.argwhere(~np.isfinite(value))[0]
            raise ValueError(
                f"{name} holds {value[tuple(first)]} at {first.tolist()}; leave such samples out."
            )
        if name == "x" and batch_size > len(value):
            raise ValueError(
                f"batch_size is {batch_size}, more than the {len(value)} samples; make it smaller."
            )


def fingerprint(value):
    """Hash a value: equal only if no number, text, array or code in it or below it differs."""
    return _describe(value, {})


def _run_all(function, waiting, scheduler):
    """Yield key, result and error of each run, whichever finishes first."""
    if not waiting:
        return
    scheduler = scheduler or os.environ.get("DASK_SCHEDULER_ADDRESS")
    run = _run
    if scheduler:
        backend = {"backend": "dask", "client": _connect(scheduler)}
        run = _run_in_new_process
    else:
        # Never one: joblib would then run in this process, with all its threads.
        jobs = max(2, min(joblib.cpu_count(), len(waiting)))
        backend = {"backend": "loky", "n_jobs": jobs, "inner_max_num_threads": 1}
    with joblib.parallel_config(**backend):
        parallel = joblib.Parallel(
            return_as="generator_unordered", batch_size=1, pre_dispatch="all"
        )
        runs = parallel(joblib.delayed(run)(key, function, waiting[key]) for key in waiting)
        yield from tqdm(runs, "runs", len(waiting), leave=False)
    if "ipykernel" in sys.modules:
        from IPython.display import clear_output

        clear_output()  # The progress bar, which differs in each run, must not stay in a notebook.


def _run(key, function, setting):
    """Run one setting in a worker process. Return its key with the result, or with the error."""
    try:
        # One thread, as runs share the machine and the number of threads changes the rounding.
        # TensorFlow reads this when it first computes.
        os.environ["TF_NUM_INTRAOP_THREADS"] = "1"
        # joblib replaces a worker that has grown by 300 MB, as a dataset and its copies make it.
        # The next one has to import TensorFlow and to compile again, which takes ten seconds.
        process_executor._MAX_MEMORY_LEAK_SIZE = 3e9
        result = function(**setting)
        cloudpickle.dumps(result)  # What can't be sent back must not take other runs along.
        return key, result, None
    except Exception as error:
        return key, None, f"{type(error).__name__}: {error}"
    finally:
        if "keras" in sys.modules:
            sys.modules["keras"].utils.clear_session(free_memory=False)


def _run_in_new_process(*arguments):
    """Run one setting from a Dask worker, whose threads would draw from the run's random state."""
    child = subprocess.run(
        [sys.executable, "-m", "sweeps"], input=cloudpickle.dumps(arguments), stdout=subprocess.PIPE
    )
    if child.returncode:
        return arguments[0], None, f"its process ended with status {child.returncode}"
    return cloudpickle.loads(child.stdout)


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


def _key(function, setting, known):
    """Name a run by all that its result may depend on, after checking that it can run."""
    if not isinstance(setting, dict):
        raise TypeError(f"The setting {setting!r} is no dict; give the arguments of {function}.")
    try:
        arguments = inspect.signature(function).bind(**setting)
        arguments.apply_defaults()
    except TypeError as error:
        raise TypeError(
            f"The setting {_short(setting)} doesn't fit {function}: {error}. Give a dict with its "
            "arguments."
        ) from error
    check_run(**{**arguments.arguments, **setting})
    try:
        # The callback keeps the contents of arrays out of this trial.
        cloudpickle.dumps((function, setting), protocol=5, buffer_callback=lambda buffer: None)
        parts = [_describe(part, known) for part in (function, dict(arguments.arguments))]
    except Exception as error:
        raise TypeError(
            f"{function} with {_short(setting)} can't be sent to another process ({error}). Let "
            "it build or load there what can't be sent, such as models, datasets and open files."
        ) from error
    return joblib.hash([*parts, sys.version_info[:2], _versions()])


def _versions():
    versions = {}
    for library in LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            versions[library] = version(library)
    return versions


def _describe(value, known):
    """Describe a value so that joblib can tell whether it, or code that it refers to, changed.

    joblib.hash knows a function only by its name, joblib.Memory also by its text. Neither sees
    what the function calls.
    """
    if id(value) in known:
        return known[id(value)][1]
    known[id(value)] = value, "refers to itself"
    if isinstance(value, (list, tuple)):
        description = [_describe(part, known) for part in value]
    elif isinstance(value, dict):
        description = {key: _describe(part, known) for key, part in value.items()}
    elif inspect.ismodule(value):
        description = value.__name__
    elif inspect.ismethod(value):
        description = _describe([value.__func__, value.__self__], known)
    elif hasattr(value, "__qualname__") and _is_installed(sys.modules.get(value.__module__)):
        description = value.__module__, value.__qualname__
    elif isinstance(value, functools.partial):
        description = _describe([value.func, value.args, value.keywords], known)
    elif inspect.isclass(value):
        members = {name: vars(value)[name] for name in sorted(vars(value)) if name != "__doc__"}
        members = {
            name: [getattr(member, part, None) for part in ("fget", "__func__")]
            if isinstance(member, (property, staticmethod, classmethod))
            else member
            for name, member in members.items()
            if not inspect.isdatadescriptor(member) or isinstance(member, property)
        }
        description = _describe([value.__qualname__, members, *value.__bases__], known)
    elif inspect.isfunction(value):
        description = _describe_function(value, known)
    elif hasattr(value, "__wrapped__"):
        description = _describe(value.__wrapped__, known)
    elif hasattr(value, "__dict__") and not _is_installed(sys.modules.get(type(value).__module__)):
        description = _describe([type(value), vars(value)], known)
    else:
        description = value
    # The value is kept, so that no other can get its id.
    known[id(value)] = value, joblib.hash(description)
    return known[id(value)][1]


def _describe_function(function, known):
    codes = [function.__code__]
    for code in codes:
        codes += [const for const in code.co_consts if inspect.iscode(const)]
    names = {
        instruction.argval
        for code in codes
        for instruction in dis.get_instructions(code)
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME")
    }
    names = sorted(names & function.__globals__.keys())
    used = {name: function.__globals__[name] for name in names}
    for module in [value for value in used.values() if inspect.ismodule(value)]:
        if not _is_installed(module):
            names = {name for code in codes for name in code.co_names} & vars(module).keys()
            used |= {f"{module.__name__}.{name}": vars(module)[name] for name in sorted(names)}
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    return [
        # Comments, line numbers and the docstring change no result.
        [
            (
                code.co_code,
                code.co_names,
                code.co_varnames,
                code.co_argcount,
                code.co_exceptiontable,
            )
            for code in codes
        ],
        [
            const
            for code in codes
            for const in code.co_consts
            if not inspect.iscode(const) and (const is None or const != function.__doc__)
        ],
        _describe([used, cells, function.__defaults__, function.__kwdefaults__], known),
    ]


def _is_installed(module):
    """Whether it is a library's: its version stands for its code. A notebook has no file."""
    if module is None or module.__name__ == "__main__":
        return False
    path = getattr(module, "__file__", None) or ""
    return not path or "-packages" in path or path.startswith(sysconfig.get_path("stdlib"))


def _short(setting):
    text = ", ".join(f"{name}={value!r}" for name, value in setting.items())
    return text if len(text) < 200 else text[:200] + "…"


if __name__ == "__main__":
    # The child of _run_in_new_process. What a run prints must not get into its result.
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    cloudpickle.dump(_run(*cloudpickle.load(sys.stdin.buffer)), output)
