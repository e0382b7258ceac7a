"""Which folders of this machine a container may see."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from nbcontainer.engine.volumes import resolved_volumes
from nbcontainer.errors import InvalidOption
from nbcontainer.model import BindMount

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("where", ["below", "same", "above", "link"])
def test_store_is_no_volume(tmp_path: Path, where: str) -> None:
    """The store, what lies in it and what holds it cannot be shown to a container."""
    store = tmp_path / "store"
    (store / "containers").mkdir(parents=True)
    (tmp_path / "link").symlink_to(store / "containers")
    source = {"below": store / "containers", "same": store, "above": tmp_path, "link": tmp_path / "link"}[where]
    with pytest.raises(InvalidOption, match="hand this machine"):
        resolved_volumes((BindMount(source=str(source), target="/x"),), str(store))


def test_home_folder_as_a_volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home folder with the store in it is refused with the ways out, and free once the store lies elsewhere."""
    (tmp_path / "home/share/store").mkdir(parents=True)
    (tmp_path / "home/runtime").mkdir()
    volumes = (BindMount(source=str(tmp_path / "home"), target="/x"),)
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    with pytest.raises(InvalidOption, match=r"store \(.*share/store\); mount a subfolder .* NBCONTAINER_ROOT"):
        resolved_volumes(volumes, str(tmp_path / "home/share/store"))
    resolved_volumes(volumes, str(tmp_path / "elsewhere"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "home/runtime"))
    with pytest.raises(InvalidOption, match=r"mount a subfolder that you need$"):
        resolved_volumes(volumes, str(tmp_path / "home/share/store"))
    with pytest.raises(InvalidOption, match="keys of your notebooks"):
        resolved_volumes(volumes, str(tmp_path / "elsewhere"))


def test_neighbour_of_the_store_is_a_volume(tmp_path: Path) -> None:
    """A folder whose name begins like the store's is free."""
    (tmp_path / "storeroom").mkdir()
    (tmp_path / "store").mkdir()
    volume = BindMount(source=str(tmp_path / "storeroom"), target="/x")
    resolved_volumes((volume,), str(tmp_path / "store"))


def test_home_of_the_notebook_s_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder with the kernels' connection files is no volume."""
    (tmp_path / "runtime").mkdir()
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    with pytest.raises(InvalidOption):
        resolved_volumes((BindMount(source=os.fspath(tmp_path / "runtime"), target="/x"),), "/store")
