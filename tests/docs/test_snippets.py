"""Every Python snippet of the README and the documentation is a complete program that runs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "README.tr.md", *sorted((ROOT / "docs").rglob("*.md"))]


def snippets() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        blocks = re.findall(
            r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
        )
        # A snippet that includes an example is run as that example.
        found += [
            (f"{page.relative_to(ROOT)}-{i}", block)
            for i, block in enumerate(blocks)
            if not block.startswith("--8<--")
        ]
    return found


@pytest.mark.parametrize("code", [pytest.param(code, id=name) for name, code in snippets()])
def test_snippet_runs(code, tmp_path) -> None:
    """It ends well and without a warning."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr


def test_included_examples_exist() -> None:
    """What a page includes is there."""
    included = {
        name for page in PAGES for name in re.findall(r'--8<-- "(.*?)"', page.read_text(encoding="utf-8"))
    }

    assert included
    assert not [name for name in included if not (ROOT / name).is_file()]


def test_the_two_commands() -> None:
    """Both READMEs have the two commands, and CI runs the second."""
    demo = 'python3 -m venv .venv && .venv/bin/pip install ".[cli]" && .venv/bin/multidb demo'
    tests = "python3 -m venv .venv && .venv/bin/pip install tox && .venv/bin/tox"
    for readme in ("README.md", "README.tr.md"):
        text = (ROOT / readme).read_text(encoding="utf-8")
        assert demo in text
        assert tests in text
    assert tests in (ROOT / ".ci" / "run").read_text()
