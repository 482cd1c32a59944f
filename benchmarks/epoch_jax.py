"""The gradient loss in JAX: a whole epoch, reshuffled, compiled as one scan over its batches."""

from functools import partial

import jax
import jax.numpy as jnp
from serve import BATCH_SIZE, STEPS, load_data, serve

x, y = map(jnp.asarray, load_data())


def initial_weights(key):
    weights = []
    shapes = [(784, 128), (128, 10)]
    for key_of_layer, shape in zip(jax.random.split(key), shapes, strict=True):
        limit = (6 / sum(shape)) ** 0.5
        weights.append(jax.random.uniform(key_of_layer, shape, minval=-limit, maxval=limit))
        weights.append(jnp.zeros(shape[1]))
    return weights


def loss_sum(weights, x, y):
    kernel1, bias1, kernel2, bias2 = weights
    hidden = jax.nn.relu(x @ kernel1 + bias1)
    return jnp.sum(jnp.mean((y - jax.nn.softmax(hidden @ kernel2 + bias2)) ** 2, axis=1))


def gradient_loss(weights, x, y):
    gradient_x, gradient_y = jax.grad(loss_sum, argnums=(1, 2))(weights, x, y)
    return jnp.mean(gradient_x**2) + jnp.mean(gradient_y**2)


def adam_step(state, batch):
    weights, means, squares, step = state
    loss, gradients = jax.value_and_grad(gradient_loss)(weights, *batch)
    step += 1
    means = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, means, gradients)
    squares = jax.tree.map(lambda s, g: 0.999 * s + 0.001 * g * g, squares, gradients)
    rate = 1e-3 * jnp.sqrt(1 - 0.999**step) / (1 - 0.9**step)
    weights = jax.tree.map(
        lambda w, m, s: w - rate * m / (jnp.sqrt(s) + 1e-7), weights, means, squares
    )
    return (weights, means, squares, step), loss


@partial(jax.jit, donate_argnums=0)
def train_epoch(state, key):
    order = jax.random.permutation(key, len(x))
    batches = (x[order].reshape(STEPS, BATCH_SIZE, 784), y[order].reshape(STEPS, BATCH_SIZE, 10))
    state, losses = jax.lax.scan(adam_step, state, batches)
    return state, jnp.mean(losses)


weights = initial_weights(jax.random.key(0))
state = weights, *(jax.tree.map(jnp.zeros_like, weights) for _ in range(2)), jnp.float32(0)
key = jax.random.key(1)


def epoch():
    global state, key
    key, key_of_epoch = jax.random.split(key)
    state, loss = train_epoch(state, key_of_epoch)
    return loss


serve(epoch)
