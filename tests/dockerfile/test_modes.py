"""--chmod: octal and symbolic, the latter as chmod(1) does it."""

from __future__ import annotations

import stat
import subprocess
from typing import TYPE_CHECKING

import pytest

from nbcontainer.dockerfile.modes import Chmod
from nbcontainer.errors import DockerfileError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("text", "before", "is_dir", "after"),
    [
        ("755", 0o600, False, 0o755),
        ("0755", 0o4777, True, 0o755),
        ("0000644", 0o600, False, 0o644),
        ("7777", 0o600, False, 0o7777),
        ("0", 0o777, False, 0),
        ("u=rwX,go=rX", 0o600, False, 0o644),
        ("u=rwX,go=rX", 0o600, True, 0o755),
        ("u=rwX,go=rX", 0o700, False, 0o755),
        ("u=rwx,g=u,o=g-w", 0o000, False, 0o775),
        ("+-", 0o755, False, 0o755),
    ],
)
def test_apply(text: str, before: int, is_dir: bool, after: int) -> None:
    """A mode becomes another; the file type does not matter."""
    chmod = Chmod.parse(text)
    assert chmod.apply(before, is_dir=is_dir) == after
    assert chmod.apply(before | stat.S_IFREG, is_dir=is_dir) == after


@pytest.mark.parametrize(
    "text", ["", "8", "\u0667", "10000", "77777", "u", "u=z", "x+r", "u=rw,", "u=rwg", "rwx", "u+r w"]
)
def test_refused(text: str) -> None:
    """What is neither octal nor symbolic is refused."""
    with pytest.raises(DockerfileError, match="octal"):
        Chmod.parse(text)


SYMBOLIC = [
    "a+x", "+x", "-w", "=r", "u+s", "g+s", "u-s,g-s", "+t", "a+t", "a-t", "o+t", "u+t", "go-rwx", "u=g", "g=o", "o=u",
    "u+g", "g-u", "a=X", "+X", "u=rw,g=r,o=", "ug=rwX", "a=rwxst", "u=", "=", "a-st", "ug+sx", "u=x-x+r", "o=s",
    "u+X,u-x,g+X",
]  # fmt: skip


@pytest.mark.parametrize("text", SYMBOLIC)
def test_as_chmod_does(text: str, tmp_path: Path) -> None:
    """Files and directories get what chmod(1) gives them without a umask."""
    chmod = Chmod.parse(text)
    modes = [0o000, 0o644, 0o755, 0o710, 0o4751, 0o2755, 0o1777, 0o7777, 0o100, 0o604]
    paths = []
    for mode in modes:
        for kind in ("file", "folder"):
            path = tmp_path / f"{kind}{mode:o}"
            path.mkdir() if kind == "folder" else path.touch()
            path.chmod(mode)
            paths.append((mode, kind == "folder", path))
    subprocess.run(["sh", "-c", 'umask 0; exec chmod -- "$@"', "sh", text, *(path for *_, path in paths)], check=True)
    theirs = [stat.S_IMODE(path.stat().st_mode) for *_, path in paths]
    ours = [chmod.apply(mode, is_dir=is_dir) for mode, is_dir, _ in paths]
    assert list(map(oct, ours)) == list(map(oct, theirs))
