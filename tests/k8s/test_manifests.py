"""The manifests are valid, and true: what they say of the application is what runs here."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from manifests import BASE, kustomization, objects, problems, ray_service, serve_problems

from actors.roles import ROLES
from pipeline.app import AppArgs
from pipeline.cluster import PROXY_ENVIRONMENT
from pipeline.deployment import serve_config
from pipeline.settings import load_settings
from streamkv.config import PoolConfig

CONFIG = load_settings("k8s")


def groups() -> dict[str, Any]:
    return {g["groupName"]: g for g in ray_service()["spec"]["rayClusterConfig"]["workerGroupSpecs"]}


def container(template: dict[str, Any]) -> dict[str, Any]:
    (only,) = template["spec"]["containers"]
    return dict(only)


@pytest.mark.parametrize("manifest", objects(), ids=lambda o: f"{o['kind']}-{o['metadata']['name']}")
def test_the_api_server_would_take_it(manifest: dict[str, Any]) -> None:
    assert problems(manifest) == []


def test_every_file_is_part_of_the_base() -> None:
    files = {path.name for path in BASE.glob("*.yaml")} - {"kustomization.yaml"}
    assert set(kustomization()["resources"]) == files


def break_enum(service: dict[str, Any]) -> None:
    service["spec"]["rayClusterConfig"]["authOptions"]["mode"] = "tokn"


def break_field(service: dict[str, Any]) -> None:
    service["spec"]["rayClusterConfig"]["headGroupSpec"]["rayStartParms"] = {}


def break_type(service: dict[str, Any]) -> None:
    service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["replicas"] = "two"


def break_requirement(service: dict[str, Any]) -> None:
    del service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["groupName"]


def break_serve(service: dict[str, Any]) -> None:
    service["spec"]["serveConfigV2"] += "\nhttp_option: {}\n"


@pytest.mark.parametrize("spoil", [break_enum, break_field, break_type, break_requirement, break_serve])
def test_what_is_wrong_would_be_noticed(spoil: Any) -> None:
    service = copy.deepcopy(ray_service())
    spoil(service)
    assert problems(service)


def test_a_misspelt_core_field_would_be_noticed() -> None:
    claim = copy.deepcopy(next(o for o in objects() if o["kind"] == "PersistentVolumeClaim"))
    claim["spec"]["accessMode"] = claim["spec"].pop("accessModes")
    assert problems(claim)


def test_the_clusters_proxies_see_to_whole_replies_as_those_here() -> None:
    cluster = ray_service()["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        environment = {e["name"]: e.get("value") for e in container(group["template"])["env"]}
        assert environment.items() >= PROXY_ENVIRONMENT.items()


def test_the_cluster_serves_what_runs_here() -> None:
    """One function makes the Serve config of `streamkv up`; the manifest holds its very result."""
    held = yaml.safe_load(ray_service()["spec"]["serveConfigV2"])
    assert held == serve_config(CONFIG, "k8s", [])
    assert serve_problems(ray_service()["spec"]["serveConfigV2"]) == []
    (application,) = held["applications"]
    assert load_settings(**_settings(AppArgs(**application["args"]))) == CONFIG


def _settings(args: AppArgs) -> dict[str, Any]:
    return {"name": args.config, "overrides": args.overrides}


@pytest.mark.parametrize(
    ("group", "role", "pool"),
    [
        ("decode-encode", "decode_encode", CONFIG.encode),
        ("prefill", "prefill", CONFIG.prefill),
        ("answer", "answer", PoolConfig(CONFIG.serve.replicas, CONFIG.serve.cpus, CONFIG.serve.gpus)),
    ],
)
def test_each_pool_has_the_pods_that_its_actors_need(group: str, role: str, pool: PoolConfig) -> None:
    spec = groups()[group]
    assert set(json.loads(json.loads(spec["rayStartParams"]["resources"]))) == {role}
    assert spec["minReplicas"] == spec["replicas"] == spec["maxReplicas"]
    limits = container(spec["template"])["resources"]["limits"]
    assert spec["replicas"] * float(limits["nvidia.com/gpu"]) >= pool.actors * pool.gpus
    assert (
        spec["replicas"] * float(limits["cpu"]) >= pool.actors * pool.cpus + 0.2
    )  # the ingress takes a little


def test_every_role_has_a_group() -> None:
    offered = [json.loads(json.loads(g["rayStartParams"]["resources"])) for g in groups().values()]
    assert sorted(role for o in offered for role in o) == sorted(ROLES)


def test_every_pod_sees_the_store_and_the_model() -> None:
    spec = ray_service()["spec"]["rayClusterConfig"]
    claims = {o["metadata"]["name"]: o for o in objects() if o["kind"] == "PersistentVolumeClaim"}
    for template in [spec["headGroupSpec"]["template"], *(g["template"] for g in groups().values())]:
        volumes = {v["name"]: v["persistentVolumeClaim"]["claimName"] for v in template["spec"]["volumes"]}
        mounts = {m["mountPath"]: m["name"] for m in container(template)["volumeMounts"]}
        assert mounts[CONFIG.store.root] in volumes
        assert any(CONFIG.model.path.startswith(path) for path in mounts)
        for name in volumes.values():
            assert claims[name]["spec"]["accessModes"] == ["ReadWriteMany"]


def test_pods_without_replicas_do_not_wait_for_a_proxy() -> None:
    for name in ("decode-encode", "prefill"):
        probe = container(groups()[name]["template"])["readinessProbe"]["exec"]["command"][-1]
        assert "local_raylet_healthz" in probe
        assert "8000" not in probe


def test_the_catalogs_address_comes_from_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    for group in groups().values():
        env = {e["name"]: e for e in container(group["template"])["env"]}
        assert "secretKeyRef" in env["STREAMKV_CATALOG_URL"]["valueFrom"]
    monkeypatch.setenv("STREAMKV_CATALOG_URL", "postgresql+psycopg://u:p@h/d")
    assert load_settings("k8s").store.catalog_url == "postgresql+psycopg://u:p@h/d"


def test_the_ray_versions_agree() -> None:
    version = ray_service()["spec"]["rayClusterConfig"]["rayVersion"]
    root = Path(__file__).parents[2]
    assert f"rayproject/ray:{version}-" in (root / "Dockerfile").read_text()
    assert f"ray[data,serve]=={version.rpartition('.')[0]}.*" in (root / "pyproject.toml").read_text()
