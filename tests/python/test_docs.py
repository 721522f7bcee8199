"""Pages of docs/ that show how something is used: their Python runs as it is printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = ["many.md"]
BLOCKS = [
    pytest.param(page, code, id=f"{page}-{number}")
    for page in PAGES
    for number, code in enumerate(
        re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    )
]


def test_every_page_has_python() -> None:
    assert {str(block.values[0]) for block in BLOCKS} == set(PAGES)


@pytest.mark.parametrize(("page", "code"), BLOCKS)
def test_python_of_a_page_runs(page: str, code: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(code, f"docs/{page}", "exec"), {})
    assert capsys.readouterr().out.strip()
