"""What the slopes at a sample forecast, to first order, of how a network fares under attack."""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf


def slope_of(
    loss_at: Callable[[tf.Tensor], tf.Tensor], x: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A loss of each sample, shape (n,), and its gradient there, shape (n, d).

    Args:
        loss_at: function of x that returns a value for each sample.
        x: float32, shape (n, d).
    """
    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = loss_at(x)
    return loss.numpy(), tape.gradient(loss, x).numpy()


def rise_of(slope: np.ndarray, x: np.ndarray, epsilon: float) -> np.ndarray:
    """The most that a slope can make of changes of up to epsilon within [0, 1], shape (n,).

    Inside, that is ε ‖slope‖₁: the ℓ1 norm is the dual of the largest change of an element.

    Args:
        slope, x: shape (n, d).
        epsilon: at least 0, in units of x.
    """
    low, high = np.maximum(-x, -epsilon), np.minimum(1 - x, epsilon)
    return np.maximum(slope * low, slope * high).sum(axis=1)


def is_forecast_to_withstand(
    model: keras.Model, x: np.ndarray, labels: np.ndarray, epsilon: float
) -> np.ndarray:
    """Whether, to first order, no change of up to epsilon gives a sample another class.

    Each difference between the logit of another class and that of the label is continued from the
    sample along its slope, as if the network were linear; for a linear one the forecast is exact.

    Args:
        model: returns logits, shape (n, classes).
        x: float32 in [0, 1], shape (n, d).
        labels: integers, shape (n,).
        epsilon: at least 0, in units of x.

    Returns:
        Boolean array, shape (n,).
    """
    classes = model(x[:1]).shape[-1]
    y, withstands = np.eye(classes, dtype="float32")[labels], np.ones(len(x), bool)
    for other in range(1, classes):
        direction = np.roll(y, other, axis=1) - y
        here, slope = slope_of(lambda x, d=direction: tf.reduce_sum(d * model(x), axis=1), x)
        withstands &= here + rise_of(slope, x, epsilon) < 0
    return withstands
