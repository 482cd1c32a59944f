"""How the notebooks report: figures with their numbers, confidence intervals, claims.

Import from utils, as the notebooks do.
"""

import os
from pathlib import Path

import numpy as np
from scipy import stats

FIGURES = Path(__file__).resolve().parent / "figures"


def save_figure(figure, name, table):
    """Save a matplotlib figure as `figures/name.png`, its numbers beside it as `figures/name.csv`.

    The environment variable FIGURES names another folder: `make run` and `make test` set it, so
    that only a complete run replaces the figures.

    Args:
        figure: `matplotlib.figure.Figure`.
        name: starts with the number of the notebook, such as "01_training".
        table: `pandas.DataFrame` that holds every number that the figure shows.
    """
    folder = Path(os.environ.get("FIGURES", FIGURES))
    folder.mkdir(parents=True, exist_ok=True)
    # The version of matplotlib in the metadata would change the file without changing the figure.
    figure.savefig(folder / f"{name}.png", metadata={"Software": None})
    table.to_csv(folder / f"{name}.csv", index=False, float_format="%.6g", lineterminator="\n")


def half_width(values):
    """Half the width of the 95 % confidence interval of a mean, by Student's t-distribution.

    Args:
        values: n >= 2 numbers, one for each seed.
    """
    return stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)


def plus_minus(values, digits=1):
    """A mean with the half-width of its 95 % confidence interval, such as "97.2 ± 0.1".

    Args:
        values: n >= 2 numbers, one for each seed. If one is NaN, the result is "–".
        digits: how many decimals are written.
    """
    values = np.asarray(values, float)
    if np.isnan(values).any():
        return "–"
    mean = round(values.mean(), digits) + 0.0  # Not -0.0.
    return f"{mean:.{digits}f} ± {half_width(values):.{digits}f}".replace("-", "−")


def exceeds(values, threshold):
    """Whether the mean of the values is above the threshold by at least 3 standard errors.

    Args:
        values: n >= 2 numbers, one for each seed; paired differences to compare two methods.

    Raises:
        ValueError: for fewer than two values, which have no standard error.
    """
    values = np.asarray(values, float)
    if values.size < 2:
        raise ValueError(f"A standard error takes at least two values, not {values.size}.")
    return bool(values.mean() - 3 * stats.sem(values) > threshold)


def within(differences, margin):
    """Whether the mean of paired differences is within ± margin, by 3 standard errors or more.

    Arguments and errors are those of `exceeds`.
    """
    differences = np.asarray(differences, float)
    return exceeds(differences, -margin) and exceeds(-differences, -margin)


def verdict(differences):
    """In a word: "ahead" if the mean of paired differences `exceeds` 0, "behind" if it is below.

    "–" is neither. Arguments and errors are those of `exceeds`.
    """
    differences = np.asarray(differences, float)
    if exceeds(differences, 0):
        return "ahead"
    return "behind" if exceeds(-differences, 0) else "–"


def check_claims(claims, enforce=True):
    """Print PASS and the claim for each claim that holds, and raise if one doesn't.

    Args:
        claims: dict from the text of a claim, its threshold in parentheses, to whether it holds.
        enforce: False in a run with other than the published parameters, which may miss claims:
            they are then printed as NOT MET instead.

    Raises:
        AssertionError: that names the claims that don't hold, if `enforce`.
    """
    for claim, holds in claims.items():
        print("PASS" if holds else "NOT MET", claim)
    failed = [claim for claim, holds in claims.items() if not holds]
    if not enforce:
        print(f"Not the published parameters: no claim is enforced, {len(failed)} not met.")
    elif failed:
        raise AssertionError("These claims do not hold: " + "; ".join(failed))
