"""What the documentation site makes by itself while it is built: a hook of mkdocs (see ``mkdocs.yml``).

Every method's section in ``docs/api/methods.md`` comes from the registry and the docstrings, the code of every example
from its file, and what search prefers from the page's folder.
"""

import dataclasses
import inspect
import json
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from method_costs import passes
from tokentm.backward import BACKWARD
from tokentm.methods import METHODS, Method
from tokentm.methods.bibliography import PAPERS

ROOT = Path(__file__).parents[1]
EVERY_METHOD = "<!-- every method: scripts/site_pages.py -->"
EVERY_EXAMPLE = "<!-- every example: scripts/site_pages.py -->"
GUIDE = re.compile(r"(index|which-method|concepts|evaluate|paper|clip|elsewhere|examples|limits|web|scale)\.md")
_BLOCK = re.compile(r"^(Args|Returns|Raises|Attributes):\n((?:[ ]+.*\n|\n)+)", re.MULTILINE)
_ATTRIBUTE = re.compile(r"^(\w+): (.*(?:\n[ ]+.*)*)", re.MULTILINE)
_LINK = re.compile(r"\]\((?:\.\./)+examples/([\w.]+)\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill in what is made from the code, and say how search counts the page."""
    uri = page.file.src_uri
    if uri.startswith("decisions/"):
        page.meta["search"] = {"exclude": True}
    elif GUIDE.fullmatch(uri):
        page.meta["search"] = {"boost": 4}
    up = "../" * uri.count("/")
    markdown = _LINK.sub(lambda found: f"]({up}examples.md#{_anchor(found[1])})", markdown)
    if EVERY_METHOD in markdown:
        markdown = markdown.replace(EVERY_METHOD, "\n".join(map(method_section, METHODS.values())))
    if EVERY_EXAMPLE in markdown:
        files = sorted((ROOT / "examples").glob("*.*"), key=lambda path: (path.suffix, path.name))
        markdown = markdown.replace(EVERY_EXAMPLE, "\n".join(map(example_section, files)))
    return markdown


def method_section(method: Method) -> str:
    """What one method computes, what its map means, what it costs and which options it takes."""
    text, blocks = docstring_parts(inspect.getdoc(method.run) or "")
    formula, mark, departs = text.partition("Departs from the paper:")
    facts = "\n".join(f"| {name} | {_cell(value)} |" for name, value in _facts(method, blocks).items())
    parts = [
        f"## {method.name}", f"*{method.summary}*", formula.strip(), f"| | |\n|---|---|\n{facts}",
        f"*{mark}*{departs}" if mark else "", _options(method),
    ]  # fmt: skip
    return "\n\n".join(part for part in parts if part) + "\n"


def docstring_parts(text: str) -> tuple[str, dict[str, str]]:
    """A docstring without its headed blocks, and those blocks by heading."""
    blocks = {found[1]: textwrap.dedent(found[2]).strip() for found in _BLOCK.finditer(f"{text}\n")}
    return _BLOCK.sub("", f"{text}\n").strip(), blocks


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _facts(method: Method, blocks: dict[str, str]) -> dict[str, str]:
    forward, backward = passes(method)
    module = inspect.getmodule(method.run)
    sources = "; ".join(str(PAPERS[key]) for key in method.papers)
    return {
        "map (b images, n tokens)": blocks.get("Returns", ""),
        "sign": "signed: negative speaks against the class" if method.signed else "never negative",
        "class-specific": "yes" if method.class_specific else "no: the same map for every class",
        "backward rules": _rules(method),
        "passes per image and class": f"{forward} forward; {backward} backward",
        "source": f"{sources} ([bibliography](../bibliography.md))" if sources else "none: a floor",
        "code": f"`{module.__name__ if module else ''}`",
    }


def _rules(method: Method) -> str:
    if method.composes:
        others = [f"`{method.name}/{rule.name}`" for rule in BACKWARD.values() if not rule.relevance]
        return f"`{method.backward}`; others: " + ", ".join(name for name in others if not name.endswith("/plain`"))
    if not method.signals.needs_backward and not method.probe:
        return "none: it reads no gradients"
    own = f"`{method.backward}`" + (f" and `{method.companion}`" if method.companion else "")
    return f"{own} only" if method.signals.needs_backward else "none: it looks at outputs"


def _options(method: Method) -> str:
    fields = dataclasses.fields(method.options)
    if not fields:
        return ""
    described = docstring_parts(inspect.getdoc(method.options) or "")[1].get("Attributes", "")
    said = dict(_ATTRIBUTE.findall(described))
    lines = [f"| `{field.name}` | `{field.default!r}` | {_cell(said.get(field.name, ''))} |" for field in fields]
    name, module = method.options.__name__, method.options.__module__
    first = fields[0]
    return "\n".join(
        [
            f"Options, as `--set {method.name}.{first.name}=VALUE` or `{name}({first.name}=…)` of `{module}`:",
            "",
            "| option | default | |",
            "|---|---|---|",
            *lines,
        ]
    )


def example_section(path: Path) -> str:
    """An example as it lies in the checkout; of a notebook its texts and cells."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return f"## {path.name}\n\n```python\n{text}```\n"
    parts = [f"## {path.name}", "The notebook, cell by cell; it runs offline from top to bottom."]
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            parts.append(f"```python\n{source}\n```")
        else:
            parts.append(re.sub(r"^#+ (.*)$", r"**\1**", source, flags=re.MULTILINE))
    return "\n\n".join(parts) + "\n"


def _anchor(name: str) -> str:
    """As the table of contents makes it of a heading."""
    return re.sub(r"[^\w\s-]", "", name).strip().lower()
