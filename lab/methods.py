"""The methods that are compared under attack, what is tuned of each, and how all are trained."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from scipy.stats import qmc

from lab.objectives import (
    adversarial_training,
    clipped_labels,
    cross_entropy,
    curvature_regularisation,
    double_backpropagation,
    gaussian_noise,
    interval_bound_propagation,
    jacobian_regularisation,
    label_smoothing,
    linearised_margin,
    relative_entropy,
    squared_error,
    trades,
    weight_decay,
)
from lab.training import TrainingRun, train
from utils import Objective, gradient_loss_objective, loss_objective, root_of_cross_entropy

LEARNING_RATES = 0.0015, 0.006
RAMPS = 0.0, 0.8
EPOCHS = 20, 40
ACTIVATIONS = "relu", "gelu"


class Method(NamedTuple):
    """A way of training with one strength.

    `objective` takes the strength, a scalar tensor. Trials have strengths from `low` to `high`,
    evenly in their logarithm. Methods of one `family` are variants of each other.
    """

    family: str
    objective: Callable[[Any], Objective]
    low: float
    high: float
    trials: int = 16
    activations: Sequence[str] = ACTIVATIONS


def gradient_loss(action: Callable[..., tf.Tensor], norm: int, penalty: Any) -> Objective:
    """The gradient loss with λ ‖∇ₓS‖² + ‖∂S/∂y‖₂²/n, λ = penalty and the ℓ1 or the ℓ2 norm.

    Args:
        action: S, a function of (y, logits), such as `root_of_cross_entropy`.
        norm: 1 or 2. The factory takes means over elements, so its weight is λ d^(2/norm).
        penalty: number or scalar tensor of at least 0.
    """

    def objective(model, x, y):
        weight = penalty * float(x.shape[1]) ** (2 / norm)
        return gradient_loss_objective(action, (weight, 1.0), (norm, 2))(model, x, y)

    return objective


def with_clipped_labels(norm: int, penalty: Any) -> Objective:
    """The gradient loss of the relative entropy, with labels between 0.02 and 0.98."""
    return clipped_labels(gradient_loss(relative_entropy, norm, penalty), 0.02)


def _plain(loss, strength):
    return loss_objective(loss)


_of = functools.partial
METHODS = {
    "gradient loss, root of cross-entropy, ℓ1": Method(
        "gradient loss", _of(gradient_loss, root_of_cross_entropy, 1), 0.003, 0.03, 8
    ),
    "gradient loss, root of cross-entropy, ℓ2": Method(
        "gradient loss", _of(gradient_loss, root_of_cross_entropy, 2), 0.6, 6.0, 8
    ),
    "gradient loss, relative entropy, ℓ1": Method(
        "gradient loss", _of(gradient_loss, relative_entropy, 1), 0.003, 0.03, 8
    ),
    "gradient loss, relative entropy, ℓ2": Method(
        "gradient loss", _of(gradient_loss, relative_entropy, 2), 0.6, 6.0, 8
    ),
    "gradient loss, clipped labels, ℓ1": Method(
        "gradient loss", _of(with_clipped_labels, 1), 0.0015, 0.015, 8
    ),
    "gradient loss, clipped labels, ℓ2": Method(
        "gradient loss", _of(with_clipped_labels, 2), 0.3, 3.0, 8
    ),
    "gradient loss, mean squared error, ℓ1": Method(
        "gradient loss", _of(gradient_loss, squared_error, 1), 0.003, 0.03, 8
    ),
    "gradient loss, mean squared error, ℓ2": Method(
        "gradient loss", _of(gradient_loss, squared_error, 2), 1.0, 8.0, 8
    ),
    "double backpropagation, ℓ1": Method(
        "double backpropagation, ℓ1", _of(double_backpropagation, norm=1), 0.01, 0.2
    ),
    "double backpropagation, ℓ2": Method(
        "double backpropagation, ℓ2", double_backpropagation, 1.5, 15.0
    ),
    "PGD training": Method("PGD training", _of(adversarial_training, steps=3), 0.05, 0.2, 64),
    "FGSM training": Method("FGSM training", _of(adversarial_training, steps=1), 0.05, 0.2),
    "TRADES, radius 0.1": Method("TRADES", _of(trades, radius=0.1, steps=3), 0.5, 8.0, 32),
    "TRADES, radius 0.14": Method("TRADES", _of(trades, radius=0.14, steps=3), 0.5, 8.0, 32),
    "interval bounds, share 0.5": Method(
        "interval bounds", _of(interval_bound_propagation, share=0.5), 0.04, 0.15, 32, ["relu"]
    ),
    "interval bounds, share 1": Method(
        "interval bounds", _of(interval_bound_propagation, share=1.0), 0.04, 0.15, 32, ["relu"]
    ),
    "curvature regularisation": Method(
        "curvature regularisation", _of(curvature_regularisation, radius=0.1), 0.02, 2.0
    ),
    "Jacobian regularisation": Method(
        "Jacobian regularisation", jacobian_regularisation, 0.01, 0.2
    ),
    "Gaussian noise": Method("Gaussian noise", gaussian_noise, 0.2, 1.2),
    "weight decay": Method("weight decay", weight_decay, 1e-4, 0.01),
    "label smoothing": Method("label smoothing", label_smoothing, 0.05, 0.9),
    "cross-entropy": Method("cross-entropy", _of(_plain, cross_entropy), 1.0, 1.0),
    "mean squared error": Method("mean squared error", _of(_plain, squared_error), 1.0, 1.0),
    "linearised margin": Method("linearised margin", linearised_margin, 0.05, 0.2),
}


def trials_of(name: str) -> list[dict[str, Any]]:
    """The trials of a method: arguments of `train_method`, spread by a Latin hypercube.

    The hypercube has low discrepancy and a seed of its own for each method. M. McKay, R. Beckman,
    W. Conover, "A comparison of three methods for selecting values of input variables",
    Technometrics 21(2), 1979.
    """
    method = METHODS[name]
    seed = list(METHODS).index(name)
    points = qmc.LatinHypercube(5, optimization="random-cd", rng=seed).random(method.trials)

    def between(low, high, share):
        return float(f"{low * (high / low) ** share:.3g}")

    def one_of(choices, share):
        return choices[int(share * len(choices))]

    return [
        {
            "method": name,
            "strength": between(method.low, method.high, strength),
            "learning_rate": between(*LEARNING_RATES, rate),
            "ramp": round(RAMPS[0] + (RAMPS[1] - RAMPS[0]) * ramp, 2),
            "epochs": one_of(EPOCHS, epochs),
            "activation": one_of(method.activations, activation),
        }
        for strength, rate, ramp, epochs, activation in points
    ]


def dense_network(hidden: str, activation: str) -> keras.Model:
    """A network from 784 pixels to 10 logits; hidden is its widths, such as "256-256"."""
    layers = [keras.layers.Dense(int(units), activation=activation) for units in hidden.split("-")]
    return keras.Sequential([keras.Input([784]), *layers, keras.layers.Dense(10)])


def train_method(
    method: str,
    x: np.ndarray,
    labels: np.ndarray,
    seed: int,
    *,
    strength: float,
    learning_rate: float,
    ramp: float,
    epochs: int,
    activation: str,
    hidden: str = "128",
) -> TrainingRun:
    """Train a dense network by a method, the way that all of them are trained.

    By Adam, in batches of 100. From epoch to epoch, the learning rate falls to 0 along a cosine,
    and the strength grows linearly, to be whole after the share `ramp` of the epochs.

    Args:
        method: a name in METHODS.
        x, labels: float32 in [0, 1], shape (n, 784), and integers, shape (n,).
        seed: of the initial weights and of the order.
        strength, learning_rate, ramp, epochs, activation: what `trials_of` tunes.
        hidden: as for `dense_network`.

    Returns:
        TrainingRun, whose model returns logits.
    """
    done = np.arange(epochs) / epochs
    growth = np.minimum((done + 0.5 / epochs) / ramp, 1) if ramp else np.ones(epochs)
    # The usual ε of Adam would let the scale of an objective matter: see notebook 04.
    adam = keras.optimizers.serialize(keras.optimizers.Adam(epsilon=1e-12))
    return train(
        functools.partial(dense_network, hidden, activation),
        functools.partial(_objective_of, method),
        x,
        keras.utils.to_categorical(labels, 10).astype("float32"),
        seed,
        epochs=epochs,
        optimizer=adam,
        metrics=(),
        schedules={
            "learning_rate": learning_rate * (1 + np.cos(np.pi * done)) / 2,
            "strength": strength * growth,
        },
    )


def _objective_of(method, strength):
    return METHODS[method].objective(strength)
