"""The Kubernetes manifests: valid by the real schemas, strictly, and consistent with each other and with the code."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from vecraft_cluster.controller import SHARD_LABEL
from vecraft_db.client.k8s_aware_vecraft_client import DEFAULT_SERVICE
from vecraft_db.config import Settings

ROOT = Path(__file__).resolve().parents[3]
SCHEMAS = ROOT.parent / "shared" / "k8s"
KUBERNETES = "1.37"


def documents(pattern: str = "**/*.yaml") -> list[tuple[str, dict[str, Any]]]:
    """Return file name and contents of every manifest."""
    return [
        (f"{path.relative_to(ROOT)}:{document['kind']}", document)
        for path in sorted((ROOT / "k8s").glob(pattern))
        if path.name != "kustomization.yaml"
        for document in yaml.safe_load_all(path.read_text())
    ]


PLAIN = [(name, document) for name, document in documents() if not document["apiVersion"].startswith("ray.io/")]
OURS = dict(documents("*.yaml"))
RAY = [(name, document) for name, document in documents() if document["apiVersion"].startswith("ray.io/")]


def pods() -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Yield name, workload and pod spec of everything that runs pods."""
    for name, document in PLAIN:
        if document["kind"] in ("StatefulSet", "Deployment"):
            yield name, document, document["spec"]["template"]["spec"]


@pytest.mark.parametrize(("name", "document"), PLAIN, ids=[name for name, _ in PLAIN])
def test_kubernetes_accepts_it_strictly(name: str, document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_the_strict_schema_would_refuse_a_typing_error() -> None:
    deployment = yaml.safe_load(yaml.safe_dump(OURS["k8s/gateway.yaml:Deployment"]))
    deployment["spec"]["template"]["spec"]["containers"][0]["imagePullPolicyy"] = "Always"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, KUBERNETES, strict=True)


# ------------------------------------------------------------------------------------------------------------ KubeRay


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a CRD's schema with unknown fields refused wherever the API server would drop them, and int-or-string."""
    out: dict[str, Any] = {}
    for key, value in schema.items():
        if key in ("properties", "definitions"):
            out[key] = {name: strict(part) for name, part in value.items()}
        elif isinstance(value, dict) and key in ("items", "additionalProperties", "not"):
            out[key] = strict(value)
        elif isinstance(value, list) and key in ("anyOf", "allOf", "oneOf"):
            out[key] = [strict(part) for part in value]
        else:
            out[key] = value
    if schema.get("x-kubernetes-int-or-string"):
        out.pop("type", None)
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        out.setdefault("additionalProperties", False)
    return out


@pytest.fixture(scope="module")
def ray_cluster_spec() -> dict[str, Any]:
    """The strict schema of a RayCluster's spec, out of KubeRay's CRD."""
    path = SCHEMAS / "ray.io_rayclusters.yaml"
    if not path.is_file():
        pytest.skip("KubeRay's CRDs are not beside this repository (../shared/k8s)")
    crd = yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (version,) = (version for version in crd["spec"]["versions"] if version["name"] == "v1")
    return strict(version["schema"]["openAPIV3Schema"]["properties"]["spec"])


def test_kuberay_accepts_its_objects_strictly(ray_cluster_spec: dict[str, Any]) -> None:
    """A RayJob holds the spec of its cluster; its own few fields have no schema here."""
    specs = {
        document["kind"]: document["spec"]["rayClusterSpec"] if document["kind"] == "RayJob" else document["spec"]
        for _, document in RAY
    }
    assert set(specs) == {"RayCluster", "RayJob"}
    for spec in specs.values():
        jsonschema.Draft202012Validator(ray_cluster_spec).validate(spec)
        broken = {**spec, "headGroupSpec": {**spec["headGroupSpec"], "rayStartParms": {}}}
        with pytest.raises(jsonschema.ValidationError, match="rayStartParms"):
            jsonschema.Draft202012Validator(ray_cluster_spec).validate(broken)


# -------------------------------------------------------------------------------------------- fitting to each other


def test_every_service_and_budget_finds_its_pods() -> None:
    labels = [document["spec"]["template"]["metadata"]["labels"] for _, document, _ in pods()]
    for name, document in PLAIN:
        if document["kind"] == "Service":
            selector = document["spec"]["selector"]
        elif document["kind"] in ("PodDisruptionBudget", "StatefulSet", "Deployment"):
            selector = document["spec"]["selector"]["matchLabels"]
        else:
            continue
        assert sum(selector.items() <= each.items() for each in labels) == 1, name


def test_ports_volumes_and_service_names_exist() -> None:
    services = {document["metadata"]["name"]: document for _, document in PLAIN if document["kind"] == "Service"}
    config_maps = {document["metadata"]["name"]: document for _, document in PLAIN if document["kind"] == "ConfigMap"}
    for name, workload, pod in pods():
        volumes = {volume["name"] for volume in pod["volumes"]}
        volumes |= {claim["metadata"]["name"] for claim in workload["spec"].get("volumeClaimTemplates", [])}
        for volume in pod["volumes"]:
            if "configMap" in volume:
                assert volume["configMap"]["name"] in config_maps, name
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} == volumes, name
            ports = {port["name"] for port in container["ports"]}
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                action = container.get(probe, {})
                for kind in ("httpGet", "tcpSocket"):
                    assert kind not in action or action[kind]["port"] in ports, name
        if workload["kind"] == "StatefulSet":
            assert services[workload["spec"]["serviceName"]]["spec"]["clusterIP"] == "None"
    assert DEFAULT_SERVICE in services


def test_settings_are_known_to_the_code(tmp_path: Path) -> None:
    """The file in the ConfigMap parses, and every VCRAFT_ variable is a setting."""
    data = OURS["k8s/config.yaml:ConfigMap"]["data"]
    path = tmp_path / "settings.yaml"
    path.write_text(data["settings.yaml"])
    settings = Settings.load({"CONFIG_FILE": str(path)})
    assert (settings.cluster, settings.address, settings.port) == ("vecraft", "auto", 8000)
    containers = [container for _, _, pod in pods() for container in pod["containers"]]
    variables = [variable["name"] for container in containers for variable in container["env"]]
    for variable in variables:
        if variable.startswith("VCRAFT_"):
            Settings.load({variable: "x"})


def test_scripts_are_mounted_and_agree_with_the_code() -> None:
    data = OURS["k8s/config.yaml:ConfigMap"]["data"]
    for name, _, pod in pods():
        script = pod["containers"][0]["command"][-1]
        assert script.removeprefix("/etc/vecraft/") in data, name
    assert f'--labels="{SHARD_LABEL}=$SHARD"' in data["shard.sh"]
    assert SHARD_LABEL in data["wait_for_shards.py"]
    compile(data["wait_for_shards.py"], "wait_for_shards.py", "exec")
    assert "--port=6379" in data["head.sh"]
    for script in ("shard.sh", "gateway.sh"):
        assert "--address=vecraft-head:6379" in data[script]


def test_the_head_waits_for_as_many_shards_as_there_are() -> None:
    head = OURS["k8s/head.yaml:StatefulSet"]["spec"]["template"]["spec"]["containers"][0]
    (count,) = (variable["value"] for variable in head["env"] if variable["name"] == "VECRAFT_SHARD_COUNT")
    assert int(count) == OURS["k8s/shards.yaml:StatefulSet"]["spec"]["replicas"]


def test_shards_keep_their_disks_and_leave_one_at_a_time() -> None:
    shards = OURS["k8s/shards.yaml:StatefulSet"]["spec"]
    assert shards["podManagementPolicy"] == "Parallel"
    assert shards["persistentVolumeClaimRetentionPolicy"] == {"whenDeleted": "Retain", "whenScaled": "Retain"}
    assert OURS["k8s/shards.yaml:PodDisruptionBudget"]["spec"]["maxUnavailable"] == 1


def test_no_pod_may_do_more_than_it_must() -> None:
    for name, _, pod in pods():
        assert pod["automountServiceAccountToken"] is False, name
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False, name
    (rule,) = OURS["k8s/rbac.yaml:Role"]["rules"]
    assert rule == {
        "apiGroups": ["discovery.k8s.io"],
        "resources": ["endpointslices"],
        "verbs": ["get", "list", "watch"],
    }


def test_versions_are_those_of_the_distribution() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    pinned = dict(re.findall(r"^([\w\-]+)==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    text = "".join(path.read_text() for path in (ROOT / "k8s").rglob("*.yaml"))
    assert set(re.findall(r"image: vecraftdb:(\S+)", text)) == {version}
    assert set(re.findall(r"rayVersion: (\S+)", text)) == {pinned["ray"]}


def test_everything_is_applied() -> None:
    listed = yaml.safe_load((ROOT / "k8s" / "kustomization.yaml").read_text())["resources"]
    present = {path.name for path in (ROOT / "k8s").glob("*.yaml")} - {"kustomization.yaml"}
    assert set(listed) == present
