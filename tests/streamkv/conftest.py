"""The tiny model, made once a session."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import write_tiny_checkpoint

from streamkv.config import ModelConfig
from streamkv.models import VideoLLM, load_model


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_model(tiny_folder: Path) -> VideoLLM:
    return load_model(ModelConfig(path=str(tiny_folder)))


@pytest.fixture(scope="session")
def one_layer_model(tmp_path_factory: pytest.TempPathFactory) -> VideoLLM:
    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("one_layer"), num_layers=1)
    return load_model(ModelConfig(path=str(folder)))
