"""The Python of the job queue's protocol: `python -m tests.support.salad_proto` writes it anew from its .proto."""

from __future__ import annotations

import tempfile
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

FOLDER = Path(__file__).parents[2] / "worker" / "queues" / "salad"
SOURCE = FOLDER / "service_v1alpha.proto"
KNOWN = Path(grpc_tools.__file__).parent / "_proto"
MADE = ("service_v1alpha_pb2.py", "service_v1alpha_pb2.pyi")


def generated() -> dict[str, str]:
    """The files, by name, as this machine's compiler makes them."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = (
            "protoc",
            f"-I{FOLDER}",
            f"-I{KNOWN}",
            f"--python_out={folder}",
            f"--pyi_out={folder}",
            str(SOURCE),
        )
        if protoc.main(arguments) != 0:
            raise RuntimeError("protoc did not compile it")
        return {name: (Path(folder) / name).read_text() for name in MADE}


if __name__ == "__main__":
    for made, text in generated().items():
        (FOLDER / made).write_text(text)
