"""Where the things are that the deploy tests look at."""

import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[2]
BASE = ROOT / "deploy" / "k8s" / "base"
GPU = ROOT / "deploy" / "k8s" / "gpu"
MONITORING = ROOT / "deploy" / "k8s" / "monitoring"
