"""The fused kernel against the PyTorch path: its numbers in Triton's interpreter, the whole of it on a GPU."""

import os
import subprocess
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="triton comes with PyTorch for CUDA")

CASE = textwrap.dedent(
    """
    import torch
    from tokentm.methods import _fold_triton
    from tokentm.methods._fold import weighted_attention
    from tokentm.trace import BlockTrace

    def block(dtype, rows, tokens, width, device):
        generator = torch.Generator().manual_seed(rows)
        draw = lambda n: torch.randn(2, 3, n, width, generator=generator).to(device, dtype)
        return BlockTrace(q=draw(rows), k=draw(tokens) * 2, v=draw(tokens), scale=width**-0.5, mask=None,
                          proj_weight=torch.eye(3 * width), layer_scale=None, _grad=draw(rows))

    def differs(dtype, rows, tokens, width, device="cpu"):
        one = block(dtype, rows, tokens, width, device)
        row = torch.rand(2, rows, generator=torch.Generator().manual_seed(1)).to(device)
        row[:, 70:] = 0
        expected = weighted_attention(one, row, gradient=True)
        return float((_fold_triton.fused_weighted_attention(one, row) - expected).abs().max() / expected.max())
    """
)
SIZES = [(70, 150, 24), (5, 197, 64), (197, 197, 16)]


def run(code: str, case: str = CASE, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", case + code], check=False, capture_output=True, text=True, env=os.environ | environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_interpreted_kernel_computes_what_pytorch_does() -> None:
    # In a process of its own: whether Triton interprets is decided when it is imported.
    found = run(f"print(*(differs(torch.float32, *size) for size in {SIZES}))", TRITON_INTERPRET="1")
    assert all(float(difference) < 1e-5 for difference in found.split()), found


def test_a_broken_kernel_is_noticed(tmp_path: Path) -> None:
    kernel = Path(find_spec("tokentm.methods._fold_triton").origin)
    source = kernel.read_text(encoding="utf-8")
    assert source.count("tl.maximum(change, 0.0)") == 1
    (tmp_path / "broken.py").write_text(source.replace("tl.maximum(change, 0.0)", "change"), encoding="utf-8")
    case = CASE.replace("from tokentm.methods import _fold_triton", "import broken as _fold_triton")
    found = run("print(differs(torch.float32, 5, 60, 16))", case, TRITON_INTERPRET="1", PYTHONPATH=str(tmp_path))
    assert float(found) > 1e-2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: the compiled kernel runs on one only")
@pytest.mark.parametrize(("dtype", "limit"), [("float32", 1e-5), ("bfloat16", 1e-2)])
def test_the_compiled_kernel_computes_what_pytorch_does(dtype: str, limit: float) -> None:
    found = run(f"print(*(differs(torch.{dtype}, *size, 'cuda') for size in {SIZES}))")
    assert all(float(difference) < limit for difference in found.split()), found
