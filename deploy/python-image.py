"""Writes an image with this Python, its standard library, its packages and a shell, as a tar archive on the standard
output.

The tests run Python in this image: it needs no registry, and has the version of the Python that runs this script.
Usage: target/tools/sdk/bin/python deploy/python-image.py [--packages] | docker import - gpubnb/python:3.12
With --packages, the packages that are installed beside this Python are in the image, too.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

# Parts of the standard library and of packages that no test needs.
LEFT_OUT = {"__pycache__", "dist-packages", "ensurepip", "idlelib", "lib2to3", "site-packages", "test"}
LEFT_OUT |= {"tests", "tkinter"}
# Programs beside Python.
PROGRAMS = ["sh", "bash", "cat", "cp", "find", "head", "mkdir"]
PACKAGES = Path("/usr/local/lib/packages")


def files_below(root: Path) -> list[Path]:
    found = []
    for directory, below, files in os.walk(root):
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
    programs = [Path(found) for name in PROGRAMS if (found := shutil.which(name))]
    standard_library = files_below(Path(sysconfig.get_path("stdlib")))
    packages = Path(sysconfig.get_path("purelib"))
    installed = files_below(packages) if "--packages" in sys.argv else []
    modules = [path for path in [*standard_library, *installed] if path.suffix == ".so" or path.name.startswith("ffmpeg-")]
    needed = set().union(*map(libraries, [python, *programs, *modules]))
    files = {python, *programs, *standard_library} | {path for path in needed if packages not in path.parents}
    places = {path: path for path in files} | {path: PACKAGES / path.relative_to(packages) for path in installed}
    if installed:
        shared = Path(sys.prefix) / "share"
        places |= {path: Path("/usr/local/share") / path.relative_to(shared) for path in files_below(shared)}
    links = {f"usr/local/bin/{name}": python for name in ("python", "python3")}
    links |= {f"usr/local/bin/{path.name}": path for path in programs} | {"bin/sh": programs[0]}
    with tarfile.open(fileobj=sys.stdout.buffer, mode="w|") as archive:
        for path, place in sorted(places.items(), key=lambda pair: pair[1]):
            archive.add(path.resolve(), arcname=str(place), recursive=False, filter=plain)
        for name, target in links.items():
            if Path("/", name) in files:
                continue
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, str(target)
            archive.addfile(link)
        for name in ("data", "input", "output", "scratch", "tmp"):
            directory = tarfile.TarInfo(name)
            directory.type, directory.mode = tarfile.DIRTYPE, 0o777
            archive.addfile(directory)


if __name__ == "__main__":
    main()
