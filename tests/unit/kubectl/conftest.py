"""A kubectl on PATH for each test that asks for one."""

import os
from pathlib import Path

import pytest
from unit.kubectl.fake import FakeKubectl


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeKubectl:
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")
    monkeypatch.setenv("COLUMNS", "80")
    return FakeKubectl(tmp_path)
