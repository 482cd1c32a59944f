"""The arithmetic alone: the 5 large products of each step, by NumPy's matrix product."""

import numpy as np
from serve import BATCH_SIZE, STEPS, serve

random = np.random.default_rng(0)
x, kernel, hidden = (
    random.random(shape, dtype="float32")
    for shape in [(BATCH_SIZE, 784), (784, 128), (BATCH_SIZE, 128)]
)


def epoch():
    for _ in range(STEPS):
        x @ kernel  # The network's first layer.
        hidden @ kernel.T  # The gradient at x.
        x @ kernel  # The same, differentiated: with respect to its first factor
        x.T @ hidden  # and to its second.
        x.T @ hidden  # The gradient of the first layer's weights.
    return np.nan


serve(epoch)
