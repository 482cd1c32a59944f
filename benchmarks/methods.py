"""Seconds for an epoch of each family of methods that notebook 07 compares, in turns."""

import json

import numpy as np
import pandas as pd

from lab.data import load_mnist
from lab.methods import METHODS, train_method

TURNS, EPOCHS = 3, 3


def main():
    (x, labels), *_ = load_mnist(validation=5000)
    random = np.random.default_rng(0)
    # The first variant of each.
    families = [method.family for method in METHODS.values()]
    names = [name for n, name in enumerate(METHODS) if families.index(families[n]) == n]
    rows = []
    for turn in range(TURNS):
        # In random order, as what runs before may leave the machine warm or busy.
        random.shuffle(names)
        for name in names:
            options = {"strength": METHODS[name].low, "learning_rate": 0.003, "ramp": 0.5}
            options |= {"epochs": EPOCHS, "activation": "relu"}
            # The first epoch also traces and compiles.
            seconds = min(train_method(name, x, labels, 0, **options).seconds[1:])
            rows.append({"family": METHODS[name].family, "turn": turn, "seconds": seconds})
    print(json.dumps(pd.DataFrame(rows).to_dict("records")))


if __name__ == "__main__":
    main()
