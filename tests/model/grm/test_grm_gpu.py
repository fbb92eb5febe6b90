"""A whole search on a GPU: captured as one graph it gives the bits of an eager one, whatever was in its buffers before, and alone what it
gives in a batch; in float32 it finds what the CPU finds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.config import FEW_ROWS
from kernels.graph import StaticCall
from kernels.trie import Trie
from model.grm.beam import Beams, search
from model.grm.decoder import Context, Decoder
from model.grm.presets import PRESETS, preset

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

CODES = (96, 64, 80, 72)
WIDTHS = (32, 48, 64, 64)


def decoder(dtype: torch.dtype, **options: Any) -> Decoder:
    torch.manual_seed(5)
    made = Decoder(preset("laptop", CODES, **options))
    made.reset_parameters()
    for part in (*made.heads, *made.codes):
        torch.nn.init.normal_(part.weight, std=0.3)  # type: ignore[arg-type]
    for block in made.blocks:
        for norm in (block.cross_norm, block.self_norm, block.ffn_norm):  # type: ignore[union-attr]
            torch.nn.init.uniform_(norm.weight, 0.5, 1.5)  # type: ignore[arg-type, union-attr]
    return made.to("cuda", dtype).requires_grad_(False)


def inputs(batch: int, seed: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Keys, which are the values, and the bias, of contexts of several lengths."""
    generator = torch.Generator().manual_seed(seed)
    width = PRESETS["laptop"].d_head
    keys = torch.randn(batch, 1, 128, width, generator=generator)
    lengths = torch.randint(1, 129, (batch,), generator=generator)
    bias = torch.zeros(batch, 1, 1, 128).masked_fill(torch.arange(128) >= lengths.view(-1, 1, 1, 1), -torch.inf)
    return keys.to("cuda", dtype), bias.to("cuda", dtype)


def find(model: Decoder, keys: Tensor, bias: Tensor, trie: Trie | None = None, widths: Sequence[int] = WIDTHS) -> Beams:
    return search(model, (), Context((keys,), (keys,), bias), widths, trie)


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_replay_gives_the_bits_of_an_eager_search(dtype: torch.dtype, thinking: bool) -> None:
    model = decoder(dtype, thinking_tokens=thinking)

    def body(keys: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        found = find(model, keys, bias)
        return found.sids, found.log_prob

    call = StaticCall(body, inputs(5, 0, dtype))
    for seed in range(20):
        for buffer, part in zip(call.inputs, inputs(5, seed, dtype), strict=True):
            buffer.copy_(part)
        sids, log_prob = call.run()
        expected = find(model, *inputs(5, seed, dtype))
        assert torch.equal(sids, expected.sids) and torch.equal(log_prob, expected.log_prob)


def test_a_graph_reads_weights_that_changed_after_its_capture() -> None:
    model = decoder(torch.bfloat16)

    def body(keys: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        found = find(model, keys, bias)
        return found.sids, found.log_prob

    call = StaticCall(body, inputs(2, 0, torch.bfloat16))
    before = call.run()[1].clone()
    with torch.no_grad():
        model.blocks[0].cross_norm.weight.mul_(3.0)  # type: ignore[operator, union-attr]
    model.normed()
    after, expected = call.run()[1], find(model, *inputs(2, 0, torch.bfloat16)).log_prob
    assert torch.equal(after, expected) and not torch.equal(after, before)


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("allowed", [False, True])
def test_in_float32_a_gpu_finds_what_a_cpu_finds(allowed: bool, thinking: bool) -> None:
    model = decoder(torch.float32, thinking_tokens=thinking)
    keys, bias = inputs(3, 1, torch.float32)
    generator = torch.Generator().manual_seed(2)
    sids = torch.stack([torch.randint(codes, (4000,), generator=generator) for codes in CODES], 1)
    found = find(model, keys, bias, Trie.build(sids.cuda(), CODES) if allowed else None)
    expected = find(model.cpu(), keys.cpu(), bias.cpu(), Trie.build(sids, CODES) if allowed else None)
    torch.testing.assert_close(found.log_prob.cpu(), expected.log_prob, rtol=1e-4, atol=1e-4)
    assert (found.sids.cpu() == expected.sids).all(-1).float().mean() > 0.98  # equal scores to rounding may change places


@pytest.mark.parametrize(("batch", "thinking"), [(4, False), (FEW_ROWS // max(WIDTHS) + 4, False), (4, True)])
def test_a_request_alone_gives_the_bits_that_it_gives_in_a_batch(batch: int, thinking: bool) -> None:
    model = decoder(torch.bfloat16, thinking_tokens=thinking)
    keys, bias = inputs(batch, 3, torch.bfloat16)
    together, alone = find(model, keys, bias), find(model, keys[2:3].contiguous(), bias[2:3].contiguous())
    assert torch.equal(alone.sids[0], together.sids[2]) and torch.equal(alone.log_prob[0], together.log_prob[2])
