"""White-box and gradient-free attacks, to measure how robust a network is."""

import functools
import math
from collections.abc import Iterable

import keras
import numpy as np
import tensorflow as tf

LOSSES = ("cross-entropy", "margin")
NORMS = ("inf", "2")


def pgd(
    model: keras.Model,
    x: np.ndarray,
    labels: np.ndarray,
    epsilon: float,
    *,
    norm: str = "inf",
    steps: int = 40,
    starts: int = 5,
    losses: Iterable[str] = LOSSES,
    seed: int = 0,
    batch_size: int = 1000,
) -> np.ndarray:
    """Attack by projected gradient descent, and tell which samples are robust to it.

    Moves each sample within the ball of radius epsilon around it, and within [0, 1], along the
    gradient of a loss (A. Madry et al., "Towards deep learning models resistant to adversarial
    attacks", ICLR 2018). A sample is fooled as soon as one of the points on the way is given
    another class, whatever the start and the loss; it is then left out of what follows. One step
    without a random start is the fast gradient sign method (FGSM).

    Args:
        model: `keras.Model` that returns logits, shape (n, classes). The attack is compiled once
            for all `keras.Sequential` of the same layers, and for each other model.
        x: float array in [0, 1], shape (n, d).
        labels: integer array, shape (n,).
        epsilon: radius of the ball, at least 0, in units of x.
        norm: "inf" for the largest change of an element, "2" for the Euclidean norm.
        steps: how many gradient steps from each start; their size falls linearly from epsilon.
        starts: how many random starts for cross-entropy; each margin has one. 0 starts once for
            each, from the sample itself.
        losses: what is increased: "cross-entropy", "margin", or both. A margin is the logit of a
            wrong class minus that of the label; those of all wrong classes are attacked in turn,
            the strongest first (S. Gowal et al., "An alternative surrogate loss for PGD-based
            adversarial testing", arXiv:1910.09338, 2019).
        seed: of the random starts.
        batch_size: how many samples are attacked at a time.

    Returns:
        Boolean array, shape (n,): whether the sample is classified rightly at every point tried.
        Its mean is the robust accuracy, an upper bound of the true one.

    Raises:
        ValueError: for arguments that don't make sense, and for a model that returns probabilities.
    """
    _check(model, x, labels, epsilon)
    losses = tuple(losses)
    if norm not in NORMS or not losses or not set(losses) <= set(LOSSES):
        raise ValueError(f"Choose norm of {NORMS} and losses of {LOSSES}, not {norm}, {losses}.")
    if steps < 0 or starts < 0:
        raise ValueError(f"steps is {steps} and starts is {starts}; make both at least 0.")
    epsilon, model = float(epsilon), _shared(model)
    robust = np.ones(len(x), bool)
    for loss in losses:
        attack = _compiled_pgd(model, loss, norm)
        wrong_classes = model(x[:1]).shape[-1] - 1
        for number in range(wrong_classes if loss == "margin" else max(starts, 1)):
            change = np.zeros_like(x)
            if starts:
                generator = np.random.default_rng([seed, LOSSES.index(loss), number])
                change = _random_change(x.shape, epsilon, norm, generator)
            arrays = x, labels, change
            robust = _run_in_batches(attack, arrays, robust, batch_size, epsilon, steps, number)
    return robust


def square_attack(
    model: keras.Model,
    x: np.ndarray,
    labels: np.ndarray,
    epsilon: float,
    *,
    queries: int = 5000,
    seed: int = 0,
    batch_size: int = 1000,
) -> np.ndarray:
    """Attack within the ℓ∞ ball by random search, without gradients.

    Changes a square of the image to ± epsilon, and keeps the change if it lowers the margin, as
    M. Andriushchenko et al., "Square attack: a query-efficient black-box adversarial attack via
    random search", ECCV 2020, do, with their squares for MNIST: 80 % of the image at first. A
    network that is robust to gradients but not to this has gradients that mislead (are masked).

    Args:
        model, x, labels, epsilon, seed, batch_size: as for `pgd`; x are square images of one
            channel.
        queries: how many squares are tried.

    Returns:
        Boolean array, shape (n,), as for `pgd`.

    Raises:
        ValueError: as `pgd` does.
    """
    _check(model, x, labels, epsilon)
    if math.isqrt(x.shape[1]) ** 2 != x.shape[1]:
        raise ValueError(f"x has {x.shape[1]} elements a sample; it must be a square image.")
    chosen = np.ones(len(x), bool)
    keys = np.random.default_rng(seed).integers(2**31, size=(len(x), 2), dtype="int32")
    attack = _compiled_square(_shared(model))
    return _run_in_batches(attack, (x, labels, keys), chosen, batch_size, float(epsilon), queries)


def _random_change(shape, epsilon, norm, generator):
    """Points that fill the ball evenly; NumPy draws them faster than XLA."""
    if norm == "inf":
        return generator.random(shape, "float32") * (2 * epsilon) - epsilon
    direction = generator.standard_normal(shape, "float32")
    radius = epsilon * generator.random((shape[0], 1), "float32") ** (1 / shape[1])
    return direction * (radius / np.linalg.norm(direction, axis=1, keepdims=True))


def _run_in_batches(attack, arrays, chosen, batch_size, *arguments):
    """Attack the chosen samples; return which of all samples were chosen and are robust to it."""
    robust = np.zeros(len(chosen), bool)
    size = min(batch_size, len(chosen))
    chosen = np.flatnonzero(chosen)
    for first in range(0, len(chosen), size):
        batch = chosen[first : first + size]
        filled = np.resize(batch, size)  # One shape for all, as each would be compiled.
        result = attack(*[array[filled] for array in arrays], *map(tf.constant, arguments))
        robust[batch] = result.numpy()[: len(batch)]
    return robust


def _check(model, x, labels, epsilon):
    if len(x) != len(labels) or np.ndim(labels) != 1 or len(x) == 0:
        raise ValueError(
            f"labels has shape {np.shape(labels)}; give one class number for each of the "
            f"{len(x)} samples, at least one."
        )
    if not 0 <= epsilon < math.inf:
        raise ValueError(f"epsilon is {epsilon}; make it finite and at least 0.")
    if not (np.min(x) >= 0 and np.max(x) <= 1):
        raise ValueError("x has elements outside of [0, 1]; scale it, the attack stays inside.")
    outputs = model(x[:100]).numpy()
    if np.all(outputs >= 0) and np.allclose(outputs.sum(axis=1), 1, atol=1e-3):
        raise ValueError(
            "The model returns probabilities. Where a softmax is saturated it has no gradient, "
            "which hides the network from the attack: return the logits."
        )


def _margin(logits, label):
    """The logit of the label minus the largest other one: negative if the sample is fooled."""
    of_label = tf.reduce_sum(label * logits, axis=1)
    return of_label - tf.reduce_max(logits - 1e9 * label, axis=1)


_twins = {}


def _shared(model):
    """One network for all that have the same layers, with the model's weights."""
    if type(model) is not keras.Sequential:
        return model
    layers = [(type(layer), layer.get_config() | {"name": ""}) for layer in model.layers]
    key = repr((layers, model.input_shape))
    if key not in _twins:
        _twins[key] = keras.models.clone_model(model)
    _twins[key].set_weights(model.get_weights())
    return _twins[key]


def _suits_xla(model):
    """Without convolutions: on a CPU, XLA's took up to four times as long as TensorFlow's own."""
    return all(len(weight.shape) < 3 for weight in model.weights)


@functools.lru_cache(maxsize=16)
def _compiled_pgd(model, loss, norm):
    def gradient_of(x, label, target):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x)
            logits = model(x, training=False)
            if loss == "margin":
                value = tf.reduce_sum((target - label) * logits, axis=1)
            else:
                # Cross-entropy is the softplus of this and points the same way; but where a network
                # is confident, its rounded gradient loses the label's part.
                value = tf.reduce_logsumexp(logits - 1e9 * label, axis=1)
                value -= tf.reduce_sum(label * logits, axis=1)
        return tape.gradient(value, x), _margin(logits, label) > 0

    def length(vectors):
        return tf.maximum(tf.norm(vectors, axis=1, keepdims=True), 1e-12)

    def within_ball(change, epsilon):
        if norm == "inf":
            return tf.clip_by_value(change, -epsilon, epsilon)
        return change * tf.minimum(1.0, epsilon / length(change))

    @tf.function(jit_compile=_suits_xla(model))
    def attack(x, labels, change, epsilon, steps, rank):
        logits = model(x, training=False)
        classes = logits.shape[-1]
        label = tf.one_hot(labels, classes)
        strongest = tf.math.top_k(logits - 1e9 * label, classes - 1).indices
        target = tf.one_hot(tf.gather(strongest, tf.minimum(rank, classes - 2), axis=1), classes)

        def step(number, point, robust):
            gradient, right = gradient_of(point, label, target)
            direction = tf.sign(gradient) if norm == "inf" else gradient / length(gradient)
            step_size = epsilon * (1 - tf.cast(number, x.dtype) / tf.cast(steps, x.dtype))
            change = within_ball(point + step_size * direction - x, epsilon)
            return number + 1, tf.clip_by_value(x + change, 0.0, 1.0), robust & right

        def go_on(number, point, robust):
            return (number < steps) & tf.reduce_any(robust)

        start = tf.clip_by_value(x + change, 0.0, 1.0)
        state = tf.constant(0), start, _margin(logits, label) > 0
        _, point, robust = tf.while_loop(go_on, step, state)
        return robust & (_margin(model(point, training=False), label) > 0)

    return attack


@functools.lru_cache(maxsize=16)
def _compiled_square(model):
    # The share of the image that a square covers is halved after these shares of the queries.
    halvings = tf.constant([0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8])

    @tf.function(jit_compile=_suits_xla(model))
    def attack(x, labels, keys, epsilon, queries):
        key = keys[0]
        label = tf.one_hot(labels, model(x, training=False).shape[-1])
        n, side = len(x), math.isqrt(x.shape[1])
        images = tf.reshape(x, [n, side, side])

        def margin_of(change):
            changed = tf.clip_by_value(images + change, 0.0, 1.0)
            return _margin(model(tf.reshape(changed, x.shape), training=False), label)

        def signs(shape, key):
            coins = tf.random.stateless_uniform(shape, key, 0, 2, tf.int32)
            return epsilon * tf.cast(2 * coins - 1, tf.float32)

        def is_inside(key, size):
            first = tf.random.stateless_uniform([n, 1], key) * (side - size + 1)
            distance = tf.range(side, dtype=tf.float32) - tf.floor(first)
            return (distance >= 0) & (distance < size)

        def query(number, change, margin):
            passed = tf.reduce_sum(
                tf.cast(
                    halvings * tf.cast(queries, tf.float32) <= tf.cast(number, tf.float32),
                    tf.float32,
                )
            )
            size = tf.clip_by_value(tf.round(side * tf.sqrt(0.8 * 0.5**passed)), 1.0, side - 1.0)
            streams = [key + tf.stack([number, stream]) for stream in range(1, 4)]
            rows, columns = is_inside(streams[0], size), is_inside(streams[1], size)
            inside = rows[:, :, None] & columns[:, None, :]
            sign = signs([n, 1, 1], streams[2])
            # A square that is all of this sign would be a query for nothing.
            is_new = tf.reduce_any(inside & (change != sign), axis=[1, 2], keepdims=True)
            candidate = tf.where(inside, tf.where(is_new, sign, -sign), change)
            new_margin = margin_of(candidate)
            better = new_margin < margin
            change = tf.where(better[:, None, None], candidate, change)
            return number + 1, change, tf.minimum(margin, new_margin)

        def go_on(number, change, margin):
            return (number < queries) & tf.reduce_any(margin > 0)

        stripes = tf.broadcast_to(signs([n, 1, side], key), [n, side, side])
        # The margin has to be that of the stripes, or what improves on them would be refused.
        state = tf.constant(0), stripes, margin_of(stripes)
        withstands = tf.while_loop(go_on, query, state)[2] > 0
        return withstands & (margin_of(tf.zeros_like(images)) > 0)

    return attack
