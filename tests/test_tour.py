"""The notebook of the documentation gives what it shows."""

from pathlib import Path

import nbformat
from nbclient import NotebookClient


def results(notebook: nbformat.NotebookNode) -> list[str]:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return [output.data["text/plain"] for output in outputs if output.output_type == "execute_result"]


def test_the_tour_gives_what_it_shows(tmp_path: Path) -> None:
    notebook = nbformat.read(Path(__file__).parents[1] / "docs" / "tour.ipynb", as_version=4)
    shown = results(notebook)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert results(notebook) == shown
    assert len(shown) == 7
