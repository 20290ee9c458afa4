"""What `make binary` decides: symbol versions, what is left out, licences, and the bytes of the file."""

from __future__ import annotations

import os
import re
import shutil
import sys
import sysconfig
from importlib.metadata import distribution
from pathlib import Path

import pytest

from bundle import archive, elf, interpreter, notices, packages
from bundle.__main__ import checked
from bundle.errors import BuildError

PYTHON = Path(sys.executable).resolve()
TOO_OLD = (2, 2)


def wheel_files(name: str) -> tuple[tuple[int, ...], list[Path]]:
    """The oldest glibc that a wheel's tag promises, and its ELF files."""
    package = distribution(name)
    tags = [line for line in (package.read_text("WHEEL") or "").splitlines() if line.startswith("Tag: ")]
    named = [part.replace("manylinux2014_", "manylinux_2_17_") for tag in tags for part in tag.split(".")]
    promised = min(
        (int(major), int(minor))
        for part in named
        if "manylinux_" in part
        for major, minor in [part.partition("manylinux_")[2].split("_")[:2]]
    )
    files = [Path(str(package.locate_file(file))) for file in package.files or [] if ".so" in file.name]
    return promised, files


@pytest.mark.parametrize("name", ["pydantic-core", "pillow", "rpds-py", "grpcio", "protobuf"])
def test_wheels_need_no_later_glibc_than_their_tag_says(name: str) -> None:
    """What the parser finds agrees with the tools that named these files."""
    promised, files = wheel_files(name)
    found = [one for file in files if (one := elf.read(file)) is not None]
    assert found
    assert TOO_OLD <= elf.glibc(found) <= promised


def test_a_program_names_its_loader_and_libraries() -> None:
    """The loader is what a system without glibc lacks."""
    python = elf.read(PYTHON)
    assert python is not None
    assert python.loader is not None
    assert Path(python.loader).exists()
    assert "libc.so.6" in python.needed
    assert any(library == "libc.so.6" for library, _ in python.versions)


def test_other_files_are_no_elf(tmp_path: Path) -> None:
    """Only 64-bit little-endian ELF is read."""
    for content in (b"", b"\x7fELF\x01", b"#!/bin/sh\n"):
        (tmp_path / "file").write_bytes(content)
        assert elf.read(tmp_path / "file") is None
    assert elf.glibc([]) == (0,)


def test_versions_compare_as_numbers() -> None:
    """2.4 came before 2.31."""
    assert elf.version_of("2.4") < elf.version_of("2.31") < elf.version_of("2.31.1")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with a program in it, as the build leaves one."""
    program = interpreter.program(tmp_path / "tree")
    program.parent.mkdir(parents=True)
    shutil.copy2(PYTHON, program)
    for name in (elf.read(PYTHON) or elf.Elf(None, (), frozenset())).needed:
        if name not in interpreter.HOSTS:
            (tmp_path / "tree" / "lib").mkdir(exist_ok=True)
            shutil.copy2(PYTHON, tmp_path / "tree" / "lib" / name)
    return tmp_path / "tree"


def test_the_build_says_what_the_file_needs(tree: Path) -> None:
    """The stub repeats it where the program cannot run."""
    facts = checked(tree, None)
    assert elf.version_of(facts["GLIBC"]) > TOO_OLD
    assert Path(facts["LOADER"]).exists()


def test_too_new_a_glibc_fails_the_build(tree: Path) -> None:
    """With the files that need it, for they tell which package to pin or which base to take."""
    with pytest.raises(BuildError, match=r"2\.2 is allowed; too new are .*sd-worker"):
        checked(tree, TOO_OLD)


def test_a_library_that_hosts_may_lack_fails_the_build(tree: Path) -> None:
    """It would fail on somebody's node, at the import."""
    module = next(Path(sysconfig.get_path("stdlib"), "lib-dynload").glob("_ssl.*.so"))
    shutil.copy2(module, tree / "lib" / module.name)
    with pytest.raises(BuildError, match=r"hosts may lack: libcrypto\.so\.\d"):
        checked(tree, None)


def test_only_the_services_we_use_stay(tmp_path: Path) -> None:
    """One that is gone after an update of the library is missed here, and not by a node."""
    for name in ("ec2", "s3", "sts"):
        (tmp_path / name).mkdir()
    (tmp_path / "endpoints.json").touch()
    packages.prune(tmp_path, ("s3", "sts"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["endpoints.json", "s3", "sts"]
    with pytest.raises(BuildError, match="no sqs"):
        packages.prune(tmp_path, ("s3", "sqs"))


def package(site: Path, name: str, licence: str | None) -> None:
    folder = site / f"{name.replace('-', '_')}-1.0.dist-info"
    (folder / "licenses").mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {name}\nVersion: 1.0\nLicense-Expression: MIT\n")
    if licence is not None:
        (folder / "licenses" / "LICENSE").write_text(licence)


def test_every_package_has_its_licence_in_the_notices(tmp_path: Path) -> None:
    """With Python's own and those of the libraries that it links."""
    package(tmp_path, "some-package", "Copyright of Some Body")
    text = notices.written(tmp_path, tmp_path)
    assert "some-package 1.0: MIT" in text
    assert "Copyright of Some Body" in text
    assert all(name in text for name in ("Python Software Foundation", "OpenSSL", "Julian R Seward"))


def test_what_a_package_has_linked_in_is_named_beside_it(tmp_path: Path) -> None:
    """Its own licence tells of its own code alone."""
    package(tmp_path, "grpcio", "Copyright of gRPC")
    text = notices.written(tmp_path, tmp_path)
    assert re.findall(r"^  (\S+) \(in grpcio\): (.+)$", text, re.MULTILINE) == [
        ("abseil", "Apache-2.0"),
        ("address-sorting", "BSD-3-Clause"),
        ("boringssl", "Apache-2.0"),
        ("c-ares", "MIT"),
        ("re2", "BSD-3-Clause"),
        ("utf8-range", "MIT"),
    ]
    assert all(who in text for who in ("The RE2 Authors", "Daniel Stenberg", "Yibo Cai", "The BoringSSL Authors"))
    package(tmp_path, "another", "Copyright of Some Body")
    shutil.rmtree(tmp_path / "grpcio-1.0.dist-info")
    assert "c-ares" not in notices.written(tmp_path, tmp_path)


def test_a_package_without_a_licence_fails_the_build(tmp_path: Path) -> None:
    """Named, so that its text can be found and kept here."""
    package(tmp_path, "some-package", "Copyright of Some Body")
    package(tmp_path, "bare-package", None)
    with pytest.raises(BuildError, match="for bare-package: put"):
        notices.written(tmp_path, tmp_path)


def test_a_shared_library_without_a_licence_fails_the_build(tree: Path) -> None:
    """What a new Python links is noticed."""
    shutil.copy2(PYTHON, tree / "lib" / "libnovel.so.1")
    with pytest.raises(BuildError, match=r"for libnovel\.so\.1"):
        notices.written(tree, tree)


def test_the_same_folder_gives_the_same_bytes(tmp_path: Path) -> None:
    """Whoever owns it and whenever it was made, so that its name says what it is."""
    for name, when in (("one", 1_000_000_000), ("two", 2_000_000_000)):
        folder = tmp_path / name / "bin"
        folder.mkdir(parents=True)
        (folder / "program").write_text("x")
        (folder / "program").chmod(0o711 if name == "one" else 0o755)
        os.utime(folder / "program", (when, when))
        archive.pack(tmp_path / name, tmp_path / f"{name}.tar.gz")
    assert (tmp_path / "one.tar.gz").read_bytes() == (tmp_path / "two.tar.gz").read_bytes()
