"""How a network fares under attack: the same attacks for all that are compared."""

from typing import Any

import keras
import numpy as np

from lab.attacks import pgd, square_attack


def under_attack(
    network: keras.Model, x: np.ndarray, labels: np.ndarray, epsilon: float, queries: int
) -> dict[str, Any]:
    """Attack a network in all ways that need nothing but itself, each pixel by up to epsilon.

    A sample is robust if it withstands 40 steps of PGD on cross-entropy from five random starts,
    40 on each margin, and, if it is one of the first 1,000, the square attack.

    Args:
        network, x, labels, epsilon: as for `lab.attacks.pgd`.
        queries: of the square attack.

    Returns:
        Percentages of samples: right without an attack, "clean"; "robust"; and what is left by
        single attacks: one step (FGSM), PGD by either loss, squares, and PGD when any change is
        allowed. How many samples only squares find. Two boolean arrays, shape (n,): which samples
        are "right", and which "withstands" every attack.
    """
    samples, first = (x, labels), (x[:1000], labels[:1000])
    right = network(x).numpy().argmax(axis=1) == labels
    fgsm = pgd(network, *samples, epsilon, steps=1, starts=0, losses=["cross-entropy"])
    on_entropy = pgd(network, *samples, epsilon, losses=["cross-entropy"])
    on_margins = pgd(network, *samples, epsilon, losses=["margin"])
    squares = square_attack(network, *first, epsilon, queries=queries)
    withstands = on_entropy & on_margins
    found = withstands[:1000] & ~squares
    withstands[:1000] &= squares
    return {
        "clean": 100 * right.mean(),
        "robust": 100 * withstands.mean(),
        "FGSM": 100 * fgsm.mean(),
        "on cross-entropy": 100 * on_entropy.mean(),
        "on margins": 100 * on_margins.mean(),
        "squares, 1,000 digits": 100 * squares.mean(),
        "found by squares only": int(found.sum()),
        "any change": 100 * pgd(network, *samples, 1.0, starts=1).mean(),
        "right": right,
        "withstands": withstands,
    }
