"""The objectives of the peers: what the gradient loss is compared with.

An objective is a function of (model, x, y) that returns the scalar to minimise: a `keras.Model`
that returns logits f, shape (B, n), and a batch, x float32 of shape (B, ...) and y one-hot float32
of shape (B, n). It calls the model with `training=True`, works eagerly, inside `tf.function` and
under XLA, and is differentiable with respect to the model's weights. Its strength may be a scalar
tensor, which a schedule changes. p is the softmax of f, and H the cross-entropy of each sample.
"""

import math
import numbers
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from utils import TENSORS, Objective, loss_objective


def squared_error(y: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """The mean squared error of the softmax, (1/n) Σ_k (y_k − p_k)², shape (B,).

    G. Brier, "Verification of forecasts expressed in terms of probability", Monthly Weather Review
    78(1), 1950, without the 1/n.
    """
    return tf.reduce_mean((y - tf.nn.softmax(logits)) ** 2, axis=1)


def cross_entropy(y: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Cross-entropy H = −Σ_k y_k log p_k, shape (B,).

    I. Good, "Rational decisions", Journal of the Royal Statistical Society B 14(1), 1952.
    """
    return tf.nn.softmax_cross_entropy_with_logits(y, logits)


def relative_entropy(y: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Relative entropy Σ_k y_k log(y_k / p_k), shape (B,).

    S. Kullback, R. Leibler, "On information and sufficiency", Annals of Mathematical Statistics
    22(1), 1951. Classes with y_k = 0 add nothing, to its gradient at y either.
    """
    positive = y > 0
    log_y = tf.math.log(tf.where(positive, y, 1.0))
    terms = y * (log_y - tf.nn.log_softmax(logits))
    return tf.reduce_sum(tf.where(positive, terms, 0.0), axis=1)


def clipped_labels(objective: Objective, clip: float) -> Objective:
    """The objective at (model, x, ỹ), with ỹ_k = min(max(y_k, c), 1 − c).

    With `gradient_loss_objective(relative_entropy, weights)` it is the gradient loss of the
    relative entropy with all classes in it (notebook 07).

    Raises:
        ValueError: if clip, the c, isn't between 0 and 0.5.
    """
    _check("clip", clip, 0 < clip < 0.5, "a number between 0 and 0.5, such as 0.02")
    return lambda model, x, y: objective(model, x, tf.clip_by_value(y, clip, 1 - clip))


def double_backpropagation(penalty: float, norm: int = 2) -> Objective:
    """The mean over the batch of H + λ ‖∇ₓH‖², with λ = penalty and the ℓ2 or the ℓ1 norm.

    H. Drucker, Y. LeCun, "Improving generalization performance using double backpropagation", IEEE
    Transactions on Neural Networks 3(6), 1992. A. Ross, F. Doshi-Velez, "Improving the adversarial
    robustness and interpretability of deep neural networks by regularizing their input gradients",
    AAAI 2018. The ℓ1 norm is the dual of ℓ∞, for attacks that bound the change of each element:
    C.-J. Simon-Gabriel et al., "First-order adversarial vulnerability of neural networks and input
    dimension", ICML 2019.

    Raises:
        ValueError: if penalty isn't finite and at least 0, or norm isn't 1 or 2.
    """
    _check_strength("penalty", penalty)
    _check("norm", norm, norm in (1, 2), "1 or 2")

    def objective(model, x, y):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x)
            loss = cross_entropy(y, model(x, training=True))
        return tf.reduce_mean(loss + penalty * _squared_norm(tape.gradient(loss, x), norm))

    return objective


def linearised_margin(radius: float) -> Objective:
    """The mean over the batch of log(1 + exp(M + ε ‖∇ₓM‖₁)), with ε = radius.

    M = log Σ_{k≠y} exp f_k − f_y is a smooth margin of the wrong classes, and H = log(1 + exp M).
    So it is cross-entropy where M has risen as far as changes of up to ε of each element let it, to
    first order. G. Elsayed et al., "Large margin deep networks for classification", NeurIPS 2018,
    linearise the distance to the boundary in the same way, by the dual norm.

    Raises:
        ValueError: if radius isn't finite and at least 0.
    """
    _check_strength("radius", radius)

    def objective(model, x, y):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x)
            logits = model(x, training=True)
            margin = tf.reduce_logsumexp(logits - 1e9 * y, axis=1) - tf.reduce_sum(y * logits, 1)
        gradient = tape.gradient(margin, x)
        slope = tf.reduce_sum(tf.abs(gradient), axis=list(range(1, gradient.shape.rank)))
        return tf.reduce_mean(tf.nn.softplus(margin + radius * slope))

    return objective


def jacobian_regularisation(penalty: float) -> Objective:
    """The mean over the batch of H + (λ/2) ‖∂f/∂x‖², with λ = penalty and the Frobenius norm.

    The norm is estimated, without bias, by one random unit vector v for each sample, as
    n ‖∇ₓ(v·f)‖²: J. Hoffman, D. Roberts, S. Yaida, "Robust learning with Jacobian regularization",
    arXiv:1908.02729, 2019. The batch determines the v: see `_draw`.

    Raises:
        ValueError: if penalty isn't finite and at least 0.
    """
    _check_strength("penalty", penalty)

    def objective(model, x, y):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x)
            logits = model(x, training=True)
            direction = _draw(tf.random.stateless_normal, tf.shape(logits), x)
            projection = tf.reduce_sum(tf.math.l2_normalize(direction, axis=1) * logits, axis=1)
        squared_norm = logits.shape[1] * _squared_norm(tape.gradient(projection, x))
        return tf.reduce_mean(cross_entropy(y, logits) + penalty / 2 * squared_norm)

    return objective


def gaussian_noise(standard_deviation: float) -> Objective:
    """The mean over the batch of H(x + σξ), ξ ~ N(0, 1) for each element, σ = standard_deviation.

    C. Bishop, "Training with noise is equivalent to Tikhonov regularization", Neural Computation
    7(1), 1995. The batch determines the ξ: see `_draw`.

    Raises:
        ValueError: if standard_deviation isn't finite and at least 0.
    """
    _check_strength("standard_deviation", standard_deviation)

    def objective(model, x, y):
        noisy = x + standard_deviation * _draw(tf.random.stateless_normal, tf.shape(x), x)
        return tf.reduce_mean(cross_entropy(y, model(noisy, training=True)))

    return objective


def label_smoothing(share: float) -> Objective:
    """The mean over the batch of H with the labels (1 − α) y_k + α/n, α = share.

    C. Szegedy et al., "Rethinking the Inception architecture for computer vision", CVPR 2016.

    Raises:
        ValueError: if share isn't in [0, 1].
    """
    if not isinstance(share, TENSORS):
        _check("share", share, 0 <= share <= 1, "a number in [0, 1]")
    return loss_objective(
        lambda y, logits: cross_entropy((1 - share) * y + share / logits.shape[1], logits)
    )


def weight_decay(penalty: float) -> Objective:
    """The mean over the batch of H, plus λ ‖θ‖² over all trainable weights θ, λ = penalty.

    A. Krogh, J. Hertz, "A simple weight decay can improve generalization", NIPS 1991.

    Raises:
        ValueError: if penalty isn't finite and at least 0.
    """
    _check_strength("penalty", penalty)

    def objective(model, x, y):
        squared_norm = tf.add_n([tf.reduce_sum(weight**2) for weight in model.trainable_weights])
        return tf.reduce_mean(cross_entropy(y, model(x, training=True))) + penalty * squared_norm

    return objective


def adversarial_training(radius: float, steps: int) -> Objective:
    """The mean over the batch of H(x + δ), δ an attack with |δ_j| ≤ ε and x + δ in [0, 1].

    From an even random δ, `steps` times: δ ← clip(δ + a sign ∇ₓH(x + δ), −ε, ε), where ε = radius.
    One step of size a = 1.25 ε is FGSM from a random start: E. Wong, L. Rice, J. Kolter, "Fast is
    better than free: revisiting adversarial training", ICLR 2020. Several of size a = 2.5 ε/steps
    are PGD: A. Madry et al., "Towards deep learning models resistant to adversarial attacks", ICLR
    2018.
    x must be in [0, 1]. The batch determines the start: see `_draw`.

    Raises:
        ValueError: if radius isn't finite and at least 0, or steps isn't an integer of at least 1.
    """
    _check_strength("radius", radius)
    _check_steps(steps)

    def objective(model, x, y):
        def loss_at(point):
            return cross_entropy(y, model(point, training=True))

        return tf.reduce_mean(loss_at(worst_point(loss_at, x, radius, steps)))

    return objective


def trades(trade_off: float, radius: float, steps: int) -> Objective:
    """The mean over the batch of H + β KL(p(x) ‖ p(x + δ)), with β = trade_off.

    δ is an attack on that distance, made as in `adversarial_training`: H. Zhang et al.,
    "Theoretically principled trade-off between robustness and accuracy", ICML 2019.

    Raises:
        ValueError: if trade_off or radius isn't finite and at least 0, or steps isn't an integer of
            at least 1.
    """
    _check_strength("trade_off", trade_off)
    _check_strength("radius", radius)
    _check_steps(steps)

    def objective(model, x, y):
        logits = model(x, training=True)
        clean = tf.nn.softmax(logits)

        def distance(clean, point):
            return relative_entropy(clean, model(point, training=True))

        fixed = tf.stop_gradient(clean)
        point = worst_point(lambda point: distance(fixed, point), x, radius, steps)
        return tf.reduce_mean(cross_entropy(y, logits) + trade_off * distance(clean, point))

    return objective


def curvature_regularisation(penalty: float, radius: float) -> Objective:
    """The mean over the batch of H + λ ‖∇ₓH(x + ε sign ∇ₓH) − ∇ₓH(x)‖², ε = radius, λ = penalty.

    S. Moosavi-Dezfooli et al., "Robustness via curvature regularization, and vice versa", CVPR
    2019, who give the length of the change, ε√d, as h. The sign is taken as constant.

    Raises:
        ValueError: if penalty or radius isn't finite and at least 0.
    """
    _check_strength("penalty", penalty)
    _check_strength("radius", radius)

    def objective(model, x, y):
        def loss_and_gradient(point):
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(point)
                loss = cross_entropy(y, model(point, training=True))
            return loss, tape.gradient(loss, point)

        loss, gradient = loss_and_gradient(x)
        _, further = loss_and_gradient(x + radius * tf.stop_gradient(tf.sign(gradient)))
        return tf.reduce_mean(loss + penalty * _squared_norm(further - gradient))

    return objective


def interval_bound_propagation(radius: Any, share: Any) -> Objective:
    """The mean over the batch of (1 − κ) H + κ H of the worst logits, with κ = share.

    The worst logits are the lowest that the label's can be, and the highest that each other can be,
    over all changes of up to ε = radius within [0, 1], by `worst_logits`: S. Gowal et al., "On the
    effectiveness of interval bound propagation for training verifiably robust models",
    arXiv:1810.12715, 2018. Both grow during training there, so both may be variables.

    Raises:
        ValueError: as `worst_logits` does.
    """

    def objective(model, x, y):
        plain = cross_entropy(y, model(x, training=True))
        worst = cross_entropy(y, worst_logits(model, x, y, radius))
        return tf.reduce_mean((1 - share) * plain + share * worst)

    return objective


def worst_logits(model: keras.Model, x: tf.Tensor, y: tf.Tensor, radius: Any) -> tf.Tensor:
    """Bounds on how far a change of up to radius, within [0, 1], can move the logits against y.

    Intervals go through the layers one by one; through the last, differences of the logits to that
    of the label do, which is tighter. If the label's is still the largest, no such change fools the
    network. Shape (B, n): 0 for the label, for each other class the largest difference there is.

    Raises:
        ValueError: if the model isn't a chain of dense layers with ReLU or, in the last, linear.
    """
    x = tf.reshape(x, [tf.shape(x)[0], -1])
    low, high = tf.maximum(x - radius, 0.0), tf.minimum(x + radius, 1.0)
    *hidden, last = (layer for layer in model.layers if not _keeps_values(layer))
    for layer in (*hidden, last):
        wanted = keras.activations.linear if layer is last else keras.activations.relu
        if not isinstance(layer, keras.layers.Dense) or layer.activation is not wanted:
            raise ValueError(
                f"Intervals can't go through {layer.name}; make the network of dense layers, with "
                "ReLU in the hidden ones and none in the last."
            )
    for layer in hidden:
        centre = (low + high) / 2 @ layer.kernel + layer.bias
        width = (high - low) / 2 @ tf.abs(layer.kernel)
        low, high = tf.nn.relu(centre - width), tf.nn.relu(centre + width)
    # differences[b, :, k] is column k of the kernel minus that of the label.
    differences = last.kernel[None] - tf.einsum("hk,bk->bh", last.kernel, y)[:, :, None]
    bias = last.bias[None] - tf.reduce_sum(last.bias * y, axis=1, keepdims=True)
    centre = tf.einsum("bh,bhk->bk", (low + high) / 2, differences)
    return centre + tf.einsum("bh,bhk->bk", (high - low) / 2, tf.abs(differences)) + bias


def _keeps_values(layer: keras.Layer) -> bool:
    return isinstance(layer, (keras.layers.InputLayer, keras.layers.Flatten))


def worst_point(
    loss_at: Callable[[tf.Tensor], tf.Tensor], x: tf.Tensor, radius: float, steps: int
) -> tf.Tensor:
    """Where an attack on a loss ends, from an even random start; see `adversarial_training`.

    Args:
        loss_at: the loss of each sample at points, shape (B,), of points of the shape of x.
        x: float32 in [0, 1], shape (B, ...).
        radius: the largest change of an element.
        steps: how many, at least 1.
    """
    step_size = (1.25 if steps == 1 else 2.5 / steps) * radius
    change = radius * _draw(_evenly, tf.shape(x), x)
    for _ in range(steps):
        point = tf.clip_by_value(x + change, 0.0, 1.0)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(point)
            loss = loss_at(point)
        change = point - x + step_size * tf.sign(tape.gradient(loss, point))
        change = tf.clip_by_value(change, -radius, radius)
    return tf.stop_gradient(tf.clip_by_value(x + change, 0.0, 1.0))


def _evenly(shape, key, alg):
    """One of 256 evenly spaced numbers in ±1 for each element: four to a random integer."""
    elements = tf.reduce_prod(shape)
    count = [(elements + 3) // 4]
    drawn = tf.random.stateless_uniform(count, key, None, None, tf.uint32, alg=alg)
    values = tf.cast(tf.reshape(tf.bitcast(drawn, tf.uint8), [-1]), tf.float32)
    return tf.reshape((values[:elements] - 127.5) / 128, shape)


def _draw(
    distribution: Callable[..., tf.Tensor], shape: tf.Tensor, batch: tf.Tensor, **limits: float
) -> tf.Tensor:
    """Random numbers that depend on the batch alone, by a Philox key made of two of its sums.

    Under XLA, TensorFlow's usual random numbers ignore the seed. The same batch gives the same
    numbers, so shuffle the samples for each epoch; those under XLA differ from those without it.
    """
    key = tf.bitcast(tf.stack([tf.reduce_sum(batch), tf.reduce_sum(batch[0])]), tf.int32)
    return distribution(shape, key, alg="philox", **limits)


def _squared_norm(gradient: tf.Tensor, norm: int = 2) -> tf.Tensor:
    """The squared ℓ2 or ℓ1 norm of each sample, without a root, whose slope at 0 is infinite."""
    axes = list(range(1, gradient.shape.rank))
    if norm == 1:
        return tf.reduce_sum(tf.abs(gradient), axes) ** 2
    return tf.reduce_sum(gradient**2, axes)


def _check_strength(name: str, value: Any) -> None:
    if not isinstance(value, TENSORS):
        _check(name, value, 0 <= value < math.inf, "a finite number of at least 0")


def _check_steps(steps: int) -> None:
    _check("steps", steps, isinstance(steps, numbers.Integral) and steps >= 1, "1, 2, 3 or more")


def _check(name: str, value: object, fits: bool, mend: str) -> None:
    if not fits:
        raise ValueError(f"{name} is {value!r}; make it {mend}.")
