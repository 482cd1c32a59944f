"""Notebook 06 takes from notebook 04 the strengths that its rule chooses."""

from pathlib import Path

import nbformat
import pandas as pd

from scripts.results import best_strengths

ROOT = Path(__file__).resolve().parent.parent


def test_the_rule_takes_the_best_of_those_that_keep_clean_accuracy():
    trials = [(2, 0, 97.0, 70), (2, 1, 96.9, 80), (2, 3, 96.75, 90), (2, 9, 96.6, 95)]
    trials += [(1, 1, 97.1, 85), (1, 3, 96.8, 84)]
    rows = [
        {
            "norm": norm,
            "x_weight": float(w),
            "y_weight": 1.0,
            "clean, validation": clean + change,
            "noisy, validation": noisy + change,
        }
        for norm, w, clean, noisy in trials
        for change in (-0.1, 0.11)
    ]
    assert best_strengths(pd.DataFrame(rows)) == {2: 3.0, 1: 1.0}


def test_notebook_06_takes_the_best_strengths_of_notebook_04():
    notebook = nbformat.read(ROOT / "notebooks" / "06_robustness_noise.ipynb", as_version=4)
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    parameters = {}
    exec(cell.source, {"__builtins__": {}}, parameters)
    best = best_strengths(pd.read_csv(ROOT / "results" / "04_strength.csv"))
    assert {2: parameters["best_l2"], 1: parameters["best_l1"]} == best
