"""The content security policy of our own pages: their one script and one style, and nothing from another host."""

from __future__ import annotations

import base64
import hashlib


def policy(*, script: str, style: str, images: str) -> str:
    """Only these very texts run and style the page, which talks to its own origin alone; ``images`` are sources."""
    return "; ".join(
        (
            "default-src 'none'",
            "connect-src 'self'",
            f"img-src {images}",
            f"script-src {_hashed(script)}",
            f"style-src {_hashed(style)}",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )


def _hashed(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
