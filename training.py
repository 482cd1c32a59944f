"""Train a Keras model on any objective, through Keras's own `fit`.

Import from utils, as the notebooks do.
"""

import contextlib
import math
import time
from typing import NamedTuple

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from sweeps import check_run, fingerprint, sweep


class ObjectiveModel(keras.Model):
    """A Keras model that `fit` trains on any objective: the one place where training is changed.

    It shares its weights with `model`, and `predict`, `evaluate` and metrics are those of `model`.
    In the history of `fit`, "loss" is the objective (plus the regularisation losses of the model,
    if any). Metrics of the training data are computed in inference mode, before the update of
    each batch.

    Args:
        model: a `keras.Model` that maps x to predictions.
        objective: function of (model, x, y), a model and a batch, that returns the scalar to
            minimise. It calls the model with `training=True`.

    Raises:
        ValueError, TypeError: if `model` isn't a `keras.Model`, and if `fit` is given sample or
            class weights.
    """

    def __init__(self, model, objective, **kwargs):
        super().__init__(**kwargs)
        if not isinstance(model, keras.Model):
            raise TypeError(f"model must be a keras.Model, not {type(model).__name__}.")
        self.model = model
        self.objective = objective

    def call(self, inputs, training=None):
        return self.model(inputs, training=training)

    def train_step(self, data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        if sample_weight is not None:
            raise ValueError("An objective takes no sample_weight or class_weight: drop it.")

        # XLA merges this forward pass with that of the objective, unless dropout or the like
        # makes them differ.
        y_pred = self(x, training=False)
        with tf.GradientTape() as tape:
            loss = self.objective(self.model, x, y)
            if self.losses:
                loss += tf.add_n(self.losses)
            # Keras sums the gradients of all replicas, so each contributes its share of the mean.
            share = loss / tf.distribute.get_strategy().num_replicas_in_sync
            scaled = self.optimizer.scale_loss(share)
        variables = self.trainable_variables
        self.optimizer.apply_gradients(
            zip(tape.gradient(scaled, variables), variables, strict=True)
        )

        batch_size = tf.shape(keras.tree.flatten(x)[0])[0]
        self.metrics[0].update_state(loss, sample_weight=batch_size)
        return self.compute_metrics(x, y, y_pred)


def batches(x, y, batch_size, order_seed=None):
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

    Returns:
        `tf.data.Dataset` of n // batch_size pairs, shapes (batch_size, ...).

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
        return tf.data.Dataset.from_tensor_slices(tuple(map(tf.reshape, arrays, shapes)))

    def shuffled(_):
        order = tf.random.experimental.stateless_shuffle(tf.range(len(x)), order_seed)
        return lay_out([tf.gather(array, order[: steps * batch_size]) for array in arrays])

    if order_seed is None:
        dataset = lay_out(arrays)
    else:
        dataset = tf.data.Dataset.from_tensors(0).flat_map(shuffled)
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(steps))
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
    network,
    objective,
    x,
    y,
    seed,
    *,
    epochs=20,
    batch_size=100,
    shuffle=True,
    optimizer="adam",
    loss=None,
    metrics=("accuracy",),
    validation_data=None,
    callbacks=(),
    jit_compile=True,
):
    """Train a new network on an objective, the fast way: `fit` of an `ObjectiveModel` with XLA.

    Initial weights, batches and their order depend on the seed alone, so that runs with the same
    seed are pairs, whatever their objective. Sets the random seeds of Python, NumPy and Keras.
    A run like the one before it, but for the seed, the data and the epochs, is not compiled again.

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

    Returns:
        TrainingRun: the model, the history of `fit`, and the seconds that each epoch took with
        its validation. The first includes tracing and compiling.

    Raises:
        ValueError, TypeError: before training, for arguments that can't be.
        FloatingPointError: at the end of an epoch whose mean loss is NaN or infinite.
    """
    check_run(seed=seed, epochs=epochs, batch_size=batch_size, x=x, y=y)
    if isinstance(optimizer, keras.optimizers.Optimizer):
        raise TypeError(
            "This optimizer would carry its state from run to run; pass its name or "
            "keras.optimizers.serialize(optimizer)."
        )
    if validation_data is not None and loss is None:
        raise ValueError("validation_data needs a loss to report; pass one, such as loss='mse'.")
    compiled = _compiled(
        network,
        objective,
        x,
        y,
        batch_size,
        optimizer=optimizer,
        loss=loss,
        metrics=list(metrics),
        jit_compile=jit_compile,
    )
    _, trainer, initial_optimizer = compiled
    keras.utils.set_random_seed(seed)
    model = _built(network, x[:1])
    _copy(model.variables, trainer.model.variables)
    _copy(initial_optimizer, trainer.optimizer.variables)
    order_seed = tf.Variable([seed, 0], trainable=False, dtype="int64")
    times = [time.perf_counter()]

    def before_epoch(epoch, logs):
        order_seed.assign([seed, epoch])

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
        batches(x, y, batch_size, order_seed if shuffle else None),
        epochs=epochs,
        validation_data=validation_data,
        callbacks=[*callbacks, keras.callbacks.LambdaCallback(before_epoch, after_epoch)],
        shuffle=False,
        verbose=0,
    ).history
    _copy(trainer.model.variables, model.variables)
    _compiled.last.append(compiled)
    return TrainingRun(model, history, np.diff(times).tolist())


def train_matched(objectives, seeds, **options):
    """Train a network on each objective with each seed, side by side: a `sweep` of `train`.

    All but the objective is the same for runs with the same seed, so these are pairs.

    Args:
        objectives: dict from the name of each objective to the function.
        seeds: how many; they are 0, 1 and so on.
        options: the other arguments of `train`.

    Returns:
        `pandas.Series` of each `TrainingRun`, indexed by objective and seed.
    """
    runs = pd.MultiIndex.from_product([objectives, range(seeds)], names=["objective", "seed"])
    settings = [{"objective": objectives[name], "seed": seed, **options} for name, seed in runs]
    return pd.Series(sweep(train, settings), runs)


def _compiled(network, objective, x, y, batch_size, **arguments):
    key = object()
    shapes = [(array.shape[1:], str(array.dtype)) for array in (x, y)]
    # What has no fingerprint, such as a variable, can't be known to be the same.
    with contextlib.suppress(Exception):
        key = fingerprint([network, objective, shapes, batch_size, arguments])
    last = _compiled.last.pop() if _compiled.last else None
    if last and last[0] == key:
        return last
    trainer = ObjectiveModel(_built(network, x[:1]), objective)
    trainer.compile(**arguments, steps_per_execution=100)
    # All state exists before the tracing, as TensorFlow would otherwise trace twice.
    trainer.optimizer.build(trainer.trainable_variables)
    trainer.compute_metrics(x[:1], y[:1], trainer(x[:1]))
    return key, trainer, [variable.numpy() for variable in trainer.optimizer.variables]


# The last run's fingerprint, ObjectiveModel and new optimizer, unless the run was interrupted. As
# a global it would be among the values that the results of a sweep depend on.
_compiled.last = []


def _built(network, sample):
    model = network()
    if not model.built:
        model(sample)
    return model


def _copy(values, variables):
    for value, variable in zip(values, variables, strict=True):
        variable.assign(value)
