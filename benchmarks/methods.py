"""Seconds and memory for an epoch of the methods that are compared, in turns.

usage: methods.py dense (the families of notebook 07) or convolutional (those of notebook 12)
"""

import json
import sys
from functools import partial

import keras
import numpy as np
from growth import convolutional_network, in_a_fork, measure_peak

from lab.data import load_mnist
from lab.methods import METHODS, dense_network
from lab.training import train

TURNS, EPOCHS = 5, 4
FAMILIES = [method.family for method in METHODS.values()]
# The first variant of each.
FIRST = [name for n, name in enumerate(METHODS) if FAMILIES.index(FAMILIES[n]) == n]
CONVOLUTIONAL = {
    "cross-entropy",
    "gradient loss",
    "double backpropagation, ℓ1",
    "curvature regularisation",
    "FGSM training",
    "PGD training",
    "TRADES",
}
# The network, the families, and of how many digits an epoch is: all or a fifth, as it takes long.
NETWORKS = {
    "dense": (partial(dense_network, "128", "relu"), set(FAMILIES), 55_000),
    "convolutional": (convolutional_network, CONVOLUTIONAL, 11_000),
}


def train_some(kind, name, x, y, epochs):
    """Train by a method as notebooks 07 and 12 do; return the seconds of each epoch."""
    return train(
        NETWORKS[kind][0],
        lambda strength: METHODS[name].objective(strength),
        x,
        y,
        seed=0,
        epochs=epochs,
        metrics=(),
        schedules={"strength": [METHODS[name].low] * epochs},
        jit_compile=kind == "dense",
    ).seconds


def main():
    kind = sys.argv[1]
    _, families, samples = NETWORKS[kind]
    names = [name for name in FIRST if METHODS[name].family in families]
    (x, labels), *_ = load_mnist(validation=5000)
    data = x[:samples], keras.utils.to_categorical(labels[:samples], 10).astype("float32")
    few = [array[:10_000] for array in data]
    # All forks before TensorFlow computes here: it doesn't survive a fork after that.
    peaks = {name: in_a_fork(measure_peak, train_some, kind, name, *few, 1) for name in names}
    random = np.random.default_rng(0)
    rows = []
    for turn in range(TURNS):
        # In random order, as what runs before may leave the machine warm or busy.
        random.shuffle(names)
        for name in names:
            # The first epoch also traces and compiles.
            seconds = min(train_some(kind, name, *data, EPOCHS)[1:])
            row = {"family": METHODS[name].family, "turn": turn, "seconds": seconds}
            rows.append(row | {"peak_memory_mb": peaks[name]})
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
