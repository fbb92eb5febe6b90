"""Hugging Face `generate` with beams over the same decoder: its expansion of the inputs, its cache and its reordering, our layers.

Needs transformers, imported when asked for. All levels must have as many codes, since `generate` knows one vocabulary. There is no end
token and no length penalty, so it returns what an exact beam search returns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels import eager
from benchmarks.kernels.model import Found
from model.grm.decoder import Context, Decoder


def search(model: Decoder, inputs: Sequence[Context], width: int) -> Callable[[int], Found]:
    """`generate` on input set i with one beam width for all levels, which is all that it offers.

    Raises:
        ImportError: transformers is not there.
        ValueError: levels of different sizes.
    """
    if find_spec("transformers") is None:
        raise ImportError("transformers is not installed: pip install transformers, then the same command again with --fresh")
    from transformers import GenerationConfig

    counts = model.config.codes
    if len(set(counts)) != 1:
        raise ValueError(f"codes {counts}: generate needs one vocabulary for all levels")
    wrapped = _wrapped(model)
    settings = GenerationConfig(
        num_beams=width,
        num_return_sequences=width,
        max_new_tokens=len(counts),
        length_penalty=0.0,
        do_sample=False,
        bos_token_id=0,
        pad_token_id=0,
        eos_token_id=None,
        return_dict_in_generate=True,
        output_scores=True,
    )

    # Tensors among the arguments are what `generate` repeats for every beam: the chunks of a context [B, chunks, G, S, D].
    stacked = [(torch.stack(one.keys, 1), None if one.values is one.keys else torch.stack(one.values, 1)) for one in inputs]

    def run(index: int) -> Found:
        keys, values = stacked[index]
        start = torch.zeros(len(keys), 1, dtype=torch.int64, device=keys.device)
        chunks = {"context_keys": keys} | ({} if values is None else {"context_values": values})
        out = wrapped.generate(input_ids=start, attention_mask=torch.ones_like(start), generation_config=settings, **chunks)
        return out.sequences[:, 1:].view(len(keys), width, -1), out.sequences_scores.view(len(keys), width)

    return run


def _wrapped(model: Decoder) -> Any:
    from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
    from transformers.cache_utils import DynamicCache
    from transformers.modeling_outputs import CausalLMOutputWithPast

    class SidConfig(PretrainedConfig):  # type: ignore[misc]
        model_type = "sid_decoder"

    class SidDecoder(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
        config_class = SidConfig

        def __init__(self, config: SidConfig) -> None:
            super().__init__(config)
            self.decoder = model

        def forward(
            self,
            input_ids: Tensor,
            past_key_values: DynamicCache,
            context_keys: Tensor,
            context_values: Tensor | None = None,
            **ignored: Any,
        ) -> CausalLMOutputWithPast:
            level = past_key_values.get_seq_length()
            keys = context_keys.unbind(1)
            values = keys if context_values is None else context_values.unbind(1)
            context = Context(keys, values, context_keys.new_zeros(len(input_ids), 1, 1, 1))
            token = input_ids[:, -1]
            first = model.start.expand(len(token), -1) if level == 0 else model.codes[level - 1](token)
            hidden = eager.layers(model, first + model.position[level], context, past_key_values)
            return CausalLMOutputWithPast(
                logits=model.heads[level](model.norms[level](hidden)).unsqueeze(1), past_key_values=past_key_values
            )

    counts = model.config.codes
    config = SidConfig(  # type: ignore[call-arg]
        vocab_size=counts[0],
        num_hidden_layers=model.config.layers,
        hidden_size=model.config.d_model,
        num_attention_heads=model.config.heads,
        num_key_value_heads=model.config.self_groups,
        is_encoder_decoder=False,
    )
    return SidDecoder(config).eval()
