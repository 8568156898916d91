"""Writes an image with this Python, its standard library and a shell, as a tar archive on the standard output.

The tests of the Python package run functions in this image: it has the version of the package's own Python, and it
needs no registry. Usage: python3 deploy/python-image.py | docker import - gpubnb/python:3.12
"""

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

# Parts of the standard library that no test needs.
LEFT_OUT = {"__pycache__", "dist-packages", "ensurepip", "idlelib", "lib2to3", "site-packages", "test", "tkinter"}


def standard_library() -> list[Path]:
    found = []
    for directory, below, files in os.walk(sysconfig.get_path("stdlib")):
        below[:] = [name for name in below if name not in LEFT_OUT and not name.startswith("config-")]
        found += [Path(directory) / name for name in files if not name.startswith("_tkinter")]
    return found


def libraries(program: Path) -> set[Path]:
    """The shared libraries that a program or a module needs."""
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=False).stdout
    return {Path(path) for path in re.findall(r"(/\S+) \(0x", listed)}


def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """An entry that is the same on every machine."""
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    return entry


def main() -> None:
    python = Path(sys.base_prefix) / f"bin/python{sys.version_info[0]}.{sys.version_info[1]}"
    shell, modules = Path("/bin/sh"), standard_library()
    programs = [python, shell, *(path for path in modules if path.suffix == ".so")]
    files = {python, shell, *modules}.union(*map(libraries, programs))
    with tarfile.open(fileobj=sys.stdout.buffer, mode="w|") as archive:
        for path in sorted(files):
            archive.add(path.resolve(), arcname=str(path), recursive=False, filter=plain)
        for name in ("python", "python3"):
            link = tarfile.TarInfo(f"usr/local/bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, str(python)
            archive.addfile(link)
        for name in ("data", "output", "scratch", "tmp"):
            directory = tarfile.TarInfo(name)
            directory.type, directory.mode = tarfile.DIRTYPE, 0o777
            archive.addfile(directory)


if __name__ == "__main__":
    main()
