"""The results table of README.md, from records and figures. `make readme` writes it."""

import pandas as pd

from lab.data import ROOT
from lab.reporting import plus_minus

FIGURES, RESULTS = ROOT / "figures", ROOT / "results"
ALLOWED_LOSS = 0.3  # Of clean validation accuracy, in points.


def read(name):
    return pd.read_csv(FIGURES / f"{name}.csv")


def interval(values):
    return plus_minus(values, digits=2)


def reproduced():
    runs = pd.read_csv(RESULTS / "02_published.csv").query("epoch == epochs")
    accuracy = runs.pivot(index="seed", columns="objective", values="test accuracy")
    for objective, published in (("gradient loss", 97.85), ("cross-entropy", 97.82)):
        yield (
            f"{objective}, as published ({published} %), {len(accuracy)} seeds",
            f"test accuracy {interval(100 * accuracy[objective])} %",
        )


def matched():
    runs = pd.read_csv(RESULTS / "03_matched.csv").query("epoch == binned_epoch")
    accuracy = runs.pivot(index="seed", columns="objective", values="test_accuracy")
    yield (
        f"gradient loss, all else matched, after {runs['epoch'].max()} epochs",
        f"test accuracy {interval(accuracy['gradient loss'])} %",
    )
    for other in ("mean squared error", "cross-entropy"):
        difference = accuracy["gradient loss"] - accuracy[other]
        yield f"minus {other}", f"{interval(difference)} points; margin of equivalence 0.3"


def best_strengths(record):
    """The weight of the x-term with the best noisy validation accuracy, for each norm."""
    columns = ["clean, validation", "noisy, validation"]
    means = record.groupby(["norm", "x_weight", "y_weight"])[columns].mean()
    ((y_term_alone, _),) = means.xs(0.0, level="x_weight").to_numpy()
    eligible = means[means["clean, validation"] >= y_term_alone - ALLOWED_LOSS].reset_index()
    eligible = eligible[eligible["x_weight"] > 0].sort_values("noisy, validation")
    return eligible.groupby("norm")["x_weight"].last().to_dict()


def terms():
    strength = pd.read_csv(RESULTS / "04_strength.csv")
    best = best_strengths(strength)
    strength = strength.query("y_weight == 1")
    epochs = strength["epochs"].max()
    measured = ["clean", "noisy", "attacked"]
    strength = strength.set_index(["norm", "x_weight", "seed"])[measured].sort_index()
    without = strength.loc[2, 0.0]
    for norm, w, name in (
        (2, 1.0, "at its published strength"),
        (2, 78.4, "at that of the plain norm"),
        (1, best[1], "in the ℓ1 norm, as chosen on validation digits"),
    ):
        gain = strength.loc[norm, w] - without
        yield (
            f"the x-term, {name}, after {epochs} epochs",
            f"{interval(gain['clean'])} points of test accuracy, {interval(gain['noisy'])} with "
            f"noise, {interval(gain['attacked'])} under ten steps of PGD",
        )
    scale = pd.read_csv(RESULTS / "04_scale.csv").query("epoch == epochs")
    scale = scale.pivot(index="seed", columns=["objective", "ε"])["accuracy"]
    difference = scale["gradient loss"] - scale["25 × gradient loss"]
    yield (
        f"the factor 0.04, if Adam's ε is 1e-5, after {epochs} epochs",
        f"{interval(difference[1e-5])} points (1e-7, the default: {interval(difference[1e-7])})",
    )


def actions():
    runs = pd.read_csv(RESULTS / "05_map.csv")
    lowest = runs.groupby(["trained_by", "norm", "x_weight", "action"])["accuracy"].min()
    by_gradient, plainly = lowest.loc["gradient", 2, 1.0], lowest.loc["loss"]
    yield (
        f"losses that train by their gradient (over 90 % after {runs['epochs'].max()} epochs)",
        f"{sum(by_gradient > 90)} of {len(by_gradient)}; plainly {sum(plainly > 90)}",
    )


def noise():
    best = best_strengths(pd.read_csv(RESULTS / "04_strength.csv"))[2]
    runs = pd.read_csv(RESULTS / "06_noise.csv")
    epochs = runs["epochs"].max()
    corrupted = runs[(runs["strength"] == 0) & (runs["kind"] != "clean")]
    for what, of_kind in (
        ("Gaussian noise of standard deviation 0.4", runs.query("kind == 'Gaussian'")),
        ("15 corruptions of MNIST-C, mean", corrupted),
    ):
        of_kind = of_kind[of_kind["strength"].isin([0, 0.4])]
        accuracy = of_kind.groupby(["arm", "norm", "w", "seed"])["accuracy"].mean()
        for arm, name in (
            (("gradient loss", 2, 1), "gradient loss as published"),
            (("25 × gradient loss", 2, best), "gradient loss with the best weight in ℓ2"),
        ):
            difference = accuracy.loc[arm] - accuracy.loc["mean squared error", 2, 0]
            yield (
                f"{what}, after {epochs} epochs: {name} minus mean squared error",
                f"{interval(difference)} points",
            )


def attacked():
    finals = read("07_frontier")
    finals = finals[finals["goal"] == finals["goal"].min()]
    order = finals.groupby("family")["robust"].mean().sort_values(ascending=False)
    for family in order.index[:6]:
        runs = finals[finals["family"] == family]
        yield (
            f"{family}: accuracy under all attacks, ε = 0.1",
            f"{interval(runs['robust'])} %, clean {interval(runs['clean'])} %",
        )


def carried_over():
    scores = read("10_differences").set_index(["data", "objective", "seed"])["noisy"].sort_index()
    for data in scores.index.unique("data"):
        by_objective = scores[data].unstack("objective")
        plain = by_objective.pop("mean squared error")
        gains = [f"{interval(by_objective[name] - plain)}" for name in sorted(by_objective)]
        yield (
            f"{data.replace('_', ' ')}, with noise: gradient loss minus plain loss",
            f"{gains[0]} points at w = 1, {gains[1]} at w = 100",
        )


def cost():
    seconds = read("11_epoch_time").pivot(index="repetition", columns="contestant")["seconds"]
    seconds = seconds.loc[1:]  # The first epoch includes the compilation.
    ratio = seconds["gradient loss, Keras fit"] / seconds["plain loss, Keras fit"]
    yield (
        "seconds per epoch",
        f"{ratio.median():.2f} times those of the mean squared error (median)",
    )


def table():
    yield "| what | result | notebook |"
    yield "|---|---|---|"
    notebooks = {
        "02": reproduced,
        "03": matched,
        "04": terms,
        "05": actions,
        "06": noise,
        "07": attacked,
        "10": carried_over,
        "11": cost,
    }
    for number, results in notebooks.items():
        (path,) = FIGURES.parent.glob(f"notebooks/{number}_*.ipynb")
        for what, result in results():
            yield f"| {what} | {result} | [{number}](notebooks/{path.name}) |"
