"""A vision-language model with a handful of random weights, written as a person's own would be: model, tokenizer, image processor."""

from __future__ import annotations

from pathlib import Path

import torch

WORDS = "<pad> <unk> <image> USER: ASSISTANT: What is this video about? Name its subject, How made? style of picture, editing and sound"
TEMPLATE = (
    "{% for m in messages %}USER: {% for c in m['content'] %}{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }} {% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
WIDTH = 24
SIDE, PATCH = 28, 14


def write(folder: Path, seed: int = 0) -> None:
    """Save a LLaVA model of random weights and its processor into a folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(WORDS.split()))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", additional_special_tokens=["<image>"], padding_side="left"
    )
    images = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    processor = LlavaProcessor(
        images,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
        num_additional_image_tokens=1,
    )
    sizes = {"intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(hidden_size=16, image_size=SIDE, patch_size=PATCH, projection_dim=16, **sizes),
        text_config=LlamaConfig(vocab_size=len(vocabulary), hidden_size=WIDTH, num_key_value_heads=1, max_position_embeddings=256, **sizes),
        image_token_index=vocabulary["<image>"],
    )
    torch.manual_seed(seed)
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)
