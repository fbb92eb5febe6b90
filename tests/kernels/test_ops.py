"""Attention, projection and linear operations against their definitions in float64, and what torch must know of them."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from kernels import beam_attention, beam_topk, context_attention, dispatch, linear, projection, selection

SEED = 20


def relative(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


def history(
    batch: int, steps: int, slots: int, groups: int, width: int, step: int, beams: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values, NaN where nothing was written, and random ancestors."""
    keys = torch.full((batch, steps, slots, groups, width), torch.nan)
    keys[:, :step, :beams] = torch.randn(batch, step, beams, groups, width, generator=generator)
    values = keys.flip(-1).clone()
    return keys, values, torch.randint(0, beams, (batch, steps, slots), generator=generator, dtype=torch.int32)


@pytest.mark.parametrize(("beams", "heads", "groups", "step"), [(1, 4, 1, 0), (5, 4, 2, 1), (13, 6, 3, 3)])
def test_beams_attend_to_their_ancestors_and_leave_their_own_keys(beams: int, heads: int, groups: int, step: int) -> None:
    generator = torch.Generator().manual_seed(SEED)
    keys, values, ancestors = history(2, 4, 16, groups, 8, step, beams, generator)
    qkv = torch.randn(2, beams, (heads + 2 * groups) * 8, generator=generator)
    exact = beam_attention.reference.beam_self_attention(qkv.double(), keys.double(), values.double(), ancestors, step)
    found = beam_attention.beam_self_attention(qkv, keys, values, ancestors, step)
    assert relative(found, exact) < 1e-6
    assert torch.equal(keys[:, step, :beams].flatten(2), qkv[..., heads * 8 : (heads + groups) * 8])
    assert torch.equal(values[:, step, :beams].flatten(2), qkv[..., (heads + groups) * 8 :])


def test_ancestors_follow_the_parents() -> None:
    old = torch.tensor([[[5, 6, 7], [0, 1, 2], [9, 9, 9]]], dtype=torch.int32)
    parent, token = torch.tensor([[2, 0]], dtype=torch.int32), torch.tensor([[8, -1]], dtype=torch.int32)
    new, codes = beam_attention.advance(old, torch.tensor([[[1], [2], [3]]]), parent, token)
    assert new[0, 0, :2].tolist() == [7, 5] and new[0, 1, :2].tolist() == [2, 0]
    assert codes.tolist() == [[[3, 8], [1, 0]]]
    assert old[0, 0].tolist() == [5, 6, 7]


def test_attention_by_ancestor_is_attention_with_a_reordered_history() -> None:
    generator = torch.Generator().manual_seed(SEED)
    keys, values, ancestors = history(1, 3, 8, 1, 4, 0, 8, generator)
    reordered: list[Tensor] = []
    codes, beams = torch.zeros(1, 1, 0, dtype=torch.int64), 1
    for step, width in enumerate((4, 8, 6)):
        qkv = torch.randn(1, beams, 3 * 4, generator=generator)
        found = beam_attention.beam_self_attention(qkv, keys, values, ancestors, step)
        query, key, value = qkv.double().split(4, -1)
        stack = [*reordered, torch.stack([key[0], value[0]], 1)]
        weight = torch.softmax(torch.stack([(query[0] * side[:, 0]).sum(-1) / 2 for side in stack], -1), -1)
        exact = sum(weight[:, index : index + 1] * side[:, 1] for index, side in enumerate(stack))
        assert relative(found[0], exact) < 1e-6
        parent = torch.randint(0, beams, (1, width), generator=generator, dtype=torch.int32)
        ancestors, codes = beam_attention.advance(ancestors, codes, parent, torch.zeros_like(parent))
        reordered = [side[parent[0].long()] for side in stack]
        beams = width


@pytest.mark.parametrize("lengths", [None, [7, 0, 63]])
@pytest.mark.parametrize("with_lse", [False, True])
def test_beams_share_a_context_up_to_its_length(lengths: list[int] | None, with_lse: bool) -> None:
    generator = torch.Generator().manual_seed(SEED)
    query = torch.randn(3, 5, 4, 16, generator=generator)
    keys, values = (torch.randn(3, 2, 63, 16, generator=generator).transpose(1, 2) for _ in range(2))
    count = None if lengths is None else torch.tensor(lengths, dtype=torch.int32)
    if lengths is not None:
        for row, end in enumerate(lengths):
            keys[row, end:], values[row, end:] = torch.nan, torch.nan
    exact, lse = context_attention.reference.context_attention(query.double(), keys.double().nan_to_num(9.0), values.double(), count)
    found = context_attention.context_attention(query, keys, values, count, with_lse=with_lse)
    if isinstance(found, tuple):
        assert torch.allclose(found[1].double(), lse, atol=1e-5)
        found = found[0]
    assert relative(found, exact) < 1e-6
    if lengths is not None:
        assert not found[1].any()


def mask_of(allowed: Tensor) -> Tensor:
    """bool[n, V] → int32[n, ceil(V / 32)]."""
    bits = torch.nn.functional.pad(allowed, (0, -allowed.shape[1] % 32)).unflatten(1, (-1, 32)).long()
    return (bits << torch.arange(32)).sum(-1).int()


@pytest.mark.parametrize("vocabulary", [1, 63, 100, 256, 1000])
@pytest.mark.parametrize("normalizer", ["full", "allowed"])
def test_a_projection_has_exact_maxima_and_a_normalizer(vocabulary: int, normalizer: str) -> None:
    generator = torch.Generator().manual_seed(SEED)
    hidden, weight = torch.randn(7, 24, generator=generator), torch.randn(vocabulary, 24, generator=generator)
    bias, extra = torch.randn(vocabulary, generator=generator), torch.randn(7, vocabulary, generator=generator)
    allowed = torch.rand(3, vocabulary, generator=generator) < 0.5
    node = torch.tensor([0, 1, 2, -1, 0, 1, 2], dtype=torch.int32)
    found = projection.proj_pyramid(hidden, weight, bias=bias, extra=extra, node=node, bitmask=mask_of(allowed), normalizer=normalizer)
    exact = hidden.double() @ weight.double().T + bias + extra
    kept = allowed[node.long()] & (node >= 0).unsqueeze(1)
    assert torch.equal(found.logits > -torch.inf, kept)
    assert not kept.any() or relative(found.logits[kept], exact[kept]) < 1e-5
    total = torch.logsumexp(exact if normalizer == "full" else exact.masked_fill(~kept, -torch.inf), -1)
    assert torch.allclose(found.log_normalizer.double(), total, atol=2e-5)
    for maxima, group in ((found.fine, 16), (found.coarse, 256)):
        padded = torch.nn.functional.pad(found.logits, (0, -vocabulary % group), value=-torch.inf)
        assert torch.equal(maxima, padded.unflatten(1, (-1, group)).amax(-1))


def test_a_selection_from_a_pyramid_is_that_from_the_logits() -> None:
    generator = torch.Generator().manual_seed(SEED)
    logits = torch.randint(-9, 9, (2, 12, 300), generator=generator).float()
    logits[0, 3, 7], logits[1, 0, 0] = torch.nan, torch.inf
    cumulative = -torch.rand(2, 12, generator=generator)
    found = selection.beam_select(projection.pyramid(logits.flatten(0, 1)), cumulative, 40)
    for part, expected in zip(found, selection.reference.beam_topk(logits, cumulative, 40), strict=True):
        assert torch.equal(part, expected)


def test_norm_linear_activation_and_residual_are_what_torch_composes() -> None:
    generator = torch.Generator().manual_seed(SEED)
    x, gain, weight = (torch.randn(*shape, generator=generator) for shape in ((5, 24), (24,), (10, 24)))
    bias, residual = torch.randn(10, generator=generator), torch.randn(5, 10, generator=generator)
    normed = x.double() * (x.double().square().mean(1, keepdim=True) + torch.finfo(torch.float32).eps).rsqrt() * gain
    assert relative(linear.rms_norm(x, gain), normed) < 1e-6
    exact = (normed @ weight.double().T + bias).relu().square() + residual
    assert relative(linear.rmsnorm_linear(x, gain, weight, bias=bias, residual=residual, activation="relu2"), exact) < 1e-6
    assert relative(linear.linear(x, weight), x.double() @ weight.double().T) < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_small_row_is_normed_as_torch_norms_it(dtype: torch.dtype) -> None:
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(SEED)).to(dtype) / 100
    assert relative(linear.rms_norm(x, torch.ones(64, dtype=dtype)), torch.nn.RMSNorm(64, dtype=dtype)(x).double()) < 5e-3
    normed = torch.nn.RMSNorm(64)(x.float()).double()
    assert relative(linear.rmsnorm_linear(x, None, torch.eye(64, dtype=dtype)), normed) < 5e-3


CALLS = {
    "beam_topk": lambda: (selection._beam_topk, (torch.randn(2, 3, 70), torch.zeros(2, 3), 9, True)),
    "beam_select": lambda: (
        selection._beam_select,
        (*projection.pyramid(torch.randn(6, 70)), torch.zeros(2, 3), 9, "torch"),
    ),
    "proj_pyramid": lambda: (
        projection._proj_pyramid,
        (torch.randn(6, 8), torch.randn(70, 8), torch.rand(6, 1), torch.randn(70), None, None, None, "full", 1e-6, "torch"),
    ),
    "pyramid": lambda: (projection._pyramid, (torch.randn(6, 70), None, None, "full", "torch")),
    "context_attention": lambda: (
        context_attention._context_attention,
        (torch.randn(2, 3, 4, 8), torch.randn(2, 5, 2, 8), torch.randn(2, 5, 2, 8), torch.tensor([5, 2]).int(), False, "torch"),
    ),
    "projected_attention": lambda: (
        context_attention._projected_attention,
        (
            torch.randn(6, 8),
            torch.rand(6, 1),
            torch.randn(32, 8),
            torch.randn(2, 5, 2, 8),
            torch.randn(2, 5, 2, 8),
            torch.tensor([5, 2]).int(),
            4,
            1e-6,
            "torch",
        ),
    ),
    "beam_self_attention": lambda: (
        beam_attention._beam_self_attention,
        (
            torch.randn(2, 3, 64),
            torch.randn(2, 3, 4, 2, 8),
            torch.randn(2, 3, 4, 2, 8),
            torch.zeros(2, 3, 4, dtype=torch.int32),
            1,
            "torch",
        ),
    ),
    "fused_linear": lambda: (
        linear._fused_linear,
        (torch.randn(5, 8), torch.rand(5, 2), torch.randn(6, 8), None, None, "relu2", 1e-6, True, "torch"),
    ),
    "embed": lambda: (linear._embed, (torch.tensor([1, 0]), torch.randn(3, 70), torch.randn(70), "torch")),
    "advance": lambda: (
        beam_attention._advance,
        (torch.zeros(2, 3, 4).int(), torch.zeros(2, 3, 1).long(), torch.zeros(2, 4).int(), torch.zeros(2, 4).int(), "torch"),
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_torch_knows_schema_and_shapes_of_every_operation(name: str) -> None:
    op, arguments = CALLS[name]()
    torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.integration
def test_a_search_step_compiles_and_exports_as_one_graph() -> None:
    class Step(torch.nn.Module):
        def forward(self, hidden: Tensor, weight: Tensor, cumulative: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return selection.beam_select(projection.proj_pyramid(hidden, weight), cumulative, 5)

    inputs = torch.randn(6, 8), torch.randn(70, 8), torch.zeros(2, 3)
    expected = Step()(*inputs)
    compiled = torch.compile(Step(), fullgraph=True, backend="aot_eager")(*inputs)
    exported = torch.export.export(Step(), inputs).module()(*inputs)
    for found in (compiled, exported):
        assert all(torch.equal(part, other) for part, other in zip(found, expected, strict=True))


@pytest.mark.integration
def test_triton_is_not_imported_by_the_package() -> None:
    code = "import sys, kernels, kernels.linear, kernels.beam_attention, kernels.context_attention; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_triton_without_a_gpu_is_refused_in_one_line() -> None:
    with pytest.raises(RuntimeError, match=r'needs CUDA tensors, and this one is on cpu; use backend="auto"'):
        beam_topk(torch.zeros(1, 1, 4), torch.zeros(1, 1), 1, backend="triton")
    with pytest.raises(ValueError, match="one of auto, torch, triton"):
        dispatch.resolve("cuda", torch.zeros(1))


@pytest.mark.parametrize(
    "call",
    [
        lambda: projection.proj_pyramid(torch.zeros(2, 3), torch.zeros(4, 5)),
        lambda: projection.pyramid(torch.zeros(2, 3), node=torch.zeros(2).int()),
        lambda: projection.pyramid(torch.zeros(2, 3), normalizer="none"),
        lambda: selection.beam_select(projection.pyramid(torch.zeros(2, 3)), torch.zeros(1, 3), 1),
        lambda: selection.proj_select(torch.zeros(2, 3), torch.zeros(4, 5), torch.zeros(1, 2), 1),
        lambda: selection.proj_select(torch.zeros(2, 3), torch.zeros(4, 3), torch.zeros(1, 3), 1),
        lambda: context_attention.context_attention(torch.zeros(1, 2, 3, 4), torch.zeros(1, 5, 2, 4), torch.zeros(1, 5, 2, 4)),
        lambda: linear.linear(torch.zeros(1, 2), torch.zeros(2, 2), activation="gelu"),
        lambda: linear.rms_norm(torch.zeros(1, 2), torch.zeros(3)),
        lambda: beam_attention.advance(torch.zeros(1, 2, 3).int(), torch.zeros(1, 1, 0).long(), *2 * [torch.zeros(1, 4).int()]),
    ],
)
def test_what_does_not_fit_is_refused(call: object) -> None:
    with pytest.raises(ValueError):
        call()  # type: ignore[operator]
