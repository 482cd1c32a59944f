"""lab/objectives.py against closed forms in NumPy, eagerly and under XLA."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from lab import objectives
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
    worst_logits,
)
from utils import gradient_loss_objective, loss_objective, root_of_cross_entropy

BATCH, SHAPE, CLASSES = 5, (2, 3), 4
both_ways = pytest.mark.parametrize("xla", [False, True], ids=["eager", "XLA"])


class Watched:
    """A model that keeps the points at which it is called, and must be called for training."""

    def __init__(self, model):
        self.model, self.points = model, []
        self.trainable_weights, self.layers = model.trainable_weights, model.layers

    def __call__(self, x, training=None):
        assert training is True
        self.points.append(x)
        return self.model(x, training=True)


def evaluator(objective, model, xla):
    """A function of a batch: the objective, its gradient, and where the model was called."""

    def run(x, y):
        watched = Watched(model)
        with tf.GradientTape() as tape:
            loss = objective(watched, x, y)
        return loss, tape.gradient(loss, model.trainable_variables), watched.points

    if xla:
        # The size of the batch is unknown, as in `fit`.
        shapes = model.input_shape, model.output_shape
        run = tf.function(run, [tf.TensorSpec(shape) for shape in shapes], jit_compile=True)
    return lambda *batch: keras.tree.map_structure(
        lambda t: t.numpy(), run(*map(tf.constant, batch))
    )


def evaluate(objective, model, x, y, xla=False):
    return evaluator(objective, model, xla)(x, y)


def relu_network():
    layers = [keras.layers.Flatten(), keras.layers.Dense(7, "relu"), keras.layers.Dense(CLASSES)]
    return with_random_weights(keras.Sequential([keras.Input(SHAPE), *layers]))


def linear_network(inputs, classes):
    return with_random_weights(
        keras.Sequential([keras.Input([inputs]), keras.layers.Dense(classes)])
    )


def with_random_weights(model):
    randoms = np.random.default_rng(0)
    model.set_weights([randoms.standard_normal(weight.shape) for weight in model.weights])
    return model


def batch(size=BATCH, shape=SHAPE, classes=CLASSES, seed=1):
    """Samples in [0, 1], half of their elements at its ends, and one-hot labels."""
    randoms = np.random.default_rng(seed)
    x = np.clip(randoms.uniform(-0.5, 1.5, [size, *shape]), 0, 1).astype("float32")
    return x, np.eye(classes, dtype="float32")[randoms.integers(classes, size=size)]


class Network:
    """The ReLU network at a batch, in float64, by hand: its outputs and gradients at the input."""

    def __init__(self, weights, x):
        self.weights, self.x = weights, x
        first, first_bias, self.second, second_bias = weights
        hidden = x.reshape(len(x), -1) @ first + first_bias
        self.first, self.active = first, hidden > 0
        logits = hidden * self.active @ self.second + second_bias
        self.log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        self.p = np.exp(self.log_p)

    def cross_entropy(self, y):
        return -(y * self.log_p).sum(axis=1)

    def at(self, x):
        return Network(self.weights, x)

    def gradient(self, slopes):
        """Of Σ_k slopes_k f_k, shape (B, 6)."""
        return slopes @ self.second.T * self.active @ self.first.T


# What `_draw` is made to return; inputs and logits differ in shape.
DRAWN = {
    SHAPE: np.random.default_rng(2).uniform(-0.1, 0.1, [BATCH, *SHAPE]).astype("float32"),
    (CLASSES,): np.random.default_rng(3).standard_normal([BATCH, CLASSES]).astype("float32"),
}
CLIP, RADIUS = 0.02, 0.1


def gradient_loss_of_entropy(network, y):
    y = np.clip(y, CLIP, 1 - CLIP)
    x_term = network.gradient(y.sum(axis=1, keepdims=True) * network.p - y) ** 2
    y_term = (np.log(y) - network.log_p + 1) ** 2
    return 3 * x_term.mean() + 2 * y_term.mean()


def jacobian_at_drawn_direction(network, y):
    direction = DRAWN[CLASSES,] / np.linalg.norm(DRAWN[CLASSES,], axis=1, keepdims=True)
    squared_norm = CLASSES * (network.gradient(direction) ** 2).sum(axis=1)
    return np.mean(network.cross_entropy(y) + 0.7 / 2 * squared_norm)


def adversarial(steps, step_size):
    def reference(network, y):
        low = np.maximum(network.x - RADIUS, 0)
        high = np.minimum(network.x + RADIUS, 1)
        point = np.clip(network.x + RADIUS * DRAWN[SHAPE], low, high)
        for _ in range(steps):
            at_point = network.at(point)
            gradient = at_point.gradient(at_point.p - y).reshape(point.shape)
            point = np.clip(point + step_size * np.sign(gradient), low, high)
        return network.at(point).cross_entropy(y).mean()

    return adversarial_training(RADIUS, steps), reference


def double_backpropagation_by_hand(norm):
    def reference(network, y):
        norms = np.linalg.norm(network.gradient(network.p - y), ord=norm, axis=1)
        return np.mean(network.cross_entropy(y) + 0.7 * norms**2)

    return double_backpropagation(0.7, norm), reference


def gradient_loss_of_root(network, y):
    roots = np.sqrt(network.cross_entropy(y) + 0.01)
    x_term = network.gradient(network.p - y) ** 2 / (16 * roots[:, None] ** 2)
    return 3 * x_term.mean() + 2 * np.mean(roots**2) / CLASSES


def gradient_loss_of_hard_labels(network, y):
    x_term = network.gradient(network.p - y) ** 2
    return 3 * x_term.mean() + 2 * np.mean((1 + network.cross_entropy(y)) ** 2) / CLASSES


def distance_to_attacked(network, y):
    def distance(other):
        return (network.p * (network.log_p - other.log_p)).sum(axis=1)

    low, high = np.maximum(network.x - RADIUS, 0), np.minimum(network.x + RADIUS, 1)
    point = np.clip(network.x + RADIUS * DRAWN[SHAPE], low, high)
    for _ in range(3):
        at_point = network.at(point)
        gradient = at_point.gradient(at_point.p - network.p).reshape(point.shape)
        point = np.clip(point + 2.5 / 3 * RADIUS * np.sign(gradient), low, high)
    return np.mean(network.cross_entropy(y) + 0.7 * distance(network.at(point)))


def curvature(network, y):
    gradient = network.gradient(network.p - y)
    further = network.at(network.x + RADIUS * np.sign(gradient).reshape(network.x.shape))
    squared_norm = ((further.gradient(further.p - y) - gradient) ** 2).sum(axis=1)
    return np.mean(network.cross_entropy(y) + 0.7 * squared_norm)


def risen_margin(network, y):
    odds = (1 - network.p) / network.p
    margin = np.log((y * odds).sum(axis=1))
    slopes = np.where(y == 1, -1, network.p / (1 - (y * network.p).sum(axis=1, keepdims=True)))
    slope = np.abs(network.gradient(slopes)).sum(axis=1)
    return np.mean(np.log(1 + np.exp(margin + RADIUS * slope)))


def worst_by_hand(network, y):
    """Sample by sample, and pixel by pixel: which end of its interval is the worse one."""
    first, first_bias, second, second_bias = network.weights
    x, worst = network.x.reshape(len(y), -1), np.zeros(y.shape)
    low, high = np.maximum(x - RADIUS, 0), np.minimum(x + RADIUS, 1)
    for b, k in np.ndindex(y.shape):
        column = second[:, k] - second[:, y[b].argmax()]
        worst[b, k] = second_bias[k] - second_bias[y[b].argmax()]
        for h, slope in enumerate(column):
            inputs = (high, low) if slope > 0 else (low, high)
            rising, falling = np.maximum(first[:, h], 0), np.minimum(first[:, h], 0)
            reached = inputs[0][b] @ rising + inputs[1][b] @ falling + first_bias[h]
            worst[b, k] += slope * max(reached, 0)
    return worst


def intervals(network, y):
    worst = worst_by_hand(network, y)
    of_worst = np.log(np.exp(worst).sum(axis=1)) - (y * worst).sum(axis=1)
    return np.mean(0.3 * network.cross_entropy(y) + 0.7 * of_worst)


CASES = {
    "squared error": (
        loss_objective(squared_error),
        lambda network, y: np.mean((y - network.p) ** 2),
    ),
    "cross-entropy": (
        loss_objective(cross_entropy),
        lambda network, y: network.cross_entropy(y).mean(),
    ),
    "relative entropy": (
        clipped_labels(gradient_loss_objective(relative_entropy, (3.0, 2.0)), CLIP),
        gradient_loss_of_entropy,
    ),
    "relative entropy, hard labels": (
        gradient_loss_objective(relative_entropy, (3.0, 2.0)),
        gradient_loss_of_hard_labels,
    ),
    "root of cross-entropy": (
        gradient_loss_objective(root_of_cross_entropy, (3.0, 2.0)),
        gradient_loss_of_root,
    ),
    "TRADES": (trades(0.7, RADIUS, 3), distance_to_attacked),
    "curvature": (curvature_regularisation(0.7, RADIUS), curvature),
    "linearised margin": (linearised_margin(RADIUS), risen_margin),
    "interval bounds": (interval_bound_propagation(RADIUS, 0.7), intervals),
    "double backpropagation, l2": double_backpropagation_by_hand(2),
    "double backpropagation, l1": double_backpropagation_by_hand(1),
    "Jacobian": (jacobian_regularisation(0.7), jacobian_at_drawn_direction),
    "noise": (
        gaussian_noise(0.7),
        lambda n, y: n.at(n.x + 0.7 * DRAWN[SHAPE]).cross_entropy(y).mean(),
    ),
    "label smoothing": (
        label_smoothing(0.3),
        lambda n, y: np.mean(0.7 * n.cross_entropy(y) - 0.3 * n.log_p.mean(axis=1)),
    ),
    "weight decay": (
        weight_decay(0.7),
        lambda n, y: n.cross_entropy(y).mean() + 0.7 * sum((w**2).sum() for w in n.weights),
    ),
    "FGSM": adversarial(1, 1.25 * RADIUS),
    "PGD": adversarial(3, 2.5 / 3 * RADIUS),
}


@both_ways
@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_are_those_of_the_closed_form(name, xla, monkeypatch):
    def drawn(distribution, shape, batch, **limits):
        return tf.constant(DRAWN[SHAPE if len(shape) == 3 else (CLASSES,)])

    monkeypatch.setattr(objectives, "_draw", drawn)
    objective, reference = CASES[name]
    model, (x, y) = relu_network(), batch()
    value, gradients, _ = evaluate(objective, model, x, y, xla)

    weights = [weight.astype("float64") for weight in model.get_weights()]
    x, y = x.astype("float64"), y.astype("float64")
    assert value.shape == ()
    assert value == pytest.approx(reference(Network(weights, x), y), rel=1e-5)
    for weight, gradient in zip(weights, gradients, strict=True):
        differences = np.zeros_like(weight)
        for index in np.ndindex(weight.shape):
            kept, step = weight[index], 1e-6
            weight[index] = kept + step
            above = reference(Network(weights, x), y)
            weight[index] = kept - step
            below = reference(Network(weights, x), y)
            weight[index], differences[index] = kept, (above - below) / (2 * step)
        np.testing.assert_allclose(gradient, differences, rtol=1e-3, atol=1e-4)


def test_relative_entropy_is_the_distance_of_two_distributions():
    y = np.random.default_rng(0).dirichlet(np.ones(CLASSES), BATCH)
    logits = np.random.default_rng(1).standard_normal([BATCH, CLASSES])
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = (y * np.log(y / p)).sum(axis=1)
    np.testing.assert_allclose(relative_entropy(y, logits), expected, rtol=1e-10)
    np.testing.assert_allclose(relative_entropy(y, np.log(y) + 3), 0, atol=1e-12)


@both_ways
@pytest.mark.parametrize("norm", [1, 2])
def test_the_penalty_is_differentiable_where_the_input_gradient_is_zero(norm, xla):
    model, (x, y) = relu_network(), batch()
    model.set_weights([np.zeros_like(weight) for weight in model.get_weights()])
    gradients = evaluate(double_backpropagation(1.0, norm), model, x, y, xla)[1]
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@both_ways
def test_the_jacobian_is_estimated_without_bias_and_anew_for_each_sample(xla):
    model, (x, y) = linear_network(6, CLASSES), batch(20_000, [6])
    with_penalty = evaluate(jacobian_regularisation(2.0), model, x, y, xla)[0]
    without = evaluate(loss_objective(cross_entropy), model, x, y)[0]
    exact = (model.get_weights()[0] ** 2).sum()
    # Five standard errors of the mean over as many draws.
    assert with_penalty - without == pytest.approx(exact, rel=0.02)


@both_ways
def test_noise_is_normal_and_differs_from_batch_to_batch(xla):
    run = evaluator(gaussian_noise(0.4), linear_network(100, CLASSES), xla)

    def noise(x, y):
        (seen,) = run(x, y)[2]
        return seen - x

    first, again, other = (noise(*batch(400, [100], seed=seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    for pair in [(first, other), (first[0], first[1]), (first[:, 0], first[:, 1])]:
        assert abs(np.corrcoef(*map(np.ravel, pair))[0, 1]) < 0.35
    assert first.mean() == pytest.approx(0, abs=0.4 * 5 / 200)
    assert first.std() == pytest.approx(0.4, rel=5 / 200)
    # A normal variable is within one standard deviation 68.27 % of the time, within two 95.45 %.
    assert np.mean(np.abs(first) < 0.4) == pytest.approx(0.6827, abs=0.012)
    assert np.mean(np.abs(first) < 0.8) == pytest.approx(0.9545, abs=0.006)


def test_only_the_first_sample_tells_batches_of_the_same_sum_apart():
    model, (x, y) = linear_network(4, CLASSES), batch(2, [4])
    x = np.stack([np.full(4, 0.25), np.full(4, 0.5)]).astype("float32")
    noises = [
        evaluate(gaussian_noise(1.0), model, points, y)[2][0] - points for points in (x, x[::-1])
    ]
    assert np.abs(noises[0] - noises[1]).max() > 0.1


@both_ways
def test_the_attack_reaches_the_worst_case_of_a_linear_network(xla):
    """Two classes: each element has a worst value of its own, whatever the start.

    Several steps cross the ball from end to end; one may fall short.
    """
    model, (x, y) = linear_network(6, 2), batch(50, [6], classes=2)
    kernel, bias = (weight.astype("float64") for weight in model.get_weights())
    sign = np.where(y[:, :1] == 1, 1, -1) * np.sign(kernel[:, 1] - kernel[:, 0])

    def expected(points):
        logits = points @ kernel + bias
        return np.mean(np.log(np.exp(logits).sum(axis=1)) - (y * logits).sum(axis=1))

    low, high = np.maximum(x - RADIUS, 0), np.minimum(x + RADIUS, 1)
    worst = np.where(sign > 0, high, low)
    for steps, step_size in [(1, 1.25 * RADIUS), (3, 2.5 / 3 * RADIUS), (4, 2.5 / 4 * RADIUS)]:
        value, _, points = evaluate(adversarial_training(RADIUS, steps), model, x, y, xla)
        assert len(points) == steps + 1
        if steps == 1:
            assert expected(x) < value < expected(worst)
        else:
            np.testing.assert_allclose(points[-1], worst, atol=1e-6)
            assert value == pytest.approx(expected(worst), rel=1e-5)
        for before, after in itertools.pairwise(points):
            moved = np.clip(before + step_size * sign, low, high)
            np.testing.assert_allclose(after, moved, atol=1e-6)


def test_the_linearised_margin_is_the_worst_case_of_a_linear_network():
    """Two classes, and elements that may leave [0, 1]."""
    model, (x, y) = linear_network(6, 2), batch(50, [6], classes=2)
    kernel = model.get_weights()[0]
    sign = np.where(y[:, :1] == 1, 1, -1) * np.sign(kernel[:, 1] - kernel[:, 0])
    worst = (x + RADIUS * sign).astype("float32")
    value = evaluate(linearised_margin(RADIUS), model, x, y)[0]
    expected = evaluate(loss_objective(cross_entropy), model, worst, y)[0]
    assert value == pytest.approx(expected, rel=1e-5)


def test_the_bounds_of_a_linear_network_are_reached_and_those_of_others_are_bounds():
    x, y = batch(50, [6])
    model = linear_network(6, CLASSES)
    kernel, bias = (weight.astype("float64") for weight in model.get_weights())
    for k in range(CLASSES):
        difference = kernel[:, [k]] - kernel @ y.T
        ends = np.where(difference.T > 0, np.minimum(x + RADIUS, 1), np.maximum(x - RADIUS, 0))
        expected = (ends * difference.T).sum(axis=1) + bias[k] - y @ bias
        bounds = worst_logits(model, tf.constant(x), tf.constant(y), RADIUS)
        np.testing.assert_allclose(bounds[:, k], expected, atol=1e-5)

    model, (x, y) = relu_network(), batch()
    bounds = worst_logits(model, tf.constant(x), tf.constant(y), RADIUS).numpy()
    randoms = np.random.default_rng(0)
    for _ in range(100):
        point = np.clip(x + RADIUS * randoms.choice([-1, 1], x.shape), 0, 1).astype("float32")
        logits = model(point).numpy()
        assert np.all(logits - (logits * y).sum(axis=1, keepdims=True) <= bounds + 1e-5)


def test_layers_that_intervals_can_not_go_through_are_named():
    tanh = keras.layers.Dense(3, "tanh", name="bent")
    model = keras.Sequential([keras.Input([6]), tanh, keras.layers.Dense(CLASSES)])
    with pytest.raises(ValueError, match="through bent; make the network of dense layers"):
        worst_logits(model, *map(tf.constant, batch(5, [6])), RADIUS)


@both_ways
def test_the_start_of_the_attack_fills_the_ball_evenly(xla):
    model, (x, y) = linear_network(100, CLASSES), batch(400, [100])
    x = 0.25 + x / 2  # Far enough from 0 and 1 for the ball to be all inside.
    points = evaluate(adversarial_training(RADIUS, 1), model, x, y, xla)[2]
    quantiles = np.quantile(points[0] - x, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(quantiles, RADIUS * np.array([-1, -0.5, 0, 0.5, 1]), atol=0.002)


@pytest.mark.parametrize(
    "objective",
    [
        double_backpropagation(0.0),
        jacobian_regularisation(0.0),
        gaussian_noise(0.0),
        label_smoothing(0.0),
        weight_decay(0.0),
        adversarial_training(0.0, 1),
        trades(0.0, 0.1, 1),
        curvature_regularisation(0.0, 0.1),
        linearised_margin(0.0),
        interval_bound_propagation(0.0, 0.5),
    ],
)
def test_strength_zero_is_cross_entropy(objective):
    model, (x, y) = relu_network(), batch()
    plain = evaluate(loss_objective(cross_entropy), model, x, y)[0]
    assert evaluate(objective, model, x, y)[0] == pytest.approx(plain, rel=1e-6)


@pytest.mark.parametrize("value", [-0.5, np.inf, np.nan])
@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (double_backpropagation, "penalty"),
        (jacobian_regularisation, "penalty"),
        (gaussian_noise, "standard_deviation"),
        (label_smoothing, "share"),
        (weight_decay, "penalty"),
        (lambda radius: adversarial_training(radius, 1), "radius"),
        (linearised_margin, "radius"),
        (lambda trade_off: trades(trade_off, 0.1, 1), "trade_off"),
        (lambda penalty: curvature_regularisation(penalty, 0.1), "penalty"),
        (lambda clip: clipped_labels(loss_objective(relative_entropy), clip), "clip"),
    ],
)
def test_a_strength_that_cannot_be_is_named(make, argument, value):
    with pytest.raises(ValueError, match=rf"^{argument} is {value}; make it a .*number"):
        make(value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: double_backpropagation(1.0, 3), "norm is 3; make it 1 or 2"),
        (lambda: double_backpropagation(1.0, np.inf), "norm is inf; make it 1 or 2"),
        (lambda: label_smoothing(1.1), r"share is 1.1; make it a number in \[0, 1\]"),
        (lambda: adversarial_training(0.1, 0), "steps is 0; make it 1, 2, 3 or more"),
        (lambda: adversarial_training(0.1, 1.5), "steps is 1.5; make it 1, 2, 3 or more"),
        (lambda: clipped_labels(squared_error, 0), "clip is 0; make it a number between 0 and 0.5"),
        (lambda: clipped_labels(squared_error, 0.5), "clip is 0.5; make it a number between"),
    ],
)
def test_an_argument_out_of_range_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
