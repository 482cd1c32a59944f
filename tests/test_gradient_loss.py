"""`get_gradient_loss_fn` against closed forms in NumPy and against finite differences."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from utils import get_gradient_loss_fn

BATCH, PIXELS, HIDDEN, CLASSES = 5, 7, 6, 10


def softmax_mse_gradients(parameters, x, y):
    """∂S/∂x and ∂S/∂y for a ReLU-softmax network and S = MSE, by hand."""
    kernel_1, bias_1, kernel_2, bias_2 = parameters
    hidden = np.maximum(x @ kernel_1 + bias_1, 0)
    logits = hidden @ kernel_2 + bias_2
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    gradient_y = 2 / CLASSES * (y - p)
    gradient_p = -gradient_y
    gradient_logits = p * (gradient_p - (gradient_p * p).sum(axis=1, keepdims=True))
    gradient_x = ((gradient_logits @ kernel_2.T) * (hidden > 0)) @ kernel_1.T
    return gradient_x, gradient_y


def softmax_mse_terms(parameters, x, y):
    return [np.mean(gradient**2) for gradient in softmax_mse_gradients(parameters, x, y)]


def squared_norm(gradient, p):
    """The mean over the batch of the squared p-norm, each with a mean in place of its sum."""
    return np.mean([np.mean(np.abs(row) ** p) ** (2 / p) for row in gradient])


@pytest.fixture
def network():
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input([PIXELS], dtype="float64"),
            keras.layers.Dense(
                HIDDEN, "relu", dtype="float64", bias_initializer=keras.initializers.RandomNormal()
            ),
            keras.layers.Dense(CLASSES, "softmax", dtype="float64"),
        ]
    )
    random = np.random.default_rng(2)
    model.set_weights([2 * weight for weight in model.get_weights()])
    x = random.normal(size=(BATCH, PIXELS))
    y = np.eye(CLASSES)[random.integers(CLASSES, size=BATCH)]
    return model, x, y


def mse_of(model):
    return lambda inputs: keras.losses.mean_squared_error(inputs[1], model(inputs[0]))


@pytest.mark.parametrize("weights", [None, (1.0, 1.0), (1.0, 0.0), (0.0, 1.0), (0.3, 2.0)])
@pytest.mark.parametrize("compiled", ["eager", "graph", "xla"])
def test_softmax_mse_network_equals_closed_form(network, weights, compiled):
    model, x, y = network
    gradient_loss = get_gradient_loss_fn(mse_of(model), weights)
    if compiled != "eager":
        gradient_loss = tf.function(gradient_loss, jit_compile=compiled == "xla")
    x_term, y_term = softmax_mse_terms(model.get_weights(), x, y)
    x_weight, y_weight = weights or (1, 1)
    expected = x_weight * x_term + y_weight * y_term
    actual = gradient_loss((tf.constant(x), tf.constant(y)))
    assert actual.shape == ()
    assert actual.dtype == tf.float64
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


@pytest.mark.parametrize("norms", [(1, 2), (2, 1), (1, 1), (2, 2)])
@pytest.mark.parametrize("compiled", ["eager", "graph", "xla"])
def test_both_norms_equal_the_closed_form(network, norms, compiled):
    model, x, y = network
    gradient_loss = get_gradient_loss_fn(mse_of(model), (0.3, 2.0), norms)
    if compiled != "eager":
        gradient_loss = tf.function(gradient_loss, jit_compile=compiled == "xla")
    gradients = softmax_mse_gradients(model.get_weights(), x, y)
    x_term, y_term = (squared_norm(g, p) for g, p in zip(gradients, norms, strict=True))
    actual = gradient_loss((tf.constant(x), tf.constant(y)))
    assert actual.dtype == tf.float64
    np.testing.assert_allclose(actual, 0.3 * x_term + 2.0 * y_term, rtol=1e-6)


def test_a_sum_of_absolute_values_becomes_a_mean_by_the_square_of_the_number_of_elements(network):
    model, x, y = network
    gradient, _ = softmax_mse_gradients(model.get_weights(), x, y)
    expected = 0.006 * np.mean(np.abs(gradient).sum(axis=1) ** 2)
    weights = (0.006 * PIXELS**2, 0.0)
    actual = get_gradient_loss_fn(mse_of(model), weights, (1, 2))((x, y))
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_a_variable_is_a_weight_that_can_change(network):
    model, x, y = network
    x_term, y_term = softmax_mse_terms(model.get_weights(), x, y)
    for weight in (tf.Variable(0.0), keras.Variable(0.0)):
        gradient_loss = tf.function(
            get_gradient_loss_fn(mse_of(model), (weight, 1.0)), jit_compile=True
        )
        for value in (0.0, 5.0):
            weight.assign(value)
            actual = gradient_loss((tf.constant(x), tf.constant(y)))
            np.testing.assert_allclose(actual, value * x_term + y_term, rtol=1e-6)


@pytest.mark.parametrize("norms", [(2, 2), (1, 2), (1, 1)])
def test_gradient_with_respect_to_the_parameters_equals_finite_differences(network, norms):
    model, x, y = network
    gradient_loss = get_gradient_loss_fn(mse_of(model), (3.0, 0.5), norms)
    with tf.GradientTape() as tape:
        loss = gradient_loss((x, y))
    gradients = tape.gradient(loss, model.trainable_variables)
    parameters = model.get_weights()
    step = 1e-6
    for parameter, gradient in zip(parameters, gradients, strict=True):
        for index in list(np.ndindex(parameter.shape))[::3]:
            values = []
            for sign in (1, -1):
                parameter[index] += sign * step
                gradients_at = softmax_mse_gradients(parameters, x, y)
                x_term, y_term = map(squared_norm, gradients_at, norms)
                parameter[index] -= sign * step
                values.append(3.0 * x_term + 0.5 * y_term)
            expected = (values[0] - values[1]) / (2 * step)
            np.testing.assert_allclose(gradient.numpy()[index], expected, rtol=1e-5, atol=1e-9)


def finite_difference_terms(function, tensors, step=1e-5, p=2):
    """Squared p-norms of the central differences of a sum of per-sample losses, one per tensor."""
    terms = []
    for tensor in tensors:
        differences = []
        for index in np.ndindex(tensor.shape):
            original = tensor[index]
            tensor[index] = original + step
            above = function(*tensors)
            tensor[index] = original - step
            below = function(*tensors)
            tensor[index] = original
            differences.append((above - below) / (2 * step))
        terms.append(squared_norm(np.reshape(differences, [len(tensor), -1]), p))
    return terms


def smooth_sum(a, b):
    """The sum over the batch of an arbitrary smooth S(a, b), in NumPy."""
    return np.sum(np.sin(a).sum(axis=1) * np.exp(0.3 * b).mean(axis=(1, 2)) + (a**3).mean(axis=1))


def smooth_loss(a, b):
    return tf.reduce_sum(tf.sin(a), 1) * tf.reduce_mean(tf.exp(0.3 * b), [1, 2]) + tf.reduce_mean(
        a**3, 1
    )


@pytest.mark.parametrize(
    ("nest", "unnest", "weights"),
    [
        (lambda a, b: (a, b), lambda z: z, (0.7, 1.9)),
        (lambda a, b: [a, b], lambda z: z, [0.7, 1.9]),
        (lambda a, b: {"b": b, "a": a}, lambda z: (z["a"], z["b"]), {"a": 0.7, "b": 1.9}),
        (
            lambda a, b: ({"image": b}, [a]),
            lambda z: (z[1][0], z[0]["image"]),
            ({"image": 1.9}, [0.7]),
        ),
    ],
    ids=["tuple", "list", "dict", "mixed"],
)
def test_arbitrary_smooth_loss_on_nests_equals_finite_differences(nest, unnest, weights):
    random = np.random.default_rng(3)
    a, b = random.normal(size=(4, 3)), random.normal(size=(4, 2, 5))
    term_a, term_b = finite_difference_terms(smooth_sum, [a, b])
    loss_fn = lambda inputs: smooth_loss(*unnest(inputs))  # noqa: E731
    unweighted = get_gradient_loss_fn(loss_fn)(nest(a, b))
    np.testing.assert_allclose(unweighted, term_a + term_b, rtol=1e-6)
    weighted = get_gradient_loss_fn(loss_fn, weights)(nest(a, b))
    np.testing.assert_allclose(weighted, 0.7 * term_a + 1.9 * term_b, rtol=1e-6)
    (term_b,) = finite_difference_terms(lambda b: smooth_sum(a, b), [b], p=1)
    norms = keras.tree.map_structure(lambda weight: 2 if weight == 0.7 else 1, weights)
    mixed = get_gradient_loss_fn(loss_fn, weights, norms)(nest(a, b))
    np.testing.assert_allclose(mixed, 0.7 * term_a + 1.9 * term_b, rtol=1e-6)


def test_single_tensor_equals_finite_differences():
    a = np.random.default_rng(4).normal(size=(4, 3))
    b = np.ones([4, 1, 1])
    (term,) = finite_difference_terms(lambda a: smooth_sum(a, b), [a])
    loss_fn = lambda a: smooth_loss(a, b)  # noqa: E731
    np.testing.assert_allclose(get_gradient_loss_fn(loss_fn)(a), term, rtol=1e-6)
    np.testing.assert_allclose(get_gradient_loss_fn(loss_fn, 2.5)(a), 2.5 * term, rtol=1e-6)


def test_convolutional_network_equals_finite_differences():
    keras.utils.set_random_seed(5)
    model = keras.Sequential(
        [
            keras.Input([5, 5, 1], dtype="float64"),
            keras.layers.Conv2D(3, 3, activation="tanh", dtype="float64"),
            keras.layers.AveragePooling2D(2, dtype="float64"),
            keras.layers.Flatten(dtype="float64"),
            keras.layers.Dense(CLASSES, "softmax", dtype="float64"),
        ]
    )
    x = np.random.default_rng(6).normal(size=(3, 5, 5, 1))
    y = np.eye(CLASSES)[:3]
    terms = finite_difference_terms(lambda x, y: np.mean((y - model(x)) ** 2, 1).sum(), [x, y])
    for compiled in (False, True):
        gradient_loss = tf.function(get_gradient_loss_fn(mse_of(model)), jit_compile=compiled)
        np.testing.assert_allclose(gradient_loss((x, y)), sum(terms), rtol=1e-6)


def test_zero_weight_leaves_the_term_out_of_the_work():
    """A term of weight 0 needs no gradient, so its input may be of any kind."""
    a, labels = tf.random.normal([4, 3]), tf.constant([0, 2, 1, 1])
    loss_fn = lambda inputs: tf.gather(inputs[0], inputs[1], batch_dims=1) ** 2  # noqa: E731
    weighted = get_gradient_loss_fn(loss_fn, (1.0, 0.0))((a, labels))
    alone = get_gradient_loss_fn(lambda a: loss_fn((a, labels)))(a)
    np.testing.assert_allclose(weighted, alone)


def test_tensor_given_twice_counts_as_two_inputs():
    a = tf.random.normal([4, 3])
    loss_fn = lambda inputs: tf.reduce_sum(inputs[0] ** 2 + 5 * inputs[1], 1)  # noqa: E731
    expected = np.mean((2 * a.numpy()) ** 2) + 25
    np.testing.assert_allclose(get_gradient_loss_fn(loss_fn)((a, a)), expected, rtol=1e-6)


def test_terms_of_different_precision_add_up_in_that_of_the_loss():
    inputs = tf.ones([2, 3], tf.float64), tf.ones([2, 3], tf.float32)
    loss_fn = lambda z: tf.reduce_sum(tf.cast(z[0], tf.float32) * 2 + z[1] * 3, 1)  # noqa: E731
    loss = get_gradient_loss_fn(loss_fn)(inputs)
    assert loss.dtype == tf.float32
    assert loss == 4 + 9


def test_half_precision_does_not_underflow():
    inputs = tf.ones([2, 3], tf.float16)
    for norm in (1, 2):
        loss = get_gradient_loss_fn(
            lambda z: tf.reduce_sum(z, 1) * tf.constant(1e-4, tf.float16), norms=norm
        )(inputs)
        assert loss.dtype == tf.float32
        np.testing.assert_allclose(loss, 1e-8, rtol=1e-2)


X, Y = tf.ones([4, 3]), tf.ones([4, 2])


def good_loss(inputs):
    return tf.reduce_sum(inputs[0], 1) * tf.reduce_sum(inputs[1], 1)


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        ((X, tf.ones([4, 2], tf.int32)), TypeError, r"inputs\[1\] has dtype int32.*float32"),
        ((), ValueError, "inputs is empty"),
        ((X, tf.ones([5, 2])), ValueError, r"batch size.*'inputs\[0\]': 4, 'inputs\[1\]': 5"),
        ((X, tf.constant(1.0)), ValueError, r"inputs\[1\] is a scalar"),
    ],
)
def test_bad_inputs_are_named(inputs, error, message):
    with pytest.raises(error, match=message):
        get_gradient_loss_fn(good_loss)(inputs)


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        ((1.0, -2.0), ValueError, r"weight of inputs\[1\] is -2.0"),
        ((float("nan"), 1.0), ValueError, r"weight of inputs\[0\] is nan"),
        ({"image": float("inf")}, ValueError, r"weight of inputs\['image'\] is inf"),
        ((1.0, "2"), TypeError, r"weight of inputs\[1\] is '2'"),
        ((0.0, 0.0), ValueError, "nothing to minimise"),
        ((tf.Variable([1.0, 2.0]), 1.0), TypeError, r"weight of inputs\[0\] is .*Variable"),
    ],
)
def test_bad_weights_are_named_before_any_use(weights, error, message):
    with pytest.raises(error, match=message):
        get_gradient_loss_fn(good_loss, weights)


@pytest.mark.parametrize("norm", [0, 3, 1.5, -1, "1", None, True, float("inf")])
def test_bad_norms_are_named_before_any_use(norm):
    with pytest.raises(ValueError, match=r"norm of inputs(\[\'x\'\])?.* is .*; make it 1 or 2"):
        get_gradient_loss_fn(good_loss, norms={"x": norm})


@pytest.mark.parametrize("norms", [2, (1,), (1, 2, 1), {"x": 1, "y": 2}])
def test_norms_that_do_not_fit_the_inputs_are_named(norms):
    with pytest.raises(ValueError, match=r"norms don't fit.*inputs inputs\[0\], inputs\[1\]"):
        get_gradient_loss_fn(good_loss, norms=norms)((X, Y))


@pytest.mark.parametrize("weights", [1.0, (1.0,), (1.0, 1.0, 1.0), {"x": 1.0, "y": 1.0}])
def test_weights_that_do_not_fit_the_inputs_are_named(weights):
    with pytest.raises(ValueError, match=r"don't fit.*inputs inputs\[0\], inputs\[1\]"):
        get_gradient_loss_fn(good_loss, weights)((X, Y))


def test_loss_that_ignores_an_input_is_named():
    with pytest.raises(ValueError, match=r"doesn't depend on inputs\[1\].*weight 0"):
        get_gradient_loss_fn(lambda inputs: tf.reduce_sum(inputs[0], 1))((X, Y))


@pytest.mark.parametrize("loss_fn", [lambda z: z[0] * z[1][:, :1], lambda z: (z[0] * z[1])[:2, 0]])
def test_loss_of_another_shape_is_named(loss_fn):
    with pytest.raises(ValueError, match=r"returned shape .* instead of one value"):
        get_gradient_loss_fn(loss_fn)((X, X))


def test_scalar_loss_warns_of_the_division_by_the_square_of_the_batch_size():
    gradient_loss = get_gradient_loss_fn(lambda inputs: tf.reduce_mean(good_loss(inputs)))
    with pytest.warns(UserWarning, match="scalar.*square of the batch size"):
        scalar = gradient_loss((X, Y))
    np.testing.assert_allclose(scalar, get_gradient_loss_fn(good_loss)((X, Y)) / 4**2)


def test_unknown_batch_size_works():
    gradient_loss = tf.function(
        get_gradient_loss_fn(good_loss),
        input_signature=[(tf.TensorSpec([None, 3]), tf.TensorSpec([None, None]))],
    )
    np.testing.assert_allclose(gradient_loss((X, Y)), get_gradient_loss_fn(good_loss)((X, Y)))
    measured_by = {"loss_fn": good_loss, "norms": (1, 1)}
    unknown = tf.function(
        get_gradient_loss_fn(**measured_by),
        input_signature=[(tf.TensorSpec([None, 3]), tf.TensorSpec([None, None]))],
    )
    np.testing.assert_allclose(unknown((X, Y)), get_gradient_loss_fn(**measured_by)((X, Y)))
