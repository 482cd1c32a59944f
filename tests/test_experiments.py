"""`experiment`: records that are complete, audits that notice, and reproductions that go on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cells import define

from lab import experiment, experiments

NOTEBOOK = """
import os, pathlib
import numpy as np
FOLDER = {folder!r}
def run(weight, seed):
    pathlib.Path(FOLDER, f"{{weight}}-{{seed}}-{{os.urandom(4).hex()}}").touch()
    correct = np.arange(11) % (seed + 2) == 0
    return [
        {{"epoch": n, "first_epoch_loss": 1 / 3, "accuracy": 10 * weight + seed + n / 3,
          "mark": "even" if seed % 2 == 0 else "odd", "correct": correct ^ (n == 1)}}
        for n in range(2)
    ]
"""
GRID = {"weight": [0.1, 1, 78.4], "seed": range(2)}
TOLERANCE = {"accuracy": 0.5, "correct": 0.1}


@pytest.fixture
def notebook(tmp_path, monkeypatch):
    """Call `experiment` as notebook 01 would; `ran` counts the runs since it was last asked."""
    (tmp_path / "ran").mkdir()
    monkeypatch.setattr(experiments, "RESULTS", tmp_path / "results")
    monkeypatch.setenv("RUN_FOLDER", str(tmp_path))
    source = NOTEBOOK.format(folder=str(tmp_path / "ran"))

    def call(grid=GRID, old="", new="", tolerance=TOLERANCE, audit=None, **environment):
        for name in ("AUDIT", "CLAIMS", "REPRODUCE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        assert old in source
        run = define(source.replace(old, new))
        return experiment("01_test", run, grid, tolerance=tolerance, audit=audit)

    def ran():
        files = list((tmp_path / "ran").iterdir())
        for file in files:
            file.unlink()
        return len(files)

    call.source = source
    call.ran, call.results = ran, tmp_path / "results"
    call.record, call.manifest = call.results / "01_test.csv", call.results / "01_test.json"
    return call


@pytest.fixture
def recorded(notebook):
    notebook(REPRODUCE="1")
    (notebook.results / "01_test.partial.csv").unlink()  # As the runner does.
    assert notebook.ran() == 6
    note_seconds(notebook, 24)
    return notebook


def note_seconds(notebook, seconds):
    """As if all runs had taken so long: an audit has 8 seconds."""
    manifest = json.loads(notebook.manifest.read_text())
    notebook.manifest.write_text(json.dumps(manifest | {"seconds": seconds}))


def test_a_record_is_the_table_of_all_settings(recorded):
    table = recorded(AUDIT="0")
    assert recorded.ran() == 0
    settings = [(w, s, n) for w in (0.1, 1, 78.4) for s in (0, 1) for n in (0, 1)]
    assert list(table[["weight", "seed", "epoch"]].itertuples(index=False, name=None)) == settings
    expected = [10 * w + s + n / 3 for w, s, n in settings]
    np.testing.assert_allclose(table["accuracy"], expected, rtol=1e-6)
    assert table["mark"].tolist()[:4] == ["even", "even", "odd", "odd"]
    for (_, seed, n), correct in zip(settings, table["correct"], strict=True):
        np.testing.assert_array_equal(correct, (np.arange(11) % (seed + 2) == 0) ^ (n == 1))
    manifest = json.loads(recorded.manifest.read_text())
    assert manifest["runs"] == 6
    assert manifest["grid"] == {"weight": [0.1, 1, 78.4], "seed": [0, 1]}
    assert {"code", "date", "processor", "python", "versions", "seconds"} <= set(manifest)


def test_two_reproductions_give_the_same_bytes_and_the_first_leaves_nothing(recorded):
    files = [recorded.record, recorded.results / "01_test.npz"]
    before = [file.read_bytes() for file in files]
    recorded(REPRODUCE="1")
    assert recorded.ran() == 6
    assert [file.read_bytes() for file in files] == before


@pytest.mark.parametrize(
    ("audit", "runs"), [(None, 2), ("all", 6), ("0.5", 3), ("0.01", 1), ("0", 0)]
)
def test_an_audit_runs_its_share_again(recorded, audit, runs):
    for repeated in (runs, 0 if audit is None else runs):  # The cache serves the default only.
        recorded(**({} if audit is None else {"AUDIT": audit}))
        assert recorded.ran() == repeated


@pytest.mark.parametrize(("seconds", "runs"), [(6, 6), (16, 3), (24, 2), (48, 1), (1201, 0)])
def test_an_audit_has_eight_seconds_unless_runs_are_long(recorded, seconds, runs):
    note_seconds(recorded, seconds)
    recorded()
    assert recorded.ran() == runs


def test_of_runs_of_forty_seconds_one_is_made_for_every_fifth_version_of_the_code(recorded):
    note_seconds(recorded, 6 * 40)
    runs = []
    for number in range(200):
        recorded(old="correct =", new=f"unused = {number}\n    correct =")
        runs.append(recorded.ran())
    assert set(runs) == {0, 1} and 10 <= sum(runs) <= 75  # 40 ± 6


def test_the_code_decides_what_is_audited(recorded, monkeypatch):
    chosen = []
    real = experiments.rows_of
    monkeypatch.setattr(
        experiments,
        "rows_of",
        lambda run, sample, **options: chosen.append(sample) or real(run, sample, **options),
    )
    for number in range(8):
        recorded(old="correct =", new=f"unused = {number}\n    correct =")
    assert len({str(sample) for sample in chosen}) > 1
    recorded()
    recorded()
    assert chosen[-1] == chosen[-2]


def change(notebook, column, row, value):
    record = pd.read_csv(notebook.record)
    record[column] = record[column].astype(object)
    record.loc[row, column] = value
    record.to_csv(notebook.record, index=False)


@pytest.mark.parametrize(
    ("column", "value", "found"),
    [
        ("accuracy", 13.4, None),  # It is 11.333 with weight 1, seed 1 and epoch 1: see below.
        ("accuracy", 14.9, "weight 1, seed 1: accuracy (row 1) is recorded as 14.9, and now 11.3"),
        ("first_epoch_loss", 0.336, None),
        ("first_epoch_loss", 0.34, "first_epoch_loss (row 1) is recorded as 0.34,"),
    ],
)
def test_a_changed_number_is_named_if_it_is_out_of_tolerance(recorded, column, value, found):
    change(recorded, column, 7, value)
    tolerance = TOLERANCE | {"accuracy": 2.5}
    if found is None:
        recorded(AUDIT="all", tolerance=tolerance)
        return
    with pytest.raises(AssertionError) as error:
        recorded(AUDIT="all", tolerance=tolerance)
    assert "1 numbers of the record 01_test" in str(error.value)
    assert found in str(error.value)


def test_changed_digits_are_named(recorded):
    path = recorded.results / "01_test.npz"
    with np.load(path) as archive:
        packed = archive["correct"]
    for bits, fails in ((0b1000_0000, False), (0b1100_0000, True)):  # 1 and 2 of 11 digits.
        changed = packed.copy()
        changed[3, 0] ^= bits
        np.savez(path, correct=changed)
        if fails:
            with pytest.raises(AssertionError, match=r"correct \(row 1\) differs in 18.18%"):
                recorded(AUDIT="all")
        else:
            recorded(AUDIT="all", tolerance=TOLERANCE | {"correct": 0.1})


def test_a_changed_result_of_the_code_is_found(recorded):
    with pytest.raises(AssertionError, match="first_epoch_loss"):
        recorded(old="1 / 3, ", new="1 / 3.1, ")
    with pytest.raises(
        AssertionError, match=r"mark \(row 0\) is recorded as (even, and now odd|odd, and now even)"
    ):
        recorded(old="seed % 2 == 0", new="seed % 2 == 1")


FASTER = """
def run(weight, seed):
    return [{"first_epoch_loss": 1 / 3, "accuracy": 10 * weight + seed + n / 3} for n in range(2)]
"""


def test_a_faster_function_audits_the_two_and_no_larger_share(recorded):
    recorded(audit=define(FASTER))
    assert recorded.ran() == 0
    with pytest.raises(
        AssertionError, match=r"2 settings that(.|\n)*accuracy \(row 1\) is recorded"
    ):
        recorded(audit=define(FASTER.replace("n / 3", "n")))
    recorded(audit=define(FASTER), AUDIT="0.5")
    assert recorded.ran() == 3


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda rows: rows[:-1], "too many, too few or in another order"),
        (lambda rows: rows[:-2], "lacks 1 settings, such as .*78.4.*make reproduce NB=01"),
        (lambda rows: [*rows, rows[-1]], "too many, too few"),
        (lambda rows: [*rows[:2], *rows[4:6], *rows[2:4], *rows[6:]], "in another order"),
        (lambda rows: [rows[1], rows[0], *rows[2:]], "in another order"),
        (lambda rows: [rows[0], rows[0], *rows[2:]], "too many, too few"),
    ],
)
def test_rows_missing_doubled_or_reordered_are_refused(recorded, edit, message):
    head, *rows = recorded.record.read_text().splitlines()
    recorded.record.write_text("\n".join([head, *edit(rows)]) + "\n")
    with pytest.raises(ValueError, match=message):
        recorded()
    assert recorded.ran() == 0


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (GRID | {"seed": range(3)}, "lacks 3 settings, such as .*'seed': 2"),
        (GRID | {"seed": [0]}, "too many"),
        (GRID | {"seed": [1, 0]}, "in another order"),
    ],
)
def test_a_record_of_another_grid_is_refused(recorded, grid, message):
    with pytest.raises(ValueError, match=message):
        recorded(grid)


def test_a_partial_record_goes_on_by_name(notebook):
    notebook(REPRODUCE="1")
    table = notebook({"seed": range(2), "weight": [0.1, 1, 78.4]}, REPRODUCE="1")
    assert notebook.ran() == 6, "the second time all were in the partial record"
    np.testing.assert_allclose(table["accuracy"][::2], [1, 10, 784, 2, 11, 785], rtol=1e-6)


@pytest.mark.parametrize("share", ["-1", "2", "ten"])
def test_an_audit_of_no_share_is_named(recorded, share):
    with pytest.raises(ValueError, match=r"AUDIT is .*; make it all, or a share from 0 to 1"):
        recorded(AUDIT=share)


def test_a_missing_record_or_column_is_named(recorded):
    record = pd.read_csv(recorded.record)
    record.drop(columns="accuracy").to_csv(recorded.record, index=False)
    with pytest.raises(ValueError, match="has no column accuracy"):
        recorded()
    recorded.record.unlink()
    with pytest.raises(FileNotFoundError, match=r"01_test.csv is missing; `make reproduce NB=01`"):
        recorded()


def test_other_columns_than_the_record_has_are_named(recorded):
    with pytest.raises(AssertionError, match=r"\['accuracy', .* recorded, .*\['acc', "):
        recorded(old='"accuracy"', new='"acc"')


def test_with_other_parameters_only_what_the_record_lacks_is_run(recorded):
    table = recorded(GRID | {"seed": range(3)}, CLAIMS="report")
    assert recorded.ran() == 3
    assert table["seed"].tolist() == [0, 0, 1, 1, 2, 2] * 3
    np.testing.assert_allclose(table["accuracy"][5], 1 + 2 + 1 / 3)
    assert len(pd.read_csv(recorded.results / "01_test.csv")) == 18


def test_results_of_other_code_are_not_mixed_with_new_ones(recorded):
    table = recorded(GRID, old="10 *", new="20 *", CLAIMS="report")
    assert recorded.ran() == 6
    np.testing.assert_allclose(table["accuracy"][0], 2)


def test_an_audit_that_was_asked_for_stamps_the_record_with_its_code(recorded):
    made = json.loads(recorded.manifest.read_text())["code"]
    renamed = {"old": "correct", "new": "right"}
    columns = {"old": "for n in range(2)", "new": "for n in range(0 + 2)"}
    recorded(**columns)
    assert json.loads(recorded.manifest.read_text())["audited"] == []
    with pytest.raises(AssertionError):
        recorded(**renamed, AUDIT="0.5")
    recorded(**columns, AUDIT="0.5")
    manifest = json.loads(recorded.manifest.read_text())
    stamp = manifest["audited"][0]["code"]
    assert experiments.is_stamped(manifest, made) and experiments.is_stamped(manifest, stamp)
    assert not experiments.is_stamped(manifest, made[::-1])
    for stamped in (manifest, *manifest["audited"]):
        stamped["versions"] = manifest["versions"] | {"keras": "0.1"}
    assert not experiments.is_stamped(manifest, made)
    assert manifest["audited"][0]["runs"] == 3
    assert manifest["audited"][0]["of"] == 6
    before = recorded.manifest.read_text()
    recorded(**columns, AUDIT="0.5")
    assert recorded.manifest.read_text() == before


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"weight": [[1]], "seed": [0]}, r"weight is \[1\]; a record holds names and numbers"),
        ({"weight": [None], "seed": [0]}, "weight is None"),
        ([{"weight": 1, "seed": 0}, {"weight": 1}], "has other names than"),
        ([{"weight": 1, "seed": 0}, {"seed": 0, "weight": 1}], "has other names than"),
        ({"weight": [1, "1"], "seed": [0]}, "has a setting twice"),
        ({"weight": [1 / 3], "seed": [0]}, "weight is 0.33.*; round it to seven digits"),
    ],
)
def test_a_grid_that_is_no_table_is_named(notebook, grid, message):
    with pytest.raises((TypeError, ValueError), match=message):
        notebook(grid, REPRODUCE="1")
    assert notebook.ran() == 0


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"first_epoch_loss"', '"loss"', "doesn't return first_epoch_loss"),
        ('"mark": "even"', '"mark": [1] if 1 else "even"', "mark is no number, name or boolean"),
        (
            '"correct": correct',
            '"correct": 1 * correct',
            "correct is int64 of shape .*row of bools",
        ),
        ('"correct": correct ^ (n == 1)', '"bits": b""', "bits is no number, name or boolean"),
        ('"mark"', '"mark" if n else "name"', "its dicts have other names"),
        ("return [", "return 1 / 0 and [", "weight 0.1, seed 0: ZeroDivisionError"),
    ],
)
def test_a_run_that_can_not_be_recorded_is_named(notebook, old, new, message):
    with pytest.raises(RuntimeError, match=f"(?s)6 of 6 runs failed.*{message}"):
        notebook(old=old, new=new, REPRODUCE="1")
    assert not notebook.record.exists()


def test_a_run_that_loads_a_network_has_no_first_epoch(notebook):
    grid = GRID | {"checksum": ["sha256-0f3a"]}
    without = {"old": '"first_epoch_loss": 1 / 3, ', "new": ""}
    with_checksum = {"old": "def run(weight, seed)", "new": "def run(weight, seed, checksum)"}
    source = notebook.source
    for change in (without, with_checksum):
        source = source.replace(change["old"], change["new"])
    table = notebook(grid, old=notebook.source, new=source, REPRODUCE="1")
    assert "first_epoch_loss" not in table
    notebook(grid, old=notebook.source, new=source, AUDIT="all")


def test_a_results_folder_that_can_not_be_written_is_named(notebook):
    notebook.results.write_text("no folder")
    with pytest.raises(OSError, match="results"):
        notebook(REPRODUCE="1")


WITH_NETWORKS = """
import keras
import numpy as np
from lab import experiment, networks

def measure(network):
    return {"accuracy": float(network(np.ones([1, 3]))[0, 0])}

def run(seed):
    keras.utils.set_random_seed(seed)
    # As large as a real one: as text, it is longer than a csv field may be by default.
    hidden = keras.layers.Dense(25_000)
    network = keras.Sequential([keras.Input([3]), hidden, keras.layers.Dense(1)])
    kept = {"network": networks.to_bytes(network)} if seed < 2 else {}
    return {"first_epoch_loss": 1.0} | measure(network) | kept
"""


def test_networks_are_kept_and_each_audit_measures_them(notebook, monkeypatch):
    import keras

    namespace = {"__name__": "__main__"}
    run = define(WITH_NETWORKS)
    exec(WITH_NETWORKS, namespace)
    options = {"tolerance": {"accuracy": 0.01}, "measure": namespace["measure"]}
    monkeypatch.setenv("REPRODUCE", "1")
    table = experiment("01_test", run, {"seed": range(3)}, **options)
    monkeypatch.delenv("REPRODUCE")
    assert list(table) == ["seed", "first_epoch_loss", "accuracy"]
    partial = notebook.results / "01_test.partial.csv"
    assert partial.read_text().count("\n") == 3
    monkeypatch.setenv("REPRODUCE", "1")
    experiment("01_test", run, {"seed": range(3)}, **options)
    monkeypatch.delenv("REPRODUCE")
    assert partial.read_text().count("\n") == 3, "what was finished was found again"
    files = sorted((notebook.results / "networks").iterdir())
    assert [file.name for file in files] == ["01_test_0.keras", "01_test_1.keras"]
    network = keras.saving.load_model(files[1])
    assert namespace["measure"](network)["accuracy"] == pytest.approx(table["accuracy"][1])
    experiment("01_test", run, {"seed": range(3)}, **options)

    without = define(WITH_NETWORKS.replace("seed < 2", "seed < 1"))
    monkeypatch.setenv("AUDIT", "all")
    with pytest.raises(AssertionError, match="seed 1: only one of record and repetition has a net"):
        experiment("01_test", without, {"seed": range(3)}, **options)
    monkeypatch.delenv("AUDIT")

    swapped = [file.read_bytes() for file in files]
    files[0].write_bytes(swapped[1])
    with pytest.raises(AssertionError, match=r"01_test_0.keras isn't the file that was recorded"):
        experiment("01_test", run, {"seed": range(3)}, **options)
    files[0].write_bytes(swapped[0])
    namespace["measure"] = lambda network: {"accuracy": 1.01 * table["accuracy"][0]}
    options = {"tolerance": {"accuracy": 1e-6}, "measure": namespace["measure"]}
    with pytest.raises(AssertionError, match=r"networks/01_test_0.keras: accuracy \(row 0\)"):
        experiment("01_test", run, {"seed": range(3)}, **options)


def test_a_bar_goes_over_all_experiments(notebook, capfd):
    for name, seconds in (("00_before", 30), ("02_after", 30)):
        notebook.results.mkdir(exist_ok=True)
        (notebook.results / f"{name}.json").write_text(json.dumps({"seconds": seconds}))
    run_folder = {"RUN_FOLDER": str(notebook.results.parent / "run")}
    # Without a record, 6 runs count 10 seconds each.
    for scope, percent in (("all", 25), ("01", 0)):
        notebook(REPRODUCE=scope, **run_folder)
        assert f"01_test, of all experiments: {percent} %" in capfd.readouterr().err
        (notebook.results / "01_test.partial.csv").unlink()


RUNS = """
import os, sys, time
from pathlib import Path
from lab import experiment, experiments

def run(number, folder):
    Path(folder, f"started-{number}-{os.getpid()}").touch()
    while number >= 5 and not Path(folder, "go").exists():
        time.sleep(0.05)
    return {"first_epoch_loss": number / 7, "accuracy": 0.1 * number}

if __name__ == "__main__":
    folder = sys.argv[1]
    experiments.RESULTS = Path(folder, "results")
    grid = {"number": range(8), "folder": [folder]}
    print(experiment("01_test", run, grid, tolerance={"accuracy": 0.1})["accuracy"].sum())
"""


def test_kill_in_the_middle_of_a_reproduction_loses_the_runs_in_flight_only(tmp_path):
    (tmp_path / "program.py").write_text(RUNS)
    command = [sys.executable, tmp_path / "program.py", str(tmp_path)]
    environment = {**os.environ, "REPRODUCE": "1", "RUN_FOLDER": str(tmp_path)}
    first = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    partial = tmp_path / "results" / "01_test.partial.csv"
    deadline = time.monotonic() + 60
    while not (partial.exists() and partial.read_text().count("\n") >= 5):
        assert time.monotonic() < deadline
        assert first.poll() is None
        time.sleep(0.1)
    first.send_signal(signal.SIGKILL)
    first.wait(30)
    time.sleep(3)  # Its workers end.
    before = set(tmp_path.glob("started-*"))
    (tmp_path / "go").touch()
    lines = partial.read_text().splitlines(keepends=True)
    partial.write_text("".join(lines[:-1]) + lines[-1][:-20])  # A power cut.
    second = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    np.testing.assert_allclose(float(second.stdout), 2.8)
    started = [path.name.split("-")[1] for path in set(tmp_path.glob("started-*")) - before]
    assert len(started) == 4, "three that were in flight or waiting, and the one cut in half"
    assert len(pd.read_csv(tmp_path / "results" / "01_test.csv")) == 8
    assert (Path(tmp_path) / "results" / "01_test.json").exists()


def test_a_dask_worker_that_is_killed_costs_no_more_than_its_runs(tmp_path):
    distributed = pytest.importorskip("distributed")
    (tmp_path / "program.py").write_text(RUNS)
    command = [sys.executable, tmp_path / "program.py", str(tmp_path)]
    with distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=None) as cluster:
        environment = {**os.environ, "REPRODUCE": "01", "RUN_FOLDER": str(tmp_path)}
        environment["DASK_SCHEDULER_ADDRESS"] = cluster.scheduler_address
        program = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        waiting = ["started-5-*", "started-6-*", "started-7-*"]
        deadline = time.monotonic() + 120
        while sum(len(list(tmp_path.glob(pattern))) for pattern in waiting) < 2:
            assert time.monotonic() < deadline and program.poll() is None
            time.sleep(0.1)
        os.kill(next(iter(cluster.workers.values())).pid, signal.SIGKILL)
        time.sleep(1)
        (tmp_path / "go").touch()
        output, _ = program.communicate(timeout=120)
    np.testing.assert_allclose(float(output), 2.8)
    started = [path.name.split("-")[1] for path in tmp_path.glob("started-*")]
    # The run in flight on the worker that was killed, and results that it hadn't handed over yet.
    assert 8 <= len(started) <= 12
