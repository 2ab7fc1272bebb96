"""Every notebook is executed in a kernel of its own; a failing cell fails the test."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.py"))
assert NOTEBOOKS, f"{FOLDER}: no notebooks"
TOOLS = ("jupytext", "nbclient", "ipykernel", "matplotlib")
pytestmark = pytest.mark.slow


def imported(text):
    """The packages that a notebook imports at the beginning of a line."""
    return set(re.findall(r"^(?:import|from) (\w+)", text, flags=re.M))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path, tmp_path, monkeypatch):
    missing = [name for name in (*TOOLS, *imported(path.read_text())) if not find_spec(name)]
    if missing:
        pytest.skip(f"needs {', '.join(sorted(missing))}: pip install 'hashsolve[notebooks]'")
    import jupytext
    from nbclient import NotebookClient

    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # of the kernel: more than idle cores only wait
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel's own puts pictures into cells
    before = sorted(FOLDER.iterdir())
    notebook = jupytext.read(path)
    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute()  # raises CellExecutionError where a cell fails
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert cells and all(cell.execution_count for cell in cells)
    data = [output.get("data", {}) for cell in cells for output in cell.outputs]
    assert any("image/png" in shown for shown in data), "no picture"
    errors = [out.text for cell in cells for out in cell.outputs if out.get("name") == "stderr"]
    assert not errors, errors
    left = {path.name for path in tmp_path.iterdir()} - {".hypothesis"}  # its cache
    assert not left, "files are left where the notebook runs"
    assert sorted(FOLDER.iterdir()) == before
