"""The methods of notebook 07: their trials, their objectives, and the recipe that trains them."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from lab import methods
from lab.methods import METHODS, dense_network, gradient_loss, train_method, trials_of
from lab.objectives import cross_entropy, squared_error
from utils import root_of_cross_entropy

TRIAL = {"strength": 0.5, "learning_rate": 0.004, "ramp": 0.5, "epochs": 8, "activation": "relu"}


@pytest.fixture
def digits():
    random = np.random.default_rng(0)
    return random.random((200, 784), "float32"), random.integers(0, 10, 200)


def logits_and_batch():
    random = np.random.default_rng(1)
    model = dense_network("5", "gelu")
    y = keras.utils.to_categorical(random.integers(0, 10, 20), 10).astype("float32")
    return model, tf.constant(random.random((20, 784), "float32")), tf.constant(y)


@pytest.mark.parametrize("name", METHODS)
def test_trials_fill_their_ranges_evenly(name):
    method, trials = METHODS[name], trials_of(name)
    assert trials == trials_of(name)
    assert len(trials) == method.trials
    assert len({tuple(trial.values()) for trial in trials}) == len(trials)
    for key, choices in [("epochs", methods.EPOCHS), ("activation", method.activations)]:
        counts = [sum(trial[key] == choice for trial in trials) for choice in choices]
        assert counts == [method.trials / len(choices)] * len(choices)
    for key, (low, high) in [
        ("strength", (method.low, method.high)),
        ("learning_rate", methods.LEARNING_RATES),
    ]:
        values = np.array([trial[key] for trial in trials])
        assert low <= values.min() and values.max() <= high
        if low < high:
            shares = np.log(values / low) / np.log(high / low) * method.trials
            # One in each of as many equal intervals, but for the rounding to three digits.
            np.testing.assert_allclose(np.sort(shares) - np.arange(method.trials), 0.5, atol=0.8)


def test_families_that_lead_have_as_many_trials_as_the_gradient_loss():
    families = {}
    for method in METHODS.values():
        families[method.family] = families.get(method.family, 0) + method.trials
    for leader in ("PGD training", "TRADES", "interval bounds"):
        assert families[leader] == families["gradient loss"] == 64
    assert min(families.values()) >= 16


@pytest.mark.parametrize("norm", [1, 2])
@pytest.mark.parametrize("action", [squared_error, root_of_cross_entropy])
def test_the_penalty_of_the_gradient_loss_is_that_of_the_norm(norm, action):
    model, x, y = logits_and_batch()
    with tf.GradientTape() as tape:
        tape.watch([x, y])
        loss = action(y, model(x))
    at_x, at_y = tape.gradient(loss, [x, y])
    norms = np.linalg.norm(at_x.numpy().astype("float64"), ord=norm, axis=1)
    expected = np.mean(0.3 * norms**2 + (at_y.numpy() ** 2).mean(axis=1))
    value = gradient_loss(action, norm, tf.constant(0.3))(model, x, y)
    assert float(value) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_has_a_slope_and_its_strength_counts(name):
    method = METHODS[name]
    model, x, y = logits_and_batch()
    if method.activations == ["relu"]:
        model = dense_network("5", "relu")
    with tf.GradientTape() as tape:
        value = method.objective(tf.constant(method.high))(model, x, y)
    slopes = tape.gradient(value, model.trainable_variables)
    assert np.isfinite(value) and all(np.isfinite(slope).all() for slope in slopes)
    assert sum(float(tf.norm(slope)) for slope in slopes) > 0
    weaker = method.objective(tf.constant(method.low))(model, x, y)
    assert (float(weaker) == float(value)) == (method.low == method.high)


def test_strength_and_learning_rate_follow_their_schedules(digits, monkeypatch):
    passed = {}
    monkeypatch.setattr(methods, "train", lambda *_, **options: passed.update(options))
    train_method("weight decay", *digits, 0, **TRIAL)
    rates = [0.002 * (1 + np.cos(np.pi * epoch / 8)) for epoch in range(8)]
    np.testing.assert_allclose(passed["schedules"]["learning_rate"], rates)
    growth = [1 / 8, 3 / 8, 5 / 8, 7 / 8, 1, 1, 1, 1]
    np.testing.assert_allclose(passed["schedules"]["strength"], 0.5 * np.array(growth))
    train_method("weight decay", *digits, 0, **TRIAL | {"ramp": 0.0})
    np.testing.assert_allclose(passed["schedules"]["strength"], 0.5)


def test_a_method_trains_a_network_of_the_widths_asked_for(digits):
    x, labels = digits
    x, labels = np.tile(x, [10, 1]), np.tile(labels, 10)
    trial = TRIAL | {"epochs": 10, "strength": 1e-4}
    model = train_method("double backpropagation, ℓ1", x, labels, 0, hidden="32-16", **trial).model
    assert [layer.units for layer in model.layers] == [32, 16, 10]
    y = keras.utils.to_categorical(labels, 10)
    assert float(tf.reduce_mean(cross_entropy(y, model(x)))) < np.log(10) / 2
