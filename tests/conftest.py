"""Shared by all tests: one thread, no cache or runs outside a temporary folder, and where real data is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
# No deadline, since a busy machine is no fault; the same examples every time, so that a failure is there again.
settings.register_profile("fathom", deadline=None, derandomize=True, database=None)
settings.load_profile("fathom")


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs and caches of a test stay in its own folder."""
    monkeypatch.setenv("FATHOM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def data_folder() -> Path:
    """The folder of real data sets; the test is skipped where it is not."""
    folder = Path(os.environ.get("FATHOM_DATA", ""))
    if not os.environ.get("FATHOM_DATA") or not folder.is_dir():
        pytest.skip("FATHOM_DATA does not name a folder of data sets")
    return folder
