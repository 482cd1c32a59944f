"""What the README says is so: its examples run, its numbers and links exist."""

import contextlib
import io
import re
import subprocess
import sys
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


def test_results_are_those_of_the_committed_figures():
    check = [sys.executable, "-m", "cogapp", "--check", "--diff", "README.md"]
    run = subprocess.run(check, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, f"`make readme` mends this:\n{run.stdout}{run.stderr}"


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
