"""How the cost of the gradient loss, over that of the plain loss, grows with the network."""

import json
import multiprocessing
import resource
import sys
import time
from functools import partial

import keras
import numpy as np
from keras.losses import mean_squared_error

from lab.data import load_mnist
from lab.training import batches
from utils import ObjectiveModel, gradient_loss_objective, loss_objective

REPETITIONS = 9
PRODUCTS_PER_EPOCH = 12e9  # Multiplications and additions: about 0.2 s, to dwarf fit's overhead.
OBJECTIVES = {
    "plain": loss_objective(mean_squared_error),
    "gradient": gradient_loss_objective(mean_squared_error),
}


def dense_network(width=128, depth=1):
    hidden = [keras.layers.Dense(width, activation="relu") for _ in range(depth)]
    output = keras.layers.Dense(10, activation="softmax")
    return keras.Sequential([keras.Input([784]), *hidden, output])


def convolutional_network():
    """That of notebook 12."""
    return keras.Sequential(
        [
            keras.Input([784]),
            keras.layers.Reshape([28, 28, 1]),
            keras.layers.Conv2D(16, 4, strides=2, activation="gelu"),
            keras.layers.Conv2D(32, 4, strides=2, activation="gelu"),
            keras.layers.Flatten(),
            keras.layers.Dense(100, activation="gelu"),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )


def count_products(model):
    """Multiply-adds for one sample: of all layers, and of the first one that has weights."""
    counts = [
        np.prod(layer.kernel.shape) * np.prod(layer.output.shape[1:-1])
        for layer in model.layers
        if hasattr(layer, "kernel")
    ]
    return int(sum(counts)), int(counts[0])


def train_an_epoch(*arguments):
    make_epoch(*arguments)()


def make_epoch(network, objective, x, y, batch_size):
    keras.utils.set_random_seed(0)
    trainer = ObjectiveModel(network(), objective)
    # XLA's convolutions are slower than TensorFlow's own.
    jit_compile = network is not convolutional_network
    trainer.compile("adam", jit_compile=jit_compile, steps_per_execution=100)
    dataset = batches(x, y, batch_size, stacked=True)
    return lambda: trainer.fit(dataset, shuffle=False, verbose=0)


def measure_peak(connection, train, *arguments):
    """Send by how many MB the memory of this process peaks above what it has, while it trains."""
    # Kilobytes on Linux, bytes on macOS.
    unit = 2**20 if sys.platform == "darwin" else 2**10
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    train(*arguments)
    connection.send((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / unit)


def in_a_fork(function, *arguments):
    """Call it where TensorFlow is imported, but hasn't allocated anything yet."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=function, args=(sender, *arguments))
    process.start()
    process.join()
    return receiver.recv()


def choose_samples(network, batch_size, data):
    products, _ = count_products(network())
    samples = int(np.clip(PRODUCTS_PER_EPOCH / (6 * products), batch_size, 60000))
    samples -= samples % batch_size
    return [array[:samples] for array in data]


def measure_time(network, batch_size, x, y):
    epochs = {
        name: make_epoch(network, objective, x, y, batch_size)
        for name, objective in OBJECTIVES.items()
    }
    for epoch in epochs.values():
        epoch()  # Traces and compiles.
    random = np.random.default_rng(0)
    for repetition in range(1, REPETITIONS + 1):
        # In random order, as what runs before may leave the machine warm or busy.
        for name in random.permutation(list(epochs)):
            start = time.perf_counter()
            epochs[name]()
            seconds = time.perf_counter() - start
            yield {"objective": name, "repetition": repetition, "seconds": seconds}
    keras.utils.clear_session()


def main():
    (x, labels), _ = load_mnist()
    data = x, keras.utils.to_categorical(labels)
    cases = [("batch size", size, dense_network, size) for size in (50, 100, 500, 1000, 5000)]
    for width in (64, 128, 256, 512, 1024, 2048):
        cases.append(("width", width, partial(dense_network, width), 100))
    for depth in (1, 2, 4, 8):
        cases.append(("depth", depth, partial(dense_network, 128, depth), 100))
    cases.append(("convolutional", 1, convolutional_network, 100))

    # All forks before TensorFlow computes here: it doesn't survive a fork after that.
    peaks = {
        (axis, value, name): in_a_fork(
            measure_peak, train_an_epoch, network, objective, x[:10000], data[1][:10000], batch_size
        )
        for axis, value, network, batch_size in cases
        for name, objective in OBJECTIVES.items()
    }
    rows = []
    for axis, value, network, batch_size in cases:
        products, products_of_first_layer = count_products(network())
        used = choose_samples(network, batch_size, data)
        for row in measure_time(network, batch_size, *used):
            rows.append(
                {
                    "axis": axis,
                    "value": value,
                    "products": products,
                    "products_of_first_layer": products_of_first_layer,
                    "samples": len(used[0]),
                    **row,
                    "peak_memory_mb": peaks[axis, value, row["objective"]],
                }
            )
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
