"""The page with the figures is written by the run that had them, and by no other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torture

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = f"before\n\n{torture.BEGIN}\nold\n{torture.END}\n\nafter\n"
TESTS = {
    "pass": "def test_it():\n    print('lost 0 | doubled 0')\n",
    "fail": "def test_it():\n    print('lost 1')\n    assert False\n",
    "skip": "import pytest\n\n@pytest.mark.skip(reason='no FUSE')\ndef test_it():\n    pass\n",
}


@pytest.fixture
def docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name in ("SEED", "RESILIENCE_SCALE", "SPOOL_KILL_EVERY", "SPOOL_CUT_EVERY"):
        monkeypatch.setenv(f"MULTIDB_TEST_{name}", "")  # Set by the run, and put back.
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    yield page
    page.unlink()


def run(docs: Path, monkeypatch: pytest.MonkeyPatch, test: str, *options: str) -> str:
    """Run a folder with one test; return the page."""
    folder = docs.parent / "tests"
    folder.mkdir()
    (folder / f"test_{test}_of_torture.py").write_text(TESTS[test])
    monkeypatch.setattr(torture, "_HERE", folder)
    torture.run([f"--docs={docs}", f"--output={docs.parent}/log", "--seed=7", *options])
    return docs.read_text()


def test_full_run(docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tests printed is there, with the command, the seed and the versions."""
    text = run(docs, monkeypatch, "pass")

    assert text.startswith("before\n\n<!-- ")
    assert text.endswith("-->\n\nafter\n")
    assert "old" not in text
    assert "| lost 0 \\| doubled 0 |" in text
    assert "--seed 7 --scale 1\n" in text
    assert "Python 3." in text
    assert "1 tests passed, 0 failed" in text
    assert "lost 0 | doubled 0" in (docs.parent / "log").read_text()


@pytest.mark.parametrize(
    ("test", "options"), [("fail", ()), ("pass", ("--scale=0.02",)), ("pass", ("-k", "test"))]
)
def test_other_runs(docs: Path, monkeypatch: pytest.MonkeyPatch, test: str, options: tuple[str, ...]) -> None:
    """A run that failed, or was not a full one, leaves the page as it is."""
    assert run(docs, monkeypatch, test, *options) == PAGE


def test_draft(docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A draft says its scale; what was skipped is said, too."""
    text = run(docs, monkeypatch, "skip", "--scale=0.02", "--draft")

    assert "at scale 0.02" in text
    assert "skipped: " in text
    assert "no FUSE" in text


def test_no_markers() -> None:
    """A page without markers is not touched."""
    with pytest.raises(ValueError, match="markers"):
        torture.rewritten("text", "figures")


def test_the_page() -> None:
    """The page of the documentation can be rewritten."""
    page = Path(__file__).parent.parent.parent / "docs" / "reliability.md"

    assert "x" in torture.rewritten(page.read_text("utf-8"), "x")
