"""Files as servers make them beside images: small, and whole by what their own headers say."""

from __future__ import annotations

import io
import json
import struct
import wave

from PIL import Image

from worker.engines.base import RawFile


def box(name: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">I4s", 8 + len(body), name) + body


def mp4(brand: bytes = b"isom", *, body: bytes = b"frames") -> bytes:
    return box(b"ftyp", brand + bytes(4) + b"isom") + box(b"mdat", body) + box(b"moov", bytes(20))


def riff(form: bytes, body: bytes = b"data") -> bytes:
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + form + body


def wav(frames: int = 100) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(44100)
        file.writeframes(bytes(2 * frames))
    return out.getvalue()


def ogg(packet: bytes) -> bytes:
    return b"OggS" + bytes(22) + bytes([1, len(packet)]) + packet


def matroska(kind: bytes) -> bytes:
    header = b"\x42\x86\x81\x01\x42\x82" + bytes([0x80 | len(kind)]) + kind
    return b"\x1a\x45\xdf\xa3" + bytes([0x80 | len(header)]) + header + b"\x18\x53\x80\x67\xff"


def glb(body: bytes = b"mesh") -> bytes:
    return b"glTF" + struct.pack("<II", 2, 12 + len(body)) + body


def safetensors(values: bytes = bytes(16)) -> bytes:
    tensor = {"dtype": "F32", "shape": [len(values) // 4], "data_offsets": [0, len(values)]}
    header = json.dumps({"__metadata__": {"format": "pt"}, "latent_tensor": tensor}).encode()
    return struct.pack("<Q", len(header)) + header + values


def animated(format: str) -> bytes:
    """Two frames."""
    first, second = (Image.new("RGB", (8, 8), (level, 0, 0)) for level in (0, 200))
    out = io.BytesIO()
    first.save(out, format, save_all=True, append_images=[second], duration=50)
    return out.getvalue()


def still(format: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (1, 2, 3)).save(out, format)
    return out.getvalue()


def a_video(name: str = "clip_00001_.mp4", *, body: bytes = b"frames") -> RawFile:
    return RawFile(mp4(body=body), name, node="9")


def a_text(text: str = "a caption", name: str = "caption.txt") -> RawFile:
    return RawFile(text.encode(), name)
