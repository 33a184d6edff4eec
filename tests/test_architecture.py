"""Imports point downwards, hooks stay in one place, files stay small: read from the source, not from a run."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import tokentm

SOURCE = Path(tokentm.__file__).parent

# From the roof to the ground. A module may import its own room and those below; "" is the package itself, whose names
# are those of the explain room.
ROOMS: dict[str, tuple[str, ...]] = {
    "faces": ("cli", "web", "__main__"),
    "reports": ("report",),
    "evaluation": ("evaluate",),
    "data sets": ("datasets",),
    "explain": ("", "_check", "_explain", "comparison", "explanation", "photos", "session", "targets", "interop"),
    "methods": ("methods",),
    "backward rules": ("backward",),
    "recorder": ("recorder", "gradients", "taps", "trace"),
    "models": ("models",),
    "engines": ("engines",),
    "ground": ("render", "figure", "files", "registry", "errors", "deadline", "progress", "_typing", "_numerics"),
}
# Neighbours that lie below, and still are none of this room's business.
FORBIDDEN = {
    "methods": {"models", "recorder", "gradients", "taps"},
    "backward": {"models", "recorder", "gradients", "taps", "trace"},
    "models": {"render"},
}
# Where hooks on models and tensors may be set: all inside one `with` that takes them off again.
HOOKS_LIVE_IN = {"taps"}
RAY_LIVES_IN = {"engines/on_ray.py", "engines/shared.py"}
MOST_LINES = 400

FILES = sorted(SOURCE.rglob("*.py"))
SOURCES = {str(path.relative_to(SOURCE)): path.read_text() for path in FILES}
MODULES = {path.relative_to(SOURCE).parts[0].removesuffix(".py") for path in FILES} - {"__init__"}
FLOOR = {part: floor for floor, parts in enumerate(ROOMS.values()) for part in parts}


def part_of(file: str) -> str:
    """Top-level part of the package that a file belongs to; "" for the package's own ``__init__``."""
    first = Path(file).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def imported(tree: ast.AST) -> Iterator[str]:
    """Parts of the package that are imported anywhere in the file, inside functions too."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise AssertionError("relative imports hide where they point")
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            package, _, rest = name.partition(".")
            if package == "tokentm":
                yield part if (part := rest.partition(".")[0]) in FLOOR else ""


def upward_imports(file: str, source: str) -> list[str]:
    part = part_of(file)
    if part == "":
        return []  # names are fetched on first use; see tokentm/__init__.py
    found = set(imported(ast.parse(source)))
    return sorted(
        other or "tokentm"
        for other in found
        if other != part and (FLOOR[other] < FLOOR[part] or other in FORBIDDEN.get(part, ()))
    )


def hooks(file: str, source: str) -> list[str]:
    if part_of(file) in HOOKS_LIVE_IN:
        return []
    return [
        node.attr
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and node.attr.startswith("register_") and node.attr.endswith("hook")
    ]


def prints(file: str, source: str) -> list[str]:  # noqa: ARG001  (all rules are called alike)
    return [
        f"line {node.lineno}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("print", "input")
    ]


def global_random_states(file: str, source: str) -> list[str]:  # noqa: ARG001
    """Draws from, or seeds, a generator that belongs to the user."""
    tree = ast.parse(source)
    found = [
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom) and not getattr(node, "level", 0)
        for alias in node.names
        if "random" in (alias.name, getattr(node, "module", None))
    ]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        seeded = any(keyword.arg == "generator" for keyword in node.keywords)
        draws = called in {f"torch.{name}" for name in ("rand", "randn", "randint", "randperm", "bernoulli", "normal")}
        legacy = called.startswith("np.random.") and not called.startswith("np.random.default_rng")
        if legacy or called == "torch.manual_seed" or (draws and not seeded):
            found.append(called)
    return found


def rays(file: str, source: str) -> list[str]:
    """Imports of Ray outside of its engine."""
    if file in RAY_LIVES_IN:
        return []
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append(str(node.module))
    return [name for name in found if name.partition(".")[0] == "ray"]


def too_long(file: str, source: str) -> list[str]:  # noqa: ARG001
    lines = source.count("\n")
    return [f"{lines} lines"] if lines >= MOST_LINES else []


RULES = {
    "imports point downwards": upward_imports,
    "hooks stay in the taps": hooks,
    "nothing is printed": prints,
    "no global random state is touched": global_random_states,
    "Ray stays in its engine": rays,
    f"files are shorter than {MOST_LINES} lines": too_long,
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("file", SOURCES)
def test_the_rules_of_the_house(file: str, rule: object) -> None:
    assert rule(file, SOURCES[file]) == []


def test_every_part_of_the_package_has_a_room() -> None:
    assert set(FLOOR) >= MODULES, "say in ROOMS where the new part lives"


# One line each that breaks a rule, and the file it would stand in: every rule can fail.
VIOLATIONS = {
    "models import methods": ("imports point downwards", "models/loading.py", "from tokentm.methods import METHODS"),
    "methods import models": ("imports point downwards", "methods/gae.py", "from tokentm.models import describe"),
    "methods import the recorder": ("imports point downwards", "methods/gae.py", "import tokentm.recorder"),
    "methods import the taps": ("imports point downwards", "methods/gae.py", "from tokentm import taps"),
    "the recorder imports rules": ("imports point downwards", "recorder.py", "from tokentm.backward import BACKWARD"),
    "a face is imported": ("imports point downwards", "report/demo.py", "def f():\n    from tokentm.cli import main"),
    "ground imports models": ("imports point downwards", "render.py", "from tokentm.models.anatomy import FAMILIES"),
    "the package is imported": ("imports point downwards", "methods/gae.py", "from tokentm import explain"),
    "a hook in a method": ("hooks stay in the taps", "methods/gae.py", "model.register_forward_hook(watch)"),
    "a hook in a rule": ("hooks stay in the taps", "backward/libra.py", "m.register_full_backward_pre_hook(watch)"),
    "a hook on a tensor": ("hooks stay in the taps", "recorder.py", "tensor.register_hook(watch)"),
    "print": ("nothing is printed", "models/loading.py", "print('loading')"),
    "the random module": ("no global random state is touched", "methods/rise.py", "import random"),
    "from random": ("no global random state is touched", "methods/rise.py", "from random import choice"),
    "torch's random state": ("no global random state is touched", "methods/rise.py", "torch.rand(3)"),
    "a global seed": ("no global random state is touched", "methods/rise.py", "torch.manual_seed(0)"),
    "numpy's random state": ("no global random state is touched", "methods/rise.py", "np.random.rand(3)"),
    "Ray elsewhere": ("Ray stays in its engine", "evaluate/runner.py", "def f():\n    import ray.data"),
    "from Ray": ("Ray stays in its engine", "photos.py", "from ray import put"),
    "engines import jobs": ("imports point downwards", "engines/local.py", "from tokentm.photos import PhotoJob"),
    "a long file": (f"files are shorter than {MOST_LINES} lines", "render.py", "x = 1\n" * MOST_LINES),
}
ALLOWED = {
    "downwards": ("imports point downwards", "methods/gae.py", "from tokentm.trace import Trace"),
    "within a room": ("imports point downwards", "cli/_app.py", "from tokentm.cli import _demo"),
    "the package from above": ("imports point downwards", "cli/_app.py", "from tokentm import __version__"),
    "hooks in the taps": ("hooks stay in the taps", "taps.py", "model.register_forward_hook(watch)"),
    "printing by a console": ("nothing is printed", "cli/_app.py", "out.print('done')"),
    "Ray's engine": ("Ray stays in its engine", "engines/on_ray.py", "import ray"),
    "a generator": ("no global random state is touched", "methods/rise.py", "torch.rand(3, generator=g)"),
    "numpy's generator": ("no global random state is touched", "methods/rise.py", "np.random.default_rng(0)"),
    "the method called random": ("no global random state is touched", "methods/random.py", "def random(): ..."),
}


@pytest.mark.parametrize(("rule", "file", "source"), VIOLATIONS.values(), ids=VIOLATIONS)
def test_a_violation_is_seen(rule: str, file: str, source: str) -> None:
    assert RULES[rule](file, source) != []


@pytest.mark.parametrize(("rule", "file", "source"), ALLOWED.values(), ids=ALLOWED)
def test_what_is_allowed_is_not_reported(rule: str, file: str, source: str) -> None:
    assert RULES[rule](file, source) == []
