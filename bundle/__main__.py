"""`python -m bundle`: from nothing to `dist/sd-worker`, top to bottom."""

from __future__ import annotations

import argparse
import sys
import tempfile
from importlib.metadata import distributions
from pathlib import Path

from bundle import archive, elf, interpreter, notices, packages
from bundle.errors import BuildError


def main() -> int:
    """Build the file; 1 with one line on stderr when that cannot be done here."""
    wanted = _arguments()
    try:
        build(wanted.out, wanted.glibc)
    except BuildError as error:
        print(f"bundle: {error}", file=sys.stderr)
        return 1
    return 0


def build(target: Path, most: tuple[int, ...] | None) -> None:
    """Write the one file. Raises `BuildError`, also when it would need a glibc later than ``most``."""
    with tempfile.TemporaryDirectory(prefix="sd-worker-build-") as scratch:
        folder, payload = Path(scratch, "folder"), Path(scratch, "payload")
        interpreter.copy(folder)
        site = packages.install(folder)
        Path(folder, "NOTICES").write_text(notices.written(folder, site))
        facts = {"VERSION": _version(site), **checked(folder, most)}
        archive.pack(folder, payload)
        archive.write(target, payload, facts)
    size = target.stat().st_size / 1e6
    print(f"{target}: {size:.1f} MB, {facts['MEGABYTES']} MB unpacked, needs glibc {facts['GLIBC']}")


def checked(folder: Path, most: tuple[int, ...] | None) -> dict[str, str]:
    """What the stub says of this tree. Raises `BuildError` when a host of that glibc would lack something of it."""
    if strays := interpreter.strays(folder):
        raise BuildError(f"needs libraries that hosts may lack: {', '.join(sorted(strays))}")
    found = list(elf.below(folder))
    needed = elf.glibc(one for _, one in found)
    if most is not None and needed > most:
        late = sorted(path.name for path, one in found if elf.glibc([one]) > most)
        raise BuildError(f"needs glibc {_text(needed)}, {_text(most)} is allowed; too new are {', '.join(late)}")
    program = elf.read(interpreter.program(folder))
    if program is None or program.loader is None:
        raise BuildError("the copied Python is no dynamic ELF program")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return {
        "GLIBC": _text(needed),
        "LOADER": program.loader,
        "MEGABYTES": str(round(size / 1e6)),
    }


def _version(site: Path) -> str:
    return next(one.version for one in distributions(name="sd-worker", path=[str(site)]))


def _text(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bundle", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("dist/sd-worker"))
    parser.add_argument("--glibc", type=elf.version_of, help="fail when a later glibc than this is needed, e.g. 2.31")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
