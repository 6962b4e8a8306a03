"""A disk of a few megabytes that a test can fill to its last byte."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, num_bytes: int) -> Iterator[Path]:
    """The folder, made a disk of that size until the block ends.

    Only root can mount, and only a real disk is full as a disk is: a skip elsewhere, which is a failure in CI.
    """
    folder.mkdir(parents=True)
    mounted = _as_root("mount", "-t", "tmpfs", "-o", f"size={num_bytes},mode=777", "tmpfs", str(folder))
    if mounted.returncode:
        pytest.skip(f"needs to mount a small disk, as root or by sudo: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        assert _as_root("umount", "--lazy", str(folder)).returncode == 0


def _as_root(*command: str) -> subprocess.CompletedProcess[str]:
    sudo = () if os.geteuid() == 0 else ("sudo", "-n")
    return subprocess.run([*sudo, *command], capture_output=True, text=True, check=False)


def leave_free(disk: Path, num_bytes: int, name: str = "ballast") -> Path:
    """A file that takes all of the disk but so many bytes; they come back when it is deleted."""
    ballast = disk / name
    with ballast.open("wb") as file:
        found = os.statvfs(disk)
        os.posix_fallocate(file.fileno(), 0, found.f_bavail * found.f_frsize - num_bytes)
    return ballast
