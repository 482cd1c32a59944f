"""The gradient loss: train a network on the squared norm of its loss's gradient at the data.

This file stands alone: copy it into a project, under any name. It needs Keras and TensorFlow.
"""

import math
import numbers
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import tensorflow as tf

Loss = Callable[[Any, Any], tf.Tensor]
Objective = Callable[[keras.Model, Any, Any], tf.Tensor]
TENSORS = (tf.Tensor, tf.Variable, keras.Variable)


def get_gradient_loss_fn(
    loss_fn: Callable[[Any], tf.Tensor], weights: Any = None, norms: Any = None
) -> Callable[[Any], tf.Tensor]:
    r"""Turn a loss S into the squared norm of its gradient at the data.

    The result computes, for a batch of B samples, the scalar

        L = Σᵢ wᵢ · mean over the batch of (mean over the elements of |∂S_b/∂zᵢ|^pᵢ)^(2/pᵢ)

    where the zᵢ are the tensors of `inputs` (typically the images x and the labels y). For S =
    mean squared error and p = 2 this is double backpropagation (Drucker & LeCun, "Improving
    generalization performance using double backpropagation", IEEE Transactions on Neural Networks
    3(6), 1992) at one fixed strength; notebook 01 derives it.

    The norm to take is the dual of what an input may change by: p = 1 if each element may change
    by up to ε (ℓ∞), p = 2 if the Euclidean norm of the change is bounded (ℓ2). As means stand in
    for sums over the d elements, a weight w on ‖∂S/∂z‖₁² becomes d² w here, and one on ‖∂S/∂z‖₂²
    becomes d w: with d = 784 and p = 1, 0.006 becomes 3,688.

    Args:
        loss_fn: function of `inputs` that returns one loss per sample, shape (B,), floating. A
            scalar gets a UserWarning.
        weights: the wᵢ, a nest of numbers of the same structure as `inputs`; 1 by default. A term
            of weight 0 is left out of the work, so its input may have any dtype. A weight may be a
            scalar tensor or variable; a variable is read at each call, so a callback can change it.
        norms: the pᵢ, 1 or 2, a nest of the same structure as `inputs`; 2 by default.

    Returns:
        `gradient_loss(inputs)`, where `inputs` is a tensor or a nest (tuple, list, dict) of
        floating tensors, each of shape (B, ...). It returns a scalar tensor, float64 if the loss
        is, else float32. It is differentiable with respect to whatever variables `loss_fn` uses,
        and works eagerly, inside `tf.function` and under XLA.

    Raises:
        ValueError, TypeError: here for weights that are not finite, non-negative numbers or scalar
            tensors, and for norms other than 1 and 2; in `gradient_loss` for inputs that are
            empty, not floating or differ in batch size, for weights or norms that don't fit the
            inputs, and for a loss that isn't one value per sample or doesn't depend on an input.
    """
    weights = None if weights is None else _check_weights(weights)
    norms = None if norms is None else _check_norms(norms)

    def gradient_loss(inputs):
        # identity, as a tensor that is given twice (an autoencoder's) counts as two inputs.
        inputs = keras.tree.map_structure(tf.identity, inputs)
        tensors = _leaves_by_name(inputs)
        weight_of = dict.fromkeys(tensors, 1.0) if weights is None else weights
        norm_of = dict.fromkeys(tensors, 2) if norms is None else norms
        batch_size = _check_inputs(tensors, weight_of, norm_of)
        watched = {name: tensor for name, tensor in tensors.items() if _counts(weight_of[name])}

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
            if norm_of[name] == 1:
                of_sample = tf.reshape(tf.abs(gradient), [tf.shape(gradient)[0], -1])
                gradient = tf.reduce_mean(of_sample, axis=1)
            total += tf.cast(weight_of[name], dtype) * tf.reduce_mean(tf.square(gradient))
        return total

    return gradient_loss


def loss_objective(loss_fn: Loss) -> Objective:
    """The usual objective: the mean of `loss_fn(y_true, y_pred)` over the batch."""

    def objective(model, x, y):
        return tf.reduce_mean(loss_fn(y, model(x, training=True)))

    return objective


def gradient_loss_objective(loss_fn: Loss, weights: Any = None, norms: Any = None) -> Objective:
    """The gradient loss of `loss_fn(y_true, y_pred)` as an objective.

    Arguments and errors are those of `GradientLossModel`.
    """
    if not callable(loss_fn):
        raise TypeError(
            "loss_fn must be a function of (y_true, y_pred), such as "
            f"keras.losses.mean_squared_error, not {loss_fn!r}."
        )
    get_gradient_loss_fn(loss_fn, weights, norms)  # Bad weights are named now, not in fit.

    def objective(model, x, y):
        if y is None:
            raise ValueError("The gradient loss needs targets: pass y to fit as well as x.")

        def loss_of_inputs(inputs):
            return loss_fn(inputs[1], model(inputs[0], training=True))

        return get_gradient_loss_fn(loss_of_inputs, weights, norms)((x, y))

    return objective


class Stack(NamedTuple):
    """Batches that an `ObjectiveModel` takes one after the other, in a single XLA program.

    Shapes (steps, batch_size, ...). As the element of a dataset, it is one "batch" to callbacks.
    """

    x: tf.Tensor
    y: tf.Tensor


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

    def __init__(self, model: keras.Model, objective: Objective, **kwargs: Any):
        super().__init__(**kwargs)
        if not isinstance(model, keras.Model):
            raise TypeError(f"model must be a keras.Model, not {type(model).__name__}.")
        self.model = model
        self.objective = objective

    def call(self, inputs, training=None):
        return self.model(inputs, training=training)

    def train_step(self, data):
        if isinstance(data, Stack):

            def step(i):
                self.train_step((data.x[i], data.y[i]))
                return i + 1

            # Keras would start a program for each step, which costs about 0.1 ms.
            tf.while_loop(lambda i: i < tf.shape(data.x)[0], step, [0])
            return self.get_metrics_result()

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
        weights, norms: nests like the pair (x, y): for the x-term and the y-term, see
            `get_gradient_loss_fn`. x and y, as given to `fit`, must be floating where their
            weight isn't 0; one-hot encode integer labels. A variable is saved as its value.

    Raises:
        ValueError, TypeError: as `get_gradient_loss_fn` does, and if `fit` is given no y, or
            sample or class weights.
    """

    def __init__(
        self, model: keras.Model, loss_fn: Loss, weights: Any = None, norms: Any = None, **options
    ):
        super().__init__(model, gradient_loss_objective(loss_fn, weights, norms), **options)
        self.loss_fn = loss_fn
        # A function, as Keras would take a variable among the attributes for one to train.
        self._terms = lambda: {"weights": weights, "norms": norms}

    def compile(self, optimizer: Any = "rmsprop", loss: Any = None, **kwargs: Any) -> None:
        super().compile(optimizer, self.loss_fn if loss is None else loss, **kwargs)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    def get_config(self) -> dict[str, Any]:
        def serialize(part):
            part = float(part.numpy()) if isinstance(part, TENSORS) else part
            return keras.saving.serialize_keras_object(part)

        parts = {"model": self.model, "loss_fn": self.loss_fn, **self._terms()}
        return super().get_config() | keras.tree.map_structure(serialize, parts)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "GradientLossModel":
        parts = {key: config[key] for key in ("model", "loss_fn", "weights", "norms")}
        return cls(**config | keras.saving.deserialize_keras_object(parts))


@keras.saving.register_keras_serializable(package="gradient_loss")
def root_of_cross_entropy(y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
    """S = ½ Σ_k y_k² √(−log p_k + 0.01), shape (B,); y_pred are logits, of which p is the softmax.

    With H' = cross-entropy + 0.01 and one-hot labels it is ½ √H', and its gradient at y is √H' at
    the label and 0 elsewhere. So the y-term of its gradient loss is cross-entropy, up to a factor
    and a constant, and ‖∇ₓS‖² is ‖∇ₓH'‖² / (16 H'), which fades more slowly than ‖∇ₓH'‖².
    """
    roots = tf.sqrt(0.01 - tf.nn.log_softmax(y_pred))
    return tf.reduce_sum(y_true**2 * roots, axis=1) / 2


def robust_trainer(model: keras.Model, epsilon: float, norm: str = "inf") -> GradientLossModel:
    """The gradient loss for inputs that may change by up to epsilon: the recipe of notebook 10.

    With the action `root_of_cross_entropy`, n classes and the weight 16 ε²/n of the x-term,

        L = mean over the batch of H'/n · (1 + ε² ‖∇ₓ log H'‖²)        H' = cross-entropy + 0.01

    in the norm that is dual to the change's. With s = ε ‖∇ₓ log H'‖, a change of epsilon can raise
    H' to H' (1 + s), to first order. That s is squared, and that the factor is 16, is measured, on
    MNIST with changes of 0.1, not derived. In notebook 10 it holds for ten classes and changes of
    each pixel by 0.05 and 0.1 of the range, and is too strong for 0.2; notebook 11 tries it on
    small tables with two and three classes. It is untested elsewhere.

    Args:
        model: classifier of one floating input that returns logits, shape (B, n). Fit the result
            with one-hot labels.
        epsilon: at most how far an input changes, more than 0, in its own units.
        norm: "inf" if each element may change by epsilon, "2" if the change has at most the
            Euclidean length epsilon.

    Raises:
        ValueError: if epsilon isn't finite and positive, the norm is another, or the model has
            several inputs, unknown shapes, fewer than two outputs, or a softmax at its end.
    """
    if not 0 < epsilon < math.inf:
        raise ValueError(f"epsilon is {epsilon!r}; make it finite and more than 0.")
    if norm not in ("inf", "2"):
        raise ValueError(f"norm is {norm!r}; make it 'inf' or '2'.")
    shape, outputs = model.input_shape, model.output_shape
    if len(model.inputs) > 1 or None in shape[1:] or len(outputs) != 2 or outputs[1] in (None, 1):
        raise ValueError(
            f"The model maps {shape} to {outputs}; the recipe is for one input of known shape and "
            "for logits of at least two classes. For others use GradientLossModel."
        )
    if getattr(model.layers[-1], "activation", None) is keras.activations.softmax:
        raise ValueError("The model returns probabilities; leave its softmax out.")
    dual = {"inf": 1, "2": 2}[norm]
    # The factory takes means over elements where the recipe has sums.
    weight = 16 * epsilon**2 / outputs[1] * math.prod(shape[1:]) ** (2 / dual)
    return GradientLossModel(model, root_of_cross_entropy, (weight, 1.0), (dual, 2))


def _leaves_by_name(nest):
    """The leaves of a nest by the name that Python would give them: inputs[0]['image']."""
    leaves = keras.tree.flatten_with_path(nest)
    return {"inputs" + "".join(f"[{key!r}]" for key in path): leaf for path, leaf in leaves}


def _counts(weight):
    """Whether a term of this weight is computed; that of a variable may become positive."""
    return isinstance(weight, TENSORS) or weight > 0


def _check_weights(weights):
    weights = _leaves_by_name(weights)
    for name, weight in weights.items():
        if isinstance(weight, TENSORS) and not len(weight.shape):
            continue
        if not isinstance(weight, numbers.Real):
            raise TypeError(f"The weight of {name} is {weight!r}; make it a number.")
        if not 0 <= weight < math.inf:
            raise ValueError(f"The weight of {name} is {weight}; make it finite and at least 0.")
    if not any(map(_counts, weights.values())):
        raise ValueError(f"No weight is positive in {weights}: there is nothing to minimise.")
    return weights


def _check_norms(norms):
    norms = _leaves_by_name(norms)
    for name, norm in norms.items():
        if isinstance(norm, bool) or norm not in (1, 2):
            raise ValueError(f"The norm of {name} is {norm!r}; make it 1 or 2.")
    return norms


def _check_inputs(tensors, weights, norms):
    """Return the size of the batch, or None if it isn't known yet."""
    if not tensors:
        raise ValueError("inputs is empty; pass at least one tensor.")
    for what, given in (("weight", weights), ("norm", norms)):
        if tensors.keys() != given.keys():
            raise ValueError(
                f"The {what}s don't fit the inputs: there are {what}s for {', '.join(given)}, "
                f"and inputs {', '.join(tensors)}. Give one {what} for each input."
            )
    for name, tensor in tensors.items():
        if tensor.shape.rank == 0:
            raise ValueError(f"{name} is a scalar; make the batch its first dimension.")
        if not tensor.dtype.is_floating and _counts(weights[name]):
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
