"""What ``make demo`` says at its end: whoever pastes it finds the programs that it names."""

import argparse
import re
import shutil
from pathlib import Path

import pytest
from demo import demo
from harness.cluster import Cluster


def said(monkeypatch: pytest.MonkeyPatch, cluster: Cluster) -> str:
    monkeypatch.setattr(demo, "page_address", lambda _: "http://10.0.0.1:8081/")
    options = argparse.Namespace(context=cluster.context)
    return demo.what_next(cluster, options, "http://10.0.0.2:8080", "products", "search")


def test_all_that_is_to_be_typed_is_on_the_path_that_is_given(monkeypatch: pytest.MonkeyPatch):
    """The path had kubectl and not its plugin: `kubectl rerank` was an unknown command."""
    text = said(monkeypatch, Cluster(Path("/kubeconfig"), "demo"))
    (path,) = re.findall(r"^  export KUBECONFIG=/kubeconfig PATH=(\S+):\$PATH$", text, re.MULTILINE)
    assert "kubectl rerank status products -n search" in text
    assert "kubectl events --for reranker/products -n search" in text
    for program in ("kubectl", "kubectl-rerank"):
        assert shutil.which(program, path=path) is not None, program


def test_on_a_cluster_of_ones_own_the_plugin_is_told_too(monkeypatch: pytest.MonkeyPatch):
    text = said(monkeypatch, Cluster(Path("/kubeconfig"), context="mine"))
    (path,) = re.findall(r"^  export PATH=(\S+):\$PATH ", text, re.MULTILINE)
    assert shutil.which("kubectl-rerank", path=path) is not None
    assert "kubectl --context mine rerank" not in text, "kubectl takes no flag before a plugin's name"
    assert "kubectl rerank status products -n search --context mine" in text
