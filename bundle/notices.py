"""NOTICES: the licences of everything in the file, from each package's own metadata.

What has no metadata (Python, and the C libraries that it links or takes along) has its text in `licenses/`, named in
`NATIVE`; the same folder holds what a package has linked in (`LINKED`), and the text of a package that ships none.
"""

from __future__ import annotations

import platform
import re
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path, PurePath

from bundle import elf
from bundle.errors import BuildError

TEXTS = Path(__file__).with_name("licenses")
WORDS = ("licen", "copying", "notice", "authors")

NATIVE: dict[str, tuple[str, ...]] = {
    "bzip2": ("libbz2.so",),
    "expat": ("libexpat.so",),
    "libffi": ("libffi.so",),
    "libxcrypt": ("libcrypt.so",),
    "mpdecimal": ("libmpdec.so",),
    "ncurses": ("libncurses", "libpanel", "libtinfo"),
    "openssl": ("libcrypto.so.3", "libssl.so.3"),
    "openssl-1.1": ("libcrypto.so.1", "libssl.so.1"),
    "sqlite": ("libsqlite3",),
    "util-linux": ("libuuid.so",),
    "xz": ("liblzma.so",),
    "zlib": ("libz.so",),
}
"""What a Python links, and how its shared library's name begins."""

LINKED: dict[str, tuple[str, ...]] = {
    "grpcio": ("abseil", "address-sorting", "boringssl", "c-ares", "re2", "utf8-range"),
}
"""What a package has linked into its own files without its licences; zlib and protobuf's upb are named anyway."""

ONLY_SHARED = ("libxcrypt", "openssl", "openssl-1.1")
"""Named where their library was copied; the others always, for one that is linked statically does not show."""


@dataclass(frozen=True)
class Notice:
    name: str
    version: str
    licence: str
    text: str


def written(folder: Path, packages: Path) -> str:
    """The text of NOTICES for this tree. Raises `BuildError` naming everything in it that has no licence text."""
    found = sorted(distributions(path=[str(packages)]), key=_name)
    notices = [
        _python(),
        *_natives(folder),
        *(notice for package in found for notice in (_of(package), *_within(package))),
    ]
    missing = [notice.name for notice in notices if not notice.text] + strangers(folder)
    if missing:
        raise BuildError(f"no licence text for {', '.join(missing)}: put one into {TEXTS}")
    index = "\n".join(f"  {notice.name} {notice.version}: {notice.licence}".replace(" :", ":") for notice in notices)
    bodies = (f"{'=' * 80}\n{one.name} {one.version}".rstrip() + f"\n\n{one.text.strip()}\n" for one in notices)
    return f"This program contains:\n\n{index}\n\n" + "\n".join(bodies)


def strangers(folder: Path) -> list[str]:
    """Shared libraries beside the copied Python that `NATIVE` does not know."""
    known = ("libpython", *(stem for stems in NATIVE.values() for stem in stems))
    return sorted(
        path.name for path, _ in elf.below(folder) if path.parent.name == "lib" and not path.name.startswith(known)
    )


def _python() -> Notice:
    return Notice("Python", platform.python_version(), "PSF-2.0", (TEXTS / "python.txt").read_text())


def _natives(folder: Path) -> Iterator[Notice]:
    copied = [path.name for path in (folder / "lib").glob("*.so*")]
    ours = "openssl" if ssl.OPENSSL_VERSION_INFO >= (3,) else "openssl-1.1"
    for name, stems in NATIVE.items():
        if name in (ours, *(NATIVE.keys() - ONLY_SHARED)) or any(library.startswith(stems) for library in copied):
            yield _kept(name)


def _within(package: Distribution) -> Iterator[Notice]:
    for name in LINKED.get(_name(package), ()):
        yield _kept(name, f"(in {_name(package)})")


def _kept(name: str, version: str = "") -> Notice:
    """Of a text in `TEXTS`, whose first line is the licence's name."""
    licence, _, body = (TEXTS / f"{name}.txt").read_text().partition("\n")
    return Notice(name, version, licence, body)


def _of(package: Distribution) -> Notice:
    texts = [path.read_text(errors="replace") for path in _licence_files(package)]
    spare = TEXTS / f"{_name(package)}.txt"
    if not texts and spare.exists():
        texts = [spare.read_text()]
    return Notice(_name(package), package.version, _licence(package), "\n\n".join(texts))


def _name(package: Distribution) -> str:
    return package.metadata["Name"].lower()


def _licence(package: Distribution) -> str:
    fields = package.metadata
    classifiers = (
        line.rpartition(" :: ")[2] for line in fields.get_all("Classifier", []) if line.startswith("License")
    )
    said = fields["License-Expression"] or ", ".join(classifiers) or (fields["License"] or "").partition("\n")[0]
    return said or "see below"


def _licence_files(package: Distribution) -> list[Path]:
    beside = Path(str(package.locate_file(""))).glob(f"*-{package.version}.dist-info")
    own = (folder for folder in beside if _alike(folder.name.removesuffix(".dist-info")) == _alike(_full_name(package)))
    return [
        path for folder in own for path in sorted(folder.rglob("*")) if path.is_file() and _is_licence(path, folder)
    ]


def _full_name(package: Distribution) -> str:
    return f"{package.metadata['Name']}-{package.version}"


def _alike(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _is_licence(path: Path, folder: Path) -> bool:
    inside = PurePath(path.relative_to(folder))
    return "licenses" in inside.parts[:-1] or any(word in path.name.lower() for word in WORDS)
