"""Attack the robust networks of notebook 08 by another library's code, the first 1,000 digits.

By the adversarial-robustness-toolbox (M.-I. Nicolae et al., arXiv:1807.01069, 2018): AutoPGD on
cross-entropy and on the difference of logits ratio (F. Croce, M. Hein, "Reliable evaluation of
adversarial robustness with an ensemble of diverse parameter-free attacks", ICML 2020), and its
square attack. The result is figures/08_library.csv, which notebook 08 reads.
"""

import keras
import numpy as np
import pandas as pd

import lab
from lab.attacks import pgd
from lab.data import ROOT, load_mnist
from lab.networks import load

LEAST = 80  # Percent under our own attack. What keeps less needs no second opinion.
ATTACKS = "AutoPGD, cross-entropy", "AutoPGD, logits ratio", "squares"


def attack(network, attack, digits, epsilon):
    from art.attacks.evasion import AutoProjectedGradientDescent, SquareAttack
    from art.estimators.classification import TensorFlowV2Classifier

    model = load(network)
    x, labels = (array[:digits] for array in load_mnist()[1])
    images, one_hot = x.reshape(-1, 28, 28, 1), keras.utils.to_categorical(labels, 10)
    classifier = TensorFlowV2Classifier(
        # The square attack wants images, the network pixels.
        model=keras.Sequential([keras.Input([28, 28, 1]), keras.layers.Reshape([784]), model]),
        nb_classes=10,
        input_shape=(28, 28, 1),
        loss_object=keras.losses.CategoricalCrossentropy(from_logits=True),
        clip_values=(0.0, 1.0),
    )
    if attack == "squares":
        its = SquareAttack(
            classifier, eps=epsilon, max_iter=5000, nb_restarts=1, batch_size=1000, verbose=False
        )
    else:
        loss = {"cross-entropy": "cross_entropy", "logits ratio": "difference_logits_ratio"}
        its = AutoProjectedGradientDescent(
            classifier,
            eps=epsilon,
            eps_step=2 * epsilon,
            max_iter=100,
            nb_random_init=1,
            batch_size=1000,
            loss_type=loss[attack.removeprefix("AutoPGD, ")],
            verbose=False,
        )
    keras.utils.set_random_seed(0)
    points = its.generate(images, one_hot).reshape(x.shape)
    # Its points may leave the box by a rounding error.
    points = np.clip(np.clip(points, x - epsilon, x + epsilon), 0, 1)
    right = model(x).numpy().argmax(axis=1) == labels
    left = right & (model(points).numpy().argmax(axis=1) == labels)
    ours = pgd(model, x, labels, epsilon)
    return {
        "left by it": int(left.sum()),
        "left by ours": int(ours.sum()),
        "found by it only": int((ours & ~left).sum()),
        "found by ours only": int((left & ~ours).sum()),
    }


def main():
    recorded = pd.read_csv(ROOT / "results" / "08_starts.csv").query("seed == 0")
    robust = recorded.loc[recorded["robust"] > LEAST, "network"]
    names = [name for name in robust if not name.startswith("rounded ")]
    grid = {"network": names, "attack": ATTACKS, "digits": [1000], "epsilon": [0.1]}
    table = lab.sweep(attack, grid)
    table.to_csv(ROOT / "figures" / "08_library.csv", index=False)
    print(table.drop(columns=["digits", "epsilon"]).to_string())


if __name__ == "__main__":
    main()
