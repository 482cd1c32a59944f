"""The gradient loss: train a network on the squared norm of its loss's gradient at the data.

The notebooks import everything that more than one of them needs from here: also how to train, from
training.py, many times over, from sweeps.py, and how to report it, from reporting.py.
"""

import hashlib
import math
import numbers
import warnings
import zipfile
import zlib
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from corruptions import CORRUPTIONS, corrupt  # noqa: F401
from reporting import (  # noqa: F401
    check_claims,
    exceeds,
    half_width,
    plus_minus,
    save_figure,
    verdict,
    within,
)
from sweeps import sweep  # noqa: F401
from training import ObjectiveModel, batches, train, train_matched  # noqa: F401

ROOT = Path(__file__).resolve().parent
MNIST_FILE = ROOT / "data" / "mnist.npz"
MNIST_SHA256 = {
    "x_train": "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757",
    "y_train": "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13",
    "x_test": "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161",
    "y_test": "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5",
}


def get_gradient_loss_fn(loss_fn, weights=None):
    r"""Turn a loss S into the squared norm of its gradient at the data.

    The result computes, for a batch of B samples, the scalar

        L = Σᵢ wᵢ · mean over batch and elements of (∂S_b/∂zᵢ)²

    where the zᵢ are the tensors of `inputs` (typically the images x and the labels y). For S =
    mean squared error this is double backpropagation (Drucker & LeCun, "Improving generalization
    performance using double backpropagation", IEEE Transactions on Neural Networks 3(6), 1992)
    at one fixed strength; notebook 01 derives it.

    Args:
        loss_fn: function of `inputs` that returns one loss per sample, shape (B,), floating.
        weights: the wᵢ, a nest of floats of the same structure as `inputs`; 1 by default. A term
            of weight 0 is left out of the work, so its input may have any dtype.

    Returns:
        `gradient_loss(inputs)`, where `inputs` is a tensor or a nest (tuple, list, dict) of
        floating tensors, each of shape (B, ...). It returns a scalar tensor, float64 if the loss
        is, else float32. It is differentiable with respect to whatever variables `loss_fn` uses,
        and works eagerly, inside `tf.function` and under XLA.

    Raises:
        ValueError, TypeError: here for weights that are not finite, non-negative numbers; in
            `gradient_loss` for inputs that are empty, not floating or differ in batch size, for
            weights that don't fit the inputs, and for a loss that isn't one value per sample or
            doesn't depend on an input.

    Warns:
        UserWarning: in `gradient_loss`, if `loss_fn` returns a scalar.
    """
    weights = None if weights is None else _check_weights(weights)

    def gradient_loss(inputs):
        # identity, as a tensor that is given twice (an autoencoder's) counts as two inputs.
        inputs = keras.tree.map_structure(tf.identity, inputs)
        tensors = _leaves_by_name(inputs)
        weight = dict.fromkeys(tensors, 1.0) if weights is None else weights
        batch_size = _check_inputs(tensors, weight)
        watched = {name: tensor for name, tensor in tensors.items() if weight[name] > 0}

        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(watched)
            loss = loss_fn(inputs)
        _check_loss(loss, batch_size)
        # Squares of small gradients would underflow in half precision.
        dtype = tf.float64 if loss.dtype == tf.float64 else tf.float32
        total = tf.zeros([], dtype)
        for name, gradient in tape.gradient(loss, watched).items():
            if gradient is None:
                raise ValueError(
                    f"loss_fn doesn't depend on {name}, so it has no gradient there. "
                    f"Use {name} in loss_fn, leave it out of the inputs, or give it weight 0."
                )
            gradient = tf.cast(tf.convert_to_tensor(gradient), dtype)
            total += weight[name] * tf.reduce_mean(tf.square(gradient))
        return total

    return gradient_loss


def loss_objective(loss_fn):
    """The usual objective: the mean of `loss_fn(y_true, y_pred)` over the batch."""

    def objective(model, x, y):
        return tf.reduce_mean(loss_fn(y, model(x, training=True)))

    return objective


def gradient_loss_objective(loss_fn, weights=None):
    """The gradient loss of `loss_fn(y_true, y_pred)` as an objective.

    Arguments and errors are those of `GradientLossModel`.
    """
    if not callable(loss_fn):
        raise TypeError(
            "loss_fn must be a function of (y_true, y_pred), such as "
            f"keras.losses.mean_squared_error, not {loss_fn!r}."
        )
    if weights is not None:
        _check_weights(weights)

    def objective(model, x, y):
        if y is None:
            raise ValueError("The gradient loss needs targets: pass y to fit as well as x.")

        def loss_of_inputs(inputs):
            return loss_fn(inputs[1], model(inputs[0], training=True))

        return get_gradient_loss_fn(loss_of_inputs, weights)((x, y))

    return objective


@keras.saving.register_keras_serializable(package="gradient_loss")
class GradientLossModel(ObjectiveModel):
    """A Keras model that `fit` trains on the gradient loss of `loss_fn`.

    It is compiled with `loss_fn`, so "val_loss" is what `model.evaluate` reports, and can be saved.
    Another loss given to `compile` changes what is reported there, not what is minimised.

    Args:
        model: a `keras.Model` that maps x to predictions.
        loss_fn: function of (y_true, y_pred) that returns one loss per sample, shape (B,), such
            as `keras.losses.mean_squared_error`. To save and reload the model, take one from
            Keras or register yours with `keras.saving.register_keras_serializable`.
        weights: a nest of floats like the pair (x, y): the weights of the x-term and the y-term,
            see `get_gradient_loss_fn`. x and y, as given to `fit`, must be floating where their
            weight isn't 0; one-hot encode integer labels.

    Raises:
        ValueError, TypeError: as `get_gradient_loss_fn` does, and if `fit` is given no y, or
            sample or class weights.
    """

    def __init__(self, model, loss_fn, weights=None, **kwargs):
        super().__init__(model, gradient_loss_objective(loss_fn, weights), **kwargs)
        self.loss_fn = loss_fn
        self.weights_of_terms = weights

    def compile(self, optimizer="rmsprop", loss=None, **kwargs):
        super().compile(optimizer, self.loss_fn if loss is None else loss, **kwargs)

    def compile_from_config(self, config):
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "model": serialize(self.model),
            "loss_fn": serialize(self.loss_fn),
            "weights": serialize(self.weights_of_terms),
        }

    @classmethod
    def from_config(cls, config):
        parts = {
            key: keras.saving.deserialize_keras_object(config[key])
            for key in ("model", "loss_fn", "weights")
        }
        return cls(**{**config, **parts})


def mnist_network():
    """The published network: 784 pixels, 128 ReLU units, 10 softmax outputs (101,770 weights)."""
    return keras.Sequential(
        [
            keras.Input([784]),
            keras.layers.Dense(128, activation="relu"),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )


def load_mnist(validation=0):
    """Load MNIST from `data/mnist.npz` and verify it. No network is used.

    Args:
        validation: how many of the last training samples to split off.

    Returns:
        (x_train, y_train), (x_test, y_test), and (x_validation, y_validation) as a third pair if
        `validation` isn't 0. Images: float32 in [0, 1], shape (n, 784). Labels: int64, shape
        (n,). 60,000 samples for training and 10,000 for testing.

    Raises:
        ValueError: if the file is missing or damaged, or `validation` isn't in [0, 60000).
    """
    try:
        with np.load(MNIST_FILE) as archive:
            arrays = {name: archive[name] for name in MNIST_SHA256}
        for name, expected in MNIST_SHA256.items():
            if hashlib.sha256(np.ascontiguousarray(arrays[name])).hexdigest() != expected:
                raise ValueError(f"{name} has the wrong checksum")
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        mend = "restore it with `git checkout -- data/mnist.npz`."
        raise ValueError(f"The dataset {MNIST_FILE} is unusable ({error}); {mend}") from error

    def pair(split):
        images = arrays[f"x_{split}"].reshape(-1, 784).astype("float32") / 255
        return images, arrays[f"y_{split}"].astype("int64")

    (x, y), test = pair("train"), pair("test")
    if validation not in range(len(x)):
        raise ValueError(f"validation must be an integer in [0, {len(x)}), not {validation!r}.")
    if validation == 0:
        return (x, y), test
    return (x[:-validation], y[:-validation]), test, (x[-validation:], y[-validation:])


def _leaves_by_name(nest):
    """The leaves of a nest by the name that Python would give them: inputs[0]['image']."""
    leaves = keras.tree.flatten_with_path(nest)
    return {"inputs" + "".join(f"[{key!r}]" for key in path): leaf for path, leaf in leaves}


def _check_weights(weights):
    weights = _leaves_by_name(weights)
    for name, weight in weights.items():
        if not isinstance(weight, numbers.Real):
            raise TypeError(f"The weight of {name} is {weight!r}; make it a number.")
        if not 0 <= weight < math.inf:
            raise ValueError(f"The weight of {name} is {weight}; make it finite and at least 0.")
    if not any(weights.values()):
        raise ValueError(f"No weight is positive in {weights}: there is nothing to minimise.")
    return {name: float(weight) for name, weight in weights.items()}


def _check_inputs(tensors, weights):
    """Return the size of the batch, or None if it isn't known yet."""
    if not tensors:
        raise ValueError("inputs is empty; pass at least one tensor.")
    if tensors.keys() != weights.keys():
        raise ValueError(
            f"The weights don't fit the inputs: there are weights for {', '.join(weights)}, "
            f"and inputs {', '.join(tensors)}. Give one weight for each input."
        )
    for name, tensor in tensors.items():
        if tensor.shape.rank == 0:
            raise ValueError(f"{name} is a scalar; make the batch its first dimension.")
        if not tensor.dtype.is_floating and weights[name] > 0:
            raise TypeError(
                f"{name} has dtype {tensor.dtype.name}, which has no gradient. Cast it to float32, "
                "one-hot encode it if it holds labels, or give it weight 0."
            )
    sizes = {name: tensor.shape[0] for name, tensor in tensors.items() if tensor.shape.rank}
    known = {size for size in sizes.values() if size is not None}
    if len(known) > 1:
        raise ValueError(f"The inputs differ in batch size, their first dimension: {sizes}.")
    return known.pop() if known else None


def _check_loss(loss, batch_size):
    if loss.shape.rank == 0:
        warnings.warn(
            "loss_fn returned a scalar instead of one value per sample. If it averages over the "
            "batch, the gradient loss is divided by the square of the batch size. Return a tensor "
            "of shape (batch,), for instance by reduction='none' or without tf.reduce_mean.",
            stacklevel=3,
        )
    elif not loss.shape.is_compatible_with([batch_size]):
        raise ValueError(
            f"loss_fn returned shape {tuple(loss.shape)} instead of one value per sample, shape "
            f"({batch_size},). Average over the other axes."
        )
