"""The decoder that is searched, with random weights, its contexts, and this project's own search over it.

Only the decoder: no embedding table and no feature is needed to time a search, and a context is given as the keys and values that it
became.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.kernels.timing import record
from kernels.trie import Prefixes
from model.grm.beam import search
from model.grm.decoder import Context, Decoder
from model.grm.presets import GrmConfig

Found = tuple[Tensor, Tensor]
"""SIDs int64[B, W, L] and their log-probabilities float32[B, W], best first."""

INPUT_SETS = 4
LOGIT_SCALE = 2.0
"""Standard deviation of the logits: between an untrained model's (flat, all ties) and a sure one's."""


def decoder(config: GrmConfig, device: torch.device, dtype: torch.dtype, seed: int = 0) -> Decoder:
    """Random weights from a seed; heads spread enough that candidates differ."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = Decoder(config)
        made.reset_parameters()
        for head in made.heads:
            torch.nn.init.normal_(head.weight, std=LOGIT_SCALE * config.d_model**-0.5)  # type: ignore[arg-type]
        for codes in made.codes:
            torch.nn.init.normal_(codes.weight)  # type: ignore[arg-type]
    return made.to(device, dtype).eval().requires_grad_(False)


def contexts(
    config: GrmConfig, batch: int, positions: int, device: torch.device, dtype: torch.dtype, count: int = INPUT_SETS
) -> list[Context]:
    """`count` different batches of contexts, all positions valid, of unit variance as the context processor's norm leaves them."""
    generator = torch.Generator().manual_seed(1)
    shape = (batch, config.context_groups, positions, config.d_head)

    def chunk() -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    made = []
    for _ in range(count):
        keys = tuple(chunk() for _ in range(config.context_layers))
        values = tuple(chunk() for _ in range(config.context_layers)) if config.context_splits == 2 else keys
        made.append(Context(keys, values, torch.zeros(batch, 1, 1, positions, device=device, dtype=dtype)))
    return made


def last(context: Context) -> Context:
    """The last request of a batch alone, in float32."""
    keys = tuple(key[-1:].float() for key in context.keys)
    values = keys if context.values is context.keys else tuple(value[-1:].float() for value in context.values)
    return Context(keys, values, context.bias[-1:].float())


def ours(model: Decoder, inputs: Sequence[Context], widths: Sequence[int], trie: Prefixes | None = None) -> Callable[[int], Found]:
    """This project's search on input set i."""

    def run(index: int) -> Found:
        found = search(model, (), inputs[index], widths, trie)
        return found.sids, found.log_prob

    return run


def recorded(model: Decoder, inputs: Sequence[Context], widths: Sequence[int], trie: Prefixes | None = None) -> Callable[[int], Found]:
    """`ours` as one CUDA graph over buffers that input set i is copied into."""
    first = inputs[0]
    keys = tuple(key.clone() for key in first.keys)
    values = keys if first.values is first.keys else tuple(value.clone() for value in first.values)
    buffers = Context(keys, values, first.bias.clone())
    found: list[Found] = []
    search_buffers = ours(model, [buffers], widths, trie)
    graph = record(lambda index: found.append(search_buffers(index)), 1, 1)

    def run(index: int) -> Found:
        for target, source in zip(_parts(buffers), _parts(inputs[index]), strict=True):
            target.copy_(source)
        graph.replay()
        return found[-1]

    return run


def _parts(context: Context) -> tuple[Tensor, ...]:
    return (*context.keys, *(() if context.values is context.keys else context.values), context.bias)
