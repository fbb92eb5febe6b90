"""The decoder against plain float64 arithmetic, its gradients, and what it may look at."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from model.grm import Grm, Query, collate
from model.grm.context import Context
from model.grm.decoder import Decoder, Folded
from model.grm.loss import level_log_prob, token_cross_entropy
from streaming.records import Context as History
from streaming.records import HistoryEntry
from tests.model.conftest import CODES, START_MS, SmallWorld, small_config


def random_context(config, batch: int, positions: int, seed: int = 0) -> Context:
    generator = torch.Generator().manual_seed(seed)
    chunks = config.context_layers * config.context_splits

    def draw() -> torch.Tensor:
        return torch.randn(batch, config.context_groups, positions, config.d_head, generator=generator, dtype=torch.float64)

    tensors = [draw() for _ in range(chunks)]
    bias = torch.zeros(batch, 1, 1, positions, dtype=torch.float64)
    bias[0, ..., positions - 2 :] = float("-inf")
    return Context(tuple(tensors[:: config.context_splits]), tuple(tensors[config.context_splits - 1 :: config.context_splits]), bias)


def decoder_of(config) -> Decoder:
    torch.manual_seed(3)
    decoder = Decoder(config).double()
    decoder.reset_parameters()
    return decoder


def rms(vector: torch.Tensor, norm) -> torch.Tensor:
    return vector / torch.sqrt((vector**2).mean() + torch.finfo(vector.dtype).eps) * norm.weight


def attend(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    weights = torch.exp(keys @ query / math.sqrt(len(query)))
    return (weights / weights.sum()) @ values


def plain_decoder(decoder: Decoder, context: Context, codes: list[int], row: int) -> list[torch.Tensor]:
    """The last hidden state of every position for one row, written as loops over heads, with the sums spelled out."""
    inputs = [decoder.start] + [decoder.codes[level].weight[code] for level, code in enumerate(codes[:-1])]
    return plain_states(decoder, context, [vector + decoder.position[index] for index, vector in enumerate(inputs)], row)


def plain_states(decoder: Decoder, context: Context, states: list[torch.Tensor], row: int) -> list[torch.Tensor]:
    """What the blocks make of the inputs of all positions."""
    config = decoder.config
    seen = torch.isfinite(context.bias[row, 0, 0])
    for index, block in enumerate(decoder.blocks):
        chunk = index * config.context_layers // config.layers
        after_cross = []
        for state in states:
            query = block.cross.query.weight @ rms(state, block.cross_norm)
            heads = []
            for head in range(config.heads):
                group = head // (config.heads // config.context_groups)
                part = query[head * config.d_head : (head + 1) * config.d_head]
                heads.append(attend(part, context.keys[chunk][row, group, seen], context.values[chunk][row, group, seen]))
            after_cross.append(state + block.cross.out.weight @ torch.cat(heads))
        width = config.self_groups * config.d_head
        qkv = [block.self.qkv.weight @ rms(state, block.self_norm) for state in after_cross]
        after_self = []
        for position, state in enumerate(after_cross):
            heads = []
            for head in range(config.heads):
                group = head // (config.heads // config.self_groups)
                query = qkv[position][head * config.d_head : (head + 1) * config.d_head]
                start = config.d_model + group * config.d_head
                keys = torch.stack([vector[start : start + config.d_head] for vector in qkv[: position + 1]])
                values = torch.stack([vector[start + width : start + width + config.d_head] for vector in qkv[: position + 1]])
                heads.append(attend(query, keys, values))
            after_self.append(state + block.self.out.weight @ torch.cat(heads))
        states = [
            state + block.ffn.out.weight @ torch.clamp(block.ffn.inner.weight @ rms(state, block.ffn_norm), min=0) ** 2
            for state in after_self
        ]
    return states


@pytest.mark.parametrize("changes", [{}, {"context_layers": 2, "context_splits": 2, "context_groups": 2}, {"self_groups": 1, "layers": 3}])
def test_the_decoder_computes_what_its_formula_says(changes: dict[str, int]) -> None:
    config = small_config(**changes)
    decoder, context = decoder_of(config), random_context(config, 2, 5)
    targets = torch.tensor([[1, 2, 3], [5, 0, 1]])
    hidden, _ = decoder(decoder.embed_all(targets), context)
    for row in range(2):
        expected = plain_decoder(decoder, context, targets[row].tolist(), row)
        torch.testing.assert_close(hidden[row, 0], torch.stack(expected), rtol=1e-9, atol=1e-9)


def test_one_position_at_a_time_gives_what_all_at_once_give() -> None:
    config = small_config()
    decoder, context = decoder_of(config), random_context(config, 2, 5)
    targets = torch.tensor([[1, 2, 3], [5, 0, 1]])
    together, _ = decoder(decoder.embed_all(targets), context)
    past = None
    for level in range(3):
        hidden, past = decoder(decoder.embed(targets[:, None, :level], level), context, past)
        torch.testing.assert_close(hidden[:, :, 0], together[:, :, level], rtol=1e-10, atol=1e-10)


def test_a_position_does_not_see_later_codes() -> None:
    config = small_config()
    decoder, context = decoder_of(config), random_context(config, 1, 4)
    first, _ = decoder(decoder.embed_all(torch.tensor([[1, 2, 3]])), context)
    other, _ = decoder(decoder.embed_all(torch.tensor([[1, 4, 0]])), context)
    assert torch.equal(first[:, :, :2], other[:, :, :2])
    assert not torch.equal(first[:, :, 2], other[:, :, 2])


def test_padding_of_the_context_changes_nothing(model: Grm, world: SmallWorld) -> None:
    short = Query(1, START_MS, History([HistoryEntry(3, START_MS - 10, 900)]))
    long = Query(2, START_MS, History([HistoryEntry(item, START_MS - item, 900) for item in range(7)]))
    targets = [[1, 2, 3], [0, 1, 2]]
    together = model.log_prob(collate([short, long], world.vocabulary, model.config).with_targets(targets))
    alone = model.log_prob(collate([short], world.vocabulary, model.config).with_targets(targets[:1]))
    torch.testing.assert_close(together[:1], alone)


def test_gradients_are_those_of_finite_differences() -> None:
    config = small_config(d_model=8, heads=2, self_groups=1, ffn=8, layers=1, codes=(3, 2))
    decoder, context = decoder_of(config), random_context(config, 2, 4)
    targets, weight = torch.tensor([[1, 0], [2, 1]]), torch.tensor([1.0, 0.5], dtype=torch.float64)
    names = [name for name, _ in decoder.named_parameters()]

    def loss(*values: torch.Tensor) -> torch.Tensor:
        with torch.nn.utils.parametrize.cached():
            return torch.func.functional_call(
                Loss(decoder), {f"decoder.{n}": v for n, v in zip(names, values, strict=True)}, (context, targets, weight)
            )

    assert torch.autograd.gradcheck(loss, tuple(parameter for _, parameter in decoder.named_parameters()), fast_mode=True)


class Loss(torch.nn.Module):
    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, context: Context, targets: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        hidden, _ = self.decoder(self.decoder.embed_all(targets), context)
        logits = [self.decoder.logits(hidden[:, 0, level], level) for level in range(targets.shape[1])]
        return token_cross_entropy(level_log_prob(logits, targets), weight)


def test_the_loss_is_the_weighted_mean_of_minus_log_softmax() -> None:
    torch.manual_seed(0)
    logits = [torch.randn(4, size, dtype=torch.float64) for size in CODES]
    targets, weight = torch.tensor([[1, 2, 3], [0, 0, 0], [5, 4, 1], [2, 2, 2]]), torch.tensor([1.0, 0.0, 2.5, 0.5], dtype=torch.float64)
    expected = 0.0
    for row in range(4):
        for level in range(3):
            exponentials = [math.exp(value) for value in logits[level][row].tolist()]
            expected -= weight[row].item() * math.log(exponentials[targets[row, level]] / sum(exponentials)) / 3
    found = token_cross_entropy(level_log_prob(logits, targets), weight)
    assert found.item() == pytest.approx(expected / 4.0, rel=1e-12)


def test_a_batch_without_value_has_no_loss() -> None:
    log_prob = functional.log_softmax(torch.randn(2, 3), 1)
    assert token_cross_entropy(log_prob, torch.zeros(2)).item() == 0


def test_folded_gains_follow_their_parameters_and_stay_where_they_are() -> None:
    gain, weight = torch.nn.Parameter(torch.rand(6)), torch.nn.Parameter(torch.randn(4, 6))
    folded = Folded()
    with torch.inference_mode():  # as in a search
        (first,) = folded.of([(gain, weight)])
    assert torch.equal(first, weight * gain)
    assert folded.of([(gain, weight)])[0] is first
    with torch.no_grad():
        gain.mul_(2)
    (second,) = folded.of([(gain, weight)])
    assert second.data_ptr() == first.data_ptr() and torch.equal(second, weight * gain)
