"""The notebooks run from top to bottom, offline, in an empty folder, and say what they promise."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
FOLDER = Path(__file__).resolve().parents[2] / "docs/notebooks"
NAMES = ("maps-on-your-photo", "label-a-folder", "compare-mix-strategies")


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def outputs(book):
    """Return the texts, and the number of pictures, that the cells gave."""
    found = [item for cell in book.cells if cell.cell_type == "code" for item in cell.outputs]
    assert not [item for item in found if item.output_type == "error"]
    pictures = sum("image/png" in item.get("data", {}) for item in found)
    return "\n".join(str(item.get("text") or item.get("data", {})) for item in found), pictures


def test_every_notebook_is_tested():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_repository_holds_no_outputs(name):
    book = read(name)
    nbformat.validate(book)
    assert all(not cell.outputs and cell.execution_count is None for cell in book.cells if cell.cell_type == "code")
    assert book.cells[0].source.startswith("# ")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_runs(name, tmp_path, monkeypatch, lite0_weights):
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("skimage")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    book = read(name)
    nbclient.NotebookClient(book, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    if os.environ.get("WSOL_SCREENSHOTS"):
        nbformat.write(book, Path(os.environ["WSOL_SCREENSHOTS"]) / f"{name}.ipynb")
    text, pictures = outputs(book)
    if name == "maps-on-your-photo":
        assert pictures == 3
        assert "likeliest" not in text
        assert "chelsea-egyptian_cat-gradcam" in text
    elif name == "label-a-folder":
        assert pictures == 1
        for label in ("Egyptian cat", "espresso", "moped"):
            assert f"'{label}', [" in text
        assert "(3, 3, {})" in text
    else:
        assert pictures == 2
        assert "| none |" in text
        assert "| cutmix |" in text
