"""The committed notebooks are what a complete run leaves, and nothing else. nbval compares them."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# Folders in which a home, a temporary folder or a container's work tree usually lies.
ABSOLUTE_PATH = re.compile(
    r"(?<![\w.:/])/(home|root|Users|tmp|work|mnt|opt|var|private)/\w|[A-Z]:\\\\"
)


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return json.loads(request.param.read_text())


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def tags(cell):
    return cell["metadata"].get("tags", [])


def test_there_are_notebooks_and_each_has_a_number_of_its_own():
    numbers = [re.fullmatch(r"(\d\d)_\w+", path.stem)[1] for path in NOTEBOOKS]
    assert numbers
    assert len(set(numbers)) == len(numbers)


def test_every_code_cell_ran_once_in_order(notebook):
    counts = [cell["execution_count"] for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))


def test_no_error_and_nothing_on_stderr(notebook):
    for cell in code_cells(notebook):
        for output in cell["outputs"]:
            assert output["output_type"] != "error", output
            assert output.get("name") != "stderr", output


def test_no_metadata_of_a_run(notebook):
    assert set(notebook["metadata"]) == {"kernelspec", "language_info"}
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert "version" not in notebook["metadata"]["language_info"]
    for cell in notebook["cells"]:
        assert set(cell["metadata"]) <= {"tags"}
        assert "injected-parameters" not in tags(cell)


def test_no_absolute_path(notebook):
    for cell in notebook["cells"]:
        text = json.dumps(cell["source"])
        for output in cell.get("outputs", []):
            data = {
                kind: data for kind, data in output.get("data", {}).items() if "image" not in kind
            }
            text += json.dumps([data, output.get("text")])
        assert not ABSOLUTE_PATH.search(text), ABSOLUTE_PATH.search(text)


def test_first_cell_asks_a_question(notebook):
    cell = notebook["cells"][0]
    assert cell["cell_type"] == "markdown"
    title = "".join(cell["source"]).splitlines()[0]
    assert re.fullmatch(r"# \d+\. .*\?", title), title


def test_parameters_cell_holds_nothing_but_assignments_of_literals(notebook):
    (cell,) = [cell for cell in code_cells(notebook) if "parameters" in tags(cell)]
    namespace = {}
    exec("".join(cell["source"]), {"__builtins__": {}}, namespace)
    assert namespace
    assert cell["outputs"] == []


def test_last_code_cell_checks_claims_and_is_compared(notebook):
    cell = code_cells(notebook)[-1]
    assert "".join(cell["source"]).endswith("claims.check()")
    assert tags(cell) == []
    (output,) = cell["outputs"]
    lines = "".join(output["text"]).splitlines()
    assert lines
    for line in lines:
        assert re.fullmatch(r"PASS .+", line), line


def test_most_cells_are_compared(notebook):
    ignored = [cell for cell in code_cells(notebook) if "nbval-ignore-output" in tags(cell)]
    assert len(ignored) < len(code_cells(notebook)) / 2


FORMULAS_AND_LINKS = re.compile(r"\$\$.*?\$\$|\$[^$]+\$|`[^`]*`|\]\([^)]*\)|arXiv:\S+", re.DOTALL)


def _rounds_to(number, text):
    decimals = len(text.partition(".")[2])
    return abs(number - float(text)) <= 0.5 * 10**-decimals + 1e-9


def test_each_decimal_in_prose_is_in_an_output_or_a_setting(notebook):
    prose, shown = [], []
    for cell in notebook["cells"]:
        (prose if cell["cell_type"] == "markdown" else shown).append("".join(cell["source"]))
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            for text in (output.get("text", ""), data.get("text/plain", "")):
                shown.append("".join(text))
    decimals = re.findall(r"(?<![\w.])\d+\.\d+", FORMULAS_AND_LINKS.sub("", "\n".join(prose)))
    numbers = set(map(float, re.findall(r"\d+\.\d+", "\n".join(shown))))
    unknown = {n for n in decimals if not any(_rounds_to(number, n) for number in numbers)}
    assert not unknown, f"no cell computes these numbers, or says them otherwise: {unknown}"


def test_no_placeholder_is_left_in_prose(notebook):
    prose = [
        "".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown"
    ]
    text = FORMULAS_AND_LINKS.sub("", "\n".join(prose))
    left = re.findall(r"\b[A-Z]+_[A-Z_]+\b|\b(?:TODO|DRAFT|FIXME|XXX|TBD)\b|\{\w*\}", text)
    assert not left, left


def test_only_known_tags(notebook):
    for cell in notebook["cells"]:
        assert set(tags(cell)) <= {"parameters", "nbval-ignore-output"}


def test_figures_are_those_that_the_notebooks_draw_with_their_numbers():
    drawn = set()
    for path in NOTEBOOKS:
        calls = re.findall(r'save_figure\(\w+, \\"(\w+)\\"(, )?', path.read_text())
        assert all(name.startswith(path.name[:3]) for name, _ in calls), calls
        drawn |= {f"{name}.png" for name, _ in calls}
        drawn |= {f"{name}.csv" for name, table in calls if table}
    assert {path.name for path in (ROOT / "figures").iterdir()} == drawn
