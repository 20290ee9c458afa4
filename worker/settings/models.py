"""The settings of the model cache."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from pydantic import SecretStr

from worker.settings.checks import Hosts, KindFolders, SourceTemplates
from worker.settings.fields import ZERO, Group, var
from worker.settings.units import Duration, Size, WebUrl


class ModelsSettings(Group):
    dir: Path | None = var(
        "WORKER_MODELS_DIR", None, "the folder of the server's models", shown="by engine, where there is one"
    )
    dirs: KindFolders = var(
        "WORKER_MODELS_DIRS",
        (),
        "`kind=path` exceptions, e.g. `controlnet=/webui/extensions-builtin/sd-webui-controlnet/models`",
    )
    max_size: Size = var(
        "WORKER_MODELS_MAX_SIZE",
        50_000_000_000,
        "cap of the cache at every instant, partial files included; baked models are not counted and never evicted",
        shown="50GB",
        gt=0,
    )
    source: SourceTemplates = var(
        "WORKER_MODELS_SOURCE",
        (),
        "templates tried in order when a model has no `url`, and before a public one whose hash or size agrees: `s3://models/{kind}/{name} https://cdn.example/{kind}/{name}`",
    )
    catalog: str | None = var(
        "WORKER_MODELS_CATALOG",
        None,
        "path or URL of a list of `{kind, name, url, sha256, size, base}`, re-read every 5 min by ETag",
    )
    s3_endpoint_url: WebUrl | None = var(
        "WORKER_MODELS_S3_ENDPOINT_URL", None, "for `s3://` sources", shown="the storage's"
    )
    s3_access_key_id: str | None = var(
        "WORKER_MODELS_S3_ACCESS_KEY_ID", None, "for `s3://` sources", shown="the storage's"
    )
    s3_secret_access_key: SecretStr | None = var(
        "WORKER_MODELS_S3_SECRET_ACCESS_KEY", None, "for `s3://` sources", shown="the storage's"
    )
    manifest: str | None = var(
        "WORKER_MODELS_MANIFEST",
        None,
        "path, URL or inline list of models; items carry `when`: `before_engine`, `before_ready` or `background`",
    )
    start_timeout: Duration = var(
        "WORKER_MODELS_START_TIMEOUT",
        timedelta(hours=3),
        "for what must be there before ready; a stalled transfer fails earlier",
        shown="3h, on Salad 50m",
        gt=ZERO,
    )
    max_wait: Duration = var(
        "WORKER_MODELS_MAX_WAIT",
        timedelta(minutes=5),
        "a delivery whose transfer takes longer, by measured speed, is given back with that time as delay (15 m at most) while the transfer goes on",
        shown="5m",
        gt=ZERO,
    )
    bandwidth: Size | None = var(
        "WORKER_MODELS_BANDWIDTH", None, "bytes a second of all transfers together", shown="unlimited", gt=0
    )
    connections: int = var("WORKER_MODELS_CONNECTIONS", 8, "of one transfer", ge=1, le=64)
    hosts: Hosts = var(
        "WORKER_MODELS_HOSTS",
        ("huggingface.co", "civitai.com"),
        "hosts that a job may name; `*` any public one. Source, catalogue, manifest and orders are exempt",
        shown="huggingface.co civitai.com",
    )
    allow_pickle: bool = var(
        "WORKER_MODELS_ALLOW_PICKLE",
        False,
        "`.ckpt .pt .pth .bin` run code when loaded: refused from jobs, allowed from the operator's sources with a sha256",
        shown="false",
    )
    hf_token: SecretStr | None = var("HF_TOKEN", None, "sent to Hugging Face only, never across a redirect")
    civitai_token: SecretStr | None = var("CIVITAI_TOKEN", None, "sent to Civitai only, never across a redirect")

    @property
    def folders(self) -> dict[str, Path]:
        """The exceptions of `dirs`, by kind."""
        return {kind: Path(path) for kind, _, path in (word.partition("=") for word in self.dirs)}
