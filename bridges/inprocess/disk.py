"""The calls by which logs reach the disk. Every write and every sync of theirs passes here."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from bridges.errors import LogInUse

if TYPE_CHECKING:
    from pathlib import Path


def write(file: int, data: bytes, position: int) -> int:
    """Write at the position, perhaps only a part, and return how many bytes."""
    return os.pwrite(file, data, position)


def sync(file: int) -> None:
    """Return when what was written to the file would survive a loss of power."""
    if sys.platform == "darwin":
        import fcntl

        fcntl.fcntl(file, fcntl.F_FULLFSYNC)  # fsync leaves it in the drive's cache there
    else:
        os.fdatasync(file)  # the size is synced with it, where it has changed; times are of no use here


def sync_folder(folder: Path) -> None:
    """Return when the names in the folder would survive a loss of power: those that came, those that went."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def rename(source: Path, target: Path) -> None:
    """Give a file, whose content is synced, its name for good."""
    source.rename(target)
    sync_folder(target.parent)


def forget_cached(path: Path) -> None:
    """Sync the file, and let what is read of it next come from the disk.

    After a failed fsync the kernel holds pages for clean that never reached the disk, and reading would find them.
    """
    file = os.open(path, os.O_RDWR)
    try:
        sync(file)
        if sys.platform == "linux":
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(file)


def make_folder(folder: Path) -> None:
    """Make the folder, and those above it, so that they stay."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def lock(folder: Path) -> int:
    """Lock the folder, and return the file to close for unlocking it. Raises `LogInUse`, naming who has it.

    The kernel lets go of the lock when its holder ends, however it ends.
    """
    import fcntl

    path = folder / "lock"
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as problem:
        holder = os.pread(file, 20, 0).decode(errors="replace").strip()
        os.close(file)
        if not isinstance(problem, BlockingIOError):
            raise
        msg = f"{folder} is open already, in process {holder or 'unknown'}: a log has one owner at a time"
        raise LogInUse(msg) from None
    os.ftruncate(file, 0)
    os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
    return file
