"""The public checkers over everything in deploy/: each would name a file, a line and a fault."""

import pytest

from deploy_paths import BASE, MONITORING, ROOT

SCRIPTS = sorted([*ROOT.glob("deploy/*.sh"), *ROOT.glob("tests/**/*.sh"), ROOT / ".ci" / "run"])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(run_tool, script):
    result = run_tool("shellcheck", "-x", script)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script_is_executable_unless_it_is_sourced(script):
    sourced = script.name == "common.sh"
    assert bool(script.stat().st_mode & 0o111) != sourced
    assert script.read_text().startswith("#!/usr/bin/env bash\n") != sourced


def test_hadolint_finds_nothing(run_tool):
    result = run_tool("hadolint", "Dockerfile")
    assert result.returncode == 0 and not result.stdout, result.stdout


def test_yamllint_finds_nothing(run_tool):
    result = run_tool("yamllint", "-c", ".yamllint.yaml", "--strict", "deploy")
    assert result.returncode == 0, result.stdout


def test_manifests_fit_the_kubernetes_schemas(run_tool):
    """The tool only warns, with code 0, about kinds it has no schema for: those are named here."""
    without_schema = {"ServiceMonitor"}
    files = [f for folder in (BASE, MONITORING) for f in sorted(folder.glob("*.yaml"))
             if f.name not in ("kustomization.yaml", "config.yaml")]
    result = run_tool("kubernetes-validate", "--strict", *files)
    assert result.returncode == 0, result.stdout
    warnings = [line for line in result.stdout.splitlines() if not line.startswith("INFO")]
    unexpected = [w for w in warnings if not any(f"kind {kind} " in w for kind in without_schema)]
    assert not unexpected, unexpected
    assert result.stdout.count("INFO") >= 5, "the tool looked at fewer objects than there are"


def test_a_broken_manifest_is_found(run_tool, tmp_path):
    text = (BASE / "deployment.yaml").read_text()
    broken = tmp_path / "deployment.yaml"
    broken.write_text(text.replace("failureThreshold: 60", "failureTreshold: 60"))
    assert broken.read_text() != text
    assert run_tool("kubernetes-validate", "--strict", broken).returncode != 0


def test_alerts_are_well_formed(run_tool):
    result = run_tool("promtool", "check", "rules", "deploy/prometheus/alerts.yaml")
    assert result.returncode == 0, result.stdout


def test_alerts_fire_when_they_should_and_only_then(run_tool):
    result = run_tool("promtool", "test", "rules", "deploy/prometheus/alerts_test.yaml")
    assert result.returncode == 0, result.stdout
