"""What slopes forecast, against all corners of the box and against finite differences."""

import itertools

import keras
import numpy as np
import tensorflow as tf

from lab.slopes import is_forecast_to_withstand, rise_of, slope_of


def corners(x, epsilon):
    """All corners of the box around a sample within [0, 1]."""
    signs = np.array(list(itertools.product([-1, 1], repeat=len(x))))
    return np.clip(x + epsilon * signs, 0, 1)


def test_for_a_linear_network_the_forecast_is_what_the_worst_corner_gives():
    random = np.random.default_rng(0)
    x, weights = random.random((200, 4)).astype("float32"), random.normal(size=(4, 3))
    network = keras.Sequential([keras.Input([4]), keras.layers.Dense(3, use_bias=False)])
    network.set_weights([weights])
    labels = (x @ weights).argmax(axis=1)
    labels[:20] = (labels[:20] + 1) % 3  # Wrong from the start.
    expected = [
        ((corners(sample, 0.1) @ weights).argmax(axis=1) == label).all()
        for sample, label in zip(x, labels, strict=True)
    ]
    found = is_forecast_to_withstand(network, x, labels, 0.1)
    np.testing.assert_array_equal(found, expected)
    assert 20 < found.sum() < 180 and not found[:20].any()


def test_the_rise_is_that_of_the_best_corner():
    random = np.random.default_rng(1)
    x, slope = random.random((50, 5)), random.normal(size=(50, 5))
    best = [max((corners(a, 0.3) - a) @ s) for a, s in zip(x, slope, strict=True)]
    np.testing.assert_allclose(rise_of(slope, x, 0.3), best, atol=1e-12)


def test_slopes_are_central_differences():
    x = np.random.default_rng(2).random((6, 3)).astype("float32")
    loss, slope = slope_of(lambda x: tf.reduce_sum(tf.sin(x) * x, axis=1), x)
    wide = np.float64(x)[:, None] + 1e-4 * np.eye(3) * np.array([-1, 1])[:, None, None, None]
    low, high = (np.sin(wide) * wide).sum(axis=-1)
    np.testing.assert_allclose(slope, (high - low) / 2e-4, rtol=1e-5)
    np.testing.assert_allclose(loss, (np.sin(x) * x).sum(axis=1), rtol=1e-6)
