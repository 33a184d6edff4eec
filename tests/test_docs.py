"""What README, pages and examples tell people to type is typed here, by the real interpreter and command."""

import itertools
import json
import re
import runpy
import shlex
import tomllib
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import tokentm
from tests.support.command import save_classifier
from tests.support.fork_server import ForkServer, fork_server
from tokentm.datasets.shapes import scene
from tokentm.methods import METHODS
from tokentm.methods.bibliography import PAPERS, SOFTWARE

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
# Python that needs weights of a hub, or a library that no extra but `bench` brings, is left out block by block.
FROM_A_HUB = re.compile(r"load_model\(\"(open_clip|hf|torchvision):|create_model_from_pretrained")
OPTIONAL = ("captum", "quantus")
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SNIPPET = re.compile(r'^--8<-- "(.*)"$', re.MULTILINE)


def blocks(page: Path, language: str) -> list[str]:
    """Code of one language on a page, included files in place."""
    text = _SNIPPET.sub(lambda found: (ROOT / found[1]).read_text(), page.read_text())
    return [body for kind, body in _FENCE.findall(text) if kind == language]


def commands(page: Path) -> list[str]:
    """Lines that call ``tokentm``, without their comments."""
    lines = "".join(blocks(page, "bash")).replace("\\\n", "").splitlines()
    return [line for line in (line.split(" #")[0].strip() for line in lines) if line.startswith("tokentm ")]


def reason_not_to_run(command: str) -> str | None:
    return next((reason for reason, words in NOT_RUN.items() if re.search(words, command)), None)


def runs_here(block: str) -> bool:
    """Whether a block of Python can run offline with what is installed."""
    imported = re.findall(r"^(?:import|from) (\w+)", block, re.MULTILINE)
    absent = [name for name in imported if name in OPTIONAL and find_spec(name) is None]
    return not absent and FROM_A_HUB.search(block) is None


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
    found = [block for block in blocks(page, "python") if runs_here(block)]
    if not found:
        pytest.skip("every block needs weights of a hub")
    script.write_text("\n".join(found).replace(".show()", ""))
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
    if command.startswith("tokentm report "):
        evaluated = "evaluate shapes:4 --limit 4 --model shapes --protocols segmentation --methods"
        runs = itertools.takewhile(lambda word: not word.startswith("--"), shlex.split(command)[2:])
        for run, method in zip(runs, ("center", "random"), strict=False):
            assert server.run([*evaluated.split(), method, "--out", run], desk).code == 0
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


def test_bibtex_holds_what_the_bibliography_knows_and_nothing_else() -> None:
    assert PAPERS["achtibat2024"].bibtex("a").splitlines()[:1] == ["@inproceedings{a,"]
    assert PAPERS["chen2023"].bibtex("key") == (
        "@article{key,\n"
        "  title   = {{Beyond Intuition: Rethinking Token Attributions inside Transformers}},\n"
        "  author  = {Chen and Li and Yu and Dou and Xiong},\n"
        "  journal = {TMLR},\n"
        "  year    = {2023}\n}"
    )
    assert "booktitle" not in PAPERS["shrikumar2016"].bibtex("key")
    assert METHODS["gradcam"].bibtex.count("@inproceedings{") == 2
    assert METHODS["random"].bibtex == ""


def test_the_software_is_cited_as_the_file_says() -> None:
    said = (ROOT / "CITATION.cff").read_text()
    title, author = (re.search(rf'{key}: "(.*)"', said)[1] for key in (r"\ntitle", "- name"))
    assert f"{{{{{title}}}}}" in SOFTWARE
    assert f"{{{{{author}}}}}" in SOFTWARE


def test_methods_named_on_the_page_that_advises_exist() -> None:
    page = (ROOT / "docs" / "which-method.md").read_text()
    named = {name.split("/")[0] for name in re.findall(r"`([a-z_]+(?:/[a-z]+)?)`", page)}
    assert len(named & set(METHODS)) > 10
    assert named - set(METHODS) <= {"libra", "plain", "completeness", "method"}


@pytest.fixture(scope="module")
def costs() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "scripts" / "method_costs.py"))


def test_the_table_of_costs_is_that_of_the_code(costs: dict[str, Any]) -> None:
    assert costs["table"]() in costs["PAGE"].read_text()


@pytest.mark.parametrize("name", list(METHODS))
def test_passes_that_are_told_are_those_that_are_run(name: str, costs: dict[str, Any]) -> None:
    depth, width = 2, 12
    vit = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, depth=depth, embed_dim=width, num_heads=2, num_classes=3
    ).eval()
    ran: Counter[str] = Counter()

    def went_through(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda grad: ran.update(backward=len(grad)))

    vit.patch_embed.register_forward_hook(lambda _module, _inputs, output: ran.update(forward=len(output)))
    vit.head.register_forward_hook(went_through)
    tokentm.explain(vit, torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)), 1, name)
    forward, backward = costs["passes"](METHODS[name])
    if name == "legrad":
        assert backward == "a short one per block"
        backward = str(1 + depth)  # through the head
    if name == "tis":  # one mask per channel of a block at most
        assert forward == "1,025"
        forward = str(1 + depth * width)
    if name == "vit_cx":
        assert forward == "1, and two forward passes per image and cluster (tens to hundreds)"
        assert ran["forward"] % 2 == 1
        forward = str(ran["forward"])
    assert (str(ran["forward"]), str(ran["backward"])) == (forward.replace(",", ""), backward)


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
