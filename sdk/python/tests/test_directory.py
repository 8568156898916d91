"""Directories: what is uploaded and what stays at home. The rules are those of `cli/src/directory.rs`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpubnb import ChangedFile, InvalidDirectory
from gpubnb._directory import MAX_FILE_BYTES, Dataset, of_code, of_data, of_memory, packs
from gpubnb._ids import derived_id, is_id, new_batch_id, new_id
from gpubnb.models import ContentRange


def write(root: Path, files: dict[str, str]) -> None:
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)


def paths(dataset: Dataset) -> list[str]:
    return [file["path"] for file in dataset.files]


def test_ignored_files_are_left_out_and_hidden_files_links_and_programs_are_kept(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            ".gitignore": "*.pyc\n/venv/\n",
            ".gpubnbignore": "data/\n!keep.pyc\n",
            "train.py": "print()",
            "lib/a.pyc": "x",
            "keep.pyc": "x",
            "venv/bin/python": "x",
            "data/large.bin": "x",
            ".git/config": "x",
            ".config/settings": "x",
            "deep/.gitignore": "local\n!*.pyc",
            "deep/local": "x",
            "deep/b.pyc": "x",
            "run.sh": "#!/bin/sh",
        },
    )
    (tmp_path / "run.sh").chmod(0o755)
    (tmp_path / "latest").symlink_to("train.py")
    code = of_code(tmp_path)
    assert paths(code) == [
        ".config/settings", ".gitignore", ".gpubnbignore", "deep/.gitignore", "deep/b.pyc", "keep.pyc", "run.sh",
        "train.py",
    ]  # fmt: skip
    assert [file["path"] for file in code.files if file["exec"]] == ["run.sh"]
    assert code.links == [{"path": "latest", "target": "train.py"}]
    data = paths(of_data(tmp_path))
    assert "lib/a.pyc" in data
    assert "data/large.bin" not in data


@pytest.mark.parametrize(
    ("rules", "kept"),
    [
        ({".gitignore": "data/\n*.key\n", ".gpubnbignore": "!data/\n"}, ["data/a.py", "src/a.py", "src/deep/b.txt"]),
        ({".gitignore": "*\n!*/\n!*.py\n"}, ["data/a.py", "src/a.py"]),
        ({".gitignore": "*\n!.gitignore\n!src\n!data/**\n"}, []),
        ({".gitignore": "{data,src}\n"}, ["top.key"]),
        ({".gitignore": "*.{py,txt}\n"}, ["data/x.key", "top.key"]),
        ({".gitignore": "!\n\ufeff\n[\n/src\n"}, ["data/a.py", "data/x.key", "top.key"]),
        ({".gitignore": "src/*\n!src/deep\n"}, ["data/a.py", "data/x.key", "src/deep/b.txt", "top.key"]),
        ({".gitignore": "deep/\n", "src/.gitignore": "!deep/\n*.py\n"},
         ["data/a.py", "data/x.key", "src/deep/b.txt", "top.key"]),
    ],
)  # fmt: skip
def test_patterns_are_read_as_the_client_reads_them(tmp_path: Path, rules: dict[str, str], kept: list[str]) -> None:
    write(tmp_path, dict.fromkeys(["data/a.py", "data/x.key", "src/a.py", "src/deep/b.txt", "top.key"], "x"))
    write(tmp_path, rules)
    assert [path for path in paths(of_code(tmp_path)) if not path.endswith("ignore")] == kept


def test_secrets_results_and_environments_stay_at_home(tmp_path: Path) -> None:
    job, root = new_id(), tmp_path / "project"
    names = [
        "main.py", ".env", ".env.local", ".env.example", "keys/id_rsa", ".aws/credentials", "venv/pyvenv.cfg",
        "venv/lib/x.py", f"{job}/model.bin", f"deep/{job}/kept.bin",
    ]  # fmt: skip
    write(root, dict.fromkeys(names, "x"))
    write(tmp_path, {".gitignore": "*"})
    code = of_code(root)
    assert paths(code) == [".env.example", f"deep/{job}/kept.bin", "main.py"]
    assert code.secrets == [".aws/credentials", ".env", ".env.local", "keys/id_rsa"]


def test_a_directory_that_no_dataset_may_have_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with pytest.raises(InvalidDirectory, match="not a directory"):
        of_code(tmp_path / "missing")
    with pytest.raises(InvalidDirectory, match="no files"):
        of_code(tmp_path)
    for name in ("a", "b", "c"):
        with (tmp_path / name).open("wb") as sparse:
            sparse.truncate(1 << 30)
    with pytest.raises(InvalidDirectory, match="3072 MiB in 3 files"):
        of_code(tmp_path)
    (tmp_path / "a").unlink()
    (tmp_path / "b").unlink()
    os.truncate(tmp_path / "c", MAX_FILE_BYTES + 1)
    with pytest.raises(InvalidDirectory, match="c has 1024 MiB"):
        of_code(tmp_path)
    (tmp_path / "c").unlink()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidDirectory, match="neither a file nor a link"):
        of_code(tmp_path)


def test_a_name_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    (tmp_path / ".gitignore").write_text("*.tmp")
    Path(os.fsdecode(bytes(tmp_path) + b"/\xff.tmp")).write_text("x")
    of_code(tmp_path)
    Path(os.fsdecode(bytes(tmp_path) + b"/\xff")).write_text("x")
    with pytest.raises(InvalidDirectory, match="UTF-8"):
        of_code(tmp_path)


def test_a_file_that_changes_is_not_sent(tmp_path: Path) -> None:
    write(tmp_path, {"a": "longer", "b": "short"})
    dataset = of_data(tmp_path)
    write(tmp_path, {"a": "short", "b": "longer"})
    for file in dataset.files:
        with pytest.raises(ChangedFile):
            list(dataset.pieces(file))


def test_contents_are_packed_within_the_bounds_of_one_request() -> None:
    dataset = of_memory({f"{number:04}": str(number).encode() for number in range(1_200)} | {"same": b"7"})
    contents = dataset.contents()
    assert [file["path"] for file in contents] == [f"{number:04}" for number in range(1_200)]
    same = of_memory({"a": b"x", "b": b"y", "c": b"x"})
    assert [file["path"] for file in same.contents()] == ["a", "b"]
    missing = [ContentRange(first=0, count=3), ContentRange(first=10, count=1_190)]
    found = list(packs(contents, missing))
    assert [(pack.start, pack.stop) for pack in found] == [(0, 3), (10, 510), (510, 1_010), (1_010, 1_200)]
    large = of_memory({str(number): bytes([number]) * (9 << 20) for number in range(3)})
    assert [len(pack) for pack in packs(large.contents(), [ContentRange(first=0, count=3)])] == [1, 1, 1]
    with pytest.raises(InvalidDirectory, match="does not have"):
        list(packs(contents, [ContentRange(first=1_199, count=2)]))


def test_ids_are_of_version_7_and_those_of_batches_end_with_zeros() -> None:
    ids = [new_id() for _ in range(100)]
    assert all(map(is_id, ids))
    assert len(set(ids)) == 100
    assert new_batch_id().endswith("00000")
    assert not is_id("0193f7a5-6c1e-4b2a-8c3d-111111111111")
    assert not is_id("x")
    parent = new_id()
    assert derived_id(parent, "a") == derived_id(parent, "a") != derived_id(parent, "b")
    assert is_id(derived_id(parent, "a"))
    assert derived_id(parent, "a")[:13] == parent[:13]
