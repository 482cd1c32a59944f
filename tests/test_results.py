"""The records in results/ belong to the notebooks as they are now."""

import json
from pathlib import Path

import nbformat
import pytest
from cells import define, definitions, experiments_of
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook
from test_fingerprint import NOTEBOOK

from lab.experiments import checksums, is_stamped
from lab.fingerprint import fingerprint

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
EXPERIMENTS = [(path, *pair) for path in NOTEBOOKS for pair in experiments_of(path).items()]


def test_each_experiment_has_a_record_and_each_record_an_experiment():
    recorded = {path.stem for path in (ROOT / "results").glob("*.json")}
    assert {name for _, name, _ in EXPERIMENTS} == recorded
    files = {path.name for path in (ROOT / "results").glob("*.*")}
    unfinished = {name for name in files if name.endswith(".partial.csv")}
    expected = {f"{name}.{kind}" for name in recorded for kind in ("csv", "json", "npz")}
    assert files - unfinished <= expected


def test_the_networks_are_few_and_each_belongs_to_a_record():
    manifests = [json.loads(path.read_text()) for path in (ROOT / "results").glob("*.json")]
    kept = sorted(file for manifest in manifests for file in manifest["networks"])
    networks = (ROOT / "results" / "networks").glob("*")
    assert sorted(f"networks/{path.name}" for path in networks) == kept
    assert len(kept) <= 55


@pytest.mark.parametrize(("path", "name", "run"), EXPERIMENTS, ids=[e[1] for e in EXPERIMENTS])
def test_a_record_was_computed_or_audited_with_the_present_code(path, name, run):
    manifest = json.loads((ROOT / "results" / f"{name}.json").read_text())
    assert path.name.startswith(name[:2])
    assert is_stamped(manifest, fingerprint(definitions(path)[run])), (
        f"The code behind results/{name}.csv has changed since, or the version of a library. If "
        f"results should be the same, `make audit NB={name[:2]}` runs a tenth again and stamps "
        "the record; "
        f"`make reproduce NB={name[:2]}` computes all of it anew."
    )


def test_no_record_was_changed_by_hand():
    for path in (ROOT / "results").glob("*.json"):
        manifest = json.loads(path.read_text())
        assert checksums(path.parent, manifest, path.stem) == manifest["sha256"], path.stem


def test_the_fingerprint_from_cells_is_that_in_a_kernel(tmp_path):
    head, tail = NOTEBOOK.split("def helper")
    sources = [head, "print('other work')", f"def helper{tail}"]
    sources.append("from lab.fingerprint import fingerprint\nprint(fingerprint(run))")
    # Closures aren't literals: a run that refers to one can't be recorded from a notebook's cells.
    sources = [
        s.replace("double(add(Shift().apply(helper(value))))", "helper(value)") for s in sources
    ]
    notebook = new_notebook(cells=[new_code_cell(source) for source in sources])
    nbformat.write(notebook, tmp_path / "01_test.ipynb")
    run = definitions(tmp_path / "01_test.ipynb")["run"]
    NotebookClient(notebook, kernel_name="python3").execute()
    assert notebook.cells[-1].outputs[-1].text.split()[-1] == fingerprint(run)
    assert fingerprint(run) != fingerprint(define(NOTEBOOK))
