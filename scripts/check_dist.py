"""Look into a wheel and a source archive: everything that users need is there, and nothing else.

python scripts/check_dist.py dist
"""

import sys
import tarfile
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import tokentm

NEEDED = (
    "tokentm/__init__.py",
    "tokentm/py.typed",
    "tokentm/datasets/cifar10_examples/cat.png",
    "tokentm/models/weights/shapes/config.json",
    "tokentm/models/weights/shapes/model.safetensors",
    "tokentm/models/weights/shapes/MODEL_CARD.md",
    "tokentm/report/evaluation/parts.html.j2",
    "tokentm/report/evaluation/style.css.j2",
    "tokentm/report/evaluation/template.html.j2",
)
IN_SOURCE = ("README.md", "LICENSE", "CHANGELOG.md", "Makefile", "constraints.txt", "pyproject.toml", "CITATION.cff")
MOST_BYTES = 20_000_000


def main(folder: Path) -> list[str]:
    """What is wrong with the two files in ``folder``, in sentences."""
    version = tokentm.__version__
    wheels, sources = sorted(folder.glob("*.whl")), sorted(folder.glob("*.tar.gz"))
    if [path.name for path in (*wheels, *sources)] != [
        f"tokentm-{version}-py3-none-any.whl",
        f"tokentm-{version}.tar.gz",
    ]:
        return [
            f"{folder} holds {[path.name for path in folder.iterdir()]}, expected one wheel and one sdist of {version}."
        ]
    wrong = [
        f"{path.name} is {path.stat().st_size:,} bytes."
        for path in (*wheels, *sources)
        if path.stat().st_size > MOST_BYTES
    ]
    with zipfile.ZipFile(wheels[0]) as wheel:
        names = set(wheel.namelist())
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        headers = HeaderParser().parsestr(wheel.read(metadata).decode())
    wrong += [f"The wheel lacks {name}." for name in NEEDED if name not in names]
    allowed = ("tokentm/", f"tokentm-{version}.dist-info/")
    wrong += [f"The wheel holds {name}." for name in sorted(names) if not name.startswith(allowed) or ".pyc" in name]
    if not any(name.endswith("licenses/LICENSE") for name in names):
        wrong.append("The wheel lacks its licence.")
    if headers["Version"] != version or headers["License-Expression"] != "Apache-2.0":
        wrong.append(f"The wheel says {headers['Version']} and {headers['License-Expression']}.")
    with tarfile.open(sources[0]) as source:
        held = {name.partition("/")[2] for name in source.getnames()}
    wrong += [f"The source archive lacks {name}." for name in IN_SOURCE if name not in held]
    wrong += [f"The source archive lacks src/{name}." for name in NEEDED if f"src/{name}" not in held]
    wrong += [f"The source archive holds {name}." for name in sorted(held) if name.startswith((".venv", "out", "runs"))]
    return wrong


if __name__ == "__main__":
    found = main(Path(sys.argv[1]))
    print("\n".join(found) or "Wheel and source archive hold what they must.")
    sys.exit(bool(found))
