"""The tables of README.md, from records and figures. `make readme` writes them."""

import pandas as pd

from lab.data import ROOT
from lab.reporting import plus_minus

FIGURES, RESULTS = ROOT / "figures", ROOT / "results"


def attacked():
    """The table at the top: leading ways of training, clean and under attack, and their time."""
    finals = read("07_frontier")
    finals = finals[finals["goal"] == finals["goal"].min()].set_index("family")
    fashion = pd.read_csv(RESULTS / "10_finals.csv").set_index("method")
    seconds = read("07_cost").pivot(index="turn", columns="family", values="seconds")
    times = seconds.div(seconds["cross-entropy"], axis=0).median()
    yield (
        "| each pixel may change by 0.1 | MNIST, clean | under attack | Fashion-MNIST, clean "
        "| under attack | time of an epoch |"
    )
    yield "|---|---|---|---|---|---|"
    for family, method, name in (
        ("cross-entropy", "cross-entropy", "plain training"),
        ("gradient loss", "gradient loss, root of cross-entropy, ℓ1", "**gradient loss**"),
        ("FGSM training", "FGSM training", "FGSM training"),
        ("PGD training", "PGD training", "PGD training"),
        ("TRADES", "TRADES, radius 0.1", "TRADES"),
    ):
        pairs = (finals.loc[family], fashion.loc[method])
        accuracies = [plus_minus(runs[kind]) for runs in pairs for kind in ("clean", "robust")]
        yield f"| {name} | {' | '.join(accuracies)} | {times[family]:.1f} |"


def read(name):
    return pd.read_csv(FIGURES / f"{name}.csv")


def interval(values):
    return plus_minus(values, digits=2)


def reproduced():
    runs = pd.read_csv(RESULTS / "02_published.csv").query("epoch == epochs")
    accuracy = 100 * runs[runs["objective"] == "gradient loss"]["test accuracy"]
    yield (
        f"gradient loss, as published (97.85 %), {len(accuracy)} seeds",
        f"test accuracy {interval(accuracy)} %",
    )


def matched():
    runs = pd.read_csv(RESULTS / "03_matched.csv").query("epoch == binned_epoch")
    accuracy = runs.pivot(index="seed", columns="objective", values="test_accuracy")
    differences = [
        interval(accuracy["gradient loss"] - accuracy[other])
        for other in ("mean squared error", "cross-entropy")
    ]
    yield (
        "gradient loss minus mean squared error; minus cross-entropy; all else equal, after "
        f"{runs['epoch'].max()} epochs",
        f"{differences[0]}; {differences[1]} points; margin of equivalence 0.3",
    )


def terms():
    strength = pd.read_csv(RESULTS / "04_strength.csv").query("y_weight == 1 and norm == 2")
    strength = strength.set_index(["x_weight", "seed"])[["clean", "noisy"]].sort_index()
    gain = strength.loc[1.0] - strength.loc[0.0]
    yield (
        "what the x-term adds, at its published strength",
        f"{interval(gain['clean'])} points of test accuracy, {interval(gain['noisy'])} with noise",
    )


def noise():
    runs = pd.read_csv(RESULTS / "06_noise.csv")
    corrupted = runs[(runs["strength"] == 0) & (runs["kind"] != "clean")]
    accuracy = corrupted.groupby(["arm", "norm", "w", "seed"])["accuracy"].mean()
    difference = accuracy.loc["gradient loss", 2, 1] - accuracy.loc["mean squared error", 2, 0]
    yield (
        "15 corruptions of MNIST-C, mean: gradient loss as published minus mean squared error",
        f"{interval(difference)} points",
    )


def carried_over():
    larger = pd.read_csv(RESULTS / "10_larger_finals.csv").set_index("method")
    for method in ("PGD training", "gradient loss, root of cross-entropy, ℓ1"):
        runs = larger.loc[method]
        yield (
            f"{method.split(',')[0]}, tuned, MNIST, two hidden layers of 256 units, ε = 0.1",
            f"{interval(runs['robust'])} % under attack, {interval(runs['clean'])} % clean",
        )
    of_recipe = pd.read_csv(RESULTS / "10_recipe.csv").set_index("data")
    for data, runs in of_recipe.groupby(level="data", sort=False):
        yield (
            f"gradient loss by the recipe, untuned, {data}, ε = 0.1",
            f"{interval(runs['robust'])} % under PGD, {interval(runs['clean'])} % clean",
        )


def cost():
    seconds = read("13_epoch_time").pivot(index="repetition", columns="contestant")["seconds"]
    seconds = seconds.loc[1:]  # The first epoch includes the compilation.
    ratio = seconds["gradient loss, Keras fit"] / seconds["plain loss, Keras fit"]
    yield (
        "seconds per epoch, gradient loss",
        f"{ratio.median():.2f} times those of the mean squared error (median)",
    )


def table():
    yield "| what | result | notebook |"
    yield "|---|---|---|"
    notebooks = {
        "02": reproduced,
        "03": matched,
        "04": terms,
        "06": noise,
        "10": carried_over,
        "13": cost,
    }
    for number, results in notebooks.items():
        (path,) = FIGURES.parent.glob(f"notebooks/{number}_*.ipynb")
        for what, result in results():
            yield f"| {what} | {result} | [{number}](notebooks/{path.name}) |"
