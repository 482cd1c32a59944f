"""Seconds per epoch of the gradient loss: as the notebooks train it, and as published.

Both train the 784-128-10 network on all of MNIST in batches of 100, in one process, in turn. The
published loop is a tf.function without XLA, called from Python on tf.data's batches.
"""

import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import tensorflow as tf
from keras.losses import mean_squared_error

import utils

REPETITIONS = 9


def make_published_epoch(x, y):
    model = utils.mnist_network()
    optimizer = keras.optimizers.Adam()
    gradient_loss = utils.get_gradient_loss_fn(
        lambda inputs: mean_squared_error(inputs[1], model(inputs[0]))
    )

    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = gradient_loss((x, y))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(100)

    def epoch():
        for batch in dataset:
            loss = step(*batch)
        return float(loss)

    return epoch


def make_notebook_epoch(x, y):
    trainer = utils.GradientLossModel(utils.mnist_network(), mean_squared_error)
    trainer.compile("adam", metrics=["accuracy"], jit_compile=True, steps_per_execution=100)
    dataset = utils.batches(x, y, 100)
    return lambda: trainer.fit(dataset, shuffle=False, verbose=0)


def main():
    (x, labels), _ = utils.load_mnist()
    y = keras.utils.to_categorical(labels)
    epochs = {
        "published loop": make_published_epoch(x, y),
        "fit, as in the notebooks": make_notebook_epoch(x, y),
    }
    seconds = {name: [] for name in epochs}
    for repetition in range(REPETITIONS + 1):
        for name, epoch in epochs.items():
            start = time.perf_counter()
            epoch()
            if repetition:  # The first one also traces and compiles.
                seconds[name].append(time.perf_counter() - start)
    for name, times in seconds.items():
        low, middle, high = min(times), statistics.median(times), max(times)
        print(f"{name:25} {middle:.2f} s per epoch (median; {low:.2f} to {high:.2f})")
    published, ours = (statistics.median(times) for times in seconds.values())
    print(f"ratio of the medians: {ours / published:.2f}")


if __name__ == "__main__":
    main()
