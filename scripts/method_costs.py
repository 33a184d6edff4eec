"""How often each method runs the model, for one image and one class; read off the code, in ``docs/which-method.md``.

    python scripts/method_costs.py

writes the table anew.
"""

import inspect
import re
from pathlib import Path

from tokentm.backward import BACKWARD
from tokentm.files import write_atomically
from tokentm.methods import METHODS, Method
from tokentm.trace import Signal

PAGE = Path(__file__).parents[1] / "docs" / "which-method.md"
_BOUNDS = ("<!-- costs: scripts/method_costs.py -->\n", "<!-- end of costs -->")
_PROBE = re.compile(r"^\s*probe: Runs (.*?)(?:[.;,]|\n\S|$)", re.MULTILINE | re.DOTALL)
_COUNTED = re.compile(r"``(\w+)( − 1)?`` forward( and backward)? passes")


def recorded(method: Method) -> tuple[int, int]:
    """Forward and backward passes of the recordings themselves, before a probe runs the model again."""
    rules = [method.backward, *([method.companion] if method.companion else [])]
    # A rule in float64 shapes the graph only: what the model says is asked once more in its own type.
    wide = sum(bool(getattr(BACKWARD[rule].mode, "wide", False)) for rule in rules)
    return len(rules) + wide, len(rules) if method.signals.needs_backward else 0


def passes(method: Method) -> tuple[str, str]:
    """Forward and backward passes under the published options, as a table says them."""
    forward, backward = recorded(method)
    if Signal.LAYER_GRAD in method.signals:
        return str(forward), "a short one per block"  # none goes back further than the attention of its own block
    if not method.probe:
        return str(forward), str(backward)
    said = _PROBE.search(inspect.getdoc(method.run) or "")
    counted = _COUNTED.search(said[1]) if said else None
    if counted is None:
        return f"{forward}, and {' '.join(said[1].split()) if said else 'more'}", str(backward)
    more = getattr(method.options(), counted[1]) - bool(counted[2])
    return f"{forward + more:,}", f"{backward + more * bool(counted[3]):,}"


def table() -> str:
    """Every method, the cheapest first."""
    lines = ["| method | forward passes | backward passes |", "|---|---|---|"]
    for method in sorted(METHODS.values(), key=_order):
        forward, backward = passes(method)
        lines.append(f"| [`{method.name}`](api/methods.md#{method.name}) | {forward} | {backward} |")
    return "\n".join(lines) + "\n"


def _order(method: Method) -> tuple[bool, int, str]:
    found = [int(text.replace(",", "")) for text in re.findall(r"^[\d,]*\d", "\n".join(passes(method)), re.MULTILINE)]
    return method.probe, sum(found), method.name


def main() -> None:
    """Write the table between its two comments."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(_BOUNDS[0])
    after = rest.partition(_BOUNDS[1])[2]
    with write_atomically(PAGE) as path:
        path.write_text(f"{before}{_BOUNDS[0]}\n{table()}\n{_BOUNDS[1]}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
