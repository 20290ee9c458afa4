"""What a file holds, by its tensor names and shapes; the reader of headers never reads further."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from tests.unit.engines.comfyui.supplies import (
    AE,
    CLIP_G,
    CLIP_L,
    FLUX_UNET,
    HEADERS,
    KL,
    MMDIT,
    SD15_UNET,
    SDXL_UNET,
    T5,
    Shape,
    header,
    unet,
    whole,
)
from worker.engines.comfyui.architecture import MAX_HEADER, Architecture, Contents, Encoder, contents, read_header
from worker.errors import Disposition, EngineFault, Fault, InvalidJob

A = Architecture


@pytest.mark.parametrize(
    ("file", "architecture", "clips"),
    [
        ("sd15", A.SD15, {Encoder.CLIP_L}),
        ("sd15-inpaint", A.SD15, {Encoder.CLIP_L}),
        ("sd2", A.SD2, {Encoder.CLIP_H}),
        ("sdxl", A.SDXL, {Encoder.CLIP_L, Encoder.CLIP_G}),
        ("refiner", A.SDXL_REFINER, {Encoder.CLIP_G}),
        ("sd35", A.SD35, {Encoder.CLIP_L, Encoder.CLIP_G, Encoder.T5}),
        ("sd3-bare", A.SD35, set()),
        ("flux-dev", A.FLUX, {Encoder.CLIP_L, Encoder.T5}),
        ("flux-schnell", A.FLUX, {Encoder.CLIP_L, Encoder.T5}),
        ("video", A.UNKNOWN, set()),
    ],
)
def test_a_checkpoint_is_told_by_its_tensors(file: str, architecture: A, clips: set[Encoder]) -> None:
    """Architecture and text encoders of each known checkpoint are found, with its VAE."""
    found = contents(HEADERS[f"checkpoints/{file}.safetensors"])
    assert (found.architecture, set(found.clips)) == (architecture, clips)
    assert found.unet
    assert found.vae
    assert found.clip == bool(clips)


def test_inpainting_and_guidance_are_seen() -> None:
    """Nine channels, or 96 with Flux, mark an inpainting model; the guidance tensors tell dev from schnell."""
    inpainting = {f for f, h in HEADERS.items() if contents(h).inpainting}
    guided = {f for f, h in HEADERS.items() if contents(h).guidance}
    assert inpainting == {"checkpoints/sd15-inpaint.safetensors", "checkpoints/flux-fill.safetensors"}
    names = {f.partition("/")[2].partition(".")[0] for f in guided}
    assert names == {"flux-dev", "flux-fill", "flux-dev-unet"}


@pytest.mark.parametrize(
    ("tensors", "architecture"),
    [
        (SD15_UNET, A.SD15),
        (SDXL_UNET, A.SDXL),
        (MMDIT, A.SD35),
        (FLUX_UNET, A.FLUX),
        (MMDIT | {"x_embedder.proj.weight": (1536, 4, 2, 2)}, A.UNKNOWN),
        (FLUX_UNET | {"img_in.weight": (3072, 128)}, A.UNKNOWN),
        (FLUX_UNET | {"distilled_guidance_layer.norms.0.scale": (5120,)}, A.UNKNOWN),
        (unet(320, 768, channels=8, linear=False), A.UNKNOWN),
        (unet(320, 768, extra=4, linear=False), A.UNKNOWN),
        (SD15_UNET | {"input_blocks.4.1.time_stack.0.attn1.to_q.weight": (1,)}, A.UNKNOWN),
        ({"input_blocks.0.0.weight": (320,)}, A.UNKNOWN),
        ({"transformer_blocks.0.attn.to_q.weight": (1,), "img_in.weight": (1, 64)}, A.UNKNOWN),
    ],
)
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_bare_diffusion_model_is_told_alike(tensors: dict[str, Shape], architecture: A, prefix: str) -> None:
    """With the checkpoint's prefix or without, the same model is found; relatives without a graph are unknown."""
    padding: dict[str, Shape] = {f"out.{i}.bias": (4,) for i in range(6)}
    found = contents(header(tensors | padding, prefix))
    assert found.unet
    assert found.architecture is architecture
    assert not found.vae
    assert not found.clip
    assert found.usable is (architecture is not A.UNKNOWN)


@pytest.mark.parametrize(
    ("tensors", "architecture", "guidance"),
    [
        (
            {
                "conv_in.weight": (320, 4, 3, 3),
                "down_blocks.0.resnets.0.conv1.weight": (1,),
                "down_blocks.1.attentions.0.proj_in.weight": (640, 640),
                "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight": (640, 2048),
                "add_embedding.linear_1.weight": (1280, 2816),
            },
            A.SDXL,
            False,
        ),
        (
            {
                "conv_in.weight": (320, 4, 3, 3),
                "down_blocks.0.resnets.0.conv1.weight": (1,),
                "down_blocks.0.attentions.0.proj_in.weight": (320, 320, 1, 1),
                "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": (320, 768),
            },
            A.SD15,
            False,
        ),
        (
            {
                "transformer_blocks.0.attn.to_q.weight": (1,),
                "single_transformer_blocks.0.attn.to_q.weight": (1,),
                "x_embedder.weight": (3072, 64),
                "time_text_embed.guidance_embedder.linear_1.weight": (1,),
            },
            A.FLUX,
            True,
        ),
        (
            {
                "transformer_blocks.0.attn.add_q_proj.weight": (1,),
                "pos_embed.proj.weight": (1536, 16, 2, 2),
            },
            A.SD35,
            False,
        ),
    ],
)
def test_the_layout_of_diffusers_is_known_too(tensors: dict[str, Shape], architecture: A, guidance: bool) -> None:
    """A diffusion model alone may have the names of diffusers, which the server converts."""
    found = contents(header(tensors))
    assert (found.architecture, found.guidance) == (architecture, guidance)


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        (CLIP_L, Contents(clips=frozenset({Encoder.CLIP_L}))),
        (CLIP_G, Contents(clips=frozenset({Encoder.CLIP_G}))),
        (
            CLIP_L | {"text_model.encoder.layers.22.mlp.fc1.weight": (4096, 1024)},
            Contents(clips=frozenset({Encoder.CLIP_H})),
        ),
        ({"transformer.resblocks.30.mlp.c_fc.weight": (5120, 1280)}, Contents(clips=frozenset({Encoder.CLIP_G}))),
        (T5, Contents(clips=frozenset({Encoder.T5}))),
        ({"encoder.block.23.layer.1.DenseReluDense.wi_1.weight": (5120, 2048)}, Contents()),
        (KL, Contents(vae=True, latent_channels=4)),
        (AE, Contents(vae=True, latent_channels=16)),
        ({"taesd_decoder.1.weight": (64, 4, 3, 3)}, Contents(vae=True, latent_channels=4)),
        ({"lora_unet_down_blocks_0.lora_up.weight": (320, 4)}, Contents(lora=True)),
        ({"transformer.single_blocks.0.lora_A.weight": (4, 320)}, Contents(lora=True)),
        ({"emb_params": (2, 768)}, Contents()),
        ({}, Contents()),
    ],
)
def test_other_files_are_told_apart(tensors: dict[str, Shape], expected: Contents) -> None:
    """Text encoders by their depth, VAEs by their latents, LoRAs by their pairs; anything else is nothing."""
    assert contents(header(tensors)) == expected


@pytest.mark.parametrize("entry", [None, 3, {}, {"shape": "x"}, {"shape": ["a"]}])
def test_a_header_without_sense_is_unknown(entry: Any) -> None:
    """Entries that are no tensors make a model unknown, and raise nothing."""
    found = contents({"input_blocks.0.0.weight": entry, "__metadata__": None})
    assert found == Contents(unet=True)


def _file(path: Path, header: bytes, *, claimed: int | None = None) -> Path:
    path.write_bytes(struct.pack("<Q", len(header) if claimed is None else claimed) + header)
    return path


def test_a_header_is_read_without_its_tensors(tmp_path: Path) -> None:
    """The JSON header comes back whatever follows it."""
    file = _file(tmp_path / "a.safetensors", json.dumps(whole(SD15_UNET)).encode())
    with file.open("ab") as more:
        more.truncate(1 << 40)
    assert contents(read_header(file)).architecture is A.SD15


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "0 bytes"),
        (b"\x05\x00", "2 bytes"),
        (struct.pack("<Q", 10) + b"{}", "ends within"),
        (struct.pack("<Q", MAX_HEADER + 1) + b"{}", "claims"),
        (struct.pack("<Q", 2) + b"{x", "no JSON"),
        (struct.pack("<Q", 2) + b"[]", "no object"),
    ],
)
def test_a_broken_file_is_the_nodes_fault(tmp_path: Path, data: bytes, why: str) -> None:
    """What is cut off or broken here may be whole elsewhere: the job goes to another node uncharged."""
    file = tmp_path / "a.safetensors"
    file.write_bytes(data)
    with pytest.raises(EngineFault, match=why) as caught:
        read_header(file)
    assert (caught.value.fault, caught.value.disposition) == (Fault.NODE, Disposition.NACK)


def test_a_missing_file_is_the_nodes_fault(tmp_path: Path) -> None:
    """A file that was listed and is gone is a matter of this node."""
    with pytest.raises(EngineFault, match="cannot be read"):
        read_header(tmp_path / "gone.safetensors")


@pytest.mark.parametrize(("data", "why"), [(b"GGUF\x03\x00\x00\x00", "GGUF"), (b"PK\x03\x04aaaa", "pickle")])
def test_another_format_is_the_jobs_fault(tmp_path: Path, data: bytes, why: str) -> None:
    """No node can tell what a GGUF file or a pickle holds."""
    file = tmp_path / "a.safetensors"
    file.write_bytes(data)
    with pytest.raises(InvalidJob, match=why):
        read_header(file)
