"""The kernels compiled for GPUs that are not there: registers, no spilled ones, and matrix instructions where there is a product."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from kernels import config

pytestmark = pytest.mark.integration

EVEN = ("D", "K", "key_batch", "key_position", "key_group", "value_batch", "value_position", "value_group")
"""Numbers that are multiples of 16 where it matters, which Triton sees when it compiles for them."""


class Code(NamedTuple):
    """What the assembler says of a kernel: registers a thread, bytes of stack, bytes of shared memory, instructions by name."""

    registers: int
    stack: int
    shared: int
    instructions: Counter[str]


def compiled(kernel: Any, types: Mapping[str, str], constants: Mapping[str, int], warps: int, stages: int, folder: Path, arch: int) -> Code:
    """Compile for sm_`arch` (90: Hopper, 100: Blackwell) with pointers aligned to 16 bytes, as torch's are."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    aligned = [name for name in kernel.arg_names if signature[name].startswith("*") or (name in EVEN and signature[name] in ("i32", "i64"))]
    attributes = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    named = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=named, attrs=attributes)
    made = triton.compile(source, target=GPUTarget("cuda", arch, 32), options={"num_warps": warps, "num_stages": stages})
    binary = folder / "kernel.cubin"
    binary.write_bytes(made.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"

    def dump(option: str) -> str:
        return subprocess.run([tool, option, binary], capture_output=True, text=True, check=True).stdout

    usage = re.search(r"REG:(\d+) STACK:(\d+)", dump("--dump-resource-usage"))
    assert usage, "no resource usage in the output of cuobjdump"
    names = re.findall(r"^\s+/\*[0-9a-f]{4,5}\*/\s+(?:@!?U?P\w+ )?([A-Z0-9_]+)", dump("-sass"), re.MULTILINE)
    return Code(int(usage[1]), int(usage[2]), made.metadata.shared, Counter(names))


def pointers(kernel: Any, types: Mapping[str, str], default: str) -> dict[str, str]:
    return {name: types.get(name, f"*{default}") for name in kernel.arg_names if name.endswith("_ptr")}


def blocks(rows: int, columns: int, depth: int, names: tuple[str, str] = ("x_desc", "weight_desc")) -> dict[str, str]:
    """Types of the operands of a product, which the copy engine brings."""
    return {name: f"tensordesc<bf16[{size}, {depth}]>" for name, size in zip(names, (rows, columns), strict=True)}


OVERLAPPING = {"ITEM": 2, "OVERLAP": True}


def projection_code(rows: int, masked: bool, folder: Path, arch: int) -> Code:
    from kernels.projection.triton import proj_pyramid_kernel as kernel

    tile = config.projection(rows, 2, masked)
    types = pointers(kernel, {"weight_ptr": "*bf16", "bias_ptr": "*bf16", "node_ptr": "*i32", "mask_ptr": "*i32"}, "fp32")
    types |= {"M": "i32", "D": "i32", "eps": "fp32"} | blocks(tile.rows, tile.columns, tile.depth, ("hidden_desc", "weight_desc"))
    constants = {
        "V": 8192, "SUMS": 64, "BM": tile.rows, "BN": tile.columns, "BK": tile.depth, "GROUP": config.GROUP,
        "PARTS": 24, "PADDED": 32, "FINE": 16, "SUMMED": 128, "BIAS": True, "EXTRA": False, "MASKED": masked, "ALLOWED": False,
        "FEW": rows <= config.FEW_ROWS, **OVERLAPPING,
    }  # fmt: skip
    return compiled(kernel, types, constants, tile.warps, tile.stages, folder, arch)


def selection_code(beams: int, k: int, folder: Path, arch: int) -> Code:
    from kernels.selection.triton import beam_select_kernel as kernel
    from kernels.selection.triton import plan

    integers = dict.fromkeys(("kept_ptr", "parent_ptr", "token_ptr"), "*i32")
    constants = plan(beams, 8192, k) | {"OVERLAP": True}
    warps = config.selection_warps(16 * max(constants["FIRST"], constants["KP"]))
    return compiled(kernel, pointers(kernel, integers, "fp32"), constants, warps, 3, folder, arch)


def context_code(variable: bool, folder: Path, arch: int) -> Code:
    from kernels.context_attention.triton import context_attention_kernel as kernel

    tile = config.attention(2, 64)
    types = pointers(kernel, {"lengths_ptr": "*i32", "lse_ptr": "*fp32"}, "bf16") | {"W": "i32", "S": "i32", "scale": "fp32"}
    types |= {name: "i64" for name in kernel.arg_names if name.startswith(("key_", "value_"))}
    constants = {
        "H": 12,
        "R": 12,
        "D": 64,
        "DP": 64,
        "BM": tile.rows,
        "BN": tile.columns,
        "VARIABLE": variable,
        "SHARED": True,
        "LSE": True,
        "OVERLAP": True,
    }
    return compiled(kernel, types, constants, tile.warps, tile.stages, folder, arch)


def projected_code(folder: Path, arch: int) -> Code:
    from kernels.context_attention.triton import projected_attention_kernel as kernel

    tile = config.projected_attention(2)
    types = pointers(kernel, {"lengths_ptr": "*i32", "squares_ptr": "*fp32"}, "bf16") | {"W": "i32", "S": "i32", "K": "i32"}
    types |= {"eps": "fp32", "scale": "fp32"} | blocks(tile.rows, 64, tile.depth, ("hidden_desc", "weight_desc"))
    types |= dict.fromkeys(("key_batch", "key_position", "key_group", "value_batch", "value_position", "value_group"), "i64")
    constants = {
        "H": 12, "R": 12, "D": 64, "BM": tile.rows, "BN": tile.columns, "BK": tile.depth, "PARTS": 24, "PADDED": 32,
        "VARIABLE": True, "SHARED": True, **OVERLAPPING,
    }  # fmt: skip
    return compiled(kernel, types, constants, tile.warps, tile.stages, folder, arch)


def beam_code(step: int, folder: Path, arch: int) -> Code:
    from kernels.beam_attention.triton import BEAMS
    from kernels.beam_attention.triton import beam_self_attention_kernel as kernel

    types = pointers(kernel, {"ancestors_ptr": "*i32"}, "bf16") | {"W": "i32", "scale": "fp32"}
    constants = {"STEP": step, "L": 4, "S": 512, "H": 12, "G": 4, "D": 64, "DP": 64, "BW": BEAMS, "OVERLAP": True}
    return compiled(kernel, types, constants, 4, 3, folder, arch)


def linear_code(rows: int, columns: int, norm: bool, folder: Path, arch: int) -> Code:
    from kernels.linear.reference import PART
    from kernels.linear.triton import fused_linear_kernel as kernel

    tile = config.linear(rows, columns, 2)
    constants = {
        "N": columns, "BM": tile.rows, "BN": tile.columns, "BK": tile.depth, "GROUP": config.GROUP, "PART": PART,
        "PARTS": 768 // PART if norm else 0, "PADDED": 32, "BIAS": False, "RESIDUAL": not norm, "RELU2": norm, "LEFT": not norm,
        "FEW": rows <= config.FEW_ROWS, **OVERLAPPING,
    }  # fmt: skip
    types = pointers(kernel, dict.fromkeys(("squares_ptr", "left_ptr"), "*fp32"), "bf16") | {"M": "i32", "D": "i32", "eps": "fp32"}
    types |= blocks(tile.rows, tile.columns, tile.depth)
    return compiled(kernel, types, constants, tile.warps, tile.stages, folder, arch)


def trie_code(dense: bool, folder: Path, arch: int) -> Code:
    from kernels.trie.triton import BLOCK, child_dense_kernel, child_sparse_kernel

    kernel = child_dense_kernel if dense else child_sparse_kernel
    short = dict.fromkeys(("rank_ptr", "offset_ptr", "tokens_ptr"), "*i16")
    wide = dict.fromkeys(("child_ptr", "node_ptr", "token_ptr"), "*i64")
    sizes = {"V": 8192, "WORDS": 256} if dense else {"STEPS": 14, "LIVE": True}
    return compiled(kernel, pointers(kernel, short | wide, "i32") | {"M": "i32"}, sizes | {"SHIFT": 3, "BLOCK": BLOCK}, 4, 3, folder, arch)


def nearest_code(folder: Path, arch: int) -> Code:
    from kernels.nearest.triton import CHILDREN, DEPTH
    from kernels.nearest.triton import child_distance_kernel as kernel

    wide = {"distance_ptr": "*fp64", "residual_ptr": "*fp64", "codebook_ptr": "*fp32"}
    sizes = {"D": 128, "CHILDREN": CHILDREN, "DEPTH": DEPTH}
    return compiled(kernel, pointers(kernel, wide, "i64") | {"T": "i32"}, sizes, 4, 3, folder, arch)


PRODUCTS = {
    "projection": lambda *at: projection_code(512, False, *at),
    "masked projection": lambda *at: projection_code(512, True, *at),
    "projection of few rows": lambda *at: projection_code(8, True, *at),
    "context attention": lambda *at: context_code(True, *at),
    "projected attention": lambda *at: projected_code(*at),
    "norm, linear, activation": lambda *at: linear_code(512, 3072, True, *at),
    "linear, residual": lambda *at: linear_code(512, 768, False, *at),
    "linear, residual of one row": lambda *at: linear_code(1, 768, False, *at),
    "norm, linear, activation of many rows": lambda *at: linear_code(32768, 3072, True, *at),
    "linear, residual of many rows": lambda *at: linear_code(32768, 768, False, *at),
}
GATHERS = {
    "selection of 512": lambda *at: selection_code(512, 512, *at),
    "selection of 128": lambda *at: selection_code(128, 128, *at),
    "selection of 512 from one beam": lambda *at: selection_code(1, 512, *at),
    "beam self-attention": lambda *at: beam_code(3, *at),
    "dense step in the trie": lambda *at: trie_code(True, *at),
    "sparse step in the trie": lambda *at: trie_code(False, *at),
    "distances of a descent": lambda *at: nearest_code(*at),
}
CHOSEN_FOR_HOPPER = ("norm, linear, activation", "linear, residual of many rows")
"""Products whose tiles spill on sm_100."""
SHARED_LIMIT = 227 * 1024  # bytes of one block on sm_90 and sm_100


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize(("arch", "instruction"), [(90, "HGMMA"), (100, "UTCHMMA")])
def test_products_use_matrix_instructions_and_spill_nothing(name: str, arch: int, instruction: str, tmp_path: Path) -> None:
    code = PRODUCTS[name](tmp_path, arch)
    print(name, arch, code)
    assert code.shared <= SHARED_LIMIT
    assert code.stack == 0 or (arch == 100 and name in CHOSEN_FOR_HOPPER)
    assert code.instructions[instruction] > 0, code.instructions


# A selection of 1024 spills 8 bytes a thread on sm_90, one of 512 16 bytes on sm_100.
@pytest.mark.parametrize(("name", "arch"), [*((name, 90) for name in GATHERS), ("selection of 128", 100), ("beam self-attention", 100)])
def test_gathers_and_selections_spill_nothing(name: str, arch: int, tmp_path: Path) -> None:
    code = GATHERS[name](tmp_path, arch)
    print(name, arch, code)
    assert code.stack == 0 and code.shared <= SHARED_LIMIT
