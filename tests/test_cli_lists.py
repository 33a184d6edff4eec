"""``tokentm methods``, ``models``, ``datasets`` and ``cite``: what there is, whole."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import tokentm
from tests.support.command import run_alone, tree
from tests.support.fork_server import run
from tokentm.datasets.registry import DATASETS
from tokentm.models import BUNDLED
from tokentm.models.anatomy import FAMILIES


def test_lists_name_every_method_bundled_model_and_family(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        methods, models = pool.map(lambda command: run_alone([command], tmp_path), ("methods", "models"))
    assert (methods.code, methods.err, models.code, models.err) == (0, "", 0, "")
    listed, _, rules = methods.out.split("\n\n", 2)
    rows = {line.split()[0]: line.split() for line in listed.splitlines()[1:]}
    assert list(rows) == list(tokentm.METHODS)
    assert rows["rollout"] == ["rollout", "no", "no", "none", "1", "ACL", "2020"]
    assert rows["attcat"] == ["attcat", "yes", "yes", "any", "2", "NeurIPS", "2022"]
    assert rows["lrp"][3:] == ["lrp", "2", "PLOS", "ONE", "2015;", "CVPR", "2021"]
    assert {line.split()[0] for line in rules.splitlines()[1:]} == {"plain", "libra", "attnlrp", "conservative"}
    assert all(name in models.out for name in (*BUNDLED, *FAMILIES, "hf:org/name", "torchvision:vit_b_16"))
    assert tree(tmp_path) == set()


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        (("methods", "tokentm"), ["direction=softmax  (softmax, scaled, none)", "ffn=true", "tokentm/libra"]),
        (("methods", "rise"), ["masks=4000", "RISE: Randomized Input Sampling", "many", "reads no gradients"]),
        (("datasets",), [kind.source for kind in DATASETS.values()]),
        (("datasets", "imagenet"), ["imagenet\n", DATASETS["imagenet"].source]),
        (("models", "--classes", "shapes"), ["0  disc\n", "ring\n"]),
        (("cite", "lrp", "gae/libra"), ["{bach2015,", "{chefer2021a,", "{chefer2021b,", "{mehri2025,"]),
        (("cite",), ["{wu2024,", "Wu, Junyi and Duan, Bin", "@software{tokentm,"]),
    ],
    ids=" ".join,
)
def test_what_there_is_to_know_of_one_entry_is_told_whole(
    typed: tuple[str, ...], says: list[str], tmp_path: Path
) -> None:
    """Through a pipe, which has no width."""
    done = run(typed, tmp_path)
    assert (done.code, done.err) == (0, "")
    assert [words for words in says if words not in done.out] == []
    assert done.out.count("…") == sum(words.count("…") for words in says)  # none but those of the texts
