"""Every ViT: each entry of timm's ViT files matches the second writing or is refused in the right sentence.

A sample runs always, everything with ``make test-slow``.
"""

import functools

import pytest

from tests.support.coverage import HIERARCHICAL, PLAIN, Outcome, entries, examine, transformers_models

# What each of these adds is behind it; blocks, embeddings and heads of every kind that occurs.
SAMPLE = [
    "vit_base_patch16_clip_224",  # a norm before the blocks, quick GELU in its sister
    "vit_base_patch32_clip_quickgelu_224",
    "vit_base_patch16_siglip_224",  # attention pooling, no class token
    "vit_so150m_patch16_reg4_gap_256",  # registers, mean
    "vit_base_patch16_rpn_224",  # post-norm branches
    "flexivit_small",
    "aimv2_large_patch14_224",  # RMSNorm and SwiGLU
    "beit3_base_patch16_224",  # norms inside attention and feed-forward
    "vit_wee_patch16_reg1_gap_256",
    "vit_base_patch16_xp_224",  # refused: parallel
    "vit_dlittle_patch16_reg1_gap_256",  # refused: differential
    "deit_base_distilled_patch16_224",
    "deit3_small_patch16_224",
    "beitv2_base_patch16_224",
    "eva02_base_patch14_448",
    "eva_giant_patch14_224",
    "vit_small_patch16_dinov3",
    "vit_base_patch16_rope_mixed_224",  # rotary embeddings that are learnt, head by head
    "vit_pe_core_base_patch16_224",  # rotary embeddings and attention pooling
    "vit_small_r26_s32_224",  # a ResNet in front
    "vit_relpos_base_patch32_plus_rpn_256",  # relative position bias and post-norm branches
    "vit_relpos_small_patch16_rpn_224",
    "naflexvit_base_patch16_gap",
    "naflexvit_base_patch16_siglip",
    "vitamin_small_224",
    "swin_tiny_patch4_window7_224",  # refused: windows
    "cait_xxs24_224",  # refused: unknown
]


@functools.cache
def files() -> dict[str, str]:
    return {name: file for file, name in entries((*PLAIN, *HIERARCHICAL))}


def passes(outcome: Outcome) -> None:
    assert outcome.explained != bool(outcome.refusal)
    # Where the mean of patches is read, maps are small without the identity path, and rounding is a larger share.
    assert outcome.difference is None or outcome.difference < 5e-5


@pytest.mark.parametrize("name", SAMPLE)
def test_a_sample_of_timm(name: str) -> None:
    passes(examine(files()[name], name))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", transformers_models())
def test_transformers(name: str) -> None:
    passes(examine("transformers", name, *transformers_models()[name]))


def test_the_sample_has_both_outcomes_and_every_file() -> None:
    assert {files()[name] for name in SAMPLE} >= set(PLAIN)
    assert len(set(SAMPLE)) == len(SAMPLE)


@pytest.mark.slow
@pytest.mark.parametrize("file", PLAIN)
def test_every_entry_of_a_plain_file(file: str) -> None:
    outcomes = [examine(file, name) for _, name in entries((file,))]
    for outcome in outcomes:
        passes(outcome)
    assert sum(outcome.explained for outcome in outcomes) >= 0.9 * len(outcomes)


@pytest.mark.slow
@pytest.mark.parametrize("file", HIERARCHICAL)
def test_every_entry_of_a_hierarchical_file_is_refused(file: str) -> None:
    outcomes = [examine(file, name) for _, name in entries((file,))]
    assert outcomes
    assert all(outcome.refusal for outcome in outcomes)
