"""A job becomes a graph: workflows completed, portable parameters built, the rest refused."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.engines import job_of
from tests.unit.engines.comfyui import supplies
from tests.unit.engines.comfyui.graphs import CLASSIC, SERVER, classic, refused, with_nodes, worked
from worker.engines.base import Work
from worker.engines.comfyui import graph as graphs
from worker.engines.comfyui.architecture import Architecture, Contents, Encoder
from worker.engines.comfyui.embeddings import named
from worker.engines.comfyui.translate import headers_wanted, translate
from worker.errors import InvalidJob, ModelNotFound
from worker.job import Limits

SD15 = Contents(Architecture.SD15, unet=True, vae=True, clips=frozenset({Encoder.CLIP_L}), latent_channels=4)
SD35 = Contents(
    Architecture.SD35,
    unet=True,
    vae=True,
    clips=frozenset({Encoder.CLIP_L, Encoder.CLIP_G, Encoder.T5}),
    latent_channels=16,
)
CONTENTS = {"checkpoints/sd15.safetensors": SD15, "checkpoints/sd35.safetensors": SD35}


def portable(checkpoint: str = "sd15", *, limits: Limits | None = None, models: Any = (), **params: Any) -> Work:
    document = {"params": {"prompt": "a cat", **params}, "checkpoint": checkpoint, "models": list(models)}
    return translate(job_of(document), supplies.server(), CONTENTS, limits or Limits())


def test_a_whole_graph_passes_unchanged() -> None:
    """What the server alone can judge is left to it, and nothing else is changed."""
    work = worked(CLASSIC)
    assert work.request == CLASSIC
    assert (work.endpoint, work.steps, work.warnings) == ("prompt", 2, ())
    assert (work.expect.count, work.expect.width, work.expect.height) == (None, None, None)


def test_the_job_itself_is_not_touched() -> None:
    """The document is stored with the result."""
    graph = with_nodes(classic(_3_seed=-1, _4_ckpt_name="other"), _10=("LoadImage", {"image": "http://h/x.png"}))
    job = job_of({"workflow": graph})
    before = job.model_dump_json()
    translate(job, SERVER, {}, Limits())
    assert job.model_dump_json() == before


@pytest.mark.parametrize(
    ("document", "field", "said"),
    [
        ({"request": {"prompt": "x"}}, "request", "params, or a graph"),
        ({"request": {"prompt": "x"}, "endpoint": "txt2img"}, "request", "params, or a graph"),
        ({"template": {"name": "x"}}, "template", "params, or a graph"),
    ],
)
def test_other_kinds_of_jobs_are_refused(document: dict[str, Any], field: str, said: str) -> None:
    """The message says what this engine takes."""
    with pytest.raises(InvalidJob, match=said) as caught:
        translate(job_of(document), SERVER, {}, Limits())
    assert caught.value.errors[0].field == field


def test_a_workflow_needs_no_headers() -> None:
    """Its author chose the nodes; for parameters the architecture decides them."""
    assert headers_wanted(job_of({"workflow": dict(CLASSIC)}), SERVER) == ()
    wanted = headers_wanted(job_of({"params": {"prompt": "x"}, "checkpoint": "sd15"}), supplies.server())
    assert wanted == (("checkpoints", "sd15.safetensors"),)


def test_portable_parameters_are_expected_of_the_answer() -> None:
    """Count, size, model; a batch has one seed."""
    work = portable(width=64, height=128, steps=3, batch_size=2, seed=9)
    assert (work.expect.count, work.expect.width, work.expect.height) == (2, 64, 128)
    assert work.expect.seeds == (9, 9)
    assert work.expect.checkpoint == "sd15.safetensors"
    assert work.steps == 3
    assert [(m.kind, m.name) for m in work.models] == [("checkpoint", "sd15.safetensors")]
    assert graphs.seeds(work.request, supplies.server()) != {}


def test_an_open_seed_is_the_job_s() -> None:
    """As on every other engine."""
    job = job_of({"params": {"prompt": "x"}})
    assert portable().expect.seeds == (job.seed,)


def test_odd_sizes_are_rounded_up_and_said() -> None:
    """To what the architecture can make."""
    work = portable(width=65, height=64)
    assert (work.expect.width, work.warnings) == (72, ("size_rounded",))
    assert portable("sd35", width=72, height=64).expect.width == 80


def test_defaults_are_bounded_as_well() -> None:
    """The job's own numbers were checked when it was read; those of the architecture were not."""
    with pytest.raises(InvalidJob, match=r"params\.width"):
        portable("sd35", limits=Limits(max_pixels=600_000))
    with pytest.raises(InvalidJob, match=r"params\.steps"):
        portable("sd35", limits=Limits(max_steps=10), width=64, height=64)


def test_portable_images_become_inputs() -> None:
    """With slots in the graph; the size is then the image's."""
    work = portable(image="http://host/a.png", mask="QUJD", denoise=0.5)
    assert [(ref.field, ref.value) for ref in work.inputs] == [
        ("params.image", "http://host/a.png"),
        ("params.mask", "QUJD"),
    ]
    assert set(graphs.slots(work.request)) == {"params.image", "params.mask"}
    assert work.expect.width is None


def test_the_job_s_own_models_come_first_and_once() -> None:
    """They may carry what a name alone does not say."""
    own = [{"kind": "checkpoint", "name": "sd15.safetensors", "sha256": "b" * 64}, {"kind": "lora", "name": "style"}]
    work = portable(models=own, loras=[{"name": "detail", "weight": 0.5}])
    assert [(m.kind, m.name) for m in work.models] == [
        ("checkpoint", "sd15.safetensors"),
        ("lora", "style"),
        ("lora", "detail.safetensors"),
    ]
    assert work.models[0].sha256 == "b" * 64


@pytest.mark.parametrize(
    ("prompt", "names"),
    [
        ("embedding:bad", ("bad",)),
        ("a cat, (embedding:bad:1.2), embedding:sub/good.", ("bad", "sub/good")),
        ("embedding:bad embedding:bad.pt", ("bad", "bad.pt")),
        ("xembedding:bad", ()),
        (r"embedding:a\(b\)", ()),
        ("embedding: bad", ()),
    ],
)
def test_embeddings_are_read_as_the_server_reads_them(prompt: str, names: tuple[str, ...]) -> None:
    """Names that it may read otherwise are left alone."""
    assert named(prompt) == names


def test_embeddings_that_the_server_lacks_are_refused() -> None:
    """It would log a warning and paint without them; in text that nothing encodes they are only words."""
    assert worked(classic(_6_text="(embedding:sub/good:0.5) embedding:bad.pt")).steps == 2
    assert "workflow.6.inputs.text: no embedding 'nope'" in refused(classic(_6_text="embedding:nope"))
    assert worked(classic(_9_filename_prefix="embedding:nope")).steps == 2
    with pytest.raises(ModelNotFound, match=r"^params\.prompt: no embedding 'nope'$"):
        portable(prompt="embedding:nope")
    with pytest.raises(ModelNotFound, match=r"^params\.negative_prompt: no embedding 'nope'$"):
        portable("sd35", negative_prompt="embedding:nope")
    bare = supplies.server(folders={k: v for k, v in supplies.FOLDERS.items() if k != "embeddings"})
    document = {"params": {"prompt": "embedding:nope"}, "checkpoint": "sd15"}
    assert translate(job_of(document), bare, CONTENTS, Limits()).expect.count == 1
