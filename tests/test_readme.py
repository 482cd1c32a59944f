"""What the README says is so: its examples run, its numbers and links exist."""

import contextlib
import csv
import io
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_examples_run_one_after_the_other():
    namespace = {}
    examples = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(examples[0].splitlines()) <= 12
    with contextlib.redirect_stdout(io.StringIO()):
        for example in examples:
            exec(example, namespace)
    assert namespace["loss"].shape == ()


def test_accuracies_are_those_of_the_committed_figures():
    with (ROOT / "figures" / "02_side_by_side.csv").open() as file:
        last_epoch = list(csv.DictReader(file))[-1]
    assert f"test accuracy {float(last_epoch['gradient_loss_test_accuracy']):.4f}," in README
    assert f"baseline reaches {float(last_epoch['baseline_test_accuracy']):.4f}," in README


def test_links_lead_somewhere():
    targets = re.findall(r"\]\((?!http)([^)#]+)", README)
    assert targets
    for target in targets:
        assert (ROOT / target).exists(), target


def test_every_notebook_and_every_target_of_make_is_real():
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        assert f"(notebooks/{notebook.name})" in README
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:`|^)make ([a-z-]+)", README, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
