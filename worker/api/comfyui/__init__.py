"""comfyui-api 1.18's endpoints: `/prompt`, `/workflow`, `/interrupt`, `/models` and `/download`, for its clients.

What it does wrong is right here: credentials are neither echoed nor kept, uploads that fail are failures, and after a
202 every end reaches the webhook.
"""

from worker.api.comfyui.prompts import Means, Prompts
from worker.api.comfyui.routes import NAME, described, routes
from worker.api.comfyui.store import Uploads

__all__ = ["NAME", "Means", "Prompts", "Uploads", "described", "routes"]
