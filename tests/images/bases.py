"""Stand-ins for the base images: paths, users, variables, entrypoints and commands, as their sources have them."""

from __future__ import annotations

from dataclasses import dataclass

STANDINS = "localhost/sd-worker-standin/"
DEBIAN, BUILDER = f"{STANDINS}debian", f"{STANDINS}builder"
PACKAGES = "/opt/conda/lib/python3.11/site-packages"

_PYTORCH = """
ENV PATH=/opt/conda/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \\
    LD_LIBRARY_PATH=/usr/local/nvidia/lib:/usr/local/nvidia/lib64 \\
    NVIDIA_VISIBLE_DEVICES=all \\
    PYTORCH_VERSION=2.1.2
"""
"""What the pytorch images set, which all of them stand on."""


@dataclass(frozen=True)
class Base:
    """``program`` is the server's own file, and ``text`` the rest of the Dockerfile that makes the stand-in."""

    engine: str
    program: str
    text: str

    @property
    def tag(self) -> str:
        return f"{STANDINS}{self.engine}"

    @property
    def dockerfile(self) -> str:
        launcher = f"from standin import run; run('{self.engine}')"
        return f"""
FROM {DEBIAN}
{_PYTORCH}
COPY worker/__init__.py {PACKAGES}/worker/__init__.py
COPY worker/simulators {PACKAGES}/worker/simulators
COPY tests/images/standin/standin.py {PACKAGES}/standin.py
RUN mkdir -p {self.program.rpartition("/")[0]} && echo "{launcher}" > {self.program}
{self.text}
"""


BASES = {
    base.engine: base
    for base in (
        Base(
            "sdnext",
            "/webui/launch.py",
            """
ENV INSTALLDIR=/webui RUN_UID=1000 DATA_DIR=/webui/data TZ=Etc/UTC PIP_CACHE_DIR=/webui/cache/pip HOST=[::] PORT=7860
RUN useradd -m -u 1000 webui-user && mkdir -p /webui/data /webui/cache/pip && chown -R webui-user /webui \\
 && touch /webui/sdnext.log && chown root /webui/sdnext.log
WORKDIR /webui
STOPSIGNAL SIGINT
ENTRYPOINT ["/bin/bash", "-c", "${INSTALLDIR}/entrypoint.sh \\"$0\\" \\"$@\\""]
""",
        ),
        Base(
            "a1111",
            "/stable-diffusion-webui/webui.py",
            """
COPY tests/images/standin/entrypoint.sh /docker/entrypoint.sh
ENV ROOT=/stable-diffusion-webui CLI_ARGS="" LD_PRELOAD=libtcmalloc_minimal.so.4 PORT=7860
WORKDIR /stable-diffusion-webui
RUN mkdir -p models/VAE-approx embeddings extensions
ENTRYPOINT ["/docker/entrypoint.sh"]
CMD python -u webui.py --listen --port 7859 ${CLI_ARGS} & socat TCP6-LISTEN:${PORT},fork TCP4:127.0.0.1:7859;
""",
        ),
        Base(
            "comfyui",
            "/opt/ComfyUI/main.py",
            """
WORKDIR /opt/ComfyUI
ENV COMFY_HOME=/opt/ComfyUI MODEL_DIR=/opt/ComfyUI/models OUTPUT_DIR=/opt/ComfyUI/output INPUT_DIR=/opt/ComfyUI/input \\
    CMD="comfy --workspace /opt/ComfyUI launch -- --listen *" BASE=""
RUN mkdir -p custom_nodes/ComfyUI-Manager models/checkpoints models/loras models/unet models/clip_vision input output
CMD ["bash", "-c", "comfy --workspace ${COMFY_HOME} launch -- --listen '*'"]
""",
        ),
        Base(
            "fooocus",
            "/app/main.py",
            """
WORKDIR /app
ENV TZ=Asia/Shanghai
RUN mkdir -p presets repositories/Fooocus/presets repositories/Fooocus/models/checkpoints \\
      repositories/Fooocus/models/loras repositories/Fooocus/models/prompt_expansion \\
 && echo '{}' > repositories/Fooocus/presets/default.json && cp repositories/Fooocus/presets/default.json presets/ \\
 && echo "" > repositories/Fooocus/config.txt
EXPOSE 8888
CMD ["python", "main.py", "--host", "0.0.0.0", "--port", "8888", "--skip-pip"]
""",
        ),
    )
}

BUILDER_DOCKERFILE = f"""
FROM {DEBIAN}
COPY dist/sd-worker /prebuilt/sd-worker
RUN printf '#!/bin/sh\\nmkdir -p dist && cp /prebuilt/sd-worker dist/sd-worker\\n' > /usr/bin/make \\
 && chmod 755 /usr/bin/make
"""
"""In the place of the Python image that the Dockerfiles build the binary on: its `make` hands out one built before."""
