"""The sizes that an operator has set for the pools, in the store's folder: they outlive every process and its nodes.

Not in the configuration, which a running plane does not change, and not in the catalog, which says what was ingested.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from pathlib import Path

from streamkv.errors import ConfigError
from streamkv.store import durable

FILE = "pools.json"


class PoolSizes:
    """`pools.json` in the store's folder, as `{"encode": 3}`. A pool that is not named has no size set."""

    def __init__(self, store: Path) -> None:
        self.path = store / FILE

    def read(self) -> dict[str, int]:
        """ConfigError when the file cannot be read."""
        try:
            return {str(name): int(size) for name, size in json.loads(self.path.read_text()).items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, AttributeError) as exc:
            raise ConfigError(
                f"{self.path}: not a file of pool sizes ({exc}); remove it, then use streamkv scale"
            ) from exc

    def write(self, sizes: Mapping[str, int]) -> None:
        """Durably, and whole or not at all."""
        durable.make_folder(self.path.parent)
        temp = self.path.with_name(f".{FILE}.{uuid.uuid4().hex}.tmp")
        with durable.removed_on_error(temp, "the sizes were not kept"):
            durable.write_temp(temp, lambda file: file.write(json.dumps(dict(sizes)).encode() + b"\n"))
            durable.publish(temp, self.path)
