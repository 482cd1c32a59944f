"""The objective that is named on the command line, as the notebooks train it."""

import sys

import keras
from keras.losses import mean_squared_error
from serve import BATCH_SIZE, load_data, report, wait

from lab.training import mnist_network, train
from utils import gradient_loss_objective, loss_objective

OBJECTIVES = {
    "gradient": gradient_loss_objective(mean_squared_error),
    "plain": loss_objective(mean_squared_error),
}


class Serve(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        self.start = wait()

    def on_epoch_end(self, epoch, logs=None):
        report(self.start, logs["loss"])


x, y = load_data()
train(
    mnist_network,
    OBJECTIVES[sys.argv[1]],
    x,
    y,
    seed=0,
    epochs=10**6,
    batch_size=BATCH_SIZE,
    callbacks=[Serve()],
)
