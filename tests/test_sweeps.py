"""`sweep`: order, memory, interruptions, failures, and a cluster of two processes."""

import os
import pickle
import random
import re
import signal
import subprocess
import sys
import time
import types

import cloudpickle
import keras
import numpy as np
import pytest
import tensorflow as tf

import sweeps
from utils import sweep

# Functions in this file are defined where they are used, as in a notebook: workers can't import it.
NOTEBOOK = """
import numpy as np
FACTOR = 2.0
def helper(value):
    return value + 1
class Shift:
    factor = 1
    def __init__(self, amount=0):
        self.amount = amount
    @property
    def scale(self):
        return 1
    @staticmethod
    def check(value):
        return value
    def apply(self, value):
        return self.check(value * self.factor * self.scale) + self.amount
def subtract(left, right):
    return left - right - 1
shift = Shift()
def make(offset):
    def inner(value):
        return value + offset
    return inner
add = make(0)
def run(folder, value=1):
    '''A docstring.'''
    # A comment.
    folder.joinpath(str(len(list(folder.iterdir())))).touch()
    squared = np.square(add(shift.apply(helper(value))))
    return FACTOR * squared + (lambda: 0)() + subtract(left=1, right=0)
"""


def define(source=NOTEBOOK):
    namespace = {"__name__": "__main__"}
    exec(source, namespace)
    return namespace["run"]


@pytest.fixture
def counted(tmp_path):
    """Sweep, and count how often the function really ran."""
    folder = tmp_path / "runs"
    folder.mkdir()

    def counted_sweep(source=NOTEBOOK, settings=({},), **options):
        before = len(list(folder.iterdir()))
        results = sweep(
            define(source),
            [{"folder": folder, **setting} for setting in settings],
            cache=tmp_path / "cache",
            **options,
        )
        return results, len(list(folder.iterdir())) - before

    return counted_sweep


def test_results_come_in_the_order_of_the_settings_from_two_other_processes(tmp_path):
    def run(seconds):
        time.sleep(seconds)
        return seconds, os.getpid()

    results = sweep(run, [{"seconds": s} for s in (0.5, 0.0, 0.1)], cache=tmp_path)
    assert [result[0] for result in results] == [0.5, 0.0, 0.1]
    assert os.getpid() not in {result[1] for result in results}
    assert len({result[1] for result in results}) == 2


def test_a_run_has_one_thread(tmp_path):
    def run():
        matrix = tf.ones([2000, 2000])
        for _ in range(2):  # The first time also starts the threads.
            start, start_of_all = time.perf_counter(), time.process_time()
            tf.reduce_sum(matrix @ matrix).numpy()
            seconds = time.perf_counter() - start, time.process_time() - start_of_all
        return seconds

    [(elapsed, of_all_threads)] = sweep(run, [{}], cache=tmp_path)
    assert of_all_threads < 1.3 * elapsed


def test_a_worker_that_has_grown_by_a_dataset_stays(tmp_path):
    def run(n):
        vars(sys).setdefault("held", []).append(np.ones(50_000_000))
        time.sleep(1.1)  # joblib looks at the memory once a second.
        return os.getpid()

    processes = sweep(run, [{"n": n} for n in range(6)], cache=tmp_path)
    assert len(set(processes)) == 2


def test_a_finished_run_is_remembered_to_the_byte(tmp_path):
    def run(seed):
        keras.utils.set_random_seed(seed)
        return {"weights": [np.random.rand(3), tf.random.normal([2]).numpy()], "seed": seed}

    settings = [{"seed": 0}, {"seed": 1}]
    first, second, fresh = (
        sweep(run, settings, cache=tmp_path, fresh=fresh) for fresh in (False, False, True)
    )
    assert pickle.dumps(first) == pickle.dumps(second) == pickle.dumps(fresh)
    assert first[0]["seed"] == 0


def test_only_new_settings_run_and_fresh_runs_everything(counted):
    assert counted(settings=[{"value": 1}, {"value": 2}]) == ([8.0, 18.0], 2)
    assert counted(settings=[{"value": 2}, {"value": 3}, {"value": 1}]) == ([18.0, 32.0, 8.0], 1)
    assert counted(settings=[{}]) == ([8.0], 0)  # The default is the value 1.
    assert counted(settings=[{"value": 1}, {"value": 2}], fresh=True) == ([8.0, 18.0], 2)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("FACTOR = 2.0", "FACTOR = 3.0", 12.0),
        ("return value + 1", "return value + 2", 18.0),
        ("factor = 1", "factor = 2", 32.0),
        ("        return 1\n", "        return 2\n", 32.0),
        ("        return value\n", "        return 2 * value\n", 32.0),
        ("shift = Shift()", "shift = Shift(1)", 18.0),
        ("(left, right):\n    return left - right", "(right, left):\n    return right - left", 6.0),
        ("make(0)", "make(1)", 18.0),
        ("value=1", "value=2", 18.0),
        ("lambda: 0", "lambda: 1", 9.0),
        ("np.square", "np.sqrt", 2 * 2**0.5),
    ],
)
def test_changed_code_runs_again(counted, old, new, expected):
    assert counted() == ([8.0], 1)
    assert old in NOTEBOOK
    assert counted(NOTEBOOK.replace(old, new)) == ([expected], 1)
    assert counted() == ([8.0], 0)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# A comment.", "# Another.\n"),
        ("A docstring", "Other words"),
        ("FACTOR =", "\n\nFACTOR ="),
    ],
)
def test_code_that_only_looks_different_does_not(counted, old, new):
    assert counted() == ([8.0], 1)
    assert old in NOTEBOOK
    assert counted(NOTEBOOK.replace(old, new)) == ([8.0], 0)


def test_code_in_a_module_of_the_project_counts(counted, tmp_path, monkeypatch):
    source = NOTEBOOK.replace("import numpy as np", "import numpy as np, its_module")
    source = source.replace("FACTOR *", "its_module.factor() *")
    module = types.ModuleType("its_module")
    module.__file__ = str(tmp_path / "its_module.py")
    monkeypatch.setitem(sys.modules, "its_module", module)
    cloudpickle.register_pickle_by_value(module)
    for factor, result, runs in [(2.0, 8.0, 1), (2.0, 8.0, 0), (3.0, 12.0, 1)]:
        exec(f"def factor():\n    return {factor}  # Line {runs}", vars(module))
        assert counted(source) == ([result], runs)
    cloudpickle.unregister_pickle_by_value(module)


def test_another_version_of_a_library_runs_again(counted, monkeypatch):
    assert counted()[1] == 1
    monkeypatch.setattr(sweeps, "version", lambda library: "0.1")
    assert counted()[1] == 1


def damage_by_truncation(content):
    return content[:-10]


def damage_by_one_bit(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    "damage", [damage_by_truncation, damage_by_one_bit, lambda content: b"", lambda content: b"no"]
)
def test_a_damaged_entry_is_computed_again(tmp_path, damage):
    def run(folder):
        folder.joinpath(os.urandom(4).hex()).touch()
        return np.arange(1000.0)

    folder = tmp_path / "runs"
    folder.mkdir()
    for runs in (1, 2, 2):
        [result] = sweep(run, [{"folder": folder}], cache=tmp_path / "cache")
        np.testing.assert_array_equal(result, np.arange(1000.0))
        assert len(list(folder.iterdir())) == runs
        if runs == 1:
            (entry,) = tmp_path.glob("cache/**/output.pkl")
            entry.write_bytes(damage(entry.read_bytes()))


def test_failures_are_reported_with_their_settings_and_the_others_finish(tmp_path):
    def run(seed, folder):
        folder.joinpath(f"{seed}-{os.urandom(4).hex()}").touch()
        if seed % 2:
            raise FloatingPointError("The loss is nan")
        return seed

    folder = tmp_path / "runs"
    folder.mkdir()
    settings = [{"seed": seed, "folder": folder} for seed in range(4)]
    for runs in (4, 6):
        with pytest.raises(RuntimeError, match="2 of 4 runs failed") as error:
            sweep(run, settings, cache=tmp_path / "cache")
        assert "seed=1" in str(error.value)
        assert "seed=3" in str(error.value)
        assert "seed=2" not in str(error.value)
        assert "FloatingPointError: The loss is nan" in str(error.value)
        assert len(list(folder.iterdir())) == runs
    assert sweep(run, settings[::2], cache=tmp_path / "cache") == [0, 2]
    assert len(list(folder.iterdir())) == 6


def test_progress_is_shown_with_the_time_left(capsys, tmp_path):
    def run(seconds):
        time.sleep(seconds)

    for shown in (True, False):
        sweep(run, [{"seconds": 0.3}, {"seconds": 0.9}], cache=tmp_path)
        assert bool(re.search(r"\| 1/2 \[00:\d\d<00:\d\d", capsys.readouterr().err)) == shown


EIGHT_RUNS = """
import signal, sys, time
from pathlib import Path
from sweeps import sweep

# A shell that starts the tests in the background has them ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

def run(number, folder):
    folder.joinpath(f"started-{number}-{time.monotonic_ns()}").touch()
    while number >= 5 and not folder.joinpath("go").exists():
        time.sleep(0.05)
    return number * 10

folder = Path(sys.argv[1])
print(sweep(run, [{"number": n, "folder": folder} for n in range(8)], cache=folder / "cache"))
"""


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGINT])
def test_a_sweep_stopped_after_five_of_eight_runs_the_other_three(tmp_path, signal_number):
    command = [sys.executable, "-c", EIGHT_RUNS, str(tmp_path)]
    first = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("cache/**/output.pkl"))) < 5:
        assert time.monotonic() < deadline
        assert first.poll() is None
        time.sleep(0.1)
    first.send_signal(signal_number)
    first.wait(30)
    (tmp_path / "go").touch()
    time.sleep(1)  # Orphaned workers finish the runs that they have begun.
    before = set(tmp_path.glob("started-*"))
    second = subprocess.run(command, capture_output=True, text=True)
    assert second.stdout == "[0, 10, 20, 30, 40, 50, 60, 70]\n"
    started = [path.name.split("-")[1] for path in set(tmp_path.glob("started-*")) - before]
    assert sorted(started) == ["5", "6", "7"]


def test_a_cluster_gives_the_same_results_though_a_worker_is_killed(tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed")

    def run(seed):
        # Python's random state is what the threads of a Dask worker would draw from, too.
        random.seed(seed)
        return [random.random() for _ in range(300_000)][-3:]

    def run_and_kill(seed, folder):
        if seed == 2 and not folder.joinpath("killed").exists():
            folder.joinpath("killed").touch()
            os.kill(os.getppid(), signal.SIGKILL)  # The worker that started this process.
        return run(seed)

    seeds = range(4)
    expected = sweep(run, [{"seed": seed} for seed in seeds], cache=tmp_path / "one")
    with distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=None) as cluster:
        monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", cluster.scheduler_address)
        settings = [{"seed": seed, "folder": tmp_path} for seed in seeds]
        actual = sweep(run_and_kill, settings, cache=tmp_path / "cluster")
    assert (tmp_path / "killed").exists()
    assert actual == expected


def test_an_unreachable_scheduler_is_named_before_the_first_run(counted, tmp_path):
    pytest.importorskip("distributed")
    with pytest.raises(ConnectionError, match=r"(?s)tcp://127.0.0.1:9.*unset DASK_SCHEDULER"):
        counted(scheduler="tcp://127.0.0.1:9")
    assert list((tmp_path / "runs").iterdir()) == []


def test_missing_dask_is_named_with_the_mend(counted, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ImportError, match="pip install distributed"):
        counted(scheduler="tcp://127.0.0.1:9")


def test_a_cache_that_cannot_be_written_is_named_before_the_first_run(counted, tmp_path):
    (tmp_path / "cache").write_text("a file, no folder")
    with pytest.raises(OSError, match=r"The cache folder .*cache can't be written .*; give"):
        counted()
    assert list((tmp_path / "runs").iterdir()) == []


def test_methods_of_library_objects_differ_by_their_object():
    losses = [keras.losses.CategoricalCrossentropy(label_smoothing=s) for s in (0.1, 0.2)]
    first, second = (sweeps._describe(loss.call, {}) for loss in losses)
    assert first != second


def test_a_result_that_cannot_be_sent_back_takes_no_other_along(tmp_path):
    def run(number):
        return (i for i in ()) if number else number

    with pytest.raises(RuntimeError, match=r"1 of 3 runs failed(?s:.*)number=1.*generator"):
        sweep(run, [{"number": number} for number in (0, 1, 0)], cache=tmp_path)
    assert sweep(run, [{"number": 0}], cache=tmp_path) == [0]


@pytest.mark.parametrize(
    ("setting", "error", "message"),
    [
        ({"objective": (i for i in ())}, TypeError, "can't be sent to another process .*generator"),
        ({"objective": sys.stderr}, TypeError, "(?s)can't be sent.*Let it build or load there"),
        ({"objectiv": 1}, TypeError, "doesn't fit .* unexpected keyword argument 'objectiv'"),
        ({"epochs": 0}, ValueError, "epochs is 0; make it at least 1"),
        ({"epochs": "3"}, TypeError, "epochs is '3'; make it an integer"),
        ({"seed": -1}, ValueError, "seed is -1; make it at least 0"),
        ({"batch_size": 0}, ValueError, "batch_size is 0; make it at least 1"),
        ({"x": np.zeros([9, 2]), "batch_size": 10}, ValueError, "more than the 9 samples"),
        ({"x": np.array([0.0, np.nan])}, ValueError, r"x holds nan at \[1\]"),
    ],
)
def test_bad_settings_are_named_before_the_first_run(tmp_path, setting, error, message):
    def run(folder, seed=0, epochs=1, batch_size=1, x=None, objective=None):
        folder.joinpath("ran").touch()

    settings = [{"folder": tmp_path}, {"folder": tmp_path, **setting}]
    with pytest.raises(error, match=message):
        sweep(run, settings, cache=tmp_path / "cache")
    assert not (tmp_path / "ran").exists()


def test_a_setting_that_is_no_dict_is_an_error(tmp_path):
    with pytest.raises(TypeError, match="The setting 3 is no dict"):
        sweep(print, [3], cache=tmp_path)


def test_no_setting_at_all_is_an_error(counted):
    with pytest.raises(ValueError, match="settings is empty"):
        counted(settings=[])
