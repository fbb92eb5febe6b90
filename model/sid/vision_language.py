"""States of videos from a vision-language model: the last token's hidden state of the final layer (RaG, arXiv 2606.25496, eq. 5).

Any model that `transformers` loads with `AutoModel` and `AutoProcessor` will do, Qwen2.5-VL for one; it is read from a folder, never
downloaded. `transformers` is imported only here, and only when a model is opened.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

if TYPE_CHECKING:
    from PIL.Image import Image

# RaG asks a captioner for two texts; the frozen model is asked the same two questions of the frames themselves.
CONTENT_PROMPT = "What is this video about? Name its subject, in one word."
CREATIVE_PROMPT = "How is this video made? Name its style of picture, editing and sound, in one word."


class EncoderError(Exception):
    """A folder that no encoder can be read from; the message says what is missing."""


class VisionLanguageEncoder:
    """A frozen model and its processor.

    Args:
        folder: what `save_pretrained` of model and processor wrote.
        dtype: of weights and computation; states are float32.

    Raises:
        EncoderError: the folder is missing or incomplete, or lacks weights of the model (they would be random numbers).
    """

    def __init__(self, folder: Path, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        from transformers import AutoModel, AutoProcessor

        if not folder.is_dir():
            raise EncoderError(f"{folder} is not a folder: download a model into it first, with its processor")
        try:
            self._processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
            model, facts = AutoModel.from_pretrained(folder, local_files_only=True, dtype=dtype, output_loading_info=True)
        except (OSError, ValueError, ImportError) as error:
            raise EncoderError(f"{folder}: no model with a processor can be read from it: {error}") from error
        if facts["missing_keys"]:
            raise EncoderError(
                f"{folder} lacks {len(facts['missing_keys'])} weights of the model, {sorted(facts['missing_keys'])[0]} for one"
            )
        self._model = model.to(device).eval().requires_grad_(False)
        self._device = device

    @property
    def width(self) -> int:
        """Numbers in one state."""
        return int(self._model.config.get_text_config().hidden_size)

    def states(self, videos: Sequence[Sequence[Image]], prompt: str, *, batch: int = 8) -> npt.NDArray[np.float32]:
        """States float32[N, width] of videos, each given as its frames in order (at least one), asked one question.

        Raises:
            ValueError: a video without frames, or one whose state is not finite; the message names its row.
        """
        empty = [row for row, frames in enumerate(videos) if not frames]
        if empty:
            raise ValueError(f"row {empty[0]} has no frames ({len(empty)} of {len(videos)} rows have none): leave these videos out")
        found = np.concatenate([*self._batches(videos, prompt, batch), np.empty((0, self.width), np.float32)])
        broken = ~np.isfinite(found).all(axis=1)
        if broken.any():
            raise ValueError(f"row {int(broken.argmax())}: the model's state is not finite; try another dtype than {self._model.dtype}")
        return found

    @torch.inference_mode()
    def _batches(self, videos: Sequence[Sequence[Image]], prompt: str, batch: int) -> Iterator[npt.NDArray[np.float32]]:
        for start in range(0, len(videos), batch):
            chosen = videos[start : start + batch]
            inputs = self._processor(
                text=[self._question(len(frames), prompt) for frames in chosen],
                images=[list(frames) for frames in chosen],
                padding=True,
                return_tensors="pt",
            ).to(self._device)
            hidden = self._model(**inputs, use_cache=False).last_hidden_state
            yield last_token(hidden, inputs["attention_mask"]).float().cpu().numpy()

    def _question(self, frames: int, prompt: str) -> str:
        content: list[dict[str, Any]] = [{"type": "image"}] * frames + [{"type": "text", "text": prompt}]
        return self._processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True)


def last_token(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Hidden state float[B, d] of each row's last token (hidden: float[B, T, d], mask: int[B, T], padded on either side)."""
    place = (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).argmax(dim=1)
    return hidden[torch.arange(len(hidden), device=hidden.device), place]
