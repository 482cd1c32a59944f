"""How the notebooks report: intervals, claims, figures, and one look for each method."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from pandas.api.typing import SeriesGroupBy
from scipy import stats

from lab.data import ROOT

FIGURES = ROOT / "figures"
BLUE, ORANGE, GREEN, GREY = "#1b4f8a", "#d9822b", "#4a9d6e", "#8a8a8a"
# Colours by family; within a family, and in black and white, dashes and markers tell them apart.
LOOKS = {
    name: {"color": color, "linestyle": line, "marker": marker}
    for name, color, line, marker in (
        ("gradient loss", BLUE, "-", "o"),
        ("mean squared error", ORANGE, "--", "s"),
        ("cross-entropy", GREEN, "-.", "^"),
        ("25 × gradient loss", BLUE, ":", "D"),
        ("gradient loss, ℓ1 norm", BLUE, "-.", "P"),
        ("gradient loss, chosen w", BLUE, "--", "X"),
        ("0.04 × mean squared error", ORANGE, ":", "v"),
        ("linearised margin", BLUE, "--", "D"),
        ("double backpropagation, ℓ1", GREEN, "-", "s"),
        ("double backpropagation, ℓ2", GREEN, "--", "p"),
        ("curvature regularisation", GREEN, "-.", "h"),
        ("TRADES", ORANGE, "-.", ">"),
        ("interval bounds", ORANGE, ":", "d"),
        ("Jacobian regularisation", GREEN, "--", "D"),
        ("PGD training", ORANGE, "-", "v"),
        ("FGSM training", ORANGE, "--", "P"),
        ("Gaussian noise", GREY, "-", "X"),
        ("label smoothing", GREY, "--", "*"),
        ("weight decay", GREY, "-.", "<"),
    )
}


def save_figure(figure: Figure, name: str, table: pd.DataFrame | None = None) -> None:
    """Save a figure as `figures/name.png`, and its numbers beside it as `figures/name.csv`.

    The environment variable RUN_FOLDER names another folder: `make run` and `make test` set it,
    so that only a complete run replaces the figures.

    Args:
        figure: what to save.
        name: starts with the number of the notebook, such as "01_training".
        table: holds every number that the figure shows, unless a record in `results/` does.
    """
    folder = Path(os.environ.get("RUN_FOLDER", FIGURES))
    folder.mkdir(parents=True, exist_ok=True)
    # The version of matplotlib in the metadata would change the file without changing the figure.
    figure.savefig(folder / f"{name}.png", metadata={"Software": None})
    if table is not None:
        path = folder / f"{name}.csv"
        table.to_csv(path, index=False, float_format="%.6g", lineterminator="\n")


def draw_mean(
    axis: Axes,
    groups: SeriesGroupBy,
    positions: ArrayLike | None = None,
    *,
    band: bool = False,
    horizontal: bool = False,
    **style: Any,
) -> None:
    """Draw the mean of each group with its 95 % confidence interval.

    Args:
        axis: where to draw.
        groups: a grouped column, such as `runs.groupby("epoch")["accuracy"]`: the values of all
            seeds in each group.
        positions: of the groups, along the other axis; their keys by default.
        band: draw a line through the means with a band, rather than points with error bars.
        horizontal: the values are those of the horizontal axis.
        style: options of `Axes.plot`, such as a label and a look of LOOKS.
    """
    mean, error = groups.mean(), groups.agg(half_width)
    positions = mean.index if positions is None else positions
    if band:
        (line,) = axis.plot(positions, mean, **style)
        ends = mean - error, mean + error
        axis.fill_between(positions, *ends, color=line.get_color(), alpha=0.25, linewidth=0)
        return
    points = (mean, positions) if horizontal else (positions, mean)
    bars = {"xerr" if horizontal else "yerr": error}
    axis.errorbar(*points, **bars, **{"marker": "o", "capsize": 3, **style, "linestyle": "none"})


def half_width(values: ArrayLike) -> float:
    """Half the width of the 95 % confidence interval of a mean, by Student's t-distribution.

    Args:
        values: n >= 2 numbers, one for each seed.
    """
    return stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)


def prediction_interval(values: ArrayLike) -> tuple[float, float]:
    """Where one further run would lie in 95 of 100 cases, by Student's t-distribution.

    Args:
        values: n >= 2 numbers, one for each seed.
    """
    values = np.asarray(values, float)
    half = half_width(values) * np.sqrt(len(values) + 1)
    return values.mean() - half, values.mean() + half


def plus_minus(values: ArrayLike, digits: int = 1) -> str:
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


def verdict(differences: ArrayLike) -> str:
    """In a word: "ahead" if the mean of paired differences is surely above 0, "behind" if below.

    "–" is neither. What is sure, and errors, are as in `Claims.above`.
    """
    differences = np.asarray(differences, float)
    if _is_above(differences, 0):
        return "ahead"
    return "behind" if _is_above(-differences, 0) else "–"


def bootstrap_interval(
    correct: ArrayLike, other: ArrayLike, resamples: int = 10_000
) -> tuple[float, float]:
    """The 95 % interval of a mean difference in accuracy that covers seeds and test digits.

    It resamples both, independently of each other and with replacement, by the percentile
    bootstrap; the generator is seeded, so the same arrays give the same interval. See A. Owen, "The
    pigeonhole bootstrap", Annals of Applied Statistics 1, 2007.

    Args:
        correct: whether a method was right, shape (seeds, digits).
        other: the same of another method; its runs are paired by their seeds.
        resamples: how often both are drawn.

    Returns:
        Lower and upper end, in percentage points, of the first method's accuracy minus the other's.

    Raises:
        ValueError: for arrays of other than two dimensions, or of different shapes.
    """
    correct, other = np.asarray(correct, "float32"), np.asarray(other, "float32")
    if correct.ndim != 2 or correct.shape != other.shape:
        raise ValueError(
            f"The shapes are {correct.shape} and {other.shape}; make both (seeds, digits)."
        )
    seeds, digits = correct.shape
    differences = correct - other
    # The digits that never differ count together, as one column that is left out of the product.
    differences = differences[:, differences.any(axis=0)]
    count = differences.shape[1]
    chances = np.append(np.full(count, 1 / digits), 1 - count / digits)
    generator = np.random.default_rng(0)
    of_seeds = generator.multinomial(seeds, np.full(seeds, 1 / seeds), resamples)
    of_digits = generator.multinomial(digits, chances, resamples)[:, :count]
    totals = np.einsum("rd,rd->r", of_seeds.astype("float32") @ differences, of_digits)
    means = totals / (seeds * digits)
    low, high = np.percentile(100 * means, [2.5, 97.5])
    return float(low), float(high)


def minus(
    runs: pd.DataFrame, method: str, other: str, column: str, by: str = "method"
) -> np.ndarray:
    """The differences of a result between two methods, paired by their seeds and in their order.

    Args:
        runs: a row for each run, with columns "seed", `by` and `column`.
        method, other: values in the column `by`.
        column: numbers, or arrays of one shape.
        by: which column names the methods.

    Returns:
        Array, shape (seeds, ...).

    Raises:
        ValueError: if the two don't have the same seeds, at least one, each once.
    """
    of_method, of_other = (runs[runs[by] == name].sort_values("seed") for name in (method, other))
    seeds = list(of_method["seed"])
    if not seeds or seeds != list(of_other["seed"]) or len(set(seeds)) < len(seeds):
        raise ValueError(
            f"{method} has the seeds {seeds} and {other} {list(of_other['seed'])}; give both the "
            "same, each once, so that they are pairs."
        )
    return np.stack(of_method[column]) - np.stack(of_other[column])


def compare_under_attack(runs: pd.DataFrame, ours: str, by: str = "method") -> pd.DataFrame:
    """Each other method minus ours, clean and under attack, in percentage points.

    Args:
        runs: a row for each run, with columns "seed", `by`, "clean", "robust", and "withstands",
            boolean arrays of which images withstand every attack.
        ours: the method in the column `by` that the others are compared with.
        by: which column names the methods.

    Returns:
        DataFrame with a row for each other method: for both accuracies the mean difference with its
        interval, and its `verdict`; and the `bootstrap_interval` of the one under attack.
    """
    rows = {}
    for method in runs[by].unique():
        if method == ours:
            continue
        row = rows[method] = {}
        for column in ("clean", "robust"):
            differences = minus(runs, method, ours, column, by)
            row[column] = plus_minus(differences, digits=2)
            row[f"{column}, verdict"] = verdict(differences)
        pair = [
            np.stack(runs[runs[by] == name].sort_values("seed")["withstands"])
            for name in (method, ours)
        ]
        low, high = bootstrap_interval(*pair)
        row["robust, with images"] = f"{low:.2f} to {high:.2f}".replace("-", "−")
    return pd.DataFrame(rows).T


def equivalence_p(differences: ArrayLike, margin: float) -> float:
    """The p-value of equivalence within ± margin: the larger one of two one-sided t-tests (TOST).

    See D. J. Schuirmann, Journal of Pharmacokinetics and Biopharmaceutics 15, 1987.

    Args:
        differences: n >= 2 paired differences, one for each seed.
        margin: in the same units.
    """
    above = stats.ttest_1samp(differences, -margin, alternative="greater").pvalue
    below = stats.ttest_1samp(differences, margin, alternative="less").pvalue
    return float(max(above, below))


def holm(p_values: ArrayLike) -> np.ndarray:
    """P-values adjusted for their number, in the order and shape given.

    If all below 0.05 are called significant, one or more of them is so by chance in at most 5 % of
    such tables. See S. Holm, Scandinavian Journal of Statistics 6, 1979.

    Args:
        p_values: of all comparisons in one table, any shape.
    """
    p_values = np.asarray(p_values, float)
    order = np.argsort(p_values, axis=None)
    factors = np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.maximum.accumulate(np.minimum(p_values.ravel()[order] * factors, 1))
    return adjusted.reshape(p_values.shape)


class Claims:
    """What a notebook claims: each line states its threshold once, and `check` raises if it fails.

    In the text of a claim, {} stands for the threshold.
    """

    def __init__(self) -> None:
        self._claims: list[tuple[str, bool]] = []

    def above(self, values: ArrayLike, threshold: float, text: str) -> None:
        """Claim that a mean over seeds is above the threshold, by the t-test.

        It is if a one-sided test says so at the level at which a normal distribution is three
        standard errors away: p < 0.00135, which takes 6.6 standard errors with five seeds.

        Args:
            values: n >= 2 numbers, one for each seed, paired differences to compare two methods;
                or a single number, which has no interval and is compared as it is.
            threshold: what the mean is to be above.
            text: with {} for the threshold.

        Raises:
            ValueError: for a sequence of fewer than two values, which has no standard error.
        """
        values = np.asarray(values, float)
        holds = _is_above(values, threshold) if values.ndim else values > threshold
        self.holds(holds, text.format(f"{threshold:g}"))

    def below(self, values: ArrayLike, threshold: float, text: str) -> None:
        """Claim that a mean over seeds is below the threshold, as `above` does."""
        negative = -np.asarray(values, float)
        holds = _is_above(negative, -threshold) if negative.ndim else -negative < threshold
        self.holds(holds, text.format(f"{threshold:g}"))

    def within(self, differences: ArrayLike, margin: float, text: str) -> None:
        """Claim that the mean of paired differences is surely within ± margin, as `above` does."""
        differences = np.asarray(differences, float)
        holds = _is_above(differences, -margin) and _is_above(-differences, -margin)
        self.holds(holds, text.format(f"{margin:g}"))

    def holds(self, condition: bool, text: str) -> None:
        """Claim that a condition holds that is no threshold on a number."""
        self._claims.append((text, bool(condition)))

    def check(self) -> None:
        """Print PASS and the text of each claim that holds, and raise if one doesn't.

        In a run with other parameters, which may miss claims, the runner sets the environment
        variable CLAIMS to "report": claims that fail are then only said to be NOT MET.

        Raises:
            AssertionError: that names the claims that don't hold.
        """
        for text, holds in self._claims:
            print("PASS" if holds else "NOT MET", text)
        failed = [text for text, holds in self._claims if not holds]
        if os.environ.get("CLAIMS") == "report":
            print(f"Not the published parameters: no claim is enforced, {len(failed)} not met.")
        elif failed:
            raise AssertionError("These claims do not hold: " + "; ".join(failed))


def _is_above(values, threshold):
    if values.size < 2:
        raise ValueError(f"A standard error takes at least two values, not {values.size}.")
    quantile = stats.t.isf(stats.norm.sf(3), values.size - 1)
    return bool(values.mean() - quantile * stats.sem(values) > threshold)
