"""Models: `load_model` finds the adapter of a checkpoint's family."""

from __future__ import annotations

import json
from pathlib import Path
from pkgutil import resolve_name

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError

from streamkv.config import ModelConfig
from streamkv.errors import ModelError
from streamkv.models.base import QuestionPrompt, VideoLLM

__all__ = ["ADAPTERS", "QuestionPrompt", "VideoLLM", "find_folder", "load_model"]

TOWNSQUARE = Path(__file__).resolve().parent.parent / "townsquare" / "checkpoint"

ADAPTERS = {"llava_onevision": "streamkv.models.llava_onevision:LlavaOnevision"}
"""`model_type` to adapter(folder, *, device, dtype). To add a family: its module and a row here.

By name: what a family's modules import takes seconds, which processes without a model need not spend."""


def load_model(config: ModelConfig) -> VideoLLM:
    """The model of a folder, hub id or `townsquare`, ready to run. Sets this process's torch threads."""
    if config.threads:
        torch.set_num_threads(config.threads)
    folder = find_folder(config.path)
    model_type = _model_type(folder)
    if model_type not in ADAPTERS:
        raise ModelError(
            f"{folder}: model_type {model_type!r} has no adapter; known: {', '.join(sorted(ADAPTERS))}"
        )
    device = _device(config.device)
    adapter = resolve_name(ADAPTERS[model_type])
    try:
        model: VideoLLM = adapter(folder, device=device, dtype=_dtype(config.dtype, device))
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as exc:
        raise ModelError(f"{folder}: the checkpoint cannot be loaded: {exc}") from exc
    return model


def find_folder(path: str) -> Path:
    """The checkpoint's folder; a hub id is downloaded first. ModelError when there is none."""
    folder = TOWNSQUARE if path == "townsquare" else Path(path).expanduser()
    if folder.is_dir():
        return folder
    if path == "townsquare" or folder.is_absolute() or path.startswith((".", "~")):
        raise ModelError(f"model.path: no folder {folder}; give a folder in Hugging Face format or a hub id")
    try:
        return Path(snapshot_download(path))
    except Exception as exc:  # network, rights, a name that is none: the hub client has an error for each
        raise ModelError(f"model.path: {path!r} is no folder and the hub does not give it: {exc}") from exc


def _model_type(folder: Path) -> str:
    try:
        return str(json.loads((folder / "config.json").read_text())["model_type"])
    except (OSError, ValueError, KeyError) as exc:
        raise ModelError(f"{folder}: no readable config.json with a model_type: {exc!r}") from exc


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as exc:
        raise ModelError(f"model.device: got {name!r}, allowed cpu, cuda, cuda:0 ...") from exc
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(f"model.device: got {name!r}, but torch sees no CUDA device here; use cpu")
    return device


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]
