"""The notebooks run on the embedded model, in a kernel, from the first cell to the last; stored outputs are clean."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("llguidance", reason="grammars need the extra: pip install 'gemmantle[structured]'")
pytest.importorskip("pandas", reason="the third notebook makes data frames: pip install pandas")
nbformat = pytest.importorskip("nbformat", reason="pip install nbformat nbclient ipykernel")
nbclient = pytest.importorskip("nbclient", reason="pip install nbclient ipykernel")

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

# What the kernel's libraries warn of is theirs.
pytestmark = [pytest.mark.filterwarnings("ignore:::(?!gemmantle)")]


@pytest.fixture
def kernel_environment(monkeypatch):
    """The kernel finds the package where this process found it."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    monkeypatch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")


def client_of(notebook):
    return nbclient.NotebookClient(notebook, timeout=300, startup_timeout=300, kernel_name="python3")


def text_of(cell):
    """What a reader sees below a cell."""
    found = []
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        found.append(output.get("text") or data.get("text/markdown") or data.get("text/plain") or "")
    return "".join(found)


@pytest.mark.usefixtures("kernel_environment")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_says_what_is_stored(path):
    notebook = nbformat.read(path, as_version=4)
    stored = [text_of(cell) for cell in notebook.cells]
    nbformat.validate(notebook)
    client_of(notebook).execute()
    # Greedy answers may differ in a word between machines; that there is one, and where, may not.
    assert [bool(text_of(cell)) for cell in notebook.cells] == [bool(text) for text in stored]
    assert any("".join(stored)), "run tools/run_notebooks.py"


def test_the_notebooks_are_there_and_carry_nothing_of_a_run():
    assert [path.stem for path in NOTEBOOKS] == ["01_first_answer", "02_openai_surface", "03_structured_output"]
    for path in NOTEBOOKS:
        notebook = nbformat.read(path, as_version=4)
        assert set(notebook.metadata) == {"kernelspec", "language_info"}
        assert not any(cell.metadata for cell in notebook.cells), "run tools/run_notebooks.py"
        assert str(ROOT) not in path.read_text()


@pytest.mark.usefixtures("kernel_environment")
def test_interrupting_the_kernel_cancels_the_answer_and_leaves_the_engine_usable():
    cells = [
        "import gemmantle\nengine = gemmantle.load('gemma-4-nano-e')\nclient = engine.client()\n"
        "def ask(**fields):\n"
        "    message = {'role': 'user', 'content': 'Who are you?'}\n"
        "    return client.chat.completions.create(model=engine.name, messages=[message], stream=True, **fields)",
        # Without an end the answer goes on until the context is full, again and again.
        "try:\n"
        "    while True:\n"
        "        gemmantle.show(ask(extra_body={'ignore_eos': True}))\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted')",
        "answer = gemmantle.show(ask(temperature=0))",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    client = client_of(notebook)

    def interrupt():
        until = time.monotonic() + 120
        while not notebook.cells[1].get("outputs"):  # the answer is on the screen
            if time.monotonic() > until:
                return
            time.sleep(0.01)
        asyncio.run(client.km.interrupt_kernel())

    stopper = threading.Thread(target=interrupt)
    stopper.start()
    client.execute()
    stopper.join()
    assert "interrupted" in text_of(notebook.cells[1])
    assert "demonstration model" in text_of(notebook.cells[2])
