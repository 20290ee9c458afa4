"""The figures of the long runs."""

from __future__ import annotations

from tests.conftest import Figures

__all__ = ["Figures"]
