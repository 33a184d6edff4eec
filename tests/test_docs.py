"""What README, pages and examples tell people to type is typed here, by the real interpreter and command."""

import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import tokentm
from tests.support.command import save_classifier
from tests.support.fork_server import ForkServer, fork_server
from tokentm.datasets.shapes import scene
from tokentm.methods import METHODS
from tokentm.methods.bibliography import PAPERS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").glob("*.py")) + sorted((ROOT / "examples").glob("*.ipynb"))
# Weights that are not in the checkout, or another program: said here, one reason each, and not run.
NOT_RUN = {
    "weights come from a hub": r"--model (vit_|hf:|torchvision:|open_clip:)|--check",
    "the default model comes from a hub": r"^tokentm (explain|compare|evaluate) (?!.*--model)",
    "waits for a browser": r"^tokentm serve",
    "needs a cluster": r"--engine|^ray ",
    "needs data that is not in the checkout": r"(imagenet|coco|voc|cifar10|gtsegs|kit)[:/]",
    "takes minutes: scripts/results.py runs it": r"shapes:500",
}
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SNIPPET = re.compile(r'^--8<-- "(.*)"$', re.MULTILINE)


def blocks(page: Path, language: str) -> list[str]:
    """Code of one language on a page, included files in place."""
    text = _SNIPPET.sub(lambda found: (ROOT / found[1]).read_text(), page.read_text())
    return [body for kind, body in _FENCE.findall(text) if kind == language]


def commands(page: Path) -> list[str]:
    """Lines that call ``tokentm``, without their comments."""
    lines = "".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    return [line for line in (line.split(" #")[0].strip() for line in lines) if line.startswith("tokentm ")]


def reason_not_to_run(command: str) -> str | None:
    return next((reason for reason, words in NOT_RUN.items() if re.search(words, command)), None)


# The web page's Python asks a server that is running; tests/test_web_browser.py has one.
WITH_PYTHON = [page for page in PAGES if blocks(page, "python") and page.name != "web.md"]
COMMANDS = sorted({command for page in PAGES for command in commands(page)})
OFFLINE = [command for command in COMMANDS if reason_not_to_run(command) is None]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    with fork_server(tmp_path_factory.mktemp("home")) as found:
        yield found


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A folder with what the pages speak of: a photo, a folder of photos, a model."""
    (tmp_path / "photos").mkdir()
    for index, name in enumerate(("photo.jpg", "photos/a.jpg", "photos/b.jpg")):
        scene(2, index).pil().save(tmp_path / name)
    save_classifier(tmp_path / "path" / "to" / "model")
    return tmp_path


@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_on_a_page_runs_from_top_to_bottom(page: Path, server: ForkServer, desk: Path) -> None:
    # Shown pictures would open a viewer.
    script = desk / "page.py"
    script.write_text("\n".join(blocks(page, "python")).replace(".show()", ""))
    done = server.script(script, desk)
    assert done.code == 0, done.err


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_runs_offline_and_says_something(example: Path, server: ForkServer, desk: Path) -> None:
    script = example
    if example.suffix == ".ipynb":
        cells = [cell for cell in json.loads(example.read_text())["cells"] if cell["cell_type"] == "code"]
        script = desk / "notebook.py"
        script.write_text("\n".join("".join(cell["source"]) for cell in cells))
    done = server.script(script, desk)
    assert done.code == 0, done.err
    assert done.out.strip()


@pytest.mark.parametrize("command", OFFLINE)
def test_a_command_on_a_page_works(command: str, server: ForkServer, desk: Path) -> None:
    if command == "tokentm report run":
        evaluated = (
            "tokentm evaluate shapes:4 --limit 4 --model shapes --methods center,random --protocols segmentation"
        )
        assert server.run([*shlex.split(evaluated)[1:], "--out", "run"], desk).code == 0
    done = server.run(shlex.split(command)[1:], desk)
    assert done.code == 0, done.err


def test_commands_are_found_and_most_reasons_are_used() -> None:
    assert {"tokentm demo", "tokentm report run"} <= set(OFFLINE)
    assert len(COMMANDS) > len(OFFLINE) > 3


def test_every_example_has_a_line_on_its_page() -> None:
    page = (ROOT / "docs" / "examples.md").read_text()
    assert [path.name for path in EXAMPLES if f"`{path.name}`" not in page] == []


def test_the_bibliography_holds_every_paper() -> None:
    page = (ROOT / "docs" / "bibliography.md").read_text()
    assert [key for key, paper in PAPERS.items() if str(paper) not in page] == []


def test_methods_named_on_the_page_that_advises_exist() -> None:
    page = (ROOT / "docs" / "which-method.md").read_text()
    named = {name.split("/")[0] for name in re.findall(r"`([a-z_]+(?:/[a-z]+)?)`", page)}
    assert len(named & set(METHODS)) > 10
    assert named - set(METHODS) <= {"libra", "plain", "completeness", "method"}


def test_the_version_stands_in_one_place() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "version" in project["dynamic"]
    found = [
        str(path.relative_to(ROOT))
        for path in (*(ROOT / "src").rglob("*.py"), ROOT / "CITATION.cff", ROOT / "pyproject.toml")
        if re.search(rf"\b{re.escape(tokentm.__version__)}\b", path.read_text())
    ]
    assert found == ["src/tokentm/__init__.py"]


LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)#\s]+)(?:#[^)]*)?\)|!\[[^\]]*\]\(([^)\s]+)\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_within_the_checkout_lead_somewhere(page: Path) -> None:
    targets = [first or second for first, second in LINK.findall(page.read_text())]
    local = [target for target in targets if not re.match(r"[a-z]+:", target)]
    assert [target for target in local if not (page.parent / target).exists()] == []


def test_a_page_that_is_wrong_is_noticed(server: ForkServer, desk: Path) -> None:
    page = desk / "page.md"
    page.write_text(
        "```python\nimport tokentm\ntokentm.explane\n```\n\n```bash\ntokentm explian photo.jpg --model x\n```\n"
    )
    script = desk / "page.py"
    script.write_text(blocks(page, "python")[0])
    assert "explane" in server.script(script, desk).err
    assert server.script(script, desk).code != 0
    assert server.run(shlex.split(commands(page)[0])[1:], desk).code == 2
