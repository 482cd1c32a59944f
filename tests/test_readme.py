"""What the README says is so: its examples run, its numbers and links exist."""

import contextlib
import io
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_examples_run_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # One of them saves a model.
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
