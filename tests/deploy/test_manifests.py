"""What no checker knows: the manifests against the server's own behaviour and settings."""

import re

import pytest
import yaml

from deploy_paths import BASE, MONITORING, ROOT

HEALTH_NAMES = {"readiness", "liveness", "morphserve.v1.Inference", "morphserve.v1.Models"}


def container(deployment):
    containers = deployment["spec"]["template"]["spec"]["containers"]
    assert len(containers) == 1
    return containers[0]


def port_of(address):
    return int(address.rsplit(":", 1)[1])


def test_grace_period_covers_withdrawal_and_drain(deployment, pod_config):
    drain = pod_config["drain"]
    grace = deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace == drain["withdraw_s"] + drain["timeout_s"] + 15


def test_withdrawal_outlasts_the_readiness_probe(deployment, pod_config):
    """Otherwise a pod refuses requests that a balancer still sends to it."""
    probe = container(deployment)["readinessProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] < pod_config["drain"]["withdraw_s"]


@pytest.mark.parametrize("kind,service,worst_s", [
    ("startupProbe", "readiness", 600), ("livenessProbe", "liveness", 30),
    ("readinessProbe", "readiness", 4)])
def test_probes_ask_for_names_the_server_knows(deployment, pod_config, kind, service, worst_s):
    probe = container(deployment)[kind]
    assert probe["grpc"] == {"port": port_of(pod_config["listen"]["inference"]), "service": service}
    assert service in HEALTH_NAMES
    assert probe["periodSeconds"] * probe["failureThreshold"] == worst_s
    source = "".join(p.read_text() for p in (ROOT / "server").glob("*.cc"))
    assert f'"{service}"' in source, f"no source of the server names health service {service}"


def test_health_check_of_the_image_asks_the_same_server(pod_config):
    dockerfile = (ROOT / "Dockerfile").read_text()
    asked = re.search(r'--probe=127\.0\.0\.1:(\d+),(\w+)"', dockerfile)
    assert asked and asked.group(2) in HEALTH_NAMES
    assert int(asked.group(1)) == port_of(pod_config["listen"]["inference"])


def test_rollout_waits_longer_than_loading_may_take(deployment):
    probe = container(deployment)["startupProbe"]
    loading = probe["periodSeconds"] * probe["failureThreshold"]
    assert deployment["spec"]["progressDeadlineSeconds"] > loading
    assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}


def test_pod_runs_without_privileges(deployment):
    pod = deployment["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 65532
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert not any(pod.get(key) for key in ("hostNetwork", "hostPID", "hostIPC"))
    assert container(deployment)["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]}}
    assert all(m.get("readOnly") for m in container(deployment)["volumeMounts"])


def test_image_runs_as_the_same_user(deployment):
    user = deployment["spec"]["template"]["spec"]["securityContext"]["runAsUser"]
    dockerfile = (ROOT / "Dockerfile").read_text()
    runtime = dockerfile.split(" AS runtime", 1)[1]
    assert f"USER {user}:{user}" in runtime
    assert 'ENTRYPOINT ["/usr/local/bin/morphserve"]' in runtime, "not the exec form"
    assert "gguf" not in runtime and "--no-model" in dockerfile, "the image must hold no model"


def test_image_installs_what_the_script_lists():
    """One list of packages: an apt-get in the Dockerfile would be a second one."""
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert "apt-get" not in dockerfile
    assert "deploy/install_packages.sh --no-model" in dockerfile
    assert "install_packages.sh --runtime" in dockerfile


def test_image_is_built_from_every_folder_that_the_build_adds():
    """A new library's folder would be missing in the image only, where nobody looks first."""
    dockerfile = (ROOT / "Dockerfile").read_text()
    build = dockerfile.split(" AS build", 1)[1].split("FROM ", 1)[0]
    added = re.findall(r"add_subdirectory\((\w+)\)", (ROOT / "CMakeLists.txt").read_text())
    missing = [f for f in added if f != "tests" and f"COPY {f} {f}\n" not in build]
    assert added and not missing, f"the Dockerfile does not copy {missing}"


def test_image_context_holds_the_data_that_tests_read():
    """Files that .dockerignore drops by their ending are let back in where the tree has some."""
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for suffix in ("gguf", "safetensors"):
        for folder in ("tests/golden", "deploy/models"):
            if any((ROOT / folder).rglob(f"*.{suffix}")):
                assert any(line.startswith(f"!{folder}/") and line.endswith(f"*.{suffix}")
                           for line in ignored), f"*.{suffix} of {folder} is not in the image"


def test_resources_are_bounded(deployment):
    resources = container(deployment)["resources"]
    for kind in ("requests", "limits"):
        assert set(resources[kind]) == {"cpu", "memory"}
    assert re.fullmatch(r"\d+", resources["limits"]["cpu"]), "a fractional quota stops spinning"


def test_configuration_reaches_the_pod(deployment, pod_config):
    pod = deployment["spec"]["template"]["spec"]
    mounts = {m["name"]: m["mountPath"] for m in container(deployment)["volumeMounts"]}
    assert container(deployment)["args"] == [f"--config={mounts['config']}/config.yaml"]
    assert pod_config["model"]["path"].startswith(mounts["models"] + "/")
    generated = yaml.safe_load((BASE / "kustomization.yaml").read_text())["configMapGenerator"]
    config_volume = next(v for v in pod["volumes"] if v["name"] == "config")
    assert [g["name"] for g in generated] == [config_volume["configMap"]["name"]]


def test_listeners_match_container_ports(deployment, pod_config):
    ports = {p["name"]: p["containerPort"] for p in container(deployment)["ports"]}
    assert ports == {"grpc": port_of(pod_config["listen"]["inference"]),
                     "http": port_of(pod_config["listen"]["http"])}
    assert pod_config["listen"]["admin"].startswith("127.0.0.1:"), "admin must stay in the pod"
    assert pod_config["security"]["allow_insecure"] is True, "plain text is said aloud"


def test_services_find_the_pods_and_their_ports(manifests, deployment):
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    ports = {p["name"] for p in container(deployment)["ports"]}
    inference = manifests["Service", "morphserve"]["spec"]
    metrics = manifests["Service", "morphserve-metrics"]["spec"]
    assert inference["clusterIP"] == "None", "gRPC is balanced by clients: headless"
    for spec in (inference, metrics):
        assert spec["selector"].items() <= labels.items()
        assert {p["targetPort"] for p in spec["ports"]} <= ports
    assert not [n for k, n in manifests if k == "Service" and "admin" in n]


def test_disruption_budget_lets_one_go_at_a_time(manifests, deployment):
    spec = manifests["PodDisruptionBudget", "morphserve"]["spec"]
    assert spec["maxUnavailable"] == 1 and "minAvailable" not in spec
    assert spec["selector"] == deployment["spec"]["selector"]
    assert deployment["spec"]["replicas"] > 1


def test_network_policy_opens_only_two_doors(manifests, pod_config):
    spec = manifests["NetworkPolicy", "morphserve"]["spec"]
    assert set(spec["policyTypes"]) == {"Ingress", "Egress"} and spec["egress"] == []
    opened = {}
    for rule in spec["ingress"]:
        assert rule["from"], "a rule without a peer is open to everyone"
        opened.update({p["port"]: rule["from"] for p in rule["ports"]})
    assert set(opened) == {port_of(pod_config["listen"]["inference"]),
                           port_of(pod_config["listen"]["http"])}


def test_service_monitor_scrapes_the_metrics_service(manifests):
    """No schema of this kind is at hand: the fields that matter are asserted."""
    monitor = manifests["ServiceMonitor", "morphserve"]
    service = manifests["Service", "morphserve-metrics"]
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    assert set(monitor["spec"]) == {"selector", "endpoints"}
    wanted = monitor["spec"]["selector"]["matchLabels"]
    assert wanted.items() <= service["metadata"]["labels"].items()
    assert not wanted.items() <= manifests["Service", "morphserve"]["metadata"]["labels"].items()
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["port"] in {p["name"] for p in service["spec"]["ports"]}
    assert endpoint["path"] == "/metrics" and endpoint["interval"] == "15s"


def test_every_manifest_is_listed():
    for folder in (BASE, MONITORING):
        kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
        files = {f for g in kustomization.get("configMapGenerator", []) for f in g["files"]}
        on_disk = {f.name for f in folder.glob("*.yaml")} - {"kustomization.yaml"}
        assert on_disk == set(kustomization["resources"]) | files
