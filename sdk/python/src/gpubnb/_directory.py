"""A directory on this computer as a dataset: the files that belong to it, and their hashes.

The rules are those of `gpubnb run DIR` and `gpubnb data push`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

from ._ids import is_id
from ._text import plain
from .errors import ChangedFile, InvalidDirectory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .models import ContentRange
    from .requests import DatasetFile, DatasetLink

IGNORE_FILE = ".gpubnbignore"
MAX_FILES, MAX_BYTES, MAX_FILE_BYTES = 10_000, 2 << 30, 1 << 30
# The most contents, and the most bytes, of one upload of several contents.
PACK_FILES, PACK_BYTES = 500, 16 << 20
SECRETS = {".netrc", ".git-credentials", ".pypirc", ".npmrc", "id_rsa", "id_ecdsa", "id_ed25519"}


@dataclass
class Dataset:
    """Files that become a dataset: from a directory (`root`), or from memory (`contents`, by path)."""

    files: list[DatasetFile]
    links: list[DatasetLink] = field(default_factory=list)
    root: Path | None = None
    in_memory: dict[str, bytes] = field(default_factory=dict)
    # The files that were left out because they may have passwords or keys.
    secrets: list[str] = field(default_factory=list)

    def manifest(self) -> bytes:
        """The list of the files in its canonical form (`docs/api.md`)."""
        lists = {"files": self.files, "links": self.links}
        return json.dumps(lists, separators=(",", ":"), ensure_ascii=False).encode()

    def id(self) -> str:
        """The dataset's id: the SHA-256 of its manifest."""
        return hashlib.sha256(self.manifest()).hexdigest()

    def contents(self) -> list[DatasetFile]:
        """The first file with each content."""
        first: dict[str, DatasetFile] = {}
        for file in self.files:
            first.setdefault(file["sha256"], file)
        return list(first.values())

    def pieces(self, file: DatasetFile) -> Iterator[bytes]:
        """The bytes of a file, in pieces."""
        if self.root is None:
            yield self.in_memory[file["path"]]
            return
        path, left = self.root / file["path"], file["bytes"]
        with path.open("rb") as source:
            while left and (piece := source.read(min(left, 1 << 20))):
                left -= len(piece)
                yield piece
            if left or source.read(1):
                raise ChangedFile(f"{path} changes while it is uploaded: try again when it does not.")


def packs(contents: list[DatasetFile], missing: list[ContentRange]) -> Iterator[range]:
    """Groups missing contents into ranges that one request may upload."""
    for part in missing:
        start, size, end = part.first or 0, 0, (part.first or 0) + (part.count or 0)
        if end > len(contents):
            raise InvalidDirectory("The market asks for files that the directory does not have.")
        for index in range(start, end):
            size += contents[index]["bytes"]
            if index > start and (index - start == PACK_FILES or size > PACK_BYTES):
                yield range(start, index)
                start, size = index, contents[index]["bytes"]
        if start < end:
            yield range(start, end)


def of_memory(files: dict[str, bytes]) -> Dataset:
    """A dataset of these files, by path."""
    listed: list[DatasetFile] = [
        {"path": path, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(), "exec": False}
        for path, content in sorted(files.items(), key=lambda item: item[0].encode())
    ]
    return Dataset(listed, in_memory=files)


def of_code(root: str | os.PathLike[str]) -> Dataset:
    """The code of a job. What a `.gitignore` or `.gpubnbignore` in the directory names is left out, and so are outputs
    of earlier jobs, virtual environments, and files that look like secrets."""
    return _read(Path(root), is_code=True)


def of_data(root: str | os.PathLike[str]) -> Dataset:
    """Data. Only what a `.gpubnbignore` in the directory names is left out: data is often left out of Git."""
    return _read(Path(root), is_code=False)


def sha256_of(source: IO[bytes]) -> str:
    """The SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    while piece := source.read(1 << 20):
        digest.update(piece)
    return digest.hexdigest()


def _read(root: Path, *, is_code: bool) -> Dataset:
    if not root.is_dir():
        raise InvalidDirectory(f"{root} is not a directory.")
    root = root.resolve()
    found = sorted(_find(root, "", [], is_code=is_code), key=lambda path: path.encode())
    secrets = [path for path in found if is_code and _is_secret(path)]
    dataset = Dataset([], root=root, secrets=secrets)
    found = [path for path in found if path not in set(secrets)]
    _check_size(root, found)
    for path in found:
        full = root / path
        if full.is_symlink():
            link = os.readlink(full)  # noqa: PTH115 - the text, unchanged
            if _is_no_text(link):
                raise InvalidDirectory(f"The target of the link {path} is not UTF-8: leave the link out.")
            dataset.links.append({"path": path, "target": link})
            continue
        with full.open("rb") as source:
            digest, status = sha256_of(source), os.fstat(source.fileno())
        is_program = bool(status.st_mode & stat.S_IXUSR)
        dataset.files.append({"path": path, "bytes": status.st_size, "sha256": digest, "exec": is_program})
    return dataset


class _Pattern:
    """One line of a file of patterns. A pattern matches an entry itself: what is below an ignored directory is never
    looked at."""

    def __init__(self, line: str) -> None:
        regex, include = GitIgnoreSpecPattern.pattern_to_regex(line)
        self.ignores = include
        self._is_for_directories = line.rstrip().endswith("/")
        self._regex = re.compile(regex) if regex else None

    def matches(self, path: str, *, is_directory: bool) -> bool:
        if self._regex is None or (self._is_for_directories and not is_directory):
            return False
        text = path + "/" if self._is_for_directories else path
        # The group `ps_d` is the slash after the directory that the pattern names.
        ends = (
            found.end("ps_d") if found.groupdict().get("ps_d") else len(text) for found in self._regex.finditer(text)
        )
        return len(text) in ends


_ALTERNATIVES = re.compile(r"(.*?)\{([^{}]*,[^{}]*)\}(.*)")


def _lines(line: str) -> Iterator[str]:
    """A line with alternatives, such as `*.{log,tmp}`, as one line for each."""
    found = _ALTERNATIVES.fullmatch(line)
    if found is None:
        yield line
        return
    for alternative in found[2].split(","):
        yield from _lines(found[1] + alternative + found[3])


def _patterns(path: Path) -> list[_Pattern]:
    """The patterns of a file. A line that is no pattern is skipped."""
    if not path.is_file():
        return []
    patterns = []
    for line in path.read_bytes().decode("utf-8-sig", errors="replace").split("\n"):
        for single in _lines(line.removesuffix("\r")):
            with suppress(ValueError):
                patterns.append(_Pattern(single))
    return patterns


class _Rules:
    """The patterns of one directory. The patterns of a directory below it count more."""

    def __init__(self, root: Path, below: str, *, is_code: bool) -> None:
        self.below = below
        self.own = _patterns(root / below / IGNORE_FILE)
        self.git = _patterns(root / below / ".gitignore") if is_code else []

    def verdict(self, kind: str, path: str, *, is_directory: bool) -> bool | None:
        """True if a pattern ignores the entry, False if one keeps it. The last pattern that matches counts."""
        relative = path[len(self.below) :].lstrip("/")
        patterns: list[_Pattern] = getattr(self, kind)
        matching = (p.ignores for p in reversed(patterns) if p.matches(relative, is_directory=is_directory))
        return next(matching, None)


def _is_ignored(path: str, rules: list[_Rules], *, is_directory: bool) -> bool:
    for kind in ("own", "git"):
        for rule in reversed(rules):
            verdict = rule.verdict(kind, path, is_directory=is_directory)
            if verdict is not None:
                return verdict
    return False


def _find(root: Path, below: str, rules: list[_Rules], *, is_code: bool) -> Iterator[str]:
    rules = [*rules, _Rules(root, below, is_code=is_code)]
    with os.scandir(root / below) as entries:
        for entry in list(entries):
            path = f"{below}/{entry.name}" if below else entry.name
            is_directory = entry.is_dir(follow_symlinks=False)
            if entry.name == ".git" or _is_ignored(path, rules, is_directory=is_directory):
                continue
            if _is_no_text(entry.name):
                raise InvalidDirectory(f"The name of {plain(entry.path)} is not UTF-8: rename it, or leave it out.")
            if is_directory:
                is_output = not below and is_id(entry.name)
                is_environment = (Path(entry.path) / "pyvenv.cfg").exists()
                if not (is_code and (is_output or is_environment)):
                    yield from _find(root, path, rules, is_code=is_code)
            elif entry.is_symlink() or entry.is_file(follow_symlinks=False):
                yield path
            else:
                raise InvalidDirectory(f"{plain(entry.path)} is neither a file nor a link: leave it out.")


def _is_no_text(name: str) -> bool:
    return any("\ud800" <= sign <= "\udfff" for sign in name)


def _is_secret(path: str) -> bool:
    name, parts = path.rsplit("/", 1)[-1], path.split("/")
    is_environment = name == ".env" or (name.startswith(".env.") and not name.endswith(".example"))
    return is_environment or name in SECRETS or ".ssh" in parts or ".aws" in parts


def _check_size(root: Path, found: list[str]) -> None:
    sizes = {path: (root / path).lstat().st_size for path in found}
    total, advice = sum(sizes.values()), f"Name in {IGNORE_FILE} what the job does not need."
    if not found:
        raise InvalidDirectory(f"{root} has no files to upload.")
    if len(found) > MAX_FILES or total > MAX_BYTES:
        most = f"a dataset may have {MAX_BYTES >> 20} MiB in {MAX_FILES} files"
        raise InvalidDirectory(f"{root} has {total >> 20} MiB in {len(found)} files, and {most}. {advice}")
    largest = max(sizes, key=lambda path: sizes[path])
    if sizes[largest] > MAX_FILE_BYTES:
        most = f"a file may have {MAX_FILE_BYTES >> 20} MiB"
        raise InvalidDirectory(f"{largest} has {sizes[largest] >> 20} MiB, and {most}. {advice}")
