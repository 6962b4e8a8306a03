"""Which model a configuration names, and what a Ray task that runs it has to ask for."""

from __future__ import annotations

from pipeline.cluster import NeedRay
from streamkv.config import ModelConfig
from streamkv.models import VideoLLM, load_model
from streamkv.store import ModelIdentity

LOAD_S = 1800.0
"""How long a model may take to load."""


def gpus(config: ModelConfig) -> int:
    """What a task of the model asks for: Ray hides GPUs from a worker that does not ask."""
    return int(config.device.startswith("cuda"))


def identify(config: ModelConfig, need_ray: NeedRay) -> ModelIdentity:
    """Of the model.

    On a GPU by Ray, in a process that ends at once, so that its memory is then free for the workers.
    """
    if not gpus(config):
        return _load(config)
    need_ray()
    import ray

    from actors.remote import wait_for  # it imports ray, which must come after its settings (`local_ray`)

    task = ray.remote(num_cpus=1, num_gpus=gpus(config), max_calls=1, max_retries=1)(_load)
    identity: ModelIdentity = wait_for(task.remote(config), LOAD_S)
    return identity


def load_quietly(config: ModelConfig) -> VideoLLM:
    """The model, without a bar of its own: every worker's would be shown."""
    from transformers.utils.logging import disable_progress_bar  # seconds, for who only starts workers

    disable_progress_bar()
    return load_model(config)


def _load(config: ModelConfig) -> ModelIdentity:
    return ModelIdentity.of(load_quietly(config))
