"""The published loop: a tf.function without XLA, called from Python on tf.data's batches."""

import keras
import tensorflow as tf
from keras.losses import mean_squared_error
from serve import BATCH_SIZE, load_data, serve

from lab.training import mnist_network
from utils import get_gradient_loss_fn

model = mnist_network()
optimizer = keras.optimizers.Adam()
gradient_loss = get_gradient_loss_fn(lambda inputs: mean_squared_error(inputs[1], model(inputs[0])))
dataset = tf.data.Dataset.from_tensor_slices(load_data()).batch(BATCH_SIZE)


@tf.function
def step(x, y):
    with tf.GradientTape() as tape:
        loss = gradient_loss((x, y))
    gradients = tape.gradient(loss, model.trainable_variables)
    optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
    return loss


def epoch():
    losses = [step(x, y) for x, y in dataset]
    return tf.reduce_mean(losses)


serve(epoch)
