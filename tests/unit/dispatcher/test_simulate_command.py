"""What ``sd-dispatcher simulate`` prints and writes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from dispatcher.simulate.command import simulate

SMALL = ["--nodes", "5", "--models", "20", "--jobs", "150", "--assume", "life_s=300"]

app = typer.Typer()
app.command()(simulate)


def ran(*arguments: str, code: int = 0, columns: int = 240) -> str:
    found = CliRunner().invoke(app, arguments, env={"COLUMNS": str(columns), "TERM": "dumb"})
    assert found.exit_code == code, found.output
    return found.stdout if code == 0 else found.output


def test_a_table_stands_beside_what_it_assumes() -> None:
    """Each policy has its column, legible in eighty columns, and every assumption is told."""
    text = ran(*SMALL, "--policy", "sd-dispatcher", "--policy", "fifo", columns=80)
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line}
    assert text.splitlines()[0].split() == ["sd-dispatcher", "fifo"]
    assert len(rows["loads"]) == len(rows["p99"]) - 2 == 3
    assert not any("…" in line for line in text.splitlines()[:20])
    for told in ("nodes 5", "models 20", "zipf 1.0", "life_s 300.0", "max_skips 100", "parked 2"):
        assert told in text
    assert "nobody could do with fewer" in text


def test_json_holds_every_figure_and_is_repeatable() -> None:
    """The same seed gives the same document, with the policies in the order in which they were named."""
    arguments = (*SMALL, "--json", "--policy", "random", "--policy", "look-ahead-8", "--seed", "3")
    text = ran(*arguments)
    assert text == ran(*arguments)
    found = json.loads(text)
    assert [each["policy"] for each in found["policies"]] == ["random", "look-ahead 8"]
    first = found["policies"][0]
    assert first["waits"]["p50"] <= first["waits"]["p99"] <= first["waits"]["max"]
    assert sum(first["gpu"].values()) == pytest.approx(1.0)
    assert sum(first["taken"].values()) == pytest.approx(1.0)
    assert found["assumptions"]["seed"] == 3


def test_the_plot_is_a_picture_by_itself(tmp_path: Path) -> None:
    """An SVG with a line for each policy and the bound, that loads nothing from anywhere."""
    ran(*SMALL, "--plot", str(tmp_path / "plot.svg"), "--policy", "fifo")
    text = (tmp_path / "plot.svg").read_text()
    assert text.rstrip().endswith("</svg>")
    assert "fifo" in text
    assert "clairvoyant bound" in text
    assert "<script" not in text
    assert not re.findall(r'(?:href|src)="(?!#)', text)


def test_assumptions_are_taken_as_what_they_are() -> None:
    """Numbers, switches and words each find their way into the document."""
    pairs = ("families=no", "stock=empty", "parked=1", "lora_share=0.5")
    arguments = [part for pair in pairs for part in ("--assume", pair)]
    found = json.loads(ran(*SMALL, *arguments, "--policy", "fifo", "--json"))["assumptions"]
    assert {name: found[name] for name in ("families", "stock", "parked", "lora_share")} == {
        "families": False,
        "stock": "empty",
        "parked": 1,
        "lora_share": 0.5,
    }


def test_a_plain_fleet_reproduces_what_is_known_of_queues() -> None:
    """With 7 slots on each disk and one model in 1,000 a plain queue does about 5.7 % of what nodes render."""
    text = ran(
        "--plain",
        "--models",
        "1000",
        "--nodes",
        "40",
        "--backlog",
        "40",
        "--jobs",
        "8000",
        "--json",
        "--policy",
        "fifo",
    )
    found = json.loads(text)["policies"][0]
    assert found["rendered"] == pytest.approx(0.057, abs=0.006)
    assert found["taken"]["download"] == pytest.approx(0.84, abs=0.04)


def test_a_backlog_has_no_bound() -> None:
    """Where jobs have no times of their own nothing is said of a clairvoyant."""
    text = ran(*SMALL, "--backlog", "10", "--policy", "fifo")
    assert "nobody could" not in text


def test_a_trace_is_simulated(tmp_path: Path) -> None:
    """Jobs from a file run on the fleet that is assumed."""
    trace = tmp_path / "trace.jsonl"
    trace.write_text("".join(json.dumps({"t": n * 20.0, "model": f"m{n % 2}"}) + "\n" for n in range(40)))
    found = json.loads(ran("--nodes", "2", "--trace", str(trace), "--json", "--policy", "sd-dispatcher"))
    assert (found["jobs"], found["nodes"], found["horizon_s"]) == (40, 2, 780.0)
    assert found["policies"][0]["done"] >= 28


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--policy", "best"], "no policy"),
        (["--assume", "parked"], "NAME=VALUE"),
        (["--assume", "colour=3"], "NAME=VALUE"),
        (["--assume", "parked=few"], "no number"),
        (["--assume", "parked=inf"], "no number"),
        (["--assume", "life_s=-1"], "negative"),
        (["--assume", "life_s=nan"], "negative"),
        (["--assume", "poll_s=0"], "positive"),
        (["--assume", "stock=full"], "spread"),
        (["--trace", "missing.jsonl"], "missing.jsonl"),
        (["--nodes", "0"], "nodes"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: list[str], names: str) -> None:
    """A wrong option is a usage error that names it."""
    assert names in " ".join(ran(*SMALL, *arguments, code=2).split())


def test_a_plot_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """The file is named, not a traceback shown."""
    text = ran(*SMALL, "--policy", "fifo", "--plot", str(tmp_path / "no" / "plot.svg"), code=2)
    assert "No such file" in text
