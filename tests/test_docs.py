"""Every Python block of the README and of the guides runs as it stands, one after another, in an empty folder."""

import re
from pathlib import Path

import pytest

from a2mae_hub.modeling.sensors_a2mae import SENSORS

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = [
    page
    for page in (REPOSITORY / "README.md", *sorted(REPOSITORY.glob("docs/*.md")))
    if "```python" in page.read_text()
]


@pytest.fixture
def own_registry():
    """The guides add sensors; other tests of this process are not to see them."""
    known = dict(SENSORS)
    yield
    SENSORS.clear()
    SENSORS.update(known)


def run(page):
    """Run the blocks of a page and return the names they leave behind."""
    text, names = page.read_text(), {}
    for block in re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        line = text[: block.start(1)].count("\n")  # so that a traceback names the line of the page
        exec(compile("\n" * line + block[1], str(page), "exec"), names)
    return names


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch, own_registry):
    monkeypatch.chdir(tmp_path)
    names = run(page)
    if "model" in names:
        assert names["model"].config.model_type == "a2mae"
    if "maps" in names:  # the shapes that the guide promises in its comments
        assert names["outputs"].pooler_output.shape == (1, 128)
        assert [tuple(stage.shape) for stage in names["maps"]] == [(1, 128, 24, 24), (1, 128, 24, 24)]
