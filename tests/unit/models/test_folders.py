"""Paths and places of the server's folders."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.errors import ConfigError, InvalidJob
from worker.mentions import Place
from worker.models import folders as module
from worker.models.folders import OURS, Folders, find_folders, partial_of, wrong_name
from worker.models.layout import LAYOUTS, Family

LORA = Place("lora", "styles/ink.safetensors")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


def comfyui(root: Path, **exceptions: Path) -> Folders:
    return Folders(root, LAYOUTS["comfyui"], exceptions)


def put(path: Path, size: int = 5000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    return path


def test_a_place_has_a_path_and_a_path_its_place(root: Path) -> None:
    """Whether the file is there or not, and by whatever link somebody names it."""
    folders = comfyui(root)
    path = folders.path(LORA)
    assert path == root / "loras" / "styles" / "ink.safetensors"
    assert folders.place_of(path) == LORA
    (root.parent / "linked").symlink_to(root)
    assert folders.place_of(root.parent / "linked" / "loras" / "styles" / "ink.safetensors") == LORA
    assert comfyui(root.parent / "linked").path(LORA) == path


def test_a_path_outside_has_no_place(root: Path) -> None:
    """Nor has one in a folder that is no kind's, nor a hidden one."""
    folders = comfyui(root)
    for path in ("x.safetensors", "configs/x.yaml", "../x.safetensors", ".hidden/x.pt", "loras/.x/y.pt"):
        assert folders.place_of(root / path) is None


def test_any_other_folder_of_comfyui_is_its_own_kind(root: Path) -> None:
    """Also one that does not exist yet; a folder that is called as a portable kind is none."""
    folders = comfyui(root)
    assert folders.place_of(root / "ultralytics" / "bbox" / "face.pt") == Place("ultralytics", "bbox/face.pt")
    assert folders.place_of(root / "checkpoint" / "x.safetensors") is None


@pytest.mark.parametrize(
    "name",
    ["", "/x.pt", "a//x.pt", "a/", "..", "../x.pt", "a/../../x.pt", "./x.pt", ".x.pt", "a/.b/x.pt", "a\\x.pt",
     "a\nx.pt", "a\0.pt", "\udcff.pt", "x" * 252 + ".ckpt", "é" * 127 + ".pt"],
)  # fmt: skip
def test_a_name_that_leads_elsewhere_or_nowhere_is_refused(root: Path, name: str) -> None:
    """Before any path is made of it."""
    assert wrong_name(name)
    with pytest.raises(InvalidJob, match="model name"):
        comfyui(root).path(Place("lora", name))


def test_a_path_too_long_for_the_system_is_refused(root: Path) -> None:
    """Although each of its parts would do."""
    with pytest.raises(InvalidJob, match="too long"):
        comfyui(root).path(Place("lora", "/".join(["x" * 250] * 16)))


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("a./\\ ~\0é-"), max_size=12))
def test_every_path_stays_below_its_folder(name: str) -> None:
    """Whatever the name is made of."""
    folder = Path("/models-of-nobody/loras")
    try:
        path = comfyui(folder.parent).path(Place("lora", name))
    except InvalidJob:
        return
    assert Path(os.path.normpath(path)).is_relative_to(folder)
    assert path.relative_to(folder).as_posix() == name


def test_a_link_on_the_way_leads_nowhere(root: Path, tmp_path: Path) -> None:
    """A folder below that of the kind must be one; the folder of the kind itself may be a link."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (root / "loras").mkdir()
    (root / "loras" / "out").symlink_to(elsewhere)
    (root / "vae").symlink_to(elsewhere)
    folders = comfyui(root)
    with pytest.raises(InvalidJob, match="through a link"):
        folders.path(Place("lora", "out/x.pt"))
    assert folders.path(Place("vae", "x.pt")) == elsewhere / "x.pt"
    assert folders.place_of(root / "vae" / "x.pt") == Place("vae", "x.pt")


def test_a_kind_may_have_a_folder_of_its_own(root: Path, tmp_path: Path) -> None:
    """As the ControlNet extension's; the usual one is then none."""
    apart = tmp_path / "extension" / "models"
    folders = Folders(root, LAYOUTS["sdnext"], {"controlnet": apart})
    place = Place("controlnet", "canny.safetensors")
    assert folders.folder("controlnet") == apart
    assert folders.path(place) == apart / "canny.safetensors"
    assert folders.place_of(apart / "canny.safetensors") == place
    assert folders.place_of(root / "control" / "controlnet" / "canny.safetensors") is None
    assert folders.canonical(Place("checkpoints", "x")) == Place("checkpoint", "x")


@pytest.mark.parametrize("backwards", [False, True])
def test_of_two_folders_the_one_counts_that_the_server_reads_first(
    root: Path, monkeypatch: pytest.MonkeyPatch, backwards: bool
) -> None:
    """ComfyUI finds a file in models/unet before one of that name in models/diffusion_models, where new ones go."""
    folders, place = comfyui(root), Place("unet", "flux.safetensors")
    assert folders.path(place) == root / "diffusion_models" / "flux.safetensors"
    new, old = put(root / "diffusion_models" / "flux.safetensors", 8192), put(root / "unet" / "flux.safetensors", 4096)
    assert folders.path(place) == old
    assert folders.place_of(new) is None
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: in_order(scandir(folder), backwards))
    scan = folders.scan()
    assert scan.files[place].path == old
    assert scan.strays == 8192


@contextmanager
def in_order(entries: Any, backwards: bool) -> Iterator[list[os.DirEntry[str]]]:
    """What a folder holds in the order of names, which no file system promises."""
    with entries:
        yield sorted(entries, key=lambda entry: entry.name, reverse=backwards)


def test_a_partial_file_lies_hidden_beside_its_target(root: Path) -> None:
    """One for each thing that it may become, with room in its name for what lies beside it."""
    folders = comfyui(root)
    path = folders.partial(LORA, "sha256:1")
    assert path.parent == folders.path(LORA).parent
    assert path.name.startswith(".ink.safetensors.")
    assert path.name.endswith(".part")
    assert folders.partial(LORA, "sha256:1") == path
    assert folders.partial(LORA, "sha256:2") != path
    assert partial_of(path.with_name(f"{path.name}.json")) == partial_of(path) == path
    long = folders.partial(Place("lora", "é" * 120 + ".safetensors"), "k")
    assert len(os.fsencode(long.name)) <= 215


def test_a_scan_tells_models_from_all_the_rest(root: Path) -> None:
    """Models by place, leftovers by path, and the bytes of everything else."""
    folders = comfyui(root)
    put(folders.path(LORA), 10)
    put(root / "loras" / "ink.png", 4096)
    put(root / "loras" / ".hidden.safetensors", 4096)
    put(root / "loras" / ".cache" / "x.safetensors", 4096)
    put(root / "configs" / "v1.yaml", 4096)
    put(root / "diffusers" / "sdxl" / "unet" / "x.safetensors", 4096)
    put(root / "LLM" / "florence" / "model.safetensors", 4096)
    put(root / "LLM" / "florence" / "config.json", 4096)
    put(root / "LLM" / "single.gguf", 10)
    put(root / OURS / "models.db", 4096)
    partial = put(folders.partial(LORA, "k"), 4096)
    beside = put(partial.with_name(f"{partial.name}.json"), 4096)
    scan = folders.scan()
    assert set(scan.files) == {LORA, Place("LLM", "single.gguf")}
    assert (scan.files[LORA].size, scan.files[LORA].link) == (10, False)
    assert scan.leftovers == {partial: 4096, beside: 4096}
    assert scan.strays == 7 * 4096
    assert scan.complete


def test_a_scan_reaches_folders_outside_of_the_root(tmp_path: Path) -> None:
    """As A1111's embeddings, an exception, and a folder that is a link; nothing is seen twice."""
    root, apart = tmp_path / "models", tmp_path / "models" / "Lora" / "apart"
    root.mkdir()
    folders = Folders(root, LAYOUTS["a1111"], {"controlnet": apart})
    put(tmp_path / "vaes" / "v.pt")
    (root / "VAE").symlink_to(tmp_path / "vaes")
    put(tmp_path / "embeddings" / "e.pt")
    put(apart / "canny.pth")
    put(root / "Lora" / "l.safetensors")
    assert {str(place) for place in folders.scan().files} == {
        "vae/v.pt", "embedding/e.pt", "controlnet/canny.pth", "lora/l.safetensors",
    }  # fmt: skip
    assert len(folders.roots()) == 3


def test_a_link_of_comfyui_to_a_folder_of_models_is_a_kind(root: Path, tmp_path: Path) -> None:
    """Images keep such folders elsewhere."""
    put(tmp_path / "volume" / "face.pt")
    (root / "ultralytics").symlink_to(tmp_path / "volume")
    folders = comfyui(root)
    assert set(folders.scan().files) == {Place("ultralytics", "face.pt")}
    assert folders.path(Place("ultralytics", "face.pt")) == tmp_path / "volume" / "face.pt"


def test_links_and_odd_names_do_not_break_a_scan(root: Path, tmp_path: Path) -> None:
    """A link to a file is a model that lies elsewhere; one to nothing or to a folder is none, nor is a name without
    a meaning in UTF-8. Names that differ in case are two."""
    loras = root / "loras"
    target = put(tmp_path / "store" / "t.safetensors", 70)
    loras.mkdir()
    (loras / "linked.safetensors").symlink_to(target)
    (loras / "dangling.safetensors").symlink_to(tmp_path / "none")
    (loras / "folder").symlink_to(tmp_path / "store")
    (loras / "loop").symlink_to(loras)
    os.mkfifo(loras / "pipe.safetensors")
    put(loras / "A.safetensors"), put(loras / "a.safetensors")
    put(loras / ("x" * 240 + ".safetensors"), 1)
    put(loras / os.fsdecode(b"\xff.safetensors"), 4096)
    scan = comfyui(root).scan()
    names = {place.name for place in scan.files}
    assert names == {"linked.safetensors", "A.safetensors", "a.safetensors", "x" * 240 + ".safetensors"}
    linked = scan.files[Place("lora", "linked.safetensors")]
    assert (linked.link, linked.size) == (True, 70)
    assert scan.strays == 4096


@pytest.mark.parametrize(("unread", "complete"), [("loras", False), (".", False), ("lost+found", True)])
def test_a_folder_that_cannot_be_read_is_told(
    root: Path, monkeypatch: pytest.MonkeyPatch, unread: str, complete: bool
) -> None:
    """Where models may be: what is missing there may be there. Elsewhere it matters to nobody."""
    put(root / "loras" / "x.pt")
    (root / "lost+found").mkdir()
    scandir = os.scandir

    def refuse(folder: Path) -> object:
        if Path(folder) == root / unread:
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    assert Folders(root, LAYOUTS["fooocus"]).scan().complete is complete
    assert comfyui(root).scan().complete is complete


def test_an_empty_folder_goes_with_its_last_file(root: Path) -> None:
    """Up to the folder of the kind, which stays, and never one that holds something."""
    folders = comfyui(root)
    deep = put(root / "loras" / "a" / "b" / "x.pt")
    kept = put(root / "loras" / "c" / "y.pt")
    deep.unlink()
    folders.tidy(deep)
    assert sorted(path.name for path in (root / "loras").iterdir()) == ["c"]
    folders.tidy(kept)
    kept.unlink()
    folders.tidy(kept)
    assert list((root / "loras").iterdir()) == []
    folders.tidy(root.parent / "outside" / "x.pt")
    assert root.is_dir()


def test_the_other_folders_of_the_server_are_known(root: Path) -> None:
    """So that what it writes there can be measured."""
    written = comfyui(root).written()
    assert {root.parent / name for name in ("output", "temp", "input", "user")} <= set(written)
    assert all(path.is_absolute() and ".." not in path.parts for path in written)
    assert comfyui(root).ours == root / OURS


@pytest.mark.parametrize("family", ["a1111", "sdnext", "comfyui", "fooocus"])
def test_the_given_folder_is_taken(root: Path, family: Family) -> None:
    """With the engine that is configured."""
    found = find_folders(family, root)
    assert found is not None
    assert (found.root, found.layout.family) == (root, family)


def test_with_auto_the_folder_tells_the_server(root: Path) -> None:
    """By what it holds; where it tells nothing, the operator hears which variable does."""
    for name in ("checkpoints", "text_encoders"):
        (root / name).mkdir()
    found = find_folders("auto", root)
    assert found is not None
    assert found.layout.family == "comfyui"
    with pytest.raises(ConfigError, match="WORKER_ENGINE"):
        find_folders("auto", root / "checkpoints")
    with pytest.raises(ConfigError, match="cannot be read"):
        find_folders("auto", root / "none")


def test_the_usual_folder_is_taken_where_it_is(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one there is no cache; with those of two servers and no engine the operator has to choose."""
    homes: dict[Family, Path] = {family: tmp_path / family for family in LAYOUTS}
    moved = {f: dataclasses.replace(LAYOUTS[f], home=type(LAYOUTS[f].home)(homes[f])) for f in LAYOUTS}
    monkeypatch.setattr(module, "LAYOUTS", moved)
    assert find_folders("auto", None) is None
    assert find_folders("sdnext", None) is None
    homes["sdnext"].mkdir()
    for engine in ("auto", "sdnext"):
        found = find_folders(engine, None)
        assert found is not None
        assert (found.root, found.layout.family) == (homes["sdnext"], "sdnext")
    assert find_folders("comfyui", None) is None
    homes["comfyui"].mkdir()
    with pytest.raises(ConfigError, match="WORKER_MODELS_DIR"):
        find_folders("auto", None)


def test_an_exception_for_an_unknown_kind_is_a_mistake(root: Path) -> None:
    """Of the operator's, and it is named."""
    with pytest.raises(ConfigError, match=r"WORKER_MODELS_DIRS.*'nonsense'"):
        find_folders("a1111", root, {"nonsense": root})
