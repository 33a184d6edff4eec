"""Measure the methods on every data set at hand and write ``docs/results.md``.

    python scripts/results.py [NAME…] [--kit ../shared/kit] [--out docs/results.md]

Each table is one run of ``tokentm evaluate`` into ``out/results/NAME``, which goes on where it was interrupted; without
names all are run. The page holds every run that is finished, under the command that made it; the table of a run that is
not at hand stays as it stands there.
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tokentm.errors import InputError
from tokentm.evaluate.results import Results
from tokentm.evaluate.statistics import counted
from tokentm.files import write_atomically
from tokentm.report.evaluation.findings import Findings, find
from tokentm.report.evaluation.tables import markdown

EIGHT = "tokentm,tokentm/libra,gae,rollout,raw_attention,attcat/libra,random,center"
# All methods of at most some fifty passes an image, and those of up to thousands.
MANY = (
    "tokentm,tokentm/libra,gae,gae/libra,transformer_attribution,beyond_intuition_h,beyond_intuition_t,attcat,"
    "attcat/libra,fullgrad_plus/libra,input_x_gradient,input_x_gradient/libra,integrated_gradients,attnlrp,"
    "conservative_lrp,lrp,partial_lrp,legrad,legrad/libra,gradcam,gradcam_tokens,raw_attention,rollout,random,center"
)
THOUSANDS = "rise,tis,vit_cx,tokentm,random"
_WIDTH = 110  # letters in a line of a command
_INTRODUCTION = """\
# Results

Made by `python scripts/results.py`; every figure with its 95 % bootstrap interval over photos. ↑ and ↓ say which end is
good, bold is the best. `random` and `center` are floors: they look neither at the model nor at the class, and are never
in bold. KIT is a folder outside the checkout with photos of ImageNet and COCO, CIFAR-10 and a DINOv2 model;
[evaluate](evaluate.md#kit-and-the-data-set-kit) says what to put in its place.
"""


@dataclass(frozen=True)
class Table:
    """One run and what is said of it.

    Attributes:
        title: Heading.
        data: As typed; KIT stands for the folder of the kit, CIFAR for the archive.
        options: Of ``tokentm evaluate``.
        text: What a reader should know before the figures.
        joins: The table that this run's methods belong into, if not one of its own.
    """

    title: str
    data: str
    options: tuple[str, ...]
    text: str
    joins: str | None = None

    def command(self, kit: str, cifar: str) -> list[str]:
        """Words of the command line."""
        words = ["tokentm", "evaluate", self.data, *self.options]
        return [word.replace("KIT", kit).replace("CIFAR", cifar) for word in words]


TABLES = {
    "shapes": Table(
        "Scenes with exact masks",
        "shapes:500",
        ("--limit", "500", "--model", "shapes", "--explain", "target", "--protocols", "perturbation,segmentation",
         "--methods", EIGHT, "--batch-size", "32"),
        "500 labelled objects in 341 scenes, the bundled model; `make evaluate` is this run. Half of the scenes show "
        "two objects, so that only 68 % of the labelled objects are also the predicted one. Blacking pixels out paints "
        "a new object into the scene, and objects lie near the middle: the floor `center` is strong when the most "
        "relevant pixels go first. "
        "The next table leaves patches out instead of painting over them.",
    ),
    "shapes-drop": Table(
        "The same scenes, patches left out",
        "shapes:500",
        ("--limit", "500", "--model", "shapes", "--explain", "target", "--protocols", "mif-lif-srg",
         "--methods", EIGHT, "--batch-size", "32"),
        "Patches do not enter the model at all, so nothing is painted; both floors are where they belong.",
    ),
    "cifar10": Table(
        "CIFAR-10: the test of the paper on small photos",
        "cifar10:CIFAR",
        ("--sample", "1000", "--model", "cifar10", "--explain", "predicted", "--protocols", "perturbation",
         "--methods", MANY, "--batch-size", "50", "--precision", "bfloat16"),
        "1,000 test images drawn at random; the bundled model, 32×32 pixels, relevance upsampled from 8×8 patches. "
        "Perturbed images pass the model in bfloat16. What is shown lies in the middle of these photos and fills them: "
        "the floor `center` is strong when the most relevant pixels go first, and weak when they go last. Two runs: "
        "methods of up to thousands of passes an image were measured apart, RISE with 1,000 masks in place of "
        "4,000.",
    ),
    "cifar10-thousands": Table(
        "",
        "cifar10:CIFAR",
        ("--sample", "1000", "--model", "cifar10", "--explain", "predicted", "--protocols", "perturbation",
         "--methods", THOUSANDS, "--set", "rise.masks=1000", "--batch-size", "50", "--precision", "bfloat16"),
        "",
        joins="cifar10",
    ),
    "kit-photos": Table(
        "Photos of ImageNet, DINOv2 ViT-S/14",
        "kit:KIT/photos",
        ("--model", "KIT/dinov2_small_in1k", "--explain", "predicted", "--protocols", "perturbation",
         "--methods", EIGHT, "--batch-size", "16", "--precision", "bfloat16"),
        "A real backbone with a few-shot head. It names nearly all of these photos and few of the next table's, so the "
        "head was most likely fitted to these: read the differences between methods, not the accuracy. Perturbed "
        "images pass the model in bfloat16.",
    ),
    "kit-masks": Table(
        "Photos of COCO with masks, DINOv2 ViT-S/14",
        "kit:KIT/masked",
        ("--model", "KIT/dinov2_small_in1k", "--explain", "target", "--protocols", "perturbation,segmentation",
         "--methods", EIGHT, "--batch-size", "16"),
        "The annotated class is explained, whether or not the model predicts it.",
    ),
}  # fmt: skip


def main() -> None:
    """Run what is asked for and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(TABLES)}")
    parser.add_argument("--kit", default="../shared/kit")
    parser.add_argument("--cifar", help="the archive or folder [the kit's]")
    parser.add_argument("--runs", type=Path, default=Path("out/results"))
    parser.add_argument("--out", type=Path, default=Path("docs/results.md"))
    parser.add_argument("--only-write", action="store_true", help="measure nothing, write the page anew")
    given = parser.parse_args()
    unknown = [name for name in given.names if name not in TABLES]
    if unknown:
        parser.error(f"unknown table {unknown[0]!r}; known are {', '.join(TABLES)}")
    cifar = given.cifar or f"{given.kit}/cifar10_jpeg.tar.xz"
    if not given.only_write:
        for name in given.names or TABLES:
            words = TABLES[name].command(given.kit, cifar)
            command = [str(Path(sys.executable).with_name(words[0])), *words[1:], "--out", str(given.runs / name)]
            if code := subprocess.run(command, check=False).returncode:  # noqa: S603  (the words are ours)
                sys.exit(code)  # it has said why
    before = given.out.read_text(encoding="utf-8") if given.out.exists() else ""
    text = page(given.runs, before)
    with write_atomically(given.out) as path:
        path.write_text(text, encoding="utf-8")


def page(runs: Path, before: str) -> str:
    """The page, with what it said ``before`` of tables whose runs, or some of them, are not at hand."""
    kept = _by_title(before)
    parts = [_INTRODUCTION]
    for name, table in TABLES.items():
        if table.joins:
            continue
        wanted = [name, *(other for other in TABLES if TABLES[other].joins == name)]
        finished = dict(_finished(runs, wanted))
        if len(finished) < len(wanted):
            parts += [kept[table.title]] if table.title in kept else []
            continue
        commands = [broken(TABLES[of].command("KIT", "KIT/cifar10_jpeg.tar.xz")) for of in wanted]
        found = find(list(finished.values()))
        if len(found) > 1:
            sys.exit(f"The runs {' and '.join(wanted)} differ in more than their methods; measure all of them again.")
        lines = [f"## {table.title}", "", table.text, "", "```bash", *commands, "```", "", *section(found[0])]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _by_title(text: str) -> dict[str, str]:
    """Sections of a page, heading and all, by their titles."""
    found = re.split(r"^(?=## )", text, flags=re.MULTILINE)[1:]
    return {part.partition("\n")[0].removeprefix("## "): part.rstrip("\n") + "\n" for part in found}


def _finished(runs: Path, names: Sequence[str]) -> Iterator[tuple[str, Results]]:
    for name in names:
        with suppress(InputError):
            yield name, Results.read(runs / name)


def broken(words: Sequence[str]) -> str:
    """A command on lines that can be read: broken before an option, and a list that is too long after a comma.

    A shell takes a backslash and the end of its line away, so that what goes on within a list is not indented.
    """
    first, *units = re.split(r" (?=--)", " ".join(words))  # an option and its value stay together
    lines = [first]
    for unit in units:
        if len(lines[-1]) + len(unit) < _WIDTH - 2:
            lines[-1] += f" {unit}"
        else:
            lines[-1] += " \\"
            lines.append(f"  {unit}")
    return "\n".join(piece for line in lines for piece in _at_commas(line))


def _at_commas(line: str) -> Iterator[str]:
    while len(line) > _WIDTH and (cut := line.rfind(",", 0, _WIDTH - 1) + 1):
        yield line[:cut] + "\\"
        line = line[cut:]
    yield line


def section(findings: Findings) -> list[str]:
    """What one run found: verdicts and a table per protocol."""
    results = findings.section.results
    count = counted(len(results), len(set(results.photos())))
    lines = [f"{count}, {results.accuracy:.1%} classified correctly.", ""]
    lines += [f"- **{heading}**: {' '.join(sentences)}" for heading, sentences in findings.verdicts]
    for _, figures in findings.protocols(findings.tables[0][1]):
        lines += ["", *markdown(figures)]
    return lines


if __name__ == "__main__":
    main()
