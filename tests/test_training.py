"""`train` against a training loop written out by hand, and on two devices against one."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from cells import define
from keras.losses import mean_squared_error

from lab import training
from utils import gradient_loss_objective, loss_objective

RANDOM = np.random.default_rng(0)
X = RANDOM.random([210, 12]).astype("float32")
Y = np.eye(4, dtype="float32")[RANDOM.integers(4, size=210)]
PLAIN = loss_objective(mean_squared_error)
GRADIENT_LOSS = gradient_loss_objective(mean_squared_error)


def network():
    return keras.Sequential(
        [
            keras.Input([12]),
            keras.layers.Dense(16, activation="relu"),
            keras.layers.Dense(4, activation="softmax"),
        ]
    )


def train(objective=GRADIENT_LOSS, x=X, y=Y, seed=3, **options):
    options = {"epochs": 2, "batch_size": 50, "jit_compile": False, **options}
    return training.train(network, objective, x, y, seed, **options)


def weights(run):
    return np.concatenate([weight.ravel() for weight in run.model.get_weights()])


def train_by_hand(strength, shuffle, seed=3, epochs=2):
    """Double backpropagation of this strength, eagerly, without get_gradient_loss_fn and fit."""
    keras.utils.set_random_seed(seed)
    model, optimizer = network(), keras.optimizers.Adam()
    losses = []
    for epoch in range(epochs):
        order = tf.random.experimental.stateless_shuffle(range(200), [seed, epoch]).numpy()
        for step in range(4):
            chosen = (order if shuffle else np.arange(200))[50 * step : 50 * step + 50]
            x, y = tf.constant(X[chosen]), tf.constant(Y[chosen])
            with tf.GradientTape() as outer:
                with tf.GradientTape() as inner:
                    inner.watch(x)
                    loss = tf.reduce_mean((y - model(x)) ** 2, axis=1)
                gradient = inner.gradient(loss, x)
                total = tf.reduce_mean(loss) + strength * tf.reduce_mean(gradient**2)
            gradients = outer.gradient(total, model.trainable_variables)
            optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
            losses.append(float(total))
    losses = np.reshape(losses, [epochs, 4]).mean(axis=1)
    return np.concatenate([weight.ravel() for weight in model.get_weights()]), losses


def scaled_gradient_loss(model, x, y):
    """For 4 outputs, the mean of (dS/dy)^2 is (4/4^2) S: times 4, S has the factor 1."""
    return 4 * GRADIENT_LOSS(model, x, y)


@pytest.mark.parametrize(("shuffle", "jit_compile"), [(True, True), (False, True), (True, False)])
@pytest.mark.parametrize(("objective", "strength"), [(PLAIN, 0), (scaled_gradient_loss, 4)])
def test_equals_a_loop_by_hand(objective, strength, shuffle, jit_compile):
    run = train(objective, X[:200], Y[:200], shuffle=shuffle, jit_compile=jit_compile)
    expected, losses = train_by_hand(strength, shuffle)
    np.testing.assert_allclose(weights(run), expected, atol=1e-5)
    np.testing.assert_allclose(run.history["loss"], losses, rtol=1e-5)


def test_initial_weights_depend_on_the_seed_alone():
    frozen = {"class_name": "SGD", "config": {"learning_rate": 0.0}}
    first = train(PLAIN, seed=5, optimizer=frozen)
    np.random.seed(1)
    tf.random.uniform([3])
    other_objective = train(seed=5, optimizer=frozen, epochs=1, batch_size=30)
    np.testing.assert_array_equal(weights(first), weights(other_objective))
    assert not np.allclose(weights(first), weights(train(seed=6, optimizer=frozen)))


def test_the_same_run_twice_gives_the_same_bits():
    first, second = train(jit_compile=True), train(jit_compile=True)
    assert weights(first).tobytes() == weights(second).tobytes()
    assert first.history == second.history


def test_a_schedule_is_followed_and_its_values_share_a_program(monkeypatch):
    def objective(weight):
        return gradient_loss_objective(mean_squared_error, (2 * weight, 1.0))

    def separately(strengths, rates):
        """One epoch after another, each with a program and an optimizer of its own values."""
        model = None
        for epoch, (strength, rate) in enumerate(zip(strengths, rates, strict=True)):
            sgd = {"class_name": "SGD", "config": {"learning_rate": rate}}
            start = model.get_weights() if model else None

            def initial(start=start):
                model = network()
                if start:
                    model.set_weights(start)
                return model

            order = tf.random.experimental.stateless_shuffle(range(210), [3, epoch]).numpy()
            model = training.train(
                initial, gradient_loss_objective(mean_squared_error, (2 * strength, 1.0)), X[order],
                Y[order], 3, epochs=1, batch_size=210, shuffle=False, optimizer=sgd,
            ).model  # fmt: skip
        return model

    for strengths, rates in (([0.5, 20.0], [0.3, 0.2]), ([7.0, 1.0], [0.1, 0.3])):
        sgd = {"class_name": "SGD", "config": {"learning_rate": 1.0}}
        schedules = {"weight": strengths, "learning_rate": rates}
        options = {"optimizer": sgd, "batch_size": 210, "jit_compile": True}
        run = train(objective, schedules=schedules, **options)
        monkeypatch.setattr(training, "ObjectiveModel", None)  # Nothing is compiled again.
        train(objective, schedules={name: v[::-1] for name, v in schedules.items()}, **options)
        monkeypatch.undo()
        expected = separately(strengths, rates)
        for weight, other in zip(run.model.weights, expected.weights, strict=True):
            np.testing.assert_allclose(weight, other, atol=1e-6)


@pytest.mark.parametrize("values", [[1.0], [1.0, np.nan], 1.0])
def test_a_schedule_that_does_not_fit_is_named(values):
    with pytest.raises(ValueError, match=r"learning_rate is scheduled as .*each epoch"):
        train(schedules={"learning_rate": values})


def network_with_dropout():
    layers = network().layers
    return keras.Sequential([keras.Input([12]), layers[0], keras.layers.Dropout(0.5), layers[1]])


@pytest.mark.parametrize(
    ("network", "jit_compile"), [(network, True), (network_with_dropout, False)]
)
def test_a_program_that_is_used_again_changes_nothing(network, jit_compile):
    def run(seed, x):
        return training.train(
            network, GRADIENT_LOSS, x, Y, seed, epochs=2, batch_size=50,
            validation_data=(x, Y), loss="mse", jit_compile=jit_compile,
        )  # fmt: skip

    first = run(3, X)
    trainer = training._programs[0][1]
    before = weights(first)
    again = run(4, X[::-1])
    assert training._programs[0][1] is trainer
    np.testing.assert_array_equal(weights(first), before)
    training._programs.clear()
    anew = run(4, X[::-1])
    assert training._programs[0][1] is not trainer
    np.testing.assert_array_equal(weights(again), weights(anew))
    assert again.history == anew.history


SCALED = """
FACTOR = 1.0
def scaled(model, x, y):
    return FACTOR * gradient_loss(model, x, y)
"""


def test_a_program_is_not_used_again_for_an_objective_that_changed():
    scaled = define(SCALED, "scaled")
    vars_of_notebook = scaled.__globals__
    vars_of_notebook["gradient_loss"] = GRADIENT_LOSS
    once = train(scaled)
    program = training._programs[0][1]
    train(scaled)
    assert training._programs[0][1] is program
    vars_of_notebook["FACTOR"] = 2.0
    twice = train(scaled)
    np.testing.assert_allclose(twice.history["loss"][0] / once.history["loss"][0], 2, rtol=0.01)


def test_a_program_is_not_used_again_with_another_variable():
    def final_loss(weight):
        class Stop(keras.callbacks.Callback):
            def on_epoch_begin(self, epoch, logs=None):
                weight.assign(0)

        objective = gradient_loss_objective(mean_squared_error, (weight, 0.0))
        return train(objective, callbacks=[Stop()]).history["loss"][-1]

    for kind in (tf.Variable, keras.Variable):
        assert final_loss(kind(1.0)) == final_loss(kind(1.0)) == 0


def test_a_program_is_not_used_again_after_an_interruption():
    class Interrupt(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs):
            raise KeyboardInterrupt

    options = {"validation_data": (X, Y), "loss": "mse"}
    with pytest.raises(KeyboardInterrupt):
        train(**options, callbacks=[Interrupt()])
    # Keras would go on with the validation data of the interrupted run.
    other = train(**options | {"validation_data": (X[:50], Y[:50])})
    accuracy = other.history["val_accuracy"][-1]
    predicted = other.model.predict(X[:50], verbose=0).argmax(axis=1)
    np.testing.assert_allclose(accuracy, np.mean(predicted == Y[:50].argmax(axis=1)))


class Unbuilt(keras.Model):
    def __init__(self):
        super().__init__()
        self.layer = keras.layers.Dense(4, activation="softmax")

    def call(self, inputs):
        return self.layer(inputs)


def test_an_objective_and_a_network_of_ones_own():
    factor = tf.Variable(1.0)  # No program is used again with a variable: the next may differ.

    def objective(model, x, y):
        return factor * PLAIN(model, x, y)

    run = training.train(Unbuilt, objective, X, Y, 0, epochs=2, batch_size=50)
    assert run.history["loss"][1] < run.history["loss"][0]
    factor.assign(0)
    still = training.train(Unbuilt, objective, X, Y, 0, epochs=2, batch_size=50)
    assert still.history["loss"] == [0, 0]


def test_returns_the_history_and_the_seconds_of_each_epoch():
    run = train(epochs=3, validation_data=(X, Y), loss="mse")
    assert set(run.history) == {"loss", "accuracy", "val_accuracy", "val_loss"}
    assert [len(values) for values in run.history.values()] == [3] * 4
    assert len(run.seconds) == 3
    assert min(run.seconds) > 0
    accuracy = np.mean(run.model.predict(X, verbose=0).argmax(axis=1) == Y.argmax(axis=1))
    np.testing.assert_allclose(run.history["val_accuracy"][-1], accuracy)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"epochs": 0}, ValueError, "epochs is 0; make it at least 1"),
        ({"epochs": 1.5}, TypeError, "epochs is 1.5; make it an integer"),
        ({"seed": -1}, ValueError, "seed is -1; make it at least 0"),
        ({"seed": True}, TypeError, "seed is True; make it an integer"),
        ({"batch_size": 0}, ValueError, "batch_size is 0; make it at least 1"),
        ({"batch_size": 211}, ValueError, "batch_size is 211, more than the 210 samples"),
        ({"x": np.full_like(X, np.nan)}, ValueError, r"x holds nan at \[0, 0\]; leave"),
        ({"y": np.full_like(Y, np.inf)}, ValueError, "y holds inf"),
        ({"y": Y[:9]}, ValueError, "x has 210 samples and y has 9"),
        ({"shuffle": False}, ValueError, "batch_size 50 doesn't divide the 210 samples"),
        ({"validation_data": (X, Y)}, ValueError, "validation_data needs a loss"),
        ({"optimizer": keras.optimizers.Adam()}, TypeError, "pass its name or keras.opt"),
    ],
)
def test_bad_input_is_named_with_the_mend(changes, error, message):
    with pytest.raises(error, match=message):
        train(**changes)


def test_a_run_that_diverges_stops_and_says_where():
    def square(model, x, y):
        return tf.reduce_mean(model(x) / 0.0)

    with pytest.raises(FloatingPointError, match=r"The loss is (nan|inf) in epoch 1; lower"):
        train(square)


TWO_DEVICES = """
import keras, numpy as np, tensorflow as tf
import utils

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
x = np.random.default_rng(0).normal(size=(2000, 8)).astype("float32")
y = keras.utils.to_categorical(x[:, 0] > 0)

def fit(strategy):
    with strategy.scope():
        keras.utils.set_random_seed(0)
        layers = [keras.Input([8]), keras.layers.Dense(16, "relu", kernel_regularizer="l2")]
        model = keras.Sequential([*layers, keras.layers.Dense(2, "softmax")])
        trainer = utils.GradientLossModel(model, keras.losses.mean_squared_error)
        trainer.compile("adam", metrics=["accuracy"])
    before = model.get_weights()
    history = trainer.fit(x, y, batch_size=100, shuffle=False, verbose=0).history
    assert trainer.optimizer.iterations == 20
    assert all(np.abs(a - b).max() > 1e-3 for a, b in zip(before, model.get_weights()))
    return [*model.get_weights(), *history.values()]

devices = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
assert devices.num_replicas_in_sync == 2
for one, two in zip(fit(tf.distribute.get_strategy()), fit(devices), strict=True):
    np.testing.assert_allclose(one, two, rtol=0, atol=1e-5)
"""


def test_two_devices_equal_one():
    run = subprocess.run([sys.executable, "-c", TWO_DEVICES], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
