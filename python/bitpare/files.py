"""Read and write whole files, with errors that name the file."""

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator

Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]


def _also_value_error(kind: type[OSError]) -> type[OSError]:
    """Return a class of errors that are both of this kind and ValueErrors, like those for bad
    content."""

    def text(self: OSError) -> str:
        return str(self.args[0])

    return type(kind.__name__, (kind, ValueError), {"__module__": kind.__module__, "__str__": text})


def shown(path: Path) -> str:
    """Return a path as printable text."""
    return os.fsdecode(path).encode("utf-8", "backslashreplace").decode()


@contextlib.contextmanager
def naming(path: Path, what: str) -> Iterator[None]:
    """Add the path and the failure to an OSError in the block: "x.bin: cannot be opened: ..."."""
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error)
        made = _also_value_error(type(error))(f"{shown(path)}: {what}: {why}")
        made.errno, made.filename = error.errno, shown(path)
        raise made from error


def read_whole(path: Path) -> bytes:
    """Return the content of a file."""
    with naming(path, "cannot be opened"), open(path, "rb") as file:
        return file.read()


def write_whole(path: Path, *parts: bytes | memoryview) -> None:
    """Write a file so that it appears only once it is complete, even with several writers.

    The parts are written to a new file in the same folder, which then replaces the old one. A
    symbolic link is kept and its target replaced. An existing file keeps its mode. A device or
    a pipe is written to directly."""
    with naming(path, "cannot be opened"):
        name = os.fsdecode(path)
        before = _opened(name)
        target = os.path.realpath(name) if os.path.islink(name) else name
        mode = None
        if before is not None:
            found = os.fstat(before)
            regular, mode = stat.S_ISREG(found.st_mode), stat.S_IMODE(found.st_mode)
            if not (
                regular and os.path.exists(target)
            ):  # /dev/fd may lead to a file without a name
                with open(before, "wb") as file:
                    if regular:
                        file.truncate()
                    file.writelines(parts)
                return
            os.close(before)
        folder, last = os.path.split(target)
        if not last:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        beside = os.path.join(folder, f".{secrets.token_hex(8)}.tmp")
        # Use mode 0o666 less the umask, as open() does.
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        with naming(path, "cannot be written"):
            with open(descriptor, "wb") as file:
                if mode is not None:
                    os.fchmod(file.fileno(), mode)
                file.writelines(parts)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(beside)
        raise
    _sync_folder(folder)


def reserve(path: Path, size: int) -> None:
    """Reserve at least ``size`` bytes for a file on the disk, so that a mapping of it can be
    written.

    If the disk is full, writing to a mapped page would end the process with SIGBUS."""
    new = not os.path.lexists(path)
    try:
        with naming(path, f"cannot be given {size} bytes"), open(path, "ab") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    except BaseException:
        if new:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        raise


def _opened(path: str) -> int | None:
    """Return a descriptor of an existing file that can be written, or None if there is no file."""
    try:
        return os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        if not path:
            raise
        return None


def _sync_folder(folder: str) -> None:
    """Make the new name survive a crash, if the file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder or ".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
