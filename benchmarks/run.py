"""Time what training on the gradient loss costs; write the tables that notebooks 07 and 13 read.

The contestants take turns, so that all of them meet the same moods of the machine.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd

FOLDER = Path(__file__).resolve().parent
FIGURES = FOLDER.parent / "figures"
PEERS = FOLDER / ".venv" / "bin" / "python"
REPETITIONS = 9
OURS = "gradient loss, Keras fit"
CONTESTANTS = {
    OURS: [sys.executable, "epoch_keras.py", "gradient"],
    "published loop": [sys.executable, "epoch_published.py"],
    "plain loss, Keras fit": [sys.executable, "epoch_keras.py", "plain"],
    "JAX, jit and scan": [PEERS, "epoch_jax.py"],
    "PyTorch, eager": [PEERS, "epoch_torch.py"],
    "5 products, NumPy": [sys.executable, "epoch_products.py"],
}


def main():
    save(time_epochs(), "13_epoch_time")
    for command, name in [
        (["growth.py"], "13_growth"),
        (["sweep_time.py"], "13_sweep_time"),
        (["methods.py", "dense"], "07_cost"),
        (["methods.py", "convolutional"], "13_methods"),
    ]:
        run = subprocess.run([sys.executable, *command], cwd=FOLDER, capture_output=True, text=True)
        if run.returncode:
            sys.exit(f"{' '.join(command)} failed:\n{run.stderr}")
        save(pd.DataFrame(json.loads(run.stdout)), name)


def save(table, name):
    table.to_csv(FIGURES / f"{name}.csv", index=False, float_format="%.6g", lineterminator="\n")
    print(f"\n{name}\n{table.to_string(index=False)}", flush=True)


def time_epochs():
    """One row for each epoch; repetition 0 is the first one, which also traces and compiles."""
    processes = {
        name: subprocess.Popen(
            command,
            cwd=FOLDER,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        )
        for name, command in CONTESTANTS.items()
    }
    rows = []
    names = list(processes)
    random = np.random.default_rng(0)
    for repetition in range(REPETITIONS + 1):
        # In random order, as what runs before may leave the machine warm or busy.
        random.shuffle(names)
        for name in names:
            process = processes[name]
            print("go", file=process.stdin, flush=True)
            answer = process.stdout.readline()
            if not answer:
                sys.exit(f"{name} failed; to see why: echo | {' '.join(map(str, process.args))}")
            seconds, loss = json.loads(answer)
            rows.append((name, repetition, seconds, loss))
    for process in processes.values():
        process.communicate()
    table = pd.DataFrame(rows, columns=["contestant", "repetition", "seconds", "loss"])
    check_same_work(table[table["repetition"] == REPETITIONS].set_index("contestant")["loss"])
    return table.drop(columns="loss")


def check_same_work(losses):
    """All contestants but two minimise the same: they must have come to about the same loss."""
    losses = losses.drop(["plain loss, Keras fit", "5 products, NumPy"])
    if not np.allclose(losses, losses.median(), rtol=0.2):
        sys.exit(f"The contestants don't do the same work; their losses differ:\n{losses}")


if __name__ == "__main__":
    main()
