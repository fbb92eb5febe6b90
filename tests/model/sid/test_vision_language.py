"""States of a vision-language model, from a tiny one with random weights, read from disk as a real one is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from jobs.sids import command
from model.sid.bundle import Bundle
from model.sid.vision_language import CONTENT_PROMPT, CREATIVE_PROMPT, EncoderError, VisionLanguageEncoder, last_token
from model.store import ModelStore
from tests.model.sid import tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    tiny_model.write(path)
    return path


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 30, 3), dtype=np.uint8))


@pytest.mark.parametrize("mask", [[[1, 1, 1, 0], [1, 1, 1, 1]], [[0, 1, 1, 1], [1, 1, 1, 1]]])
def test_the_last_token_is_found_on_either_side_of_the_padding(mask: list[list[int]]) -> None:
    hidden = torch.arange(8.0).reshape(2, 4, 1)
    last = [max(place for place, kept in enumerate(row) if kept) for row in mask]
    assert last_token(hidden, torch.tensor(mask))[:, 0].tolist() == [hidden[0, last[0], 0], hidden[1, last[1], 0]]


@pytest.mark.integration
def test_a_video_has_the_same_state_alone_and_in_a_batch_and_another_one_for_another_question(folder: Path) -> None:
    model = VisionLanguageEncoder(folder)
    videos = [[picture(0)], [picture(1), picture(2)], [picture(3)]]
    states = model.states(videos, CONTENT_PROMPT, batch=2)
    assert states.shape == (3, tiny_model.WIDTH) == (3, model.width) and states.dtype == np.float32
    alone = np.concatenate([model.states([video], CONTENT_PROMPT) for video in videos])
    assert np.abs(alone - states).max() < 1e-5
    assert min(np.abs(states[0] - states[2]).max(), np.abs(states - model.states(videos, CREATIVE_PROMPT)).max()) > 1e-2
    with pytest.raises(ValueError, match="row 1 has no frames"):
        model.states([videos[0], []], CONTENT_PROMPT)


@pytest.mark.integration
def test_a_folder_without_a_model_or_with_half_of_one_is_refused(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    with pytest.raises(EncoderError, match="is not a folder"):
        VisionLanguageEncoder(tmp_path / "none")
    with pytest.raises(EncoderError, match="no model with a processor"):
        VisionLanguageEncoder(tmp_path)
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(folder / "model.safetensors")
    save_file({name: weights[name] for name in list(weights)[:-3]}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(EncoderError, match="lacks 3 weights"):
        VisionLanguageEncoder(tmp_path)


@pytest.mark.integration
def test_sids_are_built_and_appended_from_frames(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIDSTREAM_HOME", str(tmp_path / "home"))
    for number in range(26):
        picture(number).save(tmp_path / f"{number}.png")

    def sids(name: str, first: int, count: int) -> None:
        items = list(range(first, first + count))
        table = pa.table({"item_id": items, "product_id": [item // 2 for item in items], "frames": [[f"{item}.png"] for item in items]})
        pq.write_table(table, tmp_path / "catalogue.parquet")
        file = [str(tmp_path / "catalogue.parquet")]
        arguments = [name, *(["--catalogue"] if name == "build" else []), *file, "--encoder", f"transformers:{folder}"]
        config = tmp_path / "sidstream.yaml"
        config.write_text("sids: {codes: 4, heads: {dimensions: 8, steps: 20, batch: 16}}\n")
        result = CliRunner().invoke(command, [*arguments, "--config", str(config)])
        assert result.exit_code == 0, result.output

    sids("build", 0, 20)
    store = ModelStore(tmp_path / "home" / "models")
    old = Bundle.load(store)
    sids("append", 20, 6)
    new = Bundle.load(store)
    assert new.parent == old.version and len(new.item_ids) == 26
    assert old.vectors()[0].shape == (20, 8) and (new.sids_of(old.item_ids) == old.sids).all()
