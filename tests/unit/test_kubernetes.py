"""The manifests in deploy/kubernetes: valid, and in agreement with each other, the service and the documentation.

Nothing is started. Kustomizations are put together by `kustomize.py` beside this file, which is compared with `kubectl
kustomize` where that is installed. Every object is held against the schemas of Kubernetes that kubernetes-validate
brings along, unknown fields included. It has none for custom resources: the one that is used, ServiceMonitor, is held
against the fields that are listed here.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from ipaddress import ip_address, ip_network
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from llmsched.config import Settings, load
from llmsched.model.latency import LATENCY_CURVES
from llmsched.runtime.tools.web import is_public
from tests.unit.kustomize import Object, build, documents
from tests.unit.test_deploy import (
    CONTRACT,
    SERVICE_PATHS,
    VLLM_PATHS,
    compose,
    image_environment,
    last,
    needs_promtool,
    promtool,
)

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy/kubernetes"
GATEWAY, ENGINE = {"app.kubernetes.io/name": "llmsched"}, {"app.kubernetes.io/name": "vllm"}
#: Oldest and newest Kubernetes that the manifests are held against.
VERSIONS = ("1.27", kubernetes_validate.latest_version())
#: Of a ServiceMonitor, monitoring.coreos.com/v1.
MONITOR_FIELDS = {"attachMetadata", "endpoints", "jobLabel", "namespaceSelector", "selector", "targetLabels"}
ENDPOINT_FIELDS = {"honorLabels", "interval", "metricRelabelings", "path", "port", "relabelings", "scheme"}


@dataclass(frozen=True)
class Installation:
    """What one choice of a store, with components, applies."""

    overlay: str
    components: tuple[str, ...]
    objects: tuple[Object, ...]

    def __str__(self) -> str:
        return " + ".join((self.overlay, *self.components))

    def of(self, kind: str) -> dict[str, Object]:
        """Objects of one kind, by name."""
        return {o["metadata"]["name"]: o for o in self.objects if o["kind"] == kind}

    def workloads(self) -> dict[str, Object]:
        """Deployments and StatefulSets, by name."""
        return self.of("Deployment") | self.of("StatefulSet")

    def pod(self, name: str) -> Object:
        """The pods of a workload."""
        pod: Object = self.workloads()[name]["spec"]["template"]["spec"]
        return pod

    def container(self, name: str) -> Object:
        """The only container of a workload's pods."""
        (container,) = self.pod(name)["containers"]
        assert isinstance(container, dict)
        return container

    def labels(self, name: str) -> dict[str, str]:
        """Of a workload's pods."""
        labels: dict[str, str] = self.workloads()[name]["spec"]["template"]["metadata"]["labels"]
        return labels


@cache
def installed(overlay: str, *components: str) -> Installation:
    objects = build(KUBERNETES / "overlays" / overlay)
    for component in components:
        objects = build(KUBERNETES / "components" / component, objects)
    return Installation(overlay, components, tuple(objects))


COMPONENTS = tuple(sorted(path.name for path in (KUBERNETES / "components").iterdir()))
INSTALLATIONS = [installed(overlay, *chosen) for overlay in ("sqlite", "postgres") for chosen in ((), COMPONENTS)]
each = pytest.mark.parametrize("here", INSTALLATIONS, ids=str)


def example_secrets() -> dict[str, dict[str, str]]:
    return {o["metadata"]["name"]: o["stringData"] for o in documents(KUBERNETES / "secret.example.yaml")}


# --- the layout ---------------------------------------------------------------------------------------------


def test_every_file_belongs_to_a_kustomization_but_the_two_that_are_no_part_of_it() -> None:
    listed = set()
    for path in KUBERNETES.rglob("kustomization.yaml"):
        (plan,) = documents(path)
        names = [*plan.get("resources", []), *plan.get("components", [])]
        listed |= {(path.parent / name).resolve() for name in names}
        listed |= {path.parent / patch["path"] for patch in plan.get("patches", [])}
    files = {path for path in KUBERNETES.rglob("*.yaml") if path.name != "kustomization.yaml"}
    assert {path.name for path in files - listed} == {"secret.example.yaml", "prometheus-adapter.values.yaml"}
    assert {path for path in listed if path.is_dir()} == {KUBERNETES / "base"}


def has_kustomize() -> bool:
    """Whether there is a kubectl whose kustomize knows components and labels."""
    if shutil.which("kubectl") is None:
        return False
    command = ["kubectl", "version", "--client", "--output=json"]
    told = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return int(told.get("kustomizeVersion", "v0").lstrip("v").split(".")[0]) >= 5


needs_kustomize = pytest.mark.skipif(not has_kustomize(), reason="there is no kubectl with kustomize 5")


def kubectl_kustomize(folder: Path) -> list[Object]:
    """The objects as the original makes them, in its order."""
    result = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return list(yaml.safe_load_all(result.stdout))


def by_name(objects: list[Object]) -> dict[tuple[str, str], Object]:
    named = {(o["kind"], o["metadata"]["name"]): o for o in objects}
    assert len(named) == len(objects)
    return named


@needs_kustomize
@each
def test_kubectl_makes_the_same_of_it(here: Installation, tmp_path: Path) -> None:
    def relative(kind: str, name: str) -> str:
        return os.path.relpath(KUBERNETES / kind / name, tmp_path)

    plan: dict[str, list[str]] = {
        "resources": [relative("overlays", here.overlay)],
        "components": [relative("components", name) for name in here.components],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(plan))
    assert by_name(kubectl_kustomize(tmp_path)) == by_name(list(here.objects))


def page() -> str:
    return (ROOT / "docs/deployment.md").read_text()


def written(tmp_path: Path) -> Path:
    """The kustomization that docs/deployment.md tells people to write, beside a clone of ours."""
    (block,) = re.findall(r"```yaml\n(# kustomization.yaml.*?)```", page(), flags=re.DOTALL)
    (tmp_path / "kustomization.yaml").write_text(block)
    (tmp_path / "llmsched").symlink_to(ROOT)
    return tmp_path


def test_a_kustomization_of_ones_own_as_documented(tmp_path: Path) -> None:
    here = Installation("documented", (), tuple(build(written(tmp_path))))
    assert here.container("llmsched")["image"] == "registry.example.org/llmsched:0.1.0"
    assert here.of("ConfigMap")["engine"]["data"]["SLOTS"] == "16"
    assert here.of("ConfigMap")["llmsched"]["data"]["LLMSCHED_POLICY"] == "sjf"
    assert list(here.of("ServiceMonitor")) == ["llmsched"]
    assert settings_of(here, "llmsched").engines[0].slots == 16


@needs_kustomize
def test_kubectl_makes_the_same_of_the_documented_one(tmp_path: Path) -> None:
    folder = written(tmp_path)
    assert by_name(kubectl_kustomize(folder)) == by_name(build(folder))


def test_documentation_names_every_choice() -> None:
    section = page().partition("## Kubernetes")[2].partition("\n## ")[0]
    for kind in ("overlays", "components"):
        for path in (KUBERNETES / kind).iterdir():
            assert f"{path.name}/" in section, path


# --- the schemas --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
@each
def test_objects_satisfy_the_schemas(here: Installation, version: str) -> None:
    for o in here.objects:
        if o["kind"] == "ServiceMonitor":
            continue
        try:
            kubernetes_validate.validate(o, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            where = "/".join(map(str, error.path))
            pytest.fail(f"{o['kind']} {o['metadata']['name']}: {where}: {error.message}")


def test_example_secrets_satisfy_the_schemas() -> None:
    for secret in documents(KUBERNETES / "secret.example.yaml"):
        for version in VERSIONS:
            kubernetes_validate.validate(secret, version, strict=True)


def test_the_schemas_are_those_of_kubernetes_and_not_of_anything() -> None:
    deployment = json.loads(json.dumps(installed("sqlite").of("Deployment")["llmsched"]))
    deployment["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="readinesProbe"):
        kubernetes_validate.validate(deployment, VERSIONS[0], strict=True)


@each
def test_objects_are_in_the_namespace_and_say_whose_they_are(here: Installation) -> None:
    assert list(here.of("Namespace")) == ["llmsched"]
    for o in here.objects:
        if o["kind"] != "Namespace":
            assert o["metadata"]["namespace"] == "llmsched", o
    for o in installed(here.overlay).objects:
        assert o["metadata"]["labels"]["app.kubernetes.io/part-of"] == "llmsched", o


# --- pods ---------------------------------------------------------------------------------------------------


@each
def test_pods_satisfy_the_profile_that_the_namespace_enforces(here: Installation) -> None:
    """Pod Security Standards, profile `restricted`: what it asks of pods on Linux."""
    namespace = here.of("Namespace")["llmsched"]
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for name in here.workloads():
        pod, security = here.pod(name), here.container(name)["securityContext"]
        assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & pod.keys()
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert not {"privileged", "runAsUser", "runAsNonRoot", "seccompProfile", "procMount"} & security.keys()
        assert all(volume.keys() - {"name"} <= {"emptyDir", "persistentVolumeClaim"} for volume in pod["volumes"])


@each
def test_pods_get_no_token_and_no_service_links(here: Installation) -> None:
    for name in here.workloads():
        pod = here.pod(name)
        assert pod["automountServiceAccountToken"] is False
        # Otherwise the Service puts LLMSCHED_PORT=tcp://… among the settings.
        assert pod["enableServiceLinks"] is False


@each
def test_gateway_writes_only_where_it_may(here: Installation) -> None:
    """To /tmp (sandbox, matplotlib) and, with SQLite, to the volume of the image."""
    container, pod = here.container("llmsched"), here.pod("llmsched")
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    writable = {"/tmp"} | ({last("VOLUME")} if here.overlay == "sqlite" else set())
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == writable
    assert image_environment_paths() <= writable
    user, group = map(int, last("USER").split(":"))
    security = pod["securityContext"]
    assert (security["runAsUser"], security["runAsGroup"], security["fsGroup"]) == (user, group, group)


def image_environment_paths() -> set[str]:
    """Top folders that the image's environment says are written to."""
    return {f"/{value.split('/')[1]}" for value in re.findall(r"MPLCONFIGDIR=(\S+)", last("ENV"))}


@each
def test_engine_keeps_its_weights_on_a_volume_that_its_user_can_write_to(here: Installation) -> None:
    container, security = here.container("engine"), here.pod("engine")["securityContext"]
    home = environment(here, "engine")["HOME"]
    (claim,) = here.of("StatefulSet")["engine"]["spec"]["volumeClaimTemplates"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts[claim["metadata"]["name"]] == f"{home}/.cache"
    assert (home, security["runAsUser"], security["runAsGroup"]) == ("/home/vllm", 2000, 0)  # as in the image
    assert security["fsGroup"] > 0


def quantity(text: str) -> float:
    """Kubernetes' way to write numbers.

    >>> quantity("500m"), quantity("4Gi")
    (0.5, 4294967296.0)
    """
    number, unit = re.fullmatch(r"([\d.]+)(m|Ki|Mi|Gi|Ti)?", text).groups()  # type: ignore[union-attr]
    return float(number) * {None: 1.0, "m": 1e-3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}[unit]


@each
def test_pods_ask_for_what_they_need_and_get_no_more_than_is_said(here: Installation) -> None:
    for name in here.workloads():
        resources = here.container(name)["resources"]
        assert resources["requests"].keys() == resources["limits"].keys() >= {"cpu", "memory"}
        for what, asked in resources["requests"].items():
            assert 0 < quantity(asked) <= quantity(resources["limits"][what])
        for volume in here.pod(name)["volumes"]:
            assert "emptyDir" not in volume or "sizeLimit" in volume["emptyDir"]
    assert here.container("engine")["resources"]["limits"]["nvidia.com/gpu"] == "1"
    settings, limits = settings_of(here, "llmsched"), here.container("llmsched")["resources"]["limits"]
    assert settings.workers * settings.worker_memory_mb * 2**20 < quantity(limits["memory"])
    assert settings.workers + 1 <= quantity(limits["cpu"])


@each
def test_probes_ask_for_paths_and_ports_that_exist(here: Installation) -> None:
    for name, known, ready in (("llmsched", SERVICE_PATHS, "/ready"), ("engine", VLLM_PATHS, "/health")):
        container = here.container(name)
        probes = {kind: container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")}
        paths = {kind: probe["path"] for kind, probe in probes.items()}
        assert paths == {"startup": "/health", "liveness": "/health", "readiness": ready}
        assert set(paths.values()) <= known
        assert {probe["port"] for probe in probes.values()} <= {port["name"] for port in container["ports"]}


@each
def test_containers_listen_on_the_ports_they_declare(here: Installation) -> None:
    assert here.container("llmsched")["args"] == json.loads(last("CMD"))
    for name in here.workloads():
        (port,) = here.container(name)["ports"]
        assert str(port["containerPort"]) in " ".join(arguments(here, name)).replace("=", " ").split()


@each
def test_images_are_those_of_compose_and_of_this_version(here: Installation) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert here.container("llmsched")["image"] == f"llmsched:{version}"
    assert here.container("engine")["image"] == compose()["services"]["engine-0"]["image"]


# --- settings -----------------------------------------------------------------------------------------------

#: What the downward API tells.
FIELDS = {"status.podIP": "10.0.3.7"}


def expanded(text: str, known: Mapping[str, str]) -> str:
    """With `$(NAME)` replaced. What is not known stays as it is, as Kubernetes has it."""
    return re.sub(r"\$\((\w+)\)", lambda match: known.get(match[1], match[0]), text)


def environment(here: Installation, name: str) -> dict[str, str]:
    """Of a workload's container, with the example Secrets. A value sees the variables of `env` above it."""
    maps, secrets = here.of("ConfigMap"), example_secrets()
    all_of_them: dict[str, str] = {}
    for source in here.container(name).get("envFrom", []):
        (kind,) = source.keys()
        reference = source[kind]["name"]
        all_of_them |= maps[reference]["data"] if kind == "configMapRef" else secrets[reference]
    seen: dict[str, str] = {}
    for variable in here.container(name).get("env", []):
        match variable.get("valueFrom"):
            case None:
                seen[variable["name"]] = expanded(variable["value"], seen)
            case {"configMapKeyRef": reference}:
                seen[variable["name"]] = maps[reference["name"]]["data"][reference["key"]]
            case {"secretKeyRef": reference}:
                seen[variable["name"]] = secrets[reference["name"]][reference["key"]]
            case {"fieldRef": reference}:
                seen[variable["name"]] = FIELDS[reference["fieldPath"]]
    return all_of_them | seen


def arguments(here: Installation, name: str) -> list[str]:
    """Of a workload's container, as it gets them."""
    known = environment(here, name)
    return [expanded(argument, known) for argument in here.container(name)["args"]]


def option(here: Installation, name: str) -> str:
    """Of vLLM."""
    (value,) = (a.partition("=")[2] for a in arguments(here, "engine") if a.startswith(f"--{name}="))
    return value


def settings_of(here: Installation, name: str) -> Settings:
    told = image_environment() | environment(here, name)
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in told.items():
            patch.setenv(variable, value)
        return load()


@each
def test_settings_are_accepted_and_find_the_engines_by_name(here: Installation) -> None:
    settings = settings_of(here, "llmsched")
    (engines,) = settings.engines
    service = here.of("Service")["engine"]["spec"]
    assert engines.url == f"http://engine:{service['ports'][0]['port']}"
    assert engines.resolve
    assert service["clusterIP"] == "None"
    assert set(settings.tenants().values()) == {"team-a", "team-b"}
    assert settings.latency in LATENCY_CURVES


@each
def test_gateways_and_engines_agree_on_slots_and_order(here: Installation) -> None:
    (engines,) = settings_of(here, "llmsched").engines
    assert int(option(here, "max-num-seqs")) == engines.slots
    assert option(here, "scheduling-policy") == "priority"
    assert environment(here, "engine")["VLLM_API_KEY"] == settings_of(here, "llmsched").engine_api_key != ""


@each
def test_slots_are_a_row_of_the_latency_table_and_fit_into_the_memory(here: Installation) -> None:
    (row,) = re.findall(r"^\| b \|(.*)\|$", (ROOT / "docs/calibration.md").read_text(), flags=re.M)
    slots, context = int(option(here, "max-num-seqs")), int(option(here, "max-model-len"))
    assert slots in [int(cell) for cell in row.split("|")]
    # Qwen2.5-7B: 28 layers of 4 KV heads of 128, keys and values in 2 bytes; 7.62e9 parameters of 2 bytes. vLLM takes
    # at least nine tenths of the 80 GB.
    assert arguments(here, "engine")[0] == "Qwen/Qwen2.5-7B-Instruct"
    assert slots * context * (28 * 4 * 128 * 2 * 2) + 7.62e9 * 2 < 0.9 * 80e9


@each
def test_autoscaled_or_not_an_engine_that_stops_is_drained_first(here: Installation) -> None:
    """It leaves the name, the gateways notice, then vLLM is told to stop and lets what runs end, all in time."""
    service = here.of("Service")["engine"]["spec"]
    # With True a pod that terminates would stay among the addresses until it is gone.
    assert service.get("publishNotReadyAddresses", False) is False
    lookup = settings_of(here, "llmsched").discovery_interval + 5  # CoreDNS lets its answers be kept for 5 s
    pause = pre_stop(here, "engine")
    assert lookup < pause
    assert pause + int(option(here, "shutdown-timeout")) < here.pod("engine")["terminationGracePeriodSeconds"]
    assert here.of("PodDisruptionBudget")["engine"]["spec"]["maxUnavailable"] == 1


def pre_stop(here: Installation, name: str) -> int:
    """Seconds that a workload's container sleeps before it is told to stop."""
    container = here.container(name)
    if "lifecycle" not in container:
        return 0
    program, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
    assert program == "sleep"
    return int(seconds)


@each
def test_gateway_has_the_time_it_takes_to_stop(here: Installation) -> None:
    needed = pre_stop(here, "llmsched") + settings_of(here, "llmsched").grace
    assert needed < here.pod("llmsched")["terminationGracePeriodSeconds"]


def test_one_gateway_on_sqlite_and_never_two() -> None:
    here = installed("sqlite")
    spec = here.of("Deployment")["llmsched"]["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})
    assert "llmsched" not in here.of("PodDisruptionBudget")  # it would keep its node from being emptied for ever
    settings = settings_of(here, "llmsched")
    assert settings.store.startswith(f"sqlite:///{last('VOLUME')}/")  # whatever the Secret says
    assert settings.store == image_environment()["LLMSCHED_STORE"]
    assert settings.advertise is None
    # It is the only one there is to accept jobs and answer those who poll while no engine is healthy.
    assert here.of("Service")["llmsched"]["spec"]["publishNotReadyAddresses"] is True


def test_several_gateways_on_postgres() -> None:
    here = installed("postgres")
    spec = here.of("Deployment")["llmsched"]["spec"]
    assert spec["replicas"] > 1
    assert spec["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    settings = settings_of(here, "llmsched")
    assert settings.store == example_secrets()["llmsched"]["LLMSCHED_STORE"]
    assert settings.advertise == f"http://{FIELDS['status.podIP']}:{last('EXPOSE')}"
    assert not here.of("PersistentVolumeClaim")
    # One that stops, or does not reach the database, gets no requests.
    assert here.of("Service")["llmsched"]["spec"].get("publishNotReadyAddresses", False) is False
    assert pre_stop(here, "llmsched") > 0


def test_a_gateway_on_postgres_does_not_start_without_its_secret() -> None:
    for variable in installed("postgres").container("llmsched")["env"]:
        if variable["name"] == "LLMSCHED_STORE":
            assert variable["valueFrom"]["secretKeyRef"].get("optional", False) is False
            break
    else:
        pytest.fail("LLMSCHED_STORE is not set")


def test_gateways_on_postgres_are_spread_and_leave_one_at_a_time() -> None:
    here = installed("postgres")
    spread = {c["topologyKey"]: c for c in here.pod("llmsched")["topologySpreadConstraints"]}
    assert spread.keys() == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}
    for constraint in spread.values():
        assert constraint["labelSelector"]["matchLabels"] == here.labels("llmsched")
    budget = here.of("PodDisruptionBudget")["llmsched"]["spec"]
    assert budget["maxUnavailable"] < here.of("Deployment")["llmsched"]["spec"]["replicas"]
    # The one that schedules is not ready while no engine is.
    assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


# --- references ---------------------------------------------------------------------------------------------


def matches(selector: Object, labels: Mapping[str, str]) -> bool:
    """A label selector, as Kubernetes reads it; one without anything in it is for everybody."""
    assert selector.keys() <= {"matchLabels", "matchExpressions"}
    expressions = selector.get("matchExpressions", [])
    assert all(expression["operator"] == "In" for expression in expressions)
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        labels.get(expression["key"]) in expression["values"] for expression in expressions
    )


@each
def test_services_select_pods_and_their_ports(here: Installation) -> None:
    services = here.of("Service")
    assert services.keys() == here.workloads().keys()
    for name, service in services.items():
        assert service["spec"]["selector"] == here.labels(name)
        ports = {port["name"]: port["containerPort"] for port in here.container(name)["ports"]}
        assert {port["targetPort"]: port["port"] for port in service["spec"]["ports"]} == ports
    assert here.of("StatefulSet")["engine"]["spec"]["serviceName"] in services


@each
def test_selectors_select_something(here: Installation) -> None:
    pods = [here.labels(name) for name in here.workloads()]
    for name, workload in here.workloads().items():
        assert workload["spec"]["selector"] == {"matchLabels": here.labels(name)}
    for name, budget in here.of("PodDisruptionBudget").items():
        assert budget["spec"]["selector"] == {"matchLabels": here.labels(name)}
    for policy in here.of("NetworkPolicy").values():
        assert any(matches(policy["spec"]["podSelector"], labels) for labels in pods), policy["metadata"]["name"]


@each
def test_pods_mount_what_they_declare(here: Installation) -> None:
    claims = here.of("PersistentVolumeClaim")
    used = set()
    for name, workload in here.workloads().items():
        volumes = {volume["name"]: volume for volume in here.pod(name)["volumes"]}
        made = {claim["metadata"]["name"] for claim in workload["spec"].get("volumeClaimTemplates", [])}
        assert {mount["name"] for mount in here.container(name)["volumeMounts"]} == volumes.keys() | made
        used |= {v["persistentVolumeClaim"]["claimName"] for v in volumes.values() if "persistentVolumeClaim" in v}
    assert used == claims.keys()


@each
def test_configuration_and_secrets_are_found(here: Installation) -> None:
    for name in here.workloads():
        assert not [v for v in environment(here, name).values() if "$(" in v]
        assert not [a for a in arguments(here, name) if "$(" in a]
    used = set()
    for name in here.workloads():
        container = here.container(name)
        used |= {s["configMapRef"]["name"] for s in container["envFrom"] if "configMapRef" in s}
        secrets = [s["secretRef"] for s in container["envFrom"] if "secretRef" in s]
        secrets += [
            v["valueFrom"]["secretKeyRef"] for v in container["env"] if "secretKeyRef" in v.get("valueFrom", {})
        ]
        for reference in secrets:
            assert reference.get("optional", False) is (reference.get("key") != "LLMSCHED_STORE")
    assert used == here.of("ConfigMap").keys()


# --- who may talk to whom -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Peer:
    """One end of a connection: a pod, or an address outside of the cluster."""

    pod: Mapping[str, str] = field(default_factory=dict)
    namespace: str = ""
    namespace_labels: Mapping[str, str] = field(default_factory=dict)
    address: str | None = None


OURS = "llmsched"


def pod(labels: Mapping[str, str], namespace: str = OURS, **more: str) -> Peer:
    return Peer(labels, namespace, {"kubernetes.io/metadata.name": namespace, **more})


def is_meant(rule: Object, peer: Peer) -> bool:
    """Whether an entry of `from` or `to` is about that peer."""
    if "ipBlock" in rule:
        block = rule["ipBlock"]
        if peer.address is None or ip_address(peer.address) not in ip_network(block["cidr"]):
            return False
        return not any(ip_address(peer.address) in ip_network(hole) for hole in block.get("except", []))
    if peer.address is not None:
        return False
    if "namespaceSelector" in rule:
        is_there = matches(rule["namespaceSelector"], peer.namespace_labels)
    else:
        is_there = peer.namespace == OURS
    return is_there and matches(rule.get("podSelector", {}), peer.pod)


def allows(here: Installation, side: str, own: Peer, other: Peer, port: int, protocol: str = "TCP") -> bool:
    """Whether the policies of our namespace let `own`, a pod there, talk to `other` (Egress) or hear it (Ingress)."""
    about = [p["spec"] for p in here.of("NetworkPolicy").values() if matches(p["spec"]["podSelector"], own.pod)]
    about = [spec for spec in about if side in spec["policyTypes"]]
    where = "from" if side == "Ingress" else "to"
    rules = [rule for spec in about for rule in spec.get(side.lower(), [])]
    return not about or any(
        {"protocol": protocol, "port": port} in rule["ports"] and any(is_meant(peer, other) for peer in rule[where])
        for rule in rules
    )


def connects(here: Installation, one: Peer, other: Peer, port: int) -> bool:
    """Whether `one` may open a connection to `other`."""
    return (one.namespace != OURS or allows(here, "Egress", one, other, port)) and (
        other.namespace != OURS or allows(here, "Ingress", other, one, port)
    )


GATEWAY_POD, ENGINE_POD, STRANGER = pod(GATEWAY), pod(ENGINE), pod({"app": "stranger"})


@each
def test_gateways_are_reached_by_clients_and_engines_by_gateways_alone(here: Installation) -> None:
    client = pod({}, "agents", **{"llmsched-client": "true"})
    elsewhere = pod(GATEWAY, "elsewhere")
    assert connects(here, client, GATEWAY_POD, 8000)
    assert not connects(here, client, GATEWAY_POD, 22)
    assert not connects(here, client, ENGINE_POD, 8000)
    assert not connects(here, elsewhere, GATEWAY_POD, 8000)
    assert connects(here, GATEWAY_POD, ENGINE_POD, 8000)
    assert not connects(here, elsewhere, ENGINE_POD, 8000)
    assert not connects(here, STRANGER, ENGINE_POD, 8000)
    assert not connects(here, ENGINE_POD, ENGINE_POD, 8000)
    assert not connects(here, ENGINE_POD, GATEWAY_POD, 8000)
    # A pod that no policy is about but the one for everybody.
    assert not connects(here, client, STRANGER, 8000)
    assert not connects(here, STRANGER, Peer(address="8.8.8.8"), 443)


@each
def test_gateways_reach_each_other_and_the_database_where_there_are_several(here: Installation) -> None:
    several = here.overlay == "postgres"
    database = re.search(r"@[\w-]+\.([\w-]+):(\d+)/", example_secrets()["llmsched"]["LLMSCHED_STORE"])
    assert database is not None
    assert connects(here, GATEWAY_POD, GATEWAY_POD, 8000) is several
    assert connects(here, GATEWAY_POD, pod({}, database[1]), int(database[2])) is several
    assert not connects(here, ENGINE_POD, pod({}, database[1]), int(database[2]))


@each
def test_everybody_may_ask_for_names(here: Installation) -> None:
    dns = pod({"k8s-app": "kube-dns"}, "kube-system")
    for own in (GATEWAY_POD, ENGINE_POD):
        assert allows(here, "Egress", own, dns, 53, "UDP")
        assert allows(here, "Egress", own, dns, 53)
        assert not allows(here, "Egress", own, dns, 9153)


#: Some of each kind that `is_public` tells apart.
ADDRESSES = [
    *("8.8.8.8", "1.1.1.1", "203.0.114.1", "2606:4700::1111"),
    *("10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1", "169.254.169.254", "127.0.0.1"),
    *("0.0.0.1", "224.0.0.1", "::1", "fc00::1", "fe80::1"),
]


@pytest.mark.parametrize("address", ADDRESSES)
def test_the_web_is_public_addresses_unless_private_callbacks_are_allowed(address: str) -> None:
    public, there = is_public(ip_address(address)), Peer(address=address)
    for port in (80, 443):
        assert connects(installed("postgres"), GATEWAY_POD, there, port) is public
    assert connects(installed("sqlite"), ENGINE_POD, there, 443) is public  # to download weights
    assert not connects(installed("sqlite"), ENGINE_POD, there, 80)
    assert not connects(installed("sqlite"), GATEWAY_POD, there, 22)

    is_private = any(ip_address(address) in net for net in map(ip_network, PRIVATE))
    assert connects(installed("sqlite", "private-callbacks"), GATEWAY_POD, there, 443) is (public or is_private)


PRIVATE = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")


def test_private_callbacks_are_a_setting_and_a_policy() -> None:
    assert settings_of(installed("sqlite"), "llmsched").callback_private is False
    assert settings_of(installed("sqlite", "private-callbacks"), "llmsched").callback_private is True


def test_traces_go_to_the_collector_that_the_settings_name() -> None:
    here = installed("sqlite", "tracing")
    endpoint = re.fullmatch(
        r"http://[\w-]+\.([\w-]+):(\d+)", environment(here, "llmsched")["OTEL_EXPORTER_OTLP_ENDPOINT"]
    )
    assert endpoint is not None
    collector, port = pod({}, endpoint[1]), int(endpoint[2])
    assert connects(here, GATEWAY_POD, collector, port)
    assert not connects(installed("sqlite"), GATEWAY_POD, collector, port)


# --- monitoring and scaling ---------------------------------------------------------------------------------


def test_service_monitor_scrapes_every_service_under_the_names_the_alerts_use() -> None:
    here = installed("postgres", "monitoring")
    monitor = here.of("ServiceMonitor")["llmsched"]
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    spec = monitor["spec"]
    (endpoint,) = spec["endpoints"]
    assert spec.keys() <= MONITOR_FIELDS
    assert endpoint.keys() <= ENDPOINT_FIELDS
    services = here.of("Service").values()
    assert all(matches(spec["selector"], service["metadata"]["labels"]) for service in services)
    assert {service["metadata"]["labels"][spec["jobLabel"]] for service in services} == {"llmsched", "vllm"}
    assert all(endpoint["port"] in {port["name"] for port in service["spec"]["ports"]} for service in services)
    assert endpoint["path"] in SERVICE_PATHS & VLLM_PATHS
    prometheus = pod({}, "monitoring")
    for own in (GATEWAY_POD, ENGINE_POD):
        assert connects(here, prometheus, own, 8000)
        assert not connects(installed("postgres"), prometheus, own, 8000)


def adapter_rules() -> dict[str, Object]:
    """By the metric they are of."""
    (values,) = documents(KUBERNETES / "components/autoscaling/prometheus-adapter.values.yaml")
    return {re.match(r"\w+", rule["seriesQuery"])[0]: rule for rule in values["rules"]["external"]}  # type: ignore[index]


def external_metrics(here: Installation) -> Iterator[tuple[str, dict[str, str], float]]:
    """Name, labels and wanted average of each metric of the autoscaler."""
    for metric in here.of("HorizontalPodAutoscaler")["engine"]["spec"]["metrics"]:
        (name, target) = (metric["external"][key] for key in ("metric", "target"))
        assert (metric["type"], target["type"]) == ("External", "AverageValue")
        yield name["name"], name.get("selector", {}).get("matchLabels", {}), quantity(target["averageValue"])


@pytest.mark.parametrize("overlay", ["sqlite", "postgres"])
def test_autoscaler_counts_engines_by_what_waits_and_what_runs(overlay: str) -> None:
    here = installed(overlay, "autoscaling")
    spec = here.of("HorizontalPodAutoscaler")["engine"]["spec"]
    target = here.of("StatefulSet")["engine"]
    assert spec["scaleTargetRef"] == {"apiVersion": target["apiVersion"], "kind": target["kind"], "name": "engine"}
    assert "replicas" not in target["spec"]  # kubectl apply would set it again
    assert 1 <= spec["minReplicas"] < spec["maxReplicas"]
    rules, slots = adapter_rules(), int(option(here, "max-num-seqs"))
    metrics = {name: (labels, average) for name, labels, average in external_metrics(here)}
    assert metrics.keys() == rules.keys() == {"llmsched_ready_tasks", "llmsched_running_tasks"}
    for name, (labels, average) in metrics.items():
        assert labels.keys() <= CONTRACT[name]
        assert 0 < average < slots
    (engines,) = settings_of(here, "llmsched").engines
    assert metrics["llmsched_ready_tasks"][0] == {"pool": engines.pool}
    # Ten minutes for an engine to drain before the next one is stopped.
    (slow,) = spec["behavior"]["scaleDown"]["policies"]
    assert (slow["value"], slow["periodSeconds"]) == (1, here.pod("engine")["terminationGracePeriodSeconds"])


def test_adapter_asks_prometheus_for_metrics_and_labels_that_exist() -> None:
    for name, rule in adapter_rules().items():
        assert rule["resources"] == {"overrides": {"namespace": {"resource": "namespace"}}}
        assert 'namespace!=""' in rule["seriesQuery"]
        query = rule["metricsQuery"]
        assert "<<.Series>>{<<.LabelMatchers>>" in query
        assert set(re.findall(r'(\w+)(?:=~|!=)"', query + rule["seriesQuery"])) <= CONTRACT[name] | {"namespace"}
        # Of several gateways one has the tasks: whatever is added up is added up within one of them.
        assert query.startswith("max(")
        assert "sum(" not in query


def test_adapter_counts_the_engines_and_not_the_workers() -> None:
    """Engines are called after their name and address, workers `workers-…`."""
    host = re.match(r"http://([\w-]+)", settings_of(installed("sqlite"), "llmsched").engines[0].url)
    assert host is not None
    query = adapter_rules()["llmsched_running_tasks"]["metricsQuery"]
    (pattern,) = re.findall(r'executor=~"([^"]+)"', query)
    assert re.fullmatch(pattern, f"{host[1]}-10.0.3.7")
    assert not re.fullmatch(pattern, "workers-cpu")


@needs_promtool
def test_promtool_parses_the_queries_of_the_adapter(tmp_path: Path) -> None:
    queries = [
        rule["metricsQuery"].replace("<<.Series>>", name).replace("<<.LabelMatchers>>", 'namespace="llmsched"')
        for name, rule in adapter_rules().items()
    ]
    rules = [{"record": f"query:{i}", "expr": query} for i, query in enumerate(queries)]
    (tmp_path / "queries.yml").write_text(yaml.safe_dump({"groups": [{"name": "adapter", "rules": rules}]}))
    promtool("check", "rules", "queries.yml", folder=tmp_path)
