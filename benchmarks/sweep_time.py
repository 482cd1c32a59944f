"""Eight runs one after another with all threads, against the same in a sweep. Each in its turn.

Each way is a process of its own, as a user would start it; its start-up counts.
"""

import json
import subprocess
import sys
import tempfile
import time

REPETITIONS = 5
RUNS = 8
EPOCHS = 5


def run(seed):
    import keras

    from lab.data import load_mnist
    from lab.training import mnist_network, train
    from utils import gradient_loss_objective

    (x, labels), _ = load_mnist()
    objective = gradient_loss_objective(keras.losses.mean_squared_error)
    y = keras.utils.to_categorical(labels)
    return train(mnist_network, objective, x, y, seed, epochs=EPOCHS).history


def one_after_another():
    for seed in range(RUNS):
        run(seed)


def sweep():
    import lab

    with tempfile.TemporaryDirectory() as cache:
        lab.sweep(run, {"seed": range(RUNS)}, cache=cache)


def main():
    rows = []
    for repetition in range(1, REPETITIONS + 1):
        for way in (one_after_another, sweep):
            start = time.perf_counter()
            subprocess.run(
                [sys.executable, __file__, way.__name__], check=True, stderr=subprocess.DEVNULL
            )
            seconds = time.perf_counter() - start
            rows.append({"way": way.__name__, "repetition": repetition, "seconds": seconds})
    print(json.dumps(rows))


if __name__ == "__main__":
    if sys.argv[1:]:
        {"one_after_another": one_after_another, "sweep": sweep}[sys.argv[1]]()
    else:
        main()
