"""Notebook 06 takes from notebook 04 the strengths that its rule chooses."""

from pathlib import Path

import nbformat
import pandas as pd

ROOT = Path(__file__).resolve().parent.parent


ALLOWED_LOSS = 0.3  # Of clean validation accuracy, in points.


def best_strengths(record):
    """The weight of the x-term with the best noisy validation accuracy, for each norm."""
    columns = ["clean, validation", "noisy, validation"]
    means = record.groupby(["norm", "x_weight", "y_weight"])[columns].mean()
    ((y_term_alone, _),) = means.xs(0.0, level="x_weight").to_numpy()
    eligible = means[means["clean, validation"] >= y_term_alone - ALLOWED_LOSS].reset_index()
    eligible = eligible[eligible["x_weight"] > 0].sort_values("noisy, validation")
    return eligible.groupby("norm")["x_weight"].last().to_dict()


def test_notebook_06_takes_the_best_strengths_of_notebook_04():
    notebook = nbformat.read(ROOT / "notebooks" / "06_robustness_noise.ipynb", as_version=4)
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    parameters = {}
    exec(cell.source, {"__builtins__": {}}, parameters)
    best = best_strengths(pd.read_csv(ROOT / "results" / "04_strength.csv"))
    assert {2: parameters["best_l2"], 1: parameters["best_l1"]} == best
