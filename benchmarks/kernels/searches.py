"""The whole searches that are compared at a point: this project's, and what stands beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from benchmarks.kernels import eager, huggingface, model
from benchmarks.kernels.model import Found
from benchmarks.kernels.static import Static
from kernels.trie import Trie
from model.grm.decoder import Context, Decoder

Search = Callable[[int], Found]
"""A search over input set i."""


@dataclass(frozen=True)
class Variant:
    """`build` makes the search over a decoder and input sets. `same`: it must find what `ours` finds."""

    build: Callable[[Decoder, list[Context]], Search]
    widths: tuple[int, ...]
    same: bool = True


def ours(widths: tuple[int, ...], trie: Trie | None = None, *, same: bool = True) -> Variant:
    return Variant(lambda decoder, inputs: model.ours(decoder, inputs, widths, trie), widths, same)


def recorded(widths: tuple[int, ...], trie: Trie | None = None, *, same: bool = True) -> Variant:
    """This project's search as one CUDA graph."""
    return Variant(lambda decoder, inputs: model.recorded(decoder, inputs, widths, trie), widths, same)


def written(widths: tuple[int, ...], style: eager.Style) -> Variant:
    """Plain PyTorch, as it stands."""
    return Variant(lambda decoder, inputs: lambda i: eager.search(decoder, inputs[i], widths, style), widths)


def compiled(widths: tuple[int, ...], style: eager.Style, mode: str) -> Variant:
    """Plain PyTorch through torch.compile, the whole search as one graph."""

    def build(decoder: Decoder, inputs: list[Context]) -> Search:
        torch._dynamo.reset()
        search = torch.compile(eager.search, mode=mode, fullgraph=True, dynamic=False)

        def run(index: int) -> Found:
            torch.compiler.cudagraph_mark_step_begin()
            return search(decoder, inputs[index], widths, style)

        return run

    return Variant(build, widths)


def generated(width: int, levels: int) -> Variant:
    """Hugging Face `generate`."""
    return Variant(lambda decoder, inputs: huggingface.search(decoder, inputs, width), (width,) * levels)


RECORDED = "ours, one CUDA graph"


def unconstrained(width: int, levels: int, narrow: tuple[int, ...], *, key: bool, cuda: bool) -> Mapping[str, Variant]:
    """Searches over all SIDs; at key points those that take long, and the widths that grow level by level, too."""
    widths = (width,) * levels
    variants = {"ours": ours(widths)} | ({RECORDED: recorded(widths)} if cuda else {})
    variants |= {"eager smart": written(widths, eager.SMART), "eager naive": written(widths, eager.NAIVE)}
    if key:
        variants["Hugging Face generate"] = generated(width, levels)
        if narrow[-1] == width:
            name = "widths " + "-".join(map(str, narrow))
            variants[f"ours, {name}"] = ours(narrow, same=False)
            if cuda:
                variants[f"{RECORDED}, {name}"] = recorded(narrow, same=False)
    return variants


def constrained(width: int, levels: int, trie: Trie, tables: Static, *, cuda: bool) -> Mapping[str, Variant]:
    """Searches in a catalogue, and the same without, which shows what the catalogue costs."""
    widths = (width,) * levels
    variants = {"ours": ours(widths, trie)} | ({RECORDED: recorded(widths, trie)} if cuda else {})
    variants |= {
        "STATIC-style": written(widths, eager.Style(repeat=False, step=tables.step)),
        "ours, unconstrained": ours(widths, same=False),
    }
    return variants | ({f"{RECORDED}, unconstrained": recorded(widths, same=False)} if cuda else {})


def through_compiler(case: str, width: int, levels: int, *, cuda: bool) -> Mapping[str, Variant]:
    """The case names the way and, where it is not the default one, the mode."""
    widths = (width,) * levels
    style = eager.NAIVE if case.endswith("naive") else eager.SMART
    mode = "max-autotune" if "max-autotune" in case else "reduce-overhead" if cuda else "default"
    known = {"ours": ours(widths)} | ({RECORDED: recorded(widths)} if cuda else {})
    return known | {"torch.compile": compiled(widths, style, mode)}
