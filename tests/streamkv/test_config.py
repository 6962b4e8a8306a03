"""Which settings win, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamkv.config import CONFIG_ROOT, config_from_dict, config_to_dict, load_config, preset_names
from streamkv.errors import ConfigError

OTHER_MODEL = "model.path=some/other-model"


def test_what_suits_the_model_goes_over_the_preset_and_under_the_file(tmp_path: Path) -> None:
    plain = load_config(overrides=["preset=streamkv", OTHER_MODEL]).method
    suited = load_config(overrides=["preset=streamkv", "model.path=somewhere/townsquare"]).method
    assert (plain.n_local, plain.segment.theta) == (15_000, 0.99)
    assert (suited.n_local, suited.segment.theta) == (72, 0.94)
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


@pytest.mark.parametrize("name", [p.stem for p in CONFIG_ROOT.glob("*.yaml")])
def test_every_shipped_configuration_loads_and_travels(name: str) -> None:
    config = load_config(CONFIG_ROOT / f"{name}.yaml")
    assert config_from_dict(config_to_dict(config)) == config


def test_an_unknown_key_is_named() -> None:
    with pytest.raises(ConfigError, match="n_loca1"):
        load_config(overrides=["method.n_loca1=3"])
