"""The README's commands exist and its Python runs as it is printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import gemmantle.cli

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_the_readme_has_python() -> None:
    assert len(BLOCKS) >= 2


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_python_of_the_readme_runs(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(BLOCKS[number], f"README.md, block {number}", "exec"), {})
    assert capsys.readouterr().out.strip()


def test_commands_of_the_readme_exist() -> None:
    scripts = re.findall(r"bash (tools/\w+\.sh)", README)
    assert {"tools/setup.sh", "tools/test.sh"} <= set(scripts)
    assert all((ROOT / script).is_file() for script in scripts)
    commands = set(re.findall(r"`gemmantle (\w+)", README))
    assert commands
    for command in sorted(commands):
        with pytest.raises(SystemExit) as ended:
            gemmantle.cli.main([command, "--help"])
        assert ended.value.code == 0, command


def test_links_of_the_readme_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []
