"""A policy in somebody's own file is chosen by name, here and in a process that is only sent the configuration."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny import FRAME_TOKENS, segment_of

from streamkv import budget, compression, retrieval, segmentation
from streamkv.config import load_config
from streamkv.engine import Engine
from streamkv.errors import ConfigError
from streamkv.memory import InMemoryVideo
from streamkv.models import VideoLLM
from streamkv.store import codecs

PAGE = Path(__file__).parents[2] / "docs" / "policies.md"
REGISTRIES = (
    (segmentation, "SEGMENT_POLICIES"),
    (segmentation, "SIMILARITIES"),
    (budget, "BUDGETS"),
    (compression, "COMPRESSORS"),
    (retrieval, "RETRIEVERS"),
    (codecs, "CODECS"),
)
ALL_KINDS = """
from streamkv import budget, compression, retrieval, segmentation
from streamkv.store import codecs
segmentation.SEGMENT_POLICIES["mine"] = segmentation.UniformPolicy
segmentation.SIMILARITIES["mine"] = segmentation.dot
budget.BUDGETS["mine"] = budget.uniform_targets
compression.COMPRESSORS["mine"] = compression.Guided
retrieval.RETRIEVERS["mine"] = retrieval.TopK
codecs.CODECS["mine"] = codecs.CODECS["raw"]
"""
ALL_KEYS = (
    *("method.segment.policy", "method.segment.similarity", "method.compress.policy"),
    *("method.compress.budget.policy", "method.retrieve.policy", "method.retrieve.budget.policy"),
    "store.codec",
)


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return str(found)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """For modules; afterwards they and what they registered are forgotten."""
    for module, name in REGISTRIES:
        monkeypatch.setattr(module, name, dict(getattr(module, name)))
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if (tmp_path / f"{name}.py").exists():
            del sys.modules[name]


def test_the_pages_example_keeps_every_second_frame(folder: Path, tiny_model: VideoLLM) -> None:
    code = block("python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    (folder / "every_second.py").write_text(code)
    (folder / "own.yaml").write_text(block("yaml"))
    engine = Engine(tiny_model, load_config(folder / "own.yaml", ["model.path=other"]).method)
    features = torch.randn(5, FRAME_TOKENS, 48, generator=torch.Generator().manual_seed(0))
    kv = engine.prefill(engine.open_window(), segment_of(features))
    assert [blocks.frame_ids for blocks in kv.layers] == [(0, 2, 4, 5)] * 3  # the last is the summary
    answer = engine.answer(InMemoryVideo(tiny_model.geometry, [kv]), "what is red", max_new_tokens=3)
    assert answer.blocks_per_layer == (4, 4, 4)


def test_the_page_names_every_registry_and_key() -> None:
    text = PAGE.read_text()
    assert [name for _, name in REGISTRIES if f".{name}`" not in text] == []
    assert [key for key in ALL_KEYS if f"`{key}`" not in text] == []


def test_every_kind_of_policy_can_be_somebodys_own(folder: Path, tiny_model: VideoLLM) -> None:
    (folder / "all_kinds.py").write_text(ALL_KINDS)
    chosen = [f"{key}=mine" for key in ALL_KEYS]
    with pytest.raises(ConfigError, match="unknown 'mine'"):
        Engine(tiny_model, load_config(overrides=chosen).method)
    config = load_config(overrides=["plugins=[all_kinds]", *chosen])
    assert type(Engine(tiny_model, config.method).retriever) is retrieval.TopK
    assert codecs.make_codec(config.store.codec) is codecs.CODECS["raw"]


def test_a_process_that_is_sent_the_configuration_has_the_policy(folder: Path) -> None:
    """As an actor or a replica is: nothing but the pickled configuration."""
    (folder / "every_second.py").write_text(block("python"))
    config = load_config(overrides=["plugins=[every_second]", "method.compress.policy=every-second"])
    code = (
        "import pickle, sys; config = pickle.load(sys.stdin.buffer)\n"
        "from streamkv.compression import make_compressor\n"
        "print(type(make_compressor(config.method.compress)).__name__)"
    )
    command = [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{code}"]
    done = subprocess.run(command, input=pickle.dumps(config), capture_output=True, check=True)
    assert done.stdout.decode().strip() == "EverySecond"


def test_a_module_that_cannot_be_imported_is_named() -> None:
    with pytest.raises(ConfigError, match=r"plugins: cannot import 'no_such_module' .*PYTHONPATH"):
        load_config(overrides=["plugins=[no_such_module]"])
