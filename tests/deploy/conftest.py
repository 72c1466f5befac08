"""What the deploy tests share: the tree, its manifests, and the tools they call."""

import pathlib
import shutil
import subprocess
import sys

import pytest
import yaml

from deploy_paths import BASE, MONITORING, ROOT


@pytest.fixture(scope="session")
def manifests():
    """Every Kubernetes object of base and monitoring, by (kind, name)."""
    objects = {}
    for folder in (BASE, MONITORING):
        kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
        for name in kustomization["resources"]:
            for item in yaml.safe_load_all((folder / name).read_text()):
                objects[item["kind"], item["metadata"]["name"]] = item
    return objects


@pytest.fixture(scope="session")
def deployment(manifests):
    return manifests["Deployment", "morphserve"]


@pytest.fixture(scope="session")
def pod_config():
    """The settings file that the pods run with."""
    return yaml.safe_load((BASE / "config.yaml").read_text())


@pytest.fixture
def run_tool():
    """Runs a checker; skips, visibly, when install_packages.sh --tests has not been run."""

    def run(*command, **options):
        beside_python = pathlib.Path(sys.executable).parent / command[0]
        program = str(beside_python) if beside_python.exists() else shutil.which(command[0])
        if program is None:
            pytest.skip(f"{command[0]} is not installed")
        return subprocess.run([program, *map(str, command[1:])], cwd=ROOT, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120,
                              check=False, **options)

    return run
