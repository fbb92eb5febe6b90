"""One position of every beam through all layers in one call, against the definition in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernels import native, step
from kernels.linear import epsilon
from kernels.step import LayerWeights, Packed, Shape, Steps
from tests.kernels.marks import needs_library, needs_matrix_unit

# Sizes that fill vectors and panels, that leave a rest of each, and the laptop preset's.
SHAPES = [Shape(32, 2, 1, 1, 16, 64), Shape(36, 3, 3, 1, 12, 50), Shape(40, 4, 2, 2, 10, 33), Shape(256, 4, 1, 1, 64, 1024)]


class Case:
    """Random weights, contexts and beams from a seed."""

    def __init__(
        self, shape: Shape, batch: int, widths: list[int], positions: int, layers: int = 2, codes: int = 50, seed: int = 0
    ) -> None:
        generator = torch.Generator().manual_seed(seed)

        def normal(*size: int, scale: float = 1.0) -> Tensor:
            return torch.randn(size, generator=generator) * scale

        d, kv, small = shape.width, 2 * shape.groups * shape.head, shape.width**-0.5
        self.shape, self.batch, self.widths = shape, batch, widths
        self.layers = [
            LayerWeights(
                normal(d, d, scale=small), normal(d, d, scale=small), normal(d + kv, d, scale=small), normal(d, d, scale=small),
                normal(shape.ffn, d, scale=small), normal(d, shape.ffn, scale=shape.ffn**-0.5),
            )
            for _ in range(layers)
        ]  # fmt: skip
        self.heads = [normal(codes, d, scale=small)]
        self.bias = normal(codes)
        context = batch, positions, shape.context_groups, shape.head
        self.contexts = [(normal(*context), normal(*context)) for _ in range(layers)]
        self.hidden = [normal(batch * width, d) for width in widths]
        slots = max(widths)
        self.ancestors = [
            torch.stack([torch.randint(widths[t], (batch, slots), generator=generator) for t in range(len(widths))], 1).int()
            for _ in widths
        ]

    def run(self, lengths: Tensor | None, products: torch.dtype = torch.float32, rows: slice = slice(None)) -> list[Tensor]:
        """States after each step, and logits after the last, of these requests."""
        packed = Packed(self.shape, self.layers, self.heads, products)
        contexts = [(keys[rows], values[rows]) for keys, values in self.contexts]
        steps = Steps(packed, contexts, None if lengths is None else lengths[rows], len(self.widths), max(self.widths))
        found = []
        for index, hidden in enumerate(self.hidden):
            state = hidden.view(self.batch, -1, self.shape.width)[rows]
            codes = torch.zeros(*state.shape[:2], index, dtype=torch.int64)
            steps.follow(self.ancestors[index][rows].contiguous())
            steps.start(codes, state.flatten(0, 1))
            found.append(steps.run(index).clone())
        steps.start(codes, state.flatten(0, 1))
        return [*found, steps.logits(index, 0, self.bias)]

    def reference(self, lengths: Tensor | None, dtype: torch.dtype = torch.float64) -> list[Tensor]:
        layers = [LayerWeights(*(weight.to(dtype) for weight in layer)) for layer in self.layers]
        contexts = [(keys.to(dtype), values.to(dtype)) for keys, values in self.contexts]
        history = self.batch, len(self.widths), max(self.widths), self.shape.groups, self.shape.head
        past = [(torch.empty(history, dtype=dtype), torch.empty(history, dtype=dtype)) for _ in layers]
        found = []
        eps = epsilon(torch.float32)
        for index, hidden in enumerate(self.hidden):
            states = hidden.to(dtype), lengths, self.ancestors[index]
            found.append(step.reference.run(layers, contexts, past, *states, index, self.shape.heads, eps))
        normed = found[-1] * torch.rsqrt(found[-1].square().mean(1, keepdim=True) + eps)
        return [*found, normed @ self.heads[0].to(dtype).T + self.bias]


@needs_library
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("batch", "widths", "positions"), [(1, [1, 5, 32], 33), (3, [1, 7, 9], 16), (5, [2, 40, 3], 1)])
def test_all_layers_are_what_the_definition_says_in_float64(shape: Shape, batch: int, widths: list[int], positions: int) -> None:
    case = Case(shape, batch, widths, positions)
    for ours, exact in zip(case.run(None), case.reference(None), strict=True):
        assert (ours - exact).abs().max() < 2e-5 * exact.abs().max()


@needs_library
def test_what_lies_beyond_a_length_is_never_read_and_an_empty_context_adds_nothing() -> None:
    case = Case(SHAPES[1], 4, [1, 6], 20)
    lengths = torch.tensor([20, 7, 0, 1], dtype=torch.int32)
    exact = case.reference(lengths)
    for keys, values in case.contexts:
        for request, length in enumerate(lengths.tolist()):
            keys[request, length:], values[request, length:] = torch.nan, torch.inf
    for ours, wanted in zip(case.run(lengths), exact, strict=True):
        assert (ours - wanted).abs().max() < 2e-5 * wanted.abs().max()


@needs_library
@pytest.mark.parametrize("products", [torch.float32, pytest.param(torch.bfloat16, marks=needs_matrix_unit)])
def test_a_request_alone_and_any_number_of_threads_have_the_same_bits(products: torch.dtype) -> None:
    case = Case(SHAPES[3], 5, [1, 30, 31], 33)
    lengths = torch.tensor([33, 2, 17, 32, 1], dtype=torch.int32)
    together = case.run(lengths, products)
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert all(map(torch.equal, case.run(lengths, products), together))
    finally:
        torch.set_num_threads(before)
    for request in range(5):
        alone = case.run(lengths, products, slice(request, request + 1))
        for one, all_ in zip(alone, together, strict=True):
            assert torch.equal(one, all_.view(5, -1, one.shape[1])[request])


@needs_matrix_unit
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("batch", "widths"), [(1, [1, 5, 32]), (3, [1, 7, 17]), (5, [2, 40, 3])])
def test_products_of_bfloat16_round_what_they_multiply_and_nothing_else(shape: Shape, batch: int, widths: list[int]) -> None:
    case = Case(shape, batch, widths, 20)
    case.layers = [LayerWeights(*(weight.bfloat16().float() for weight in layer)) for layer in case.layers]
    case.heads = [head.bfloat16().float() for head in case.heads]
    for ours, exact in zip(case.run(None, torch.bfloat16), case.reference(None), strict=True):
        error = (ours - exact).square().mean().sqrt()
        assert error < 2**-7 * exact.square().mean().sqrt()


def test_without_the_library_products_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "library", lambda: None)
    case = Case(SHAPES[0], 1, [1], 4)
    with pytest.raises(ValueError, match="this machine computes"):
        Packed(case.shape, case.layers, case.heads, torch.float32)


@needs_library
def test_a_step_or_beams_that_there_is_no_room_for_are_refused() -> None:
    case = Case(SHAPES[0], 2, [1, 4], 5)
    steps = Steps(Packed(case.shape, case.layers, case.heads, torch.float32), case.contexts, None, 2, 3)
    steps.start(torch.zeros(2, 3, 0, dtype=torch.int64), case.hidden[1][:6])
    with pytest.raises(ValueError, match="step 2 of 2, 3 beams in 3 slots"):
        steps.run(2)
    table, position = torch.zeros(4, case.shape.width), torch.zeros(case.shape.width)
    steps.embed(torch.zeros(2, 4, 1, dtype=torch.int64), table, position)
    with pytest.raises(ValueError, match="step 1 of 2, 4 beams in 3 slots"):
        steps.run(1)
