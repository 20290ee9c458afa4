"""comfyui-api 1.18's endpoints: `/prompt`, `/interrupt`, `/models` and `/download`, for clients that come from there.

What it does wrong is right here: credentials are neither echoed nor kept, uploads that fail are failures, and after a
202 every end reaches the webhook.
"""

from worker.api.comfyui.routes import NAME, Means, routes
from worker.api.comfyui.store import Uploads

__all__ = ["NAME", "Means", "Uploads", "routes"]
