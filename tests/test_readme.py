"""What the README says is so: its examples run, its numbers and links exist."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pandas as pd
import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def run_python(folder, program, *options):
    (folder / "program.py").write_text(program)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, *options, "program.py"]
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_the_examples_run_with_nothing_but_a_copy_of_utils(tmp_path):
    shutil.copy(ROOT / "utils.py", tmp_path / "gradient_loss.py")
    examples = [example for example in EXAMPLES if "lab" not in example]
    assert len(examples[0].splitlines()) <= 12
    assert "load_model" in examples[-1]
    # Without site, which puts this repository on the path, but with the packages beside it.
    start = f"import sys\nsys.path.append({sysconfig.get_path('purelib')!r})\n"
    end = """
import importlib.util
assert importlib.util.find_spec("utils") is importlib.util.find_spec("lab") is None
assert loss.shape == ()
assert type(trainer).__module__ == "gradient_loss"
assert trainer.get_config()["weights"][0]["camera"] == 0.0
"""
    run_python(tmp_path, start + "\n".join(examples) + end, "-S")


def test_the_example_of_many_runs_prints_its_table(tmp_path):
    (example,) = [example for example in EXAMPLES if "import lab" in example]
    assert re.search(r"1\.0 +0\.\d+\n100\.0 +0\.\d+", run_python(tmp_path, example))


def test_the_example_of_a_network_prints_its_recorded_accuracy(tmp_path):
    (example,) = [example for example in EXAMPLES if "results/networks" in example]
    (tmp_path / "results").symlink_to(ROOT / "results")
    record = pd.read_csv(ROOT / "results" / "06_noise.csv").query("norm == 1 and seed == 0")
    printed = 100 * float(run_python(tmp_path, example))
    assert printed == pytest.approx(record["clean"].iloc[0], abs=0.02)


def test_results_are_those_of_the_committed_figures():
    check = [sys.executable, "-m", "cogapp", "--check", "--diff", "README.md"]
    run = subprocess.run(check, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, f"`make readme` mends this:\n{run.stdout}{run.stderr}"


def anchors(text):
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def texts():
    for path in [*ROOT.glob("*.md"), *ROOT.glob("data/*.md")]:
        yield path, path.read_text()
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        yield path, "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")


def test_links_and_anchors_lead_somewhere():
    known = dict(texts())
    links = 0
    for path, text in known.items():
        targets = re.findall(r"\]\((?!https?:)([^)\s]+)\)|src=\"(?!https?:)([^\"]+)\"", text)
        for target in map("".join, targets):
            name, _, anchor = target.partition("#")
            file = (path.parent / name).resolve() if name else path
            assert file.exists(), (path.name, target)
            assert not anchor or anchor in anchors(known[file]), (path.name, target)
            links += 1
    assert links > 20


def test_citation_is_complete():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "license", "version"} <= set(citation)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["version"] == project["version"]


def test_times_are_those_that_the_notebooks_state():
    rows = re.findall(r"^\| \[<img.*", README, flags=re.MULTILINE)
    assert len(rows) == len(list((ROOT / "notebooks").glob("*.ipynb")))
    for row in rows:
        (name,) = set(re.findall(r"notebooks/(\w+)\.ipynb", row))
        (seconds,) = re.findall(r"\*(\d+) s\* \|", row)
        notebook = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())
        assert f"takes about {seconds} seconds" in "".join(notebook["cells"][0]["source"])


def test_every_notebook_and_every_target_of_make_is_real():
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        assert f"(notebooks/{notebook.name})" in README
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:`|^)make ([a-z-]+)", README, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
