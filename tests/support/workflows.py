"""Folders of custom workflows: files as tests need them, and the modules of one test gone before the next."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

INPUT = "from pydantic import BaseModel\n\nclass Input(BaseModel):\n    n: int = 1\n"
BUILD = '\ndef build(input):\n    return {"params": {"prompt": f"{input.n} cats"}}\n'
GOOD = INPUT + BUILD

POSTER = '''"""A poster in the house style.

The title alone says what it shows.
"""

from typing import Literal

from pydantic import BaseModel, Field

LIGHT = {"calm": "soft morning light", "loud": "neon lights at night"}


class Input(BaseModel):
    title: str = Field(min_length=1, max_length=80, examples=["Night train"], description="What is written on it")
    mood: Literal["calm", "loud"] = "calm"
    seed: int = Field(-1, ge=-1, description="-1: drawn from the job's id")


def build(input: Input) -> dict:
    prompt = f'a poster with the title "{input.title}", {LIGHT[input.mood]}'
    return {"params": {"prompt": prompt, "width": 64, "height": 96, "steps": 2, "seed": input.seed}}
'''
"""A whole one, as the documentation shows it."""


def write(root: Path, files: Mapping[str, Any]) -> Path:
    """Files of a folder: texts as they are, anything else as JSON."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return root


@contextmanager
def forgotten() -> Iterator[None]:
    """What was loaded meanwhile is none of the process's modules afterwards."""
    yield
    for name in [name for name in sys.modules if name.startswith("workflows_")]:
        del sys.modules[name]
