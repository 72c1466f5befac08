"""The overlay for devices: what it changes of the base, and that nothing else got lost."""

import copy

import pytest
import yaml

from deploy_paths import BASE, GPU


def merged(base, patch):
    """A strategic merge as kustomize does it: lists of named things by their names."""
    if isinstance(base, dict) and isinstance(patch, dict):
        out = dict(base)
        for key, value in patch.items():
            out[key] = merged(base[key], value) if key in base else value
        return out
    if isinstance(base, list) and all("name" in item for item in base + patch):
        out = [copy.deepcopy(item) for item in base]
        for item in patch:
            same = [i for i, other in enumerate(out) if other["name"] == item["name"]]
            if same:
                out[same[0]] = merged(out[same[0]], item)
            else:
                out.append(item)
        return out
    return patch


@pytest.fixture(name="patched")
def fixture_patched(deployment):
    return merged(deployment, yaml.safe_load((GPU / "deployment.yaml").read_text()))


@pytest.fixture(name="config")
def fixture_config():
    return yaml.safe_load((GPU / "config.yaml").read_text())


def container(deployment):
    (only,) = deployment["spec"]["template"]["spec"]["containers"]
    return only


def test_overlay_lists_its_files_and_builds_on_the_base():
    overlay = yaml.safe_load((GPU / "kustomization.yaml").read_text())
    base = yaml.safe_load((BASE / "kustomization.yaml").read_text())
    assert overlay["resources"] == ["../base"]
    listed = {p["path"] for p in overlay["patches"]}
    listed |= {f for g in overlay["configMapGenerator"] for f in g["files"]}
    assert {f.name for f in GPU.glob("*.yaml")} - {"kustomization.yaml"} == listed
    (generated,) = overlay["configMapGenerator"]
    assert generated["name"] == base["configMapGenerator"][0]["name"]
    assert generated["behavior"] == "replace"
    assert overlay["images"] == [{"name": base["images"][0]["name"],
                                  "newTag": base["images"][0]["newTag"] + "-cuda"}]


def test_every_pod_has_a_device_and_keeps_what_the_base_gives(patched, deployment):
    resources = container(patched)["resources"]
    assert resources["requests"] == resources["limits"]
    assert resources["limits"]["nvidia.com/gpu"] == "1"
    changed = container(patched)
    before = container(deployment)
    assert set(before) <= set(changed)
    for key in set(before) - {"resources", "volumeMounts"}:
        assert changed[key] == before[key]
    assert patched["spec"]["strategy"] == {"type": "RollingUpdate",
                                           "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}
    names = [v["name"] for v in patched["spec"]["template"]["spec"]["volumes"]]
    assert names == ["config", "models", "state"]
    assert [m["name"] for m in changed["volumeMounts"]] == names


def test_the_merged_deployment_fits_the_schema(run_tool, patched, tmp_path):
    path = tmp_path / "deployment.yaml"
    path.write_text(yaml.safe_dump(patched))
    result = run_tool("kubernetes-validate", "--strict", path)
    assert result.returncode == 0, result.stdout


def test_settings_are_the_bases_and_those_of_a_device(config, pod_config, patched):
    assert config["device"]["kind"] == "cuda"
    mounts = {m["name"]: m["mountPath"] for m in container(patched)["volumeMounts"]}
    assert config["model"]["branches"].startswith(mounts["models"] + "/")
    kept = [config["morph"]["cost_cache"], config["morph"]["rankings_file"],
            config["morph"]["autopilot"]["target_file"]]
    assert all(path.startswith(mounts["state"] + "/") for path in kept)
    assert len(set(kept)) == 3
    for section, values in pod_config.items():
        assert values.items() <= config[section].items(), section
