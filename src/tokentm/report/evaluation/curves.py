"""What happens to the model as an image is taken apart, step by step: one small drawing per curve of a protocol."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import numpy as np

from tokentm._typing import Float
from tokentm.evaluate.results import Results
from tokentm.files import safe_stem
from tokentm.report.evaluation.section import FLOORS

__all__ = ["CurveGroup", "curve_groups"]

# Okabe and Ito's colours, which readers with any kind of colour vision tell apart, without black (the ink of one
# theme is the paper of the other) and yellow (invisible on white); beyond them the dashes change.
_COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
_DASHES: Final = ("", "6 2", "2 2", "7 2 2 2")
_FLOOR: Final = "#888888"
_FLOOR_DASHES: Final = {"random": "1 3", "center": "4 4"}
_INK: Final = "#010203"  # stands for the page's own text colour
_RESAMPLES: Final = 400
_BLOCK: Final = 50  # resamples drawn at once: memory does not grow with their number


@final
@dataclass(frozen=True)
class LegendEntry:
    """How a method is drawn: ``key`` begins the ids of its lines, ``dash`` is as in SVG."""

    method: str
    key: str
    colour: str
    dash: str


@final
@dataclass(frozen=True)
class CurveFigure:
    """One drawing: its title and its SVG."""

    title: str
    svg: str


@final
@dataclass(frozen=True)
class CurveGroup:
    """The drawings of one protocol and one explained class, with their common legend."""

    key: str
    title: str
    note: str
    legend: tuple[LegendEntry, ...]
    figures: tuple[CurveFigure, ...]


def curve_groups(results: Results, only_correct: bool, key: str) -> tuple[CurveGroup, ...]:
    """Draw every protocol that has curves.

    Args:
        results: Of the run.
        only_correct: Leave out images that the model gets wrong.
        key: Begins every id, so that ids differ between the sections of a page.
    """
    return tuple(
        group
        for protocol, config in results.configs.items()
        for explained in results.explained
        if (group := _group(results, protocol, config, explained, only_correct, key)) is not None
    )


def _group(
    results: Results, protocol: str, config: Any, explained: str, only_correct: bool, key: str
) -> CurveGroup | None:
    rows = {method: results.rows(method, explained, protocol, only_correct) for method in results.methods}
    names = _shown(next(iter(rows.values())))
    if not names:
        return None
    prefix = safe_stem(f"{key} {protocol} {explained}")
    legend = _legend(results.methods, prefix)
    seed = int(results.manifest["seed"])
    figures = []
    for name in names:
        bands = [_band(rows[entry.method][name], seed) for entry in legend]
        figures.append(CurveFigure(_title(name), _draw(name, _steps(name, config, bands), bands, legend)))
    note = (
        "Mean over images with 95 % bootstrap bands; tick a box to hide or show a method. Positive (MIF, deletion): "
        "the most relevant parts go first, and lower is better; negative (LIF): the least relevant first, and higher "
        "is better."
    )
    if protocol == "saco":
        note = "Groups of pixels, most relevant first: what the map says of each, and what the model loses without it."
    return CurveGroup(prefix, f"Curves: {protocol}, {explained} class", note, legend, tuple(figures))


def _shown(rows: Any) -> list[str]:
    """Curves that are drawn: no logits, and agreement with the prediction only where there are no labels."""
    curves = {name for name, values in rows.items() if values.ndim == 2 and not np.isnan(values).all()}
    labelled = any(name.endswith("label_hit") for name in curves)
    hidden = ("_logit", "_predicted_hit") if labelled else ("_logit",)
    return sorted((name for name in curves if not name.endswith(hidden)), key=lambda name: (_kind(name), name))


def _kind(name: str) -> int:
    """Accuracies before probabilities, and of each the most relevant parts first."""
    return 2 * (not name.endswith("hit")) + (not name.startswith(("positive", "mif", "insertion", "salience")))


def _title(name: str) -> str:
    first, _, rest = name.partition("_")
    words = {"label_hit": "accuracy", "predicted_hit": "prediction unchanged", "probability": "probability"}
    return f"{first}: {words.get(rest, rest)}" if rest else first


def _steps(name: str, config: Any, bands: Sequence[Float[np.ndarray, "3 p"]]) -> tuple[str, np.ndarray]:
    points = bands[0].shape[1]
    fractions = getattr(config, "fractions", ())
    if len(fractions) == points:
        return "share taken away", np.asarray(fractions, np.float64)
    if name.startswith(("insertion", "deletion")):
        return "share inserted" if name.startswith("insertion") else "share taken away", np.linspace(0, 1, points)
    return "group, most relevant first", np.arange(1, points + 1, dtype=np.float64)


def _band(values: Float[np.ndarray, "i p"], seed: int) -> Float[np.ndarray, "3 p"]:
    """Mean over images, and the middle 95 % of its bootstrap distribution."""
    known = values[~np.isnan(values).any(1)]
    if not len(known):
        return np.full((3, values.shape[1]), np.nan)
    draw = np.random.default_rng(seed)
    even = np.full(len(known), 1 / len(known))
    means = [draw.multinomial(len(known), even, size=_BLOCK) @ known / len(known) for _ in range(_RESAMPLES // _BLOCK)]
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5], axis=0)
    return np.stack([known.mean(0), low, high])


def _legend(methods: Sequence[str], prefix: str) -> tuple[LegendEntry, ...]:
    entries, at = [], 0
    for method in methods:
        key = f"{prefix}-{safe_stem(method.replace('/', ' under '))}"
        if method in FLOORS:
            entries.append(LegendEntry(method, key, _FLOOR, _FLOOR_DASHES[method]))
            continue
        colour, dash = _COLOURS[at % len(_COLOURS)], _DASHES[at // len(_COLOURS) % len(_DASHES)]
        entries.append(LegendEntry(method, key, colour, dash))
        at += 1
    return tuple(entries)


def _draw(
    name: str,
    steps: tuple[str, Float[np.ndarray, "p"]],
    bands: Sequence[Float[np.ndarray, "3 p"]],
    legend: Sequence[LegendEntry],
) -> str:
    # Built by hand and not through pyplot, whose global state belongs to the user.
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": f"{legend[0].key}-{name}",
        "font.size": 10,
        "lines.scale_dashes": False,
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(5.2, 3.4), layout="constrained", facecolor="none")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot(facecolor="none")
        label, at = steps
        scale = 100 if name.endswith("hit") else 1
        for entry, (mean, low, high) in zip(legend, bands, strict=True):
            line = {"linestyle": _linestyle(entry.dash), "color": entry.colour, "linewidth": 1.8}
            axes.plot(at, scale * mean, gid=f"{entry.key}--line-{name}", **line)
            shade = axes.fill_between(at, scale * low, scale * high, color=entry.colour, alpha=0.12, linewidth=0)
            shade.set_gid(f"{entry.key}--band-{name}")
        axes.set_xlabel(label, color=_INK)
        axes.set_title(_title(name) + (" (%)" if scale == 100 else ""), color=_INK, fontsize=11)
        axes.tick_params(colors=_INK)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(_INK)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    return _inline(text.getvalue())


def _linestyle(dash: str) -> Any:
    return "-" if not dash else (0, tuple(float(part) for part in dash.split()))


def _inline(document: str) -> str:
    """The drawing itself without the file's head, in the colours and the font of the page."""
    svg = document[document.index("<svg") :].replace(_INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="(?![^"]*--)[^"]*"', "<g", svg)  # "axes_1" and the like are in every drawing; ids are ours
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1; font-family: system-ui, sans-serif", svg)
    return re.sub(
        r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1), count=1
    )
