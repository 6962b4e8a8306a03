"""Which settings win, and what is refused."""

from __future__ import annotations

import re
from operator import attrgetter
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from streamkv.config import CONFIG_ROOT, config_from_dict, config_to_dict, load_config, preset_names
from streamkv.errors import ConfigError

OTHER_MODEL = "model.path=some/other-model"


def test_what_suits_the_model_goes_over_the_preset_and_under_the_file(tmp_path: Path) -> None:
    plain = load_config(overrides=["preset=streamkv", OTHER_MODEL]).method
    suited = load_config(overrides=["preset=streamkv", "model.path=somewhere/townsquare"]).method
    assert (plain.n_local, plain.segment.theta) == (15_000, 0.99)
    assert (suited.n_local, suited.segment.theta) == (72, 0.85)
    file = tmp_path / "own.yaml"
    file.write_text("preset: streamkv\nmethod: {n_local: 99}\n")
    assert load_config(file).method.n_local == 99
    assert load_config(file, ["method.n_local=7"]).method.n_local == 7


def test_each_preset_gets_its_own_of_what_suits_the_model() -> None:
    found = {name: load_config(overrides=[f"preset={name}"]).method for name in preset_names()}
    assert found["full"].n_local == 0
    assert found["recent"].retrieve.recent_blocks == 4
    assert found["rekv"].segment == load_config(overrides=["preset=rekv", OTHER_MODEL]).method.segment
    assert len({method.compress.guidance for method in found.values()}) == 1


@pytest.mark.parametrize("file", list((CONFIG_ROOT / "models").glob("*.yaml")), ids=lambda file: file.stem)
def test_what_suits_a_model_is_said_of_presets_that_there_are(file: Path) -> None:
    """A misspelt name would be passed over in silence."""
    assert set(OmegaConf.load(file)) <= {"all", *preset_names()}


@pytest.mark.parametrize("name", [p.stem for p in CONFIG_ROOT.glob("*.yaml")])
def test_every_shipped_configuration_loads_and_travels(name: str) -> None:
    config = load_config(CONFIG_ROOT / f"{name}.yaml")
    assert config_from_dict(config_to_dict(config)) == config


def test_an_unknown_key_is_named() -> None:
    with pytest.raises(ConfigError, match="n_loca1"):
        load_config(overrides=["method.n_loca1=3"])


@pytest.mark.parametrize(
    "wrong",
    [
        "method.retrieve.agree_layers=[2, 1]",
        "method.retrieve.agree_layers=[-1]",
        "serve.min_confidence=1.5",
        "serve.replicas=0",
        "serve.timeout_s=0",
        "serve.max_queued=0",
        "serve.max_new_tokens=0",
        "method.retrieve.agree_segments=0",
        "method.retrieve.cover_share=-0.1",
        "method.retrieve.cover_gain=2",
        "method.retrieve.cover_above=-1",
    ],
)
def test_a_value_out_of_range_is_named_with_what_is_allowed(wrong: str) -> None:
    key, _, value = wrong.partition("=")
    name = key.removeprefix("method.")
    with pytest.raises(ConfigError, match=rf"{name}: got {re.escape(value)}(\.0)?, allowed "):
        load_config(overrides=[wrong])


PAPER_AND_CODE = {  # ALGORITHM.md, section 8; and what both share, from sections 2 and 3
    "n_local": (15_000, 15_000),
    "segment.policy": ("semantic", "semantic"),
    "segment.min_frames": (4, 4),
    "segment.max_frames": (64, 64),
    "segment.theta": (0.99, 0.99),
    "segment.similarity": ("cosine", "cosine"),
    "segment.max_seconds": (0, 0),
    "compress.policy": ("guided", "guided"),
    "compress.keep_ratio": (0.4, 0.6),
    "compress.summary": (True, True),
    "compress.similarity": ("cosine", "dot"),
    "compress.budget.policy": ("adaptive", "adaptive"),
    "compress.budget.zscore": (False, True),
    "compress.budget.tau": (None, 1.0),
    "retrieve.policy": ("topk", "topk"),
    "retrieve.blocks_per_layer": (8, 64),
    "retrieve.recent_blocks": (0, 8),
    "retrieve.candidate_segments": (0, 0),
    "retrieve.similarity": ("cosine", "dot"),
    "retrieve.budget.policy": ("adaptive", "adaptive"),
    "retrieve.budget.zscore": (False, True),
    "retrieve.budget.tau": (None, 0.5),
}


@pytest.mark.parametrize(("column", "name"), [(0, "streamkv-paper"), (1, "streamkv-code")])
def test_published_presets_follow_their_column(column: int, name: str) -> None:
    method = load_config(overrides=[f"preset={name}", OTHER_MODEL]).method
    found = {key: attrgetter(key)(method) for key in PAPER_AND_CODE}
    assert found == {key: values[column] for key, values in PAPER_AND_CODE.items()}


RELATIVES = {  # section 9: segments, share kept, summary, budgets, retrieval
    "streamkv": ("semantic", 0.4, True, "adaptive", "topk"),
    "rekv": ("uniform", 1.0, False, "uniform", "topk"),
    "recent": ("uniform", 1.0, False, "uniform", "recent"),
    "window": ("uniform", 1.0, False, "uniform", "window"),
    "full": ("uniform", 1.0, False, "uniform", "everything"),
}


@pytest.mark.parametrize("name", RELATIVES)
def test_relatives_are_presets(name: str) -> None:
    method = load_config(overrides=[f"preset={name}", OTHER_MODEL]).method
    assert {*RELATIVES, "streamkv-paper", "streamkv-code"} == set(preset_names())
    found = (
        method.segment.policy,
        method.compress.keep_ratio,
        method.compress.summary,
        method.retrieve.budget.policy,
        method.retrieve.policy,
    )
    assert found == RELATIVES[name]
    assert method.compress.budget.policy == method.retrieve.budget.policy
    assert method.n_local == (0 if name == "full" else 15_000)
    assert name != "recent" or method.retrieve.recent_blocks == 4
