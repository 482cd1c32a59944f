"""Evidence: results at full size, recorded once and audited each time that a notebook runs."""

import base64
import contextlib
import csv
import hashlib
import io
import json
import math
import os
import platform
import re
from collections.abc import Callable, Iterable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from lab.data import ROOT
from lab.fingerprint import fingerprint
from lab.sweeps import clear_progress, rows_of, run_side_by_side, settings_of, versions

RESULTS = ROOT / "results"
# Relative. A repetition elsewhere differs by rounding, which an epoch magnified to 6.5e-3 at most,
# in 37 networks of notebook 07; half the learning rate makes a difference of at least 6e-2.
FIRST_EPOCH_TOLERANCE = 1.5e-2
AUDIT_SECONDS = 8  # For each experiment in the mean, so that all take two minutes on 2 cores.
LONGEST_RUN = 200  # Seconds. Longer ones wait for `make audit`, as a reader would wait for them.
csv.field_size_limit(2**31 - 1)  # A network is half a megabyte of text in a partial record.


def experiment(
    name: str,
    run: Callable[..., dict | list[dict]],
    grid: dict[str, Iterable] | list[dict[str, Any]],
    *,
    tolerance: dict[str, float],
    measure: Callable[[Any], dict] | None = None,
    audit: Callable[..., dict | list[dict]] | None = None,
) -> pd.DataFrame:
    """Return the recorded results of `run(**setting)` for each setting, after auditing some.

    The record is `results/NAME.csv`. Some of its settings are run again from scratch and must
    agree with it: as many as took 8 seconds of a core. Where a run took longer, say 40, that is one
    run for every fifth version of the code, and none where a run took over 200 seconds in the mean.
    A hash of the code decides whether and which. The environment variable AUDIT names
    another share of them, "all", or a number from 0 to 1; these are computed anew, even if the
    cache remembers them. With REPRODUCE, which `make reproduce` sets to "all" or the number of a
    notebook, all settings are run, and the results become the new record. What is finished by then
    is in `results/NAME.partial.csv`, from which the next attempt goes on.

    In a run with other parameters, when the runner sets CLAIMS to "report", settings that are not
    in the record are computed there and then.

    Args:
        name: starts with the number of the notebook, such as "04_strength".
        run: returns a dict, or several, such as one for each epoch, of numbers, and of boolean
            arrays with a value for each test digit, which are kept in `results/NAME.npz`. Among
            the numbers must be first_epoch_loss, the mean loss of the first epoch, which shows a
            changed training where final accuracies would not. What `run` refers to must have a
            fingerprint: see `lab.fingerprint`. A run that loads a network instead of training one
            has its `lab.networks.checksum` among the settings, so that a record is of that network.
        grid: as `sweep` takes it; its values are names and numbers.
        tolerance: for each result that a repetition elsewhere may not meet exactly, by how much it
            may differ; of a boolean array, in which share of its values.
        measure: if runs return trained networks for others to look at, as bytes made by
            `lab.networks.to_bytes` under the name "network" in their only or last dict: a function
            of one of them, a `keras.Model`, that returns results of that dict. The networks are
            kept in `results/networks/`, and each audit measures all of them. As nothing is trained,
            a tenth of the tolerance is allowed.
        audit: where `run` takes minutes, a faster function of the same arguments that returns some
            of its results. Audits that no AUDIT asks for call it instead.

    Returns:
        DataFrame in the order of the grid: a column for each name in the settings, and one for each
        result.

    Raises:
        AssertionError: that names the settings and numbers in which a repetition differs.
        FileNotFoundError, ValueError, TypeError: if there is no record, or one that doesn't fit
            the grid or the results, or if the grid or the results can't be recorded.
    """
    settings = settings_of(grid)
    _check(settings)
    code = fingerprint(run)
    if os.environ.get("REPRODUCE"):
        _reproduce(name, run, settings, code, tolerance)
        record, manifest = _read(_output_folder(), name, settings)
        _audit_networks(_output_folder(), name, measure, settings, tolerance, record, manifest)
        return record
    if os.environ.get("CLAIMS") == "report":
        return _read_or_run(name, run, settings, code)
    record, manifest = _read(RESULTS, name, settings)
    _audit_networks(RESULTS, name, measure, settings, tolerance, record, manifest)
    _audit(name, run, audit, settings, code, tolerance, record, manifest)
    return record


def is_stamped(manifest: dict[str, Any], code: str) -> bool:
    """Whether a record was made by this code with these libraries, or agreed with it in an audit.

    Args:
        manifest: of the record.
        code: the fingerprint of the code.
    """
    stamps = [manifest, *manifest["audited"]]
    return any(s["code"] == code and s["versions"] == versions() for s in stamps)


def checksums(folder: Path, manifest: dict[str, Any], name: str) -> dict[str, str]:
    """The SHA-256 of each file of a record, by its path in `results/`."""
    files = [f"{name}.csv", *([f"{name}.npz"] if manifest["arrays"] else []), *manifest["networks"]]
    return {file: hashlib.sha256((folder / file).read_bytes()).hexdigest() for file in files}


def _check(settings):
    for setting in settings:
        if list(setting) != list(settings[0]):
            raise ValueError(f"{setting} has other names than {settings[0]}; give all the same.")
        for name, value in setting.items():
            if not isinstance(value, (str, bool, int, float)):
                raise TypeError(
                    f"{name} is {value!r}; a record holds names and numbers only, by which the run "
                    "finds or builds what it needs."
                )
            if isinstance(value, float) and float(f"{value:.7g}") != value:
                raise ValueError(f"{name} is {value!r}; round it to seven digits, as records do.")
    if len(set(map(_key, settings))) < len(settings):
        raise ValueError("The grid has a setting twice; give each once.")


def _output_folder():
    """Where the runner collects what a notebook makes, until it is complete."""
    return Path(os.environ.get("RUN_FOLDER", ROOT)) / "results"


def _key(setting):
    """A setting as it is found again in a CSV file, where "25", 25 and 25.0 are the same."""
    key = dict(setting)
    for name, value in setting.items():
        with contextlib.suppress(ValueError):
            key[name] = float(value)
    return tuple(sorted(key.items()))


def _load(folder, name):
    """The numbers of a record and its manifest, as they are."""
    manifest = json.loads((folder / f"{name}.json").read_text())
    return pd.read_csv(folder / f"{name}.csv"), manifest


def _with_arrays(record, manifest, folder, name):
    for column, count in manifest["arrays"].items():
        with np.load(folder / f"{name}.npz") as archive:
            bits = np.unpackbits(archive[column], axis=1, count=count)
        record[column] = list(bits.astype(bool))
    return record


def _read(folder, name, settings):
    """The record and its manifest, if it holds just these settings, complete and in this order."""
    mend = f"`make reproduce NB={name[:2]}` computes it."
    try:
        record, manifest = _load(folder, name)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"The record {error.filename} is missing; {mend}") from error
    path, names = folder / f"{name}.csv", list(settings[0])
    absent = {*names, *manifest["measured"]} - {*record, *manifest["arrays"]}
    if absent:
        raise ValueError(f"{path} has no column {', '.join(sorted(absent))}; {mend}")
    found = list(_by_setting(record, names))
    missing = [setting for setting in settings if _key(setting) not in found]
    if missing:
        raise ValueError(f"{path} lacks {len(missing)} settings, such as {missing[0]}; {mend}")
    if found != list(map(_key, settings)) or _layout(record, manifest) != manifest["layout"]:
        raise ValueError(f"{path} has rows too many, too few or in another order; {mend}")
    return _with_arrays(record, manifest, folder, name), manifest


def _layout(record, manifest):
    """Hash what has no tolerance, settings and names, in their order."""
    exact = record.columns.difference(manifest["measured"], sort=False)
    return hashlib.sha256(record[exact].to_csv(index=False).encode()).hexdigest()


def _by_setting(record, names):
    """The rows of each setting, as dicts of their results."""
    by_setting = {}
    for row in record.to_dict("records"):
        key = _key({name: row.pop(name) for name in names})
        by_setting.setdefault(key, []).append(row)
    return by_setting


def _network_file(name, setting):
    """Where the network of a setting is, in `results/`."""
    values = [v if isinstance(v, str) else f"{v:g}" for v in setting.values()]
    return (
        "networks/"
        + "_".join([name, *(re.sub(r"[^\w.+-]+", "-", v, flags=re.ASCII) for v in values)])
        + ".keras"
    )


def _audit_networks(folder, name, measure, settings, tolerance, record, manifest):
    """Measure the networks beside a record, which must be those that it was written with."""
    import keras

    recorded = _by_setting(record, list(settings[0]))
    of_file = {_network_file(name, setting): setting for setting in settings}
    tight = {column: allowed / 10 for column, allowed in tolerance.items()}
    faults = []
    for file in manifest["networks"]:
        content = (folder / file).read_bytes()
        if hashlib.sha256(content).hexdigest() != manifest["sha256"][file]:
            faults.append(f"{file} isn't the file that was recorded")
            continue
        measured = measure(keras.saving.load_model(folder / file))
        expected = recorded[_key(of_file[file])][-1]
        expected = {column: expected[column] for column in measured}
        found = _differences([expected], _rounded([measured]), tight)
        faults += [f"{file}: {fault}" for fault in found]
    if faults:
        raise AssertionError(
            f"{len(faults)} numbers of the record {name} aren't those of the networks beside it. "
            f"Restore them, or let `make reproduce NB={name[:2]}` compute all anew:\n"
            + "\n".join(faults)
        )


def _read_or_run(name, run, settings, code):
    known = {}
    with contextlib.suppress(FileNotFoundError, KeyError):
        record, manifest = _load(RESULTS, name)
        if is_stamped(manifest, code):
            record = _with_arrays(record, manifest, RESULTS, name)
            known = _by_setting(record, list(settings[0]))
    waiting = [setting for setting in settings if _key(setting) not in known]
    if waiting:
        new = [list(map(_without_network, rows)) for rows in rows_of(run, waiting)]
        known |= zip(map(_key, waiting), new, strict=True)
    table = pd.DataFrame([setting | row for setting in settings for row in known[_key(setting)]])
    _output_folder().mkdir(parents=True, exist_ok=True)
    numbers = [column for column in table if not isinstance(table[column].iloc[0], np.ndarray)]
    table[numbers].to_csv(_output_folder() / f"{name}.csv", index=False)
    return table


def _audit(name, run, audit, settings, code, tolerance, record, manifest):
    share = os.environ.get("AUDIT")
    if share is None:
        run = audit or run
        seconds = max(manifest["seconds"] / manifest["runs"], 1)
        chance = int(hashlib.sha256(f"{code}{name}".encode()).hexdigest(), 16) / 2**256
        count = int(AUDIT_SECONDS / seconds + chance) if seconds <= LONGEST_RUN else 0
    else:
        number = pd.to_numeric("1" if share == "all" else share, errors="coerce")
        if not 0 <= number <= 1:
            raise ValueError(f"AUDIT is {share}; make it all, or a share from 0 to 1.")
        count = math.ceil(number * len(settings))

    def by_hash(setting):
        return hashlib.sha256(f"{code}{_key(setting)}".encode()).hexdigest()

    sample = sorted(settings, key=by_hash)[:count]
    if not sample:
        return
    recorded = _by_setting(record, list(settings[0]))
    faults = []
    repeated = rows_of(run, sample, fresh=share is not None, quiet=share is None)
    for setting, rows in zip(sample, repeated, strict=True):
        expected = recorded[_key(setting)]
        if run is audit:
            expected = [{k: v for k, v in row.items() if k in rows[0]} for row in expected]
        found = list(_differences(expected, _rounded(rows), tolerance))
        has_network = _network_file(name, setting) in manifest["networks"]
        if run is not audit and ("network" in rows[-1]) != has_network:
            found.append("only one of record and repetition has a network")
        faults += [f"{_short(setting)}: {fault}" for fault in found]
    if faults:
        raise AssertionError(
            f"{len(faults)} numbers of the record {name} aren't what a repetition gives, of "
            f"{len(sample)} settings that were run again. If the code is right as it is now, "
            f"`make reproduce NB={name[:2]}` computes all anew:\n" + "\n".join(faults)
        )
    if share is not None and not is_stamped(manifest, code):
        audited = {"code": code, "versions": versions(), "runs": len(sample), "of": len(settings)}
        audited["date"] = _today()
        _write_manifest(name, manifest | {"audited": [*manifest["audited"], audited]})


def _differences(recorded, repeated, tolerance):
    """Describe each number of a setting that differs by more than its tolerance."""
    shapes = [(len(rows), sorted(rows[0])) for rows in (recorded, repeated)]
    if shapes[0] != shapes[1]:
        yield "{} rows of {} are recorded, ".format(*shapes[0]) + "{} of {} repeated".format(
            *shapes[1]
        )
        return
    for number, (old, new) in enumerate(zip(recorded, repeated, strict=True)):
        for name in old:
            allowed = tolerance.get(name, 0)
            if name == "first_epoch_loss":
                allowed = FIRST_EPOCH_TOLERANCE * abs(old[name])
            if isinstance(old[name], np.ndarray):
                share = np.mean(old[name] != new[name])
                if share > allowed:
                    yield f"{name} (row {number}) differs in {share:.2%} of its values"
            elif old[name] != new[name] and not _are_close(old[name], new[name], allowed):
                yield f"{name} (row {number}) is recorded as {old[name]}, and now {new[name]}"


def _are_close(old, new, allowed):
    if isinstance(old, str) or isinstance(new, str):
        return False
    return abs(old - new) <= allowed or (math.isnan(old) and math.isnan(new))


def _rounded(rows):
    """Rows as they come back from a record."""
    return [
        {k: float(f"{v:.7g}") if isinstance(v, float) else v for k, v in row.items()}
        for row in map(_plain, map(_without_network, rows))
    ]


def _without_network(row):
    return {name: value for name, value in row.items() if name != "network"}


def _plain(row):
    return {k: v.item() if isinstance(v, np.generic) else v for k, v in row.items()}


def _reproduce(name, run, settings, code, tolerance):
    """Run all settings that the partial record lacks; then write the record and its manifest."""
    partial = RESULTS / f"{name}.partial.csv"
    made_with = json.dumps([code[:16], platform.python_version(), versions()])
    finished = _read_partial(partial, made_with)
    waiting = {_key(setting): setting for setting in settings if _key(setting) not in finished}
    failures = []
    with partial.open("a", newline="") as file, _progress(name, settings, waiting) as progress:
        for key, rows, seconds, error in run_side_by_side(run, waiting):
            progress()
            error = error or _fault(rows, waiting[key])
            if error:
                failures.append(f"{_short(waiting[key])}: {error}")
                continue
            line = made_with, json.dumps(waiting[key]), round(seconds, 1), _encode(rows)
            csv.writer(file).writerow(line)
            file.flush()
            os.fsync(file.fileno())
            finished[key] = rows, seconds
    if failures:
        raise RuntimeError(
            f"{len(failures)} of {len(settings)} runs failed; the others are in {partial}:\n"
            + "\n".join(failures)
        )
    _write_record(name, settings, finished, code, tolerance)


@contextlib.contextmanager
def _progress(name, settings, waiting):
    """A bar over all experiments that are reproduced, by the seconds that they took last time."""
    scope = os.environ["REPRODUCE"].replace("all", "")
    manifests = [path for path in RESULTS.glob(f"{scope}*.json") if path.stem != name]
    seconds = {path.stem: json.loads(path.read_text()).get("seconds", 0) for path in manifests}
    known = RESULTS / f"{name}.json"
    seconds[name] = (
        json.loads(known.read_text())["seconds"] if known.exists() else 10 * len(settings)
    )
    done = {other for other in seconds if other[:2] < name[:2]}
    if _output_folder() != RESULTS:
        done |= {other for other in seconds if (_output_folder() / f"{other}.json").exists()}
    each = seconds[name] / len(settings)
    initial = sum(seconds[other] for other in done - {name}) + each * (len(settings) - len(waiting))
    bar_format = "{desc}: {percentage:.0f} %|{bar}| {elapsed} gone, {remaining} left"
    with tqdm(
        desc=f"{name}, of all experiments",
        total=sum(seconds.values()),
        initial=initial,
        bar_format=bar_format,
        leave=False,
    ) as bar:
        yield lambda: bar.update(each)
    clear_progress()


def _fault(rows, setting):
    if "checksum" not in setting and not all("first_epoch_loss" in row for row in rows):
        return "the run doesn't return first_epoch_loss, the mean loss of its first epoch"
    if not isinstance(rows[-1].get("network", b""), bytes):
        return "network isn't bytes; make them by lab.networks.to_bytes"
    rows = [_plain(row) for row in [*rows[:-1], _without_network(rows[-1])]]
    for row in rows:
        if list(row) != list(rows[0]):
            return f"its dicts have other names, {list(row)} and {list(rows[0])}"
        for name, value in row.items():
            if isinstance(value, np.ndarray) and (value.dtype != bool or value.ndim != 1):
                return f"{name} is {value.dtype} of shape {value.shape}, not one row of bools"
            if not isinstance(value, (str, bool, int, float, np.ndarray)):
                return f"{name} is no number, name or boolean array"
    return None


def _read_partial(path, made_with):
    """The finished runs of this code, after dropping what a power cut left of a line."""
    path.parent.mkdir(exist_ok=True)
    lines, finished = [], {}
    for line in path.read_text().splitlines(keepends=True) if path.exists() else []:
        try:
            ((made, setting, seconds, rows),) = csv.reader([line], strict=True)
            rows = _decode(rows)
        except (ValueError, csv.Error):
            continue
        lines.append(line)
        if made == made_with:
            finished[_key(json.loads(setting))] = rows, float(seconds)
    _replace(path, "".join(lines).encode())
    return finished


def _encode(rows):
    def encode(value):
        if isinstance(value, np.ndarray):
            return {"bits": base64.b64encode(np.packbits(value)).decode(), "count": len(value)}
        if isinstance(value, bytes):
            return {"file": base64.b64encode(value).decode()}
        return value

    return json.dumps([{k: encode(v) for k, v in row.items()} for row in map(_plain, rows)])


def _decode(text):
    def decode(value):
        if isinstance(value, dict) and "file" in value:
            return base64.b64decode(value["file"])
        if isinstance(value, dict):
            packed = np.frombuffer(base64.b64decode(value["bits"]), "uint8")
            return np.unpackbits(packed, count=value["count"]).astype(bool)
        return value

    return [{k: decode(v) for k, v in row.items()} for row in json.loads(text)]


def _write_record(name, settings, finished, code, tolerance):
    rows = [s | _plain(row) for s in settings for row in finished[_key(s)][0]]
    networks = {_network_file(name, s): finished[_key(s)][0][-1].get("network") for s in settings}
    if len(networks) < len(settings):
        raise ValueError(f"Two settings of {name} would have networks of the same file name.")
    networks = {file: content for file, content in networks.items() if content}
    arrays = {k: len(v) for k, v in rows[0].items() if isinstance(v, np.ndarray)}
    numbers = pd.DataFrame(rows).drop(columns=[*arrays, *(["network"] if networks else [])])
    folder = _output_folder()
    (folder / "networks").mkdir(parents=True, exist_ok=True)
    for file, content in networks.items():
        _replace(folder / file, content)
    _replace(folder / f"{name}.csv", numbers.to_csv(index=False, float_format="%.7g").encode())
    if arrays:
        buffer = io.BytesIO()
        packed = {k: np.packbits([row[k] for row in rows], axis=1) for k in arrays}
        np.savez_compressed(buffer, **packed)
        _replace(folder / f"{name}.npz", buffer.getvalue())
    manifest = {
        "code": code,
        "audited": [],
        "runs": len(settings),
        "seconds": round(sum(finished[_key(setting)][1] for setting in settings)),
        "date": _today(),
        "processor": _processor(),
        "python": platform.python_version(),
        "versions": versions(),
        "measured": [k for k in (*tolerance, "first_epoch_loss") if k in numbers],
        "arrays": arrays,
        "networks": list(networks),
        "grid": {k: list(dict.fromkeys(s[k] for s in settings)) for k in settings[0]},
    }
    written = pd.read_csv(folder / f"{name}.csv")
    sums = {"layout": _layout(written, manifest), "sha256": checksums(folder, manifest, name)}
    _write_manifest(name, manifest | sums)


def _write_manifest(name, manifest):
    folder = _output_folder()
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / f"{name}.json", (json.dumps(manifest, indent=1) + "\n").encode())


def _replace(path, content):
    """Write a file so that it is either as it was or complete."""
    temporary = path.with_name(f".{path.name}")
    temporary.write_bytes(content)
    temporary.replace(path)


def _today():
    return date.today().isoformat()


def _processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(": ")[1] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def _short(setting):
    return ", ".join(f"{name} {value}" for name, value in setting.items())
