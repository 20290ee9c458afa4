"""A server of a stand-in base image: takes the flags of the real one, writes where it writes, and runs its simulator.

A flag that the real server does not have ends it, as does one that it needs here and was not given. It has no models
but those that lie in its folders.
"""

from __future__ import annotations

import argparse
import os
import runpy
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

STEP_SECONDS = "0.05"


def run(server: str) -> None:
    """Be that server until the end of the process."""
    simulator, options = SERVERS[server](sys.argv[1:])
    knobs = ["--models", "", "--step-seconds", STEP_SECONDS, *os.environ.get("STANDIN_OPTIONS", "").split()]
    sys.argv = ["simulators", simulator, *options, *knobs]
    runpy.run_module("worker.simulators", run_name="__main__", alter_sys=True)


def _parser(*flags: str, **options: str | None) -> argparse.ArgumentParser:
    """Of these flags, and of options with their defaults."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for flag in flags:
        parser.add_argument(f"--{flag.replace('_', '-')}", action="store_true")
    for name, default in options.items():
        parser.add_argument(f"--{name.replace('_', '-')}", default=default)
    return parser


def _sdnext(words: Sequence[str]) -> tuple[str, list[str]]:
    """SD.Next of 2023-12: gradio alone, on 127.0.0.1 unless told otherwise; it writes a log beside its program."""
    flags = ("quick", "use_cuda", "docs", "no_download", "listen", "insecure", "medvram", "lowvram")
    values = {"data_dir": "", "port": "7860", "server_name": None, "ckpt": None, "vae": None, "backend": None}
    given = _parser(*flags, **values).parse_args(words)
    data = Path(given.data_dir or "/webui")
    Path("/webui/sdnext.log").write_text("started\n")
    _write(data / "config.json", data / "outputs/text/grid.txt")
    models = data / "models"
    (models / "VAE").mkdir(exist_ok=True)
    host = (given.server_name or ("0.0.0.0" if given.listen else "127.0.0.1")).strip("[]")
    return "sdnext-2023", ["--host", host, "--port", given.port, "--models-dir", str(models)]


def _a1111(words: Sequence[str]) -> tuple[str, list[str]]:
    """Automatic1111 1.9 as the image's entrypoint leaves it: its models are a link into /data."""
    flags = ("api", "xformers", "listen", "nowebui", "no_download_sd_model", "medvram", "no_half_vae", "no_hashing")
    given = _parser(*flags, port="7860", server_name=None, ckpt=None).parse_args(words)
    if not given.api:
        sys.exit("without --api there would be no API")
    root = Path.cwd()
    if not (root / "models").is_symlink():
        sys.exit("the image's own entrypoint did not run")
    _write(root / "config.json", root / "params.txt")
    host = given.server_name or ("0.0.0.0" if given.listen else "127.0.0.1")
    return "a1111", ["--host", host, "--port", given.port, "--models-dir", str((root / "models").resolve())]


def _comfyui(words: Sequence[str]) -> tuple[str, list[str]]:
    parser = _parser(
        "disable_auto_launch", "disable_metadata", "lowvram", "highvram", port="8188", preview_method="none"
    )
    parser.add_argument("--listen", nargs="?", const="0.0.0.0,::", default="127.0.0.1")
    given = parser.parse_args(words)
    root = Path(__file__).parent if not Path("main.py").exists() else Path.cwd()
    _write(root / "user/comfyui.log", root / "custom_nodes/ComfyUI-Manager/config.ini", Path.home() / ".cache/torch/x")
    return "comfyui", ["--host", given.listen.partition(",")[0], "--port", given.port, "--base-dir", str(root)]


def _fooocus(words: Sequence[str]) -> tuple[str, list[str]]:
    """Fooocus-API 0.4.1.1: copies presets anew at each start, and writes its configuration into the tree."""
    flags = ("skip_pip", "preload_pipeline", "always_gpu", "disable_preset_download")
    values = {"host": "127.0.0.1", "port": "8888", "preview_option": "auto", "queue_size": "100"}
    given = _parser(*flags, **values).parse_args(words)
    if not given.skip_pip:
        sys.exit("without --skip-pip it would install packages")
    tree = Path("repositories/Fooocus")
    shutil.rmtree("presets", ignore_errors=False) if Path("presets").exists() else None
    shutil.copytree(tree / "presets", "presets")
    _write(tree / "config.txt", tree / "config_modification_tutorial.txt", tree / "models/vae_approx/note.txt")
    folders = ["--models-dir", str(tree / "models"), "--outputs", "outputs/files"]
    return "fooocus-0.4", ["--host", given.host, "--port", given.port, *folders]


def _write(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("written at the start\n")


SERVERS = {"sdnext": _sdnext, "a1111": _a1111, "comfyui": _comfyui, "fooocus": _fooocus}
