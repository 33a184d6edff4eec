"""What the documentation site makes by itself while it is built: a hook of mkdocs (see ``mkdocs.yml``).

Every method's section in ``docs/api/methods.md`` comes from the registry and the docstrings, the code of every example
from its file, and what search prefers from the page's folder.
"""

import dataclasses
import inspect
import json
import re
import sys
from pathlib import Path
from typing import Any

import griffe

sys.path.insert(0, str(Path(__file__).parent))

from method_costs import passes
from tokentm.backward import BACKWARD
from tokentm.methods import METHODS, Method
from tokentm.methods.bibliography import PAPERS

ROOT = Path(__file__).parents[1]
EVERY_METHOD = "<!-- every method: scripts/site_pages.py -->"
EVERY_EXAMPLE = "<!-- every example: scripts/site_pages.py -->"
GUIDE = re.compile(r"(index|which-method|concepts|evaluate|paper|clip|elsewhere|examples|limits|web|scale)\.md")
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
    docstring = griffe.Docstring(inspect.getdoc(method.run) or "").parse("google")
    texts = [section.value for section in docstring if section.kind is griffe.DocstringSectionKind.text]
    formula, *notes = "\n\n".join(texts).partition("Departs from the paper:")
    facts = "\n".join(f"| {name} | {value} |" for name, value in _facts(method, docstring).items())
    departs = f"*Departs from the paper:*{notes[1]}" if notes[0] else ""
    parts = [
        f"## {method.name}", f"*{method.summary}*", formula.strip(), f"| | |\n|---|---|\n{facts}",
        departs, _options(method),
    ]  # fmt: skip
    return "\n\n".join(part for part in parts if part) + "\n"


def _facts(method: Method, docstring: list[Any]) -> dict[str, str]:
    returns = [section.value for section in docstring if section.kind is griffe.DocstringSectionKind.returns]
    forward, backward = passes(method)
    specific = "yes" if method.class_specific else "no: the same map for every class"
    paper = f"{PAPERS[method.paper]} ([bibliography](../bibliography.md))" if method.paper else "none: it is a floor"
    module = inspect.getmodule(method.run)
    return {
        "map (b images, n tokens)": " ".join(returns[0][0].description.split()) if returns else "",
        "sign": "signed: negative speaks against the class" if method.signed else "never negative",
        "class-specific": specific,
        "backward rules": _rules(method),
        "passes per image and class": f"{forward} forward; {backward} backward",
        "source": paper,
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
    parsed = griffe.Docstring(inspect.getdoc(method.options) or "").parse("google")
    said = {
        entry.name: " ".join(entry.description.split())
        for section in parsed
        if section.kind is griffe.DocstringSectionKind.attributes
        for entry in section.value
    }
    lines = [f"| `{field.name}` | `{field.default!r}` | {said.get(field.name, '')} |" for field in fields]
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
