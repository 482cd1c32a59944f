"""`sweep`: order, memory, interruptions, failures, and a cluster of two processes."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from cells import define

from lab import sweep, sweeps

NOTEBOOK = """
import tempfile
FACTOR = 2.0
def helper(value):
    return value + 1
def run(folder, value=1):
    tempfile.mkstemp(dir=folder)  # A name of its own, as two processes run at a time.
    return {"result": FACTOR * helper(value) ** 2}
"""


@pytest.fixture
def counted(tmp_path):
    """Sweep, and count how often the function really ran."""
    folder = tmp_path / "runs"
    folder.mkdir()

    def counted_sweep(source=NOTEBOOK, settings=({},), **options):
        before = len(list(folder.iterdir()))
        table = sweep(
            define(source),
            [{"folder": str(folder), **setting} for setting in settings],
            cache=tmp_path / "cache",
            **options,
        )
        return table["result"].tolist(), len(list(folder.iterdir())) - before

    return counted_sweep


def test_results_come_in_the_order_of_the_settings_from_two_other_processes(tmp_path):
    def run(seconds):
        time.sleep(seconds)
        return {"slept": seconds, "process": os.getpid()}

    table = sweep(run, {"seconds": [0.5, 0.0, 0.1]}, cache=tmp_path)
    assert table["seconds"].tolist() == table["slept"].tolist() == [0.5, 0.0, 0.1]
    assert os.getpid() not in set(table["process"])
    assert table["process"].nunique() == 2


def test_a_grid_is_the_product_of_its_lists_and_several_rows_stay_together(tmp_path):
    def run(method, seed, epochs=2):
        return [{"epoch": n, "loss": 10 * seed + n} for n in range(epochs)]

    table = sweep(run, {"method": ["a", "b"], "seed": range(2)}, cache=tmp_path)
    assert list(table) == ["method", "seed", "epoch", "loss"]
    rows = [(m, s, n, 10 * s + n) for m in "ab" for s in (0, 1) for n in (0, 1)]
    assert list(table.itertuples(index=False, name=None)) == rows
    listed = sweep(
        run, [{"method": "b", "seed": 1, "epochs": 1}, {"method": "a", "seed": 0}], cache=tmp_path
    )
    assert listed["method"].tolist() == ["b", "a", "a"]
    assert listed["epochs"].tolist()[0] == 1


def test_a_run_has_one_thread(tmp_path):
    def run():
        matrix = tf.ones([2000, 2000])
        for _ in range(2):  # The first time also starts the threads.
            start, start_of_all = time.perf_counter(), time.process_time()
            tf.reduce_sum(matrix @ matrix).numpy()
            seconds = time.perf_counter() - start, time.process_time() - start_of_all
        return {"seconds": seconds}

    (seconds,) = sweep(run, [{}], cache=tmp_path)["seconds"]
    assert seconds[1] < 1.3 * seconds[0]


def test_a_worker_that_has_grown_by_a_dataset_stays(tmp_path):
    def run(n):
        vars(sys).setdefault("held", []).append(np.ones(50_000_000))
        time.sleep(1.1)  # joblib looks at the memory once a second.
        return {"process": os.getpid()}

    assert sweep(run, {"n": range(6)}, cache=tmp_path)["process"].nunique() == 2


def test_a_finished_run_is_remembered_to_the_byte(tmp_path):
    def run(seed):
        keras.utils.set_random_seed(seed)
        return {"weights": np.append(np.random.rand(3), tf.random.normal([2])), "loss": 0.1}

    first, second, fresh = (
        sweep(run, {"seed": [0, 1]}, cache=tmp_path, fresh=fresh) for fresh in (False, False, True)
    )
    for other in (second, fresh):
        pd.testing.assert_frame_equal(first, other, check_exact=True)
    assert not np.array_equal(*first["weights"])


def test_only_new_settings_run_and_fresh_runs_everything(counted):
    assert counted(settings=[{"value": 1}, {"value": 2}]) == ([8.0, 18.0], 2)
    assert counted(settings=[{"value": 2}, {"value": 3}, {"value": 1}]) == ([18.0, 32.0, 8.0], 1)
    assert counted(settings=[{}]) == ([8.0], 0)  # The default is the value 1.
    assert counted(settings=[{"value": np.int64(2)}]) == ([18.0], 0)
    assert counted(settings=[{"value": 1}, {"value": 2}], fresh=True) == ([8.0, 18.0], 2)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("FACTOR = 2.0", "FACTOR = 3.0", 12.0),
        ("return value + 1", "return value + 2", 18.0),
        ("value=1", "value=2", 18.0),
    ],
)
def test_changed_code_runs_again(counted, old, new, expected):
    assert counted() == ([8.0], 1)
    assert old in NOTEBOOK
    assert counted(NOTEBOOK.replace(old, new)) == ([expected], 1)
    assert counted() == ([8.0], 0)


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
        Path(folder, os.urandom(4).hex()).touch()
        return {"result": np.arange(1000.0)}

    folder = tmp_path / "runs"
    folder.mkdir()
    for runs in (1, 2, 2):
        (result,) = sweep(run, {"folder": [str(folder)]}, cache=tmp_path / "cache")["result"]
        np.testing.assert_array_equal(result, np.arange(1000.0))
        assert len(list(folder.iterdir())) == runs
        if runs == 1:
            (entry,) = tmp_path.glob("cache/**/output.pkl")
            entry.write_bytes(damage(entry.read_bytes()))


def test_failures_are_reported_with_their_settings_and_the_others_finish(tmp_path):
    def run(seed, folder):
        Path(folder, f"{seed}-{os.urandom(4).hex()}").touch()
        if seed % 2:
            raise FloatingPointError("The loss is nan")
        return {"result": seed}

    folder = tmp_path / "runs"
    folder.mkdir()
    settings = [{"seed": seed, "folder": str(folder)} for seed in range(4)]
    for runs in (4, 6):
        with pytest.raises(RuntimeError, match="2 of 4 runs failed") as error:
            sweep(run, settings, cache=tmp_path / "cache")
        assert "seed=1" in str(error.value)
        assert "seed=3" in str(error.value)
        assert "seed=2" not in str(error.value)
        assert "FloatingPointError: The loss is nan" in str(error.value)
        assert len(list(folder.iterdir())) == runs
    assert sweep(run, settings[::2], cache=tmp_path / "cache")["result"].tolist() == [0, 2]
    assert len(list(folder.iterdir())) == 6


def test_progress_is_shown_with_the_time_left(capsys, tmp_path):
    def run(seconds):
        time.sleep(seconds)
        return {}

    for shown in (True, False):
        sweep(run, {"seconds": [0.3, 0.9]}, cache=tmp_path)
        assert bool(re.search(r"\| 1/2 \[00:\d\d<00:\d\d", capsys.readouterr().err)) == shown


EIGHT_RUNS = """
import os, signal, sys, time
from pathlib import Path
from lab import sweep

# A shell that starts the tests in the background has them ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

def run(number, folder):
    Path(folder, f"started-{number}-{os.getpid()}").touch()
    while number >= 5 and not Path(folder, "go").exists():
        time.sleep(0.05)
    return {"result": number * 10}

if __name__ == "__main__":
    folder = sys.argv[1]
    grid = {"number": range(8), "folder": [folder]}
    print(sweep(run, grid, cache=folder + "/cache")["result"].tolist())
"""


def is_alive(pid):
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_sweep_stopped_after_five_of_eight_runs_the_other_three(tmp_path, signal_number):
    (tmp_path / "eight_runs.py").write_text(EIGHT_RUNS)
    command = [sys.executable, tmp_path / "eight_runs.py", str(tmp_path)]
    first = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("cache/**/output.pkl"))) < 5:
        assert time.monotonic() < deadline
        assert first.poll() is None
        time.sleep(0.1)
    first.send_signal(signal_number)
    first.wait(30)
    workers = {int(path.name.split("-")[2]) for path in tmp_path.glob("started-*")}
    deadline = time.monotonic() + 10
    while any(is_alive(worker) for worker in workers):
        assert time.monotonic() < deadline, "a worker outlives its sweep"
        time.sleep(0.1)
    before = set(tmp_path.glob("started-*"))
    (tmp_path / "go").touch()
    second = subprocess.run(command, capture_output=True, text=True)
    assert second.stdout == "[0, 10, 20, 30, 40, 50, 60, 70]\n"
    started = [path.name.split("-")[1] for path in set(tmp_path.glob("started-*")) - before]
    assert sorted(started) == ["5", "6", "7"]


def test_a_cluster_gives_the_same_results_though_a_worker_is_killed(tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed")

    def run(seed):
        # Python's random state is what the threads of a Dask worker would draw from, too.
        random.seed(seed)
        return {"draws": [random.random() for _ in range(300_000)][-3:]}

    def run_and_kill(seed, folder):
        if seed == 2 and not Path(folder, "killed").exists():
            Path(folder, "killed").touch()
            os.kill(os.getppid(), signal.SIGKILL)  # The worker that started this process.
        return run(seed)

    seeds = range(4)
    expected = sweep(run, {"seed": seeds}, cache=tmp_path / "one")
    with distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=None) as cluster:
        monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", cluster.scheduler_address)
        grid = {"seed": seeds, "folder": [str(tmp_path)]}
        actual = sweep(run_and_kill, grid, cache=tmp_path / "cluster")
    assert (tmp_path / "killed").exists()
    assert actual["draws"].tolist() == expected["draws"].tolist()


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


def test_a_result_that_cannot_be_sent_back_takes_no_other_along(tmp_path):
    def run(number):
        return {"result": (i for i in ()) if number else number}

    with pytest.raises(RuntimeError, match=r"1 of 3 runs failed(?s:.*)number=1.*generator"):
        sweep(run, [{"number": number} for number in (0, 1, 0)], cache=tmp_path)
    assert sweep(run, {"number": [0]}, cache=tmp_path)["result"].tolist() == [0]


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ("3", "the run returned result=3; return a dict or several"),
        ("[]", r"the run returned result=\[\]; return"),
        ("[{'a': 1}, 2]", "the run returned .*; return a dict"),
        ("{'seed': 1}", "seed is in the setting, too; rename it"),
    ],
)
def test_a_run_that_returns_no_rows_is_named(tmp_path, result, message):
    run = define(f"def run(seed):\n    return {result}\n")
    with pytest.raises(RuntimeError, match=f"seed=0: .*{message}"):
        sweep(run, {"seed": [0]}, cache=tmp_path)


@pytest.mark.parametrize(
    ("setting", "error", "message"),
    [
        ({"objective": np.ones(2)}, TypeError, "objective is a ndarray .*; give a name or a plain"),
        ({"objective": keras.losses.mean_squared_error}, TypeError, "objective is a function"),
        ({"epochs": {3}}, TypeError, "epochs is a set"),
        ({"objectiv": 1}, TypeError, "doesn't fit .* unexpected keyword argument 'objectiv'"),
    ],
)
def test_bad_settings_are_named_before_the_first_run(tmp_path, setting, error, message):
    def run(folder, epochs=1, objective=None):
        Path(folder, "ran").touch()

    settings = [{"folder": str(tmp_path)}, {"folder": str(tmp_path), **setting}]
    with pytest.raises(error, match=message):
        sweep(run, settings, cache=tmp_path / "cache")
    assert not (tmp_path / "ran").exists()


def test_code_without_a_fingerprint_is_named_before_the_first_run(tmp_path):
    images = np.ones(3)

    def run(seed):
        return {"mean": images.mean()}

    with pytest.raises(TypeError, match="images is a ndarray, whose changes"):
        sweep(run, {"seed": [0]}, cache=tmp_path / "cache")


def test_a_setting_that_is_no_dict_is_an_error(tmp_path):
    with pytest.raises(TypeError, match="The setting 3 is no dict"):
        sweep(print, [3], cache=tmp_path)


@pytest.mark.parametrize("grid", [[], {"seed": []}])
def test_an_empty_grid_is_an_error(grid):
    with pytest.raises(ValueError, match="The grid is empty"):
        sweep(print, grid)
