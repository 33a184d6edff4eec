"""``compare``: the same numbers as ``explain``, one figure, one command."""

import io
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tokentm
from tests.support.command import save_classifier, tree
from tests.support.fork_server import run
from tests.support.zoo import build, image_batch
from tokentm import render
from tokentm.errors import InputError
from tokentm.figure import picture_grid
from tokentm.methods.rollout import RolloutConfig
from tokentm.session import Request

METHODS = ["tokentm", "gae/libra", "rollout", "attcat"]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_classifier(tmp_path_factory.mktemp("compare") / "classifier")


def photo(folder: Path, name: str, seed: int) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / name)
    return folder / name


def test_compare_is_explain_for_each_method() -> None:
    model, images = build("timm-dinov2"), image_batch("timm-dinov2", batch=3)
    found = tokentm.compare(model, images, METHODS, "top2", batch_size=2)
    assert list(found) == METHODS
    for name, explanation in found.items():
        alone = tokentm.explain(model, images, "top2", name)
        torch.testing.assert_close(explanation.relevance, alone.relevance, rtol=1e-5, atol=1e-6)
        assert torch.equal(explanation.target, alone.target)
        assert explanation.image_index.tolist() == [0, 0, 1, 1, 2, 2]
        assert explanation.method == name


def test_a_mapping_gives_options_and_one_name_needs_no_list() -> None:
    model, images = build("timm-dinov2"), image_batch("timm-dinov2")
    start = RolloutConfig(start_block=1)
    found = tokentm.compare(model, images, {"rollout": start, "gae": None}, 0)
    assert list(found) == ["rollout", "gae"]
    for name, options in (("rollout", start), ("gae", None)):
        alone = tokentm.explain(model, images, 0, name, options=options)
        assert torch.equal(found[name].relevance, alone.relevance)
    assert not torch.equal(found["rollout"].relevance, tokentm.explain(model, images, 0, "rollout").relevance)
    assert list(tokentm.compare(model, images, "gae", 0)) == ["gae"]
    with pytest.raises(InputError, match="takes NoOptions as options, got RolloutConfig"):
        tokentm.compare(model, images, {"gae": start}, 0)


def test_the_same_rule_twice_is_refused_and_rules_only_go_where_they_apply() -> None:
    assert Request.parse("gae", backward="libra").name == "gae/libra"
    assert Request.parse("attnlrp").name == "attnlrp"  # its own rule is not named
    with pytest.raises(InputError, match="names another rule"):
        Request.parse("gae/libra", backward="plain")
    with pytest.raises(InputError, match="'rollout' reads no gradients"):
        Request.parse("rollout/libra")
    with pytest.raises(InputError, match="'attnlrp' is defined with 'attnlrp'"):
        Request.parse("attnlrp/libra")
    with pytest.raises(InputError, match="what flows backward is relevance"):
        Request.parse("tokentm/lrp")
    with pytest.raises(InputError, match=r"libre.*Did you mean .libra."):
        Request.parse("gae/libre")


def test_the_figure_has_a_row_per_target_and_one_scale_per_column() -> None:
    model, images = build("timm-vit"), image_batch("timm-vit")
    found = tokentm.compare(model, images, ["gae", "attcat"], "top2")
    picture = found.figure()
    taller = tokentm.compare(model, images, ["gae", "attcat"], "top3").figure()
    wider = tokentm.compare(model, images, ["gae", "attcat", "rollout"], "top2").figure()
    assert taller.width == picture.width
    # two images: four rows against six, two columns of maps against three, beside the column of images
    assert taller.height / picture.height == pytest.approx(6 / 4, rel=0.1)
    assert wider.width / picture.width == pytest.approx(4 / 3, rel=0.1)


def test_each_map_has_the_colour_bar_of_its_sign_above_it() -> None:
    model, images = build("timm-vit"), image_batch("timm-vit", batch=1)
    found = np.asarray(tokentm.compare(model, images, ["gae", "attcat"]).figure()).astype(int)
    above = np.array_split(found[:77, 160:], 3, axis=1)  # image, gae, attcat; above the pictures
    for column, signed in enumerate([None, False, True]):
        colours = {tuple(colour) for colour in above[column].reshape(-1, 3)}
        for bar in (False, True):
            shown = np.asarray(render.colour_bar(signed=bar)).astype(int)[0, ::4]
            near = [min(np.abs(np.subtract(colour, one)).max() for one in colours) < 4 for colour in shown]
            assert (np.mean(near) > 0.9) == (bar == signed), (column, bar)


def test_a_bar_stands_above_its_column_alone() -> None:
    green, red = Image.new("RGB", (8, 8), "#00ff00"), Image.new("RGB", (256, 1), "#ff0000")
    drawn = picture_grid([[green, green]], columns=["a", "b"], rows=["r"], scales=[None, ("0", red, "long word")])
    pixels = np.asarray(drawn).astype(int)
    across, down = np.nonzero((np.abs(pixels - [255, 0, 0]).max(-1) < 9).T)
    picture = np.nonzero((np.abs(pixels - [0, 255, 0]).max(-1) < 9).T)
    assert across.size
    assert picture[0].mean() < across.min()  # right of the first picture's middle: in the second column
    assert across.max() < picture[0].max()
    assert down.max() < picture[1].min()
    assert across.max() - across.min() < 0.6 * (picture[0].max() - picture[0].min()) / 2  # room is left for words


def test_the_command(classifier: Path, tmp_path: Path) -> None:
    photos = [photo(tmp_path, "a.png", 0), photo(tmp_path, "b.png", 1)]
    arguments = ["--methods", "tokentm,rollout", "--backward", "plain,libra", "--top", "2", "--out", "got"]
    done = run(["compare", *photos, "--model", classifier, *arguments], tmp_path)
    assert done.code == 0, done.err
    assert tree(tmp_path / "got") == {"compare.png", "compare.npz", "compare.json"}
    assert done.err.count("\n") == 1
    assert "rollout: blind to the class" in done.err

    *rows, _, last = done.out.splitlines()
    assert last.startswith("Figure: got/compare.png")

    names = ["tokentm", "tokentm/libra", "rollout"]
    expected = tokentm.compare(classifier, photos, names, "top2")
    assert [row.split("  ")[-2].strip() for row in rows] == list(expected["tokentm"].class_name)
    with np.load(tmp_path / "got" / "compare.npz") as arrays:
        assert sorted(arrays) == sorted(names)
        for name in names:
            np.testing.assert_allclose(arrays[name], expected[name].relevance.numpy(), rtol=1e-4, atol=1e-6)
    manifest = json.loads((tmp_path / "got" / "compare.json").read_text(encoding="utf-8"))
    assert [row["class_name"] for row in manifest["tokentm"]] == list(expected["tokentm"].class_name)
    with Image.open(tmp_path / "got" / "compare.png") as picture:
        assert picture.width > 600


def test_the_command_refuses_before_it_loads(tmp_path: Path) -> None:
    given = photo(tmp_path, "a.png", 0)
    for arguments, words in (
        (["--methods", "gae,rollot"], "Unknown method 'rollot'"),
        (["--methods", ","], "names no method"),
        (["--methods", "gae", "--backward", "libre"], "Unknown backward rule 'libre'; gae takes attnlrp, conservative"),
        (["--methods", "rollout", "--backward", "libre"], "Unknown backward rule 'libre'"),
        (["--methods", "gae", "--backward", "lrp"], "what flows backward is relevance"),
        (["--top", "2", "--target", "1"], "--target and --top exclude each other"),
    ):
        done = run(["compare", given, "--model", "nowhere/at/all", *arguments], tmp_path)
        assert (done.code, done.err.count("\n")) == (2, 1), done.err
        assert words in done.err


def test_dollars_in_names_are_no_formula(tmp_path: Path) -> None:
    photo = tmp_path / "US$5_$6.png"
    Image.new("RGB", (40, 40), "red").save(photo)
    found = tokentm.compare("shapes", photo, ["rollout", "attcat"], "ring")
    assert found.figure().size == tokentm.compare("shapes", [photo], ["rollout", "gae"]).figure().size


@pytest.mark.parametrize("option", ["--target", "--targets"])
def test_each_target_that_is_named_has_a_row(option: str, classifier: Path, tmp_path: Path) -> None:
    given = photo(tmp_path, "a.png", 0)
    done = run(["compare", given, "--model", classifier, "--methods", "gae", option, "tabby", option, "0"], tmp_path)
    assert done.code == 0, done.err
    manifest = json.loads((tmp_path / "out" / "compare.json").read_text(encoding="utf-8"))
    assert [row["target"] for row in manifest["gae"]] == [4, 0]


def test_a_comparison_is_a_mapping_that_draws_and_saves_itself(tmp_path: Path) -> None:
    model, images = build("timm-vit"), image_batch("timm-vit")
    found = tokentm.compare(model, images, ["gae", "attcat"], "top5")
    assert isinstance(found, Mapping)
    assert dict(found) == found
    rows = 5 * len(images)
    assert repr(found) == f"Comparison(gae, attcat; {rows} rows, model VisionTransformer; .figure() draws it)"
    paths = found.save(tmp_path / "new")
    assert [path.name for path in paths] == ["compare.png", "compare.npz", "compare.json"]
    with Image.open(paths[0]) as written:
        assert np.array_equal(np.asarray(written), np.asarray(found.figure()))
    with Image.open(io.BytesIO(found._repr_png_())) as shown:
        assert shown.height < found.figure().height  # the first eight of ten rows
