"""Train a Keras model on any objective, through Keras's own `fit`."""

import copy
import io
import math
import numbers
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import cloudpickle
import keras
import numpy as np
import tensorflow as tf

from utils import Objective, ObjectiveModel, Stack


def mnist_network() -> keras.Model:
    """The published network: 784 pixels, 128 ReLU units, 10 softmax outputs (101,770 weights)."""
    return keras.Sequential(
        [
            keras.Input([784]),
            keras.layers.Dense(128, activation="relu"),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )


def batches(
    x: np.ndarray, y: np.ndarray, batch_size: int, order_seed: Any = None, stacked: bool = False
) -> tf.data.Dataset:
    """Lay the data out in batches beforehand, which `fit` reads faster than single samples.

    Pass `shuffle=False` to `fit` with it: Keras can't shuffle a dataset. With `tf.distribute`,
    pass the arrays to `fit` instead: it splits the batches of an array among the devices.

    Args:
        x, y: arrays of n samples each.
        batch_size: at most n. Without order_seed it must divide n; with it, the n % batch_size
            samples that come last in the order are left out.
        order_seed: two integers, or a `tf.Variable` of them that is read at the start of each
            pass. The order is `tf.random.experimental.stateless_shuffle(range(n), order_seed)`.
            Without it, the samples keep their order.
        stacked: all batches of a pass as one `Stack`, which an `ObjectiveModel` trains on faster.

    Returns:
        `tf.data.Dataset` of n // batch_size pairs, shapes (batch_size, ...), or of one `Stack`.

    Raises:
        ValueError: if the lengths of x and y differ, or batch_size doesn't fit them.
    """
    if len(x) != len(y):
        raise ValueError(f"x has {len(x)} samples and y has {len(y)}; pass as many of each.")
    if not 1 <= batch_size <= len(x):
        raise ValueError(f"batch_size is {batch_size}; make it 1 to {len(x)}, the samples given.")
    if order_seed is None and len(x) % batch_size:
        raise ValueError(f"batch_size {batch_size} doesn't divide the {len(x)} samples.")
    arrays = tf.constant(x), tf.constant(y)
    steps = len(x) // batch_size

    def lay_out(arrays):
        shapes = [[steps, batch_size, *array.shape[1:]] for array in arrays]
        stack = Stack(*map(tf.reshape, arrays, shapes))
        if stacked:
            return tf.data.Dataset.from_tensors(stack)
        return tf.data.Dataset.from_tensor_slices(tuple(stack))

    def shuffled(_):
        order = tf.random.experimental.stateless_shuffle(tf.range(len(x)), order_seed)
        return lay_out([tf.gather(array, order[: steps * batch_size]) for array in arrays])

    if order_seed is None:
        dataset = lay_out(arrays)
    else:
        dataset = tf.data.Dataset.from_tensors(0).flat_map(shuffled)
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(1 if stacked else steps))
    return _without_delay(dataset)


def _without_delay(dataset):
    options = tf.data.Options()
    # At the end of an epoch, fit would wait for the autotuner to wake, by up to a second.
    options.autotune.enabled = False
    # There is nothing to optimise in so few elements, and it is tried in each epoch.
    options.experimental_optimization.apply_default_optimizations = False
    return dataset.with_options(options)


class TrainingRun(NamedTuple):
    """What `train` returns: the trained Keras model, and for each epoch what it measured."""

    model: keras.Model
    history: dict[str, list[float]]
    seconds: list[float]


def train(
    network: Callable[[], keras.Model],
    objective: Objective | Callable[..., Objective],
    x: np.ndarray,
    y: np.ndarray,
    seed: int,
    *,
    epochs: int = 20,
    batch_size: int = 100,
    shuffle: bool = True,
    optimizer: str | dict[str, Any] = "adam",
    loss: Any = None,
    metrics: Iterable[Any] = ("accuracy",),
    validation_data: Any = None,
    callbacks: Iterable[keras.callbacks.Callback] = (),
    jit_compile: bool = True,
    schedules: dict[str, Sequence[float]] | None = None,
) -> TrainingRun:
    """Train a new network on an objective, the fast way: `fit` of an `ObjectiveModel` with XLA.

    Initial weights, batches and their order depend on the seed alone, so that runs with the same
    seed are pairs, whatever their objective. Sets the random seeds of Python, NumPy and Keras.
    A run like the one before it, but for the seed, the data and the epochs, is not compiled again:
    what else in the network depends on the seed must be a variable.

    Args:
        network: function that returns a new `keras.Model`, such as `mnist_network`.
        objective: function of (model, x, y) that returns the scalar to minimise, such as
            `gradient_loss_objective(keras.losses.mean_squared_error)`.
        x, y: arrays of n samples each, without NaN.
        seed: integer of at least 0.
        epochs, batch_size: positive integers.
        shuffle: reshuffle all samples in each epoch; otherwise they keep their order. See
            `batches`: the order_seed is the seed and the number of the epoch, from 0.
        optimizer: a name or a config, such as
            {"class_name": "Adam", "config": {"learning_rate": 1e-4}}.
        validation_data, loss, metrics: if there is validation data, what is reported on it after
            each epoch, as Keras takes them. The metrics are those of the training data, too.
        callbacks: Keras callbacks.
        jit_compile: use XLA. False starts about a second earlier, and takes a fifth longer for
            each step, which pays off in runs of up to a few thousand steps.
        schedules: values for each epoch of what changes during training, by name: "learning_rate",
            and arguments of the objective, such as a weight. If there are any of these, objective
            is a function of them, as scalar tensors, that returns the function to minimise. Runs
            that differ in these values share their compiled program.

    Returns:
        TrainingRun: the model, the history of `fit`, and the seconds that each epoch took with
        its validation. The first includes tracing and compiling.

    Raises:
        ValueError, TypeError: before training, for arguments that don't make sense.
        FloatingPointError: at the end of an epoch whose mean loss is NaN or infinite.
    """
    _check(x, y, seed=seed, epochs=epochs, batch_size=batch_size)
    if isinstance(optimizer, keras.optimizers.Optimizer):
        raise TypeError(
            "This optimizer would carry its state from run to run; pass its name or "
            "keras.optimizers.serialize(optimizer)."
        )
    if validation_data is not None and loss is None:
        raise ValueError("validation_data needs a loss to report; pass one, such as loss='mse'.")
    schedules = schedules or {}
    for name, values in schedules.items():
        if np.shape(values) != (epochs,) or not np.isfinite(values).all():
            raise ValueError(f"{name} is scheduled as {values}; give a number for each epoch.")
    # Keras changes a config that it reads.
    options = {"optimizer": copy.deepcopy(optimizer), "loss": loss, "metrics": list(metrics)}
    program = _compile(network, objective, x, y, batch_size, options, jit_compile, schedules)
    _, trainer, initial_optimizer, scheduled = program
    keras.utils.set_random_seed(seed)
    model = _built(network, x[:1])
    _copy(model.variables, trainer.model.variables)
    _copy(initial_optimizer, trainer.optimizer.variables)
    order_seed = tf.Variable([seed, 0], trainable=False, dtype="int64")
    times = [time.perf_counter()]

    def before_epoch(epoch, logs):
        order_seed.assign([seed, epoch])
        for name, variable in scheduled.items():
            variable.assign(schedules[name][epoch])

    def after_epoch(epoch, logs):
        times.append(time.perf_counter())
        if not math.isfinite(logs["loss"]):
            raise FloatingPointError(
                f"The loss is {logs['loss']} in epoch {epoch + 1}; lower the learning rate."
            )

    if isinstance(validation_data, tuple):
        validation_data = tf.data.Dataset.from_tensor_slices(validation_data).batch(1000)
        validation_data = _without_delay(validation_data)
    history = trainer.fit(
        batches(x, y, batch_size, order_seed if shuffle else None, stacked=True),
        epochs=epochs,
        validation_data=validation_data,
        callbacks=[*callbacks, keras.callbacks.LambdaCallback(before_epoch, after_epoch)],
        shuffle=False,
        verbose=0,
    ).history
    _copy(trainer.model.variables, model.variables)
    _programs.append(program)
    return TrainingRun(model, history, np.diff(times).tolist())


# The last run's key, trainer, new optimizer and what is scheduled, unless it was interrupted.
_programs = []


def _compile(network, objective, x, y, batch_size, options, jit_compile, schedules):
    shapes = [(array.shape[1:], str(array.dtype)) for array in (x, y)]
    config = keras.config.dtype_policy().name, keras.config.floatx(), keras.config.epsilon()
    names = sorted(schedules)
    key = _serialize([network, objective, shapes, batch_size, options, jit_compile, names, config])
    last = _programs.pop() if _programs else None
    if last and key and last[0] == key:
        return last
    scheduled = {
        name: tf.Variable(0.0, trainable=False) for name in names if name != "learning_rate"
    }

    def of_scheduled(model, x, y):
        # Called at each tracing, as what is computed of a variable outside of it would be constant.
        return objective(**scheduled)(model, x, y)

    trainer = ObjectiveModel(_built(network, x[:1]), of_scheduled if scheduled else objective)
    trainer.compile(**options, jit_compile=jit_compile, steps_per_execution=100)
    # All state exists before the tracing, as TensorFlow would otherwise trace twice.
    trainer.optimizer.build(trainer.trainable_variables)
    trainer.compute_metrics(x[:1], y[:1], trainer(x[:1]))
    rate = {"learning_rate": trainer.optimizer.learning_rate} if "learning_rate" in names else {}
    return key, trainer, [v.numpy() for v in trainer.optimizer.variables], scheduled | rate


class _Pickler(cloudpickle.Pickler):
    """Refuses what a compiled program would hold on to while its value is replaced."""

    def reducer_override(self, value):
        if isinstance(value, (tf.Variable, tf.Tensor, keras.Variable, keras.Layer)):
            raise TypeError
        return super().reducer_override(value)


def _serialize(value):
    """Bytes that are equal only if values, and the functions of a notebook, are; or None."""
    buffer = io.BytesIO()
    try:
        _Pickler(buffer).dump(value)
    except Exception:
        return None
    return buffer.getvalue()


def _check(x, y, **integers):
    for name, value in integers.items():
        least = 0 if name == "seed" else 1
        if not isinstance(value, numbers.Integral) or isinstance(value, bool):
            raise TypeError(f"{name} is {value!r}; make it an integer of at least {least}.")
        if value < least:
            raise ValueError(f"{name} is {value}; make it at least {least}.")
    for name, value in (("x", x), ("y", y)):
        if np.asarray(value).dtype.kind == "f" and not np.isfinite(value).all():
            first = np.argwhere(~np.isfinite(value))[0]
            raise ValueError(
                f"{name} holds {value[tuple(first)]} at {first.tolist()}; leave such samples out."
            )
    if integers["batch_size"] > len(x):
        raise ValueError(
            f"batch_size is {integers['batch_size']}, more than the {len(x)} samples; "
            "make it smaller."
        )


def _built(network, sample):
    model = network()
    if not model.built:
        model(sample)
    return model


def _copy(values, variables):
    for value, variable in zip(values, variables, strict=True):
        variable.assign(value)
