"""`pgd` and `square_attack`, against networks whose robust accuracy is known without attacks."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from lab import attacks
from lab.attacks import pgd, square_attack
from lab.data import load_mnist
from lab.training import train
from utils import gradient_loss_objective


class Margin(keras.Model):
    """Two classes, the first of which is right where `margin(x)` is positive."""

    def __init__(self, margin):
        super().__init__()
        self.margin = margin

    def call(self, x, training=None):
        margin = self.margin(x)
        return tf.stack([margin, tf.zeros_like(margin)], axis=1)


def linear_network(classes=10):
    return keras.Sequential([keras.Input([784]), keras.layers.Dense(classes)])


@pytest.fixture(scope="module")
def linear():
    """A linear network, trained on MNIST, and the test digits."""
    (x, labels), (x_test, labels_test) = load_mnist()
    objective = gradient_loss_objective(keras.losses.mean_squared_error, (0.0, 1.0))
    y = keras.utils.to_categorical(labels)
    return train(linear_network, objective, x, y, 0, epochs=1).model, x_test, labels_test


def exact_l_inf(model, x, labels, epsilon):
    """Which samples of a linear network withstand every change of up to epsilon within [0, 1].

    The difference of two logits is a sum over the pixels, so each pixel has a worst value of its
    own: the lower or the upper end of what it may be.
    """
    kernel, bias = (weight.astype("float64") for weight in model.get_weights())
    low, high = np.maximum(x - np.float64(epsilon), 0), np.minimum(x + np.float64(epsilon), 1)
    withstands = np.ones(len(x), bool)
    for label in range(10):
        for other in set(range(10)) - {label}:
            difference = kernel[:, label] - kernel[:, other]
            worst = low @ np.maximum(difference, 0) + high @ np.minimum(difference, 0)
            withstands &= (labels != label) | (worst + bias[label] - bias[other] > 0)
    return withstands


@pytest.mark.parametrize(
    ("epsilon", "digits"), [(0, 1000), (0.01, 10_000), (0.03, 10_000), (0.1, 10_000)]
)
def test_a_linear_network_is_as_robust_as_its_closed_form_says(linear, epsilon, digits):
    model, x, labels = linear
    x, labels = x[:digits], labels[:digits]
    exact = exact_l_inf(model, x, labels, epsilon)
    measured = pgd(model, x, labels, epsilon)
    assert not np.any(exact & ~measured)
    assert measured.mean() == pytest.approx(exact.mean(), abs=0.001)


def test_the_euclidean_norm_is_that_of_the_closed_form():
    # Far enough from 0 and 1 for the ball to be all inside.
    x = np.random.default_rng(0).uniform(0.4, 0.6, [2000, 784]).astype("float32")
    model = linear_network(classes=2)
    difference = model.get_weights()[0] @ [1, -1]
    logits = model(x).numpy()
    labels = logits.argmax(axis=1)
    distance = np.abs(logits @ [1, -1]) / np.linalg.norm(difference)
    for share in (0.2, 0.7):
        epsilon = np.quantile(distance, share)
        measured = pgd(model, x, labels, epsilon, norm="2")
        assert measured.mean() == pytest.approx(1 - share, abs=0.001)


@pytest.mark.parametrize("epsilon", [0.01, 0.1])
def test_one_step_is_the_fast_gradient_sign_method(linear, epsilon):
    model, x, labels = linear
    kernel, bias = model.get_weights()
    logits = x @ kernel + bias
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    gradient = (p - np.eye(10)[labels]) @ kernel.T
    attacked = np.clip(x + epsilon * np.sign(gradient), 0, 1)
    right = (attacked @ kernel + bias).argmax(axis=1) == labels
    options = {"steps": 1, "starts": 0, "losses": ["cross-entropy"]}
    measured = pgd(model, x, labels, epsilon, **options)
    expected = right & (logits.argmax(axis=1) == labels)
    assert np.mean(measured != expected) < 1e-3


@pytest.mark.parametrize("norm", ["inf", "2"])
def test_the_attack_stays_inside_the_ball(norm):
    x = np.full([50, 16], 0.5, "float32")
    labels = np.zeros(50, "int64")

    def inside(x):
        change = tf.abs(x - 0.5)
        size = tf.reduce_max(change, axis=1) if norm == "inf" else tf.norm(change + 1e-9, axis=1)
        return 0.1 - size

    allowance = tf.Variable(1e-5)
    model = Margin(lambda x: inside(x) + allowance)
    assert pgd(model, x, labels, 0.1, norm=norm).all()
    allowance.assign(-1e-3)
    assert not pgd(model, x, labels, 0.1, norm=norm).any()


def test_the_attacks_stay_between_0_and_1():
    x = np.random.default_rng(0).random([50, 16]).astype("float32")
    labels = np.zeros(50, "int64")
    model = Margin(lambda x: 1e-6 + tf.reduce_min(x * (1 - x), axis=1))
    assert pgd(model, x, labels, 0.5).all()
    assert square_attack(model, x, labels, 0.5, queries=50).all()


def test_stronger_attacks_never_score_higher(linear):
    model, x, labels = linear
    x, labels = x[:1000], labels[:1000]
    one = pgd(model, x, labels, 0.02, starts=1, losses=["cross-entropy"])
    both = pgd(model, x, labels, 0.02, starts=1)
    five = pgd(model, x, labels, 0.02)
    assert not np.any(both & ~one) and not np.any(five & ~both)
    assert pgd(model, x, labels, 1).mean() < 0.01


def test_the_margins_of_all_wrong_classes_are_attacked():
    class Decoy(keras.Model):
        """Darker pixels favour the second class, not enough to win; brighter ones the last."""

        def call(self, x, training=None):
            change = tf.reduce_mean(x, axis=1) - 0.5
            others = [tf.zeros_like(change) - 20] * 7
            return tf.stack([0 * change, -1 - 5 * change, *others, -8 + 81 * change], axis=1)

    x, labels = np.full([20, 16], 0.5, "float32"), np.zeros(20, "int64")
    assert pgd(Decoy(), x, labels, 0.1, starts=0, losses=["cross-entropy"]).all()
    assert not pgd(Decoy(), x, labels, 0.1, starts=0, losses=["margin"]).any()


def test_the_size_of_the_batches_does_not_matter(linear):
    model, x, labels = linear
    x, labels = x[:300], labels[:300]
    np.testing.assert_array_equal(
        pgd(model, x, labels, 0.02, batch_size=70), pgd(model, x, labels, 0.02)
    )


def test_the_attack_sees_new_weights(linear):
    model, x, labels = linear
    x, labels = x[:1000], labels[:1000]
    other = linear_network()
    other.set_weights(model.get_weights())
    before = pgd(other, x, labels, 0.02, starts=1)
    other.set_weights([-weight for weight in model.get_weights()])
    assert before.mean() > 0.3
    assert pgd(other, x, labels, 0.02, starts=1).mean() < 0.1


def test_networks_of_the_same_layers_share_a_program_and_others_do_not(linear, monkeypatch):
    model, x, labels = linear
    x, labels = x[:100], labels[:100]
    options = {"starts": 0, "steps": 3, "losses": ["cross-entropy"]}
    expected = pgd(model, x, labels, 0.03, **options)
    twin = linear_network()
    twin.set_weights(model.get_weights())
    before = attacks._compiled_pgd.cache_info().misses
    np.testing.assert_array_equal(pgd(twin, x, labels, 0.03, **options), expected)
    assert attacks._compiled_pgd.cache_info().misses == before
    bent = keras.Sequential([keras.Input([784]), keras.layers.Dense(10, activation="tanh")])
    bent.set_weights(model.get_weights())
    assert pgd(bent, x, labels, 0.0, **options).mean() > 0.5
    assert attacks._compiled_pgd.cache_info().misses == before + 1


def test_square_attack_finds_no_more_than_there_is(linear):
    model, x, labels = linear
    x, labels = x[:1000], labels[:1000]
    clean = model(x).numpy().argmax(axis=1) == labels
    exact = exact_l_inf(model, x, labels, 0.03)
    measured = square_attack(model, x, labels, 0.03, queries=2000)
    assert not np.any(exact & ~measured) and not np.any(measured & ~clean)
    # A margin that isn't that of the changed image, refusing improvements, leaves 0.415 here.
    assert measured.mean() < 0.75 * exact.mean() + 0.25 * clean.mean()


def test_convolutions_are_attacked_without_xla_and_to_their_closed_form():
    keras.utils.set_random_seed(0)
    shape = keras.layers.Reshape([28, 28, 1])
    convolution = keras.layers.Conv2D(2, 4, strides=4, use_bias=False)
    layers = [shape, convolution, keras.layers.Flatten(), keras.layers.Dense(10)]
    model = keras.Sequential([keras.Input([784]), *layers])
    x = load_mnist()[1][0][:1000]
    labels = model(x).numpy().argmax(axis=1)
    of_nothing = model(np.zeros([1, 784])).numpy()
    dense = linear_network()
    dense.set_weights([model(np.eye(784)).numpy() - of_nothing, of_nothing[0]])
    exact = exact_l_inf(dense, x, labels, 0.01)
    measured = pgd(model, x, labels, 0.01)
    assert not np.any(exact & ~measured)
    assert 0.1 < measured.mean() < exact.mean() + 0.002 < 0.9
    squares = square_attack(model, x[:100], labels[:100], 0.01, queries=1000)
    assert not np.any(exact[:100] & ~squares) and not squares.all()
    assert attacks._suits_xla(dense) and not attacks._suits_xla(model)


def test_square_attack_sees_through_masked_gradients():
    x = np.full([20, 16], 0.5, "float32")
    labels = np.zeros(20, "int64")

    def rounded(x):  # Its gradient is 0.
        return tf.stop_gradient(tf.round(100 * x) / 100) + 0 * x

    model = Margin(lambda x: 0.54 - rounded(tf.reduce_mean(x, axis=1)))
    assert pgd(model, x, labels, 0.2, starts=0).all()
    assert square_attack(model, x, labels, 0.2).mean() < 0.2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epsilon": -0.1}, "epsilon is -0.1"),
        ({"epsilon": np.nan}, "epsilon is nan"),
        ({"labels": np.zeros([10, 2])}, r"labels has shape \(10, 2\)"),
        ({"labels": np.zeros(9, int)}, "each of the 10 samples"),
        ({"x": np.zeros([0, 784], "float32"), "labels": np.zeros(0, int)}, "at least one"),
        ({"x": np.full([10, 784], 255.0, "float32")}, r"outside of \[0, 1\]"),
        ({"x": np.full([10, 784], np.nan, "float32")}, r"outside of \[0, 1\]"),
    ],
)
@pytest.mark.parametrize("attack", [pgd, square_attack])
def test_bad_input_is_named(attack, change, message):
    arguments = {"x": np.zeros([10, 784], "float32"), "labels": np.zeros(10, int), "epsilon": 0.1}
    with pytest.raises(ValueError, match=message):
        attack(linear_network(), **{**arguments, **change})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "1"}, "Choose norm of"),
        ({"losses": ["mse"]}, "Choose norm of"),
        ({"losses": []}, "Choose norm of"),
        ({"steps": -1}, "steps is -1"),
        ({"starts": -1}, "starts is -1"),
    ],
)
def test_bad_options_of_pgd_are_named(options, message):
    x, labels = np.zeros([10, 784], "float32"), np.zeros(10, int)
    with pytest.raises(ValueError, match=message):
        pgd(linear_network(), x, labels, 0.1, **options)


def test_a_confident_network_does_not_lose_the_label_in_its_gradient():
    class Confident(keras.Model):
        """The right class is 20 ahead, so that its probability is 1 in float32."""

        def call(self, x, training=None):
            ahead = 20 - 300 * (x[:, 0] - 0.5)  # Only the label's logit depends on the input.
            return tf.stack([ahead, 0 * ahead, 0 * ahead], axis=1)

    x, labels = np.full([5, 16], 0.5, "float32"), np.zeros(5, "int64")
    options = {"steps": 1, "starts": 0, "losses": iter(["cross-entropy"])}
    assert not pgd(Confident(), x, labels, 0.1, **options).any()


def test_the_sample_itself_counts():
    model = Margin(lambda x: tf.abs(x[:, 0] - 0.5) - 1e-4)  # Wrong at the sample, right beside it.
    x, labels = np.full([50, 16], 0.5, "float32"), np.zeros(50, "int64")
    assert not pgd(model, x, labels, 0.1, steps=0).any()


def test_a_model_that_returns_probabilities_is_refused():
    model = keras.Sequential([keras.Input([784]), keras.layers.Dense(10, activation="softmax")])
    with pytest.raises(ValueError, match="return the logits"):
        pgd(model, np.zeros([10, 784], "float32"), np.zeros(10, int), 0.1)


def test_images_that_are_not_square_are_refused():
    model = keras.Sequential([keras.Input([15]), keras.layers.Dense(10)])
    with pytest.raises(ValueError, match="square image"):
        square_attack(model, np.zeros([10, 15], "float32"), np.zeros(10, int), 0.1)
