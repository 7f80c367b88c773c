"""`hetpure benchmark`: what it counts, keeps, goes on with and refuses. Timings are no test."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel

from hetpure.__main__ import main
from hetpure.benchmark import machine as machines
from hetpure.benchmark.benchmark import RESULTS, TABLES, benchmark, tables
from hetpure.benchmark.machine import Machine
from hetpure.benchmark.networks import IMAGENET, NETWORKS, PACKAGED, Free, defense_of
from hetpure.benchmark.sections import SECTIONS, Piece, Section
from hetpure.denoiser import Denoiser
from hetpure.errors import InputError
from hetpure.memory import Footprint
from hetpure.presets import load_defense
from hetpure.program import run
from hetpure.schedule import linear_schedule

Rows = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the command as everybody can run it, on the CPU."""
    place = tmp_path_factory.mktemp("benchmark")
    main(["benchmark", "--quick", "--device=cpu", f"--output={place}"])
    return place


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / RESULTS).read_text())
    return content


@pytest.fixture
def measured(results: dict[str, Any]) -> Callable[[str], Rows]:
    """The rows of a section that were measured."""

    def of(section: str) -> Rows:
        rows: Rows = results["sections"][section]["rows"]
        return {name: row for name, row in rows.items() if "not_run" not in row}

    return of


def test_every_section_is_there_and_nothing_failed(results: dict[str, Any]) -> None:
    assert results["format"] == 1 and results["machine"]["quick"] is True
    assert results["sections"].keys() == SECTIONS.keys()
    for section in results["sections"].values():
        assert any("not_run" not in row for row in section["rows"].values()), section["title"]
        for name, row in section["rows"].items():
            assert "failed" not in row, f"{name}: {row}"
            if "not_run" in row:
                assert len(row) == 1 and row["not_run"]
            for value in row.values():
                assert not isinstance(value, float) or math.isfinite(value)
    assert sum(section.seconds for section in SECTIONS.values()) <= 480


def test_what_is_left_out_is_listed_with_the_reason(results: dict[str, Any], folder: Path) -> None:
    rows = results["sections"]["calls"]["rows"]
    assert "compiled" in rows["packaged, batch 2, float32, compiled"]["not_run"]
    assert "--quick" in rows["imagenet, batch 1, float32"]["not_run"]
    text = (folder / TABLES).read_text()
    assert "- imagenet, batch 1, float32: not run: --quick" in text
    assert "quick sizes" in text


def test_network_calls_are_those_of_closed_forms(measured: Callable[[str], Rows]) -> None:
    """T forward ones taped, 2 T recomputed, K + 1 of ADDT's update."""
    counted = {name: row["network_calls"] for name, row in measured("policies").items()}
    assert list(counted.values()) == [4, 6, 8]
    assert {row["network_calls"] for row in measured("share").values()} == {4}
    assert {row["network_calls"] for row in measured("cuts").values()} == {2 * 4}
    (step,) = measured("published").values()
    assert step["network_calls"] == 10 + (10 - step["taped_steps"])
    (update,) = measured("addt").values()
    assert update["network_calls"] == 2 + 1
    purifications = {row["network_calls"] for row in measured("latency").values()}
    assert purifications == {load_defense().network_calls}


def test_loops_compute_the_same_gradient(measured: Callable[[str], Rows]) -> None:
    """2 images x 2 draws x 4 calls: the taped loop each once, the checkpointed one twice."""
    (row,) = measured("loops").values()
    assert row["taped_calls"] == 16 and row["checkpointed_calls"] == 32
    assert row["taped_cosine"] > 1 - 1e-5 and row["checkpointed_cosine"] > 1 - 1e-5
    assert 16 <= row["network_calls"] <= 32


def test_accelerated_calls_are_compared_with_float32(measured: Callable[[str], Rows]) -> None:
    rows = measured("calls")
    assert rows["packaged, batch 2, float32"]["cosine"] == pytest.approx(1, abs=1e-6)
    assert 0.9 < rows["packaged, batch 2, bfloat16"]["cosine"] < 1


def test_a_second_start_measures_nothing_again(folder: Path, results: dict[str, Any]) -> None:
    said: list[str] = []
    again = benchmark(Machine(quick=True), folder, said.append)
    assert again["sections"] == results["sections"]
    assert said and all("not run" in line for line in said), "only what was left out is tried"
    with pytest.raises(InputError, match="other settings"):
        benchmark(Machine(quick=True, low="float16"), folder)


def pieces(*rows: Piece, seconds: float = 100.0) -> dict[str, Section]:
    def of(machine: Machine) -> Iterator[Piece]:
        yield from rows

    return {"some": Section("Some", seconds, of)}


def test_rows_are_kept_when_a_later_one_is_killed_or_fails(tmp_path: Path) -> None:
    runs: list[str] = []

    def good() -> dict[str, Any]:
        runs.append("good")
        return {"milliseconds": 1.5}

    def killed() -> dict[str, Any]:
        raise KeyboardInterrupt

    def broken() -> dict[str, Any]:
        raise RuntimeError("planted")

    def large() -> dict[str, Any]:
        raise torch.OutOfMemoryError("planted")

    machine, first = Machine(quick=True), Piece("good", good, PACKAGED)
    with pytest.raises(KeyboardInterrupt):
        benchmark(machine, tmp_path, sections=pieces(first, Piece("next", killed, PACKAGED)))
    later = [Piece("next", broken, PACKAGED), Piece("large", large, PACKAGED)]
    results = benchmark(machine, tmp_path, sections=pieces(first, *later))
    rows = results["sections"]["some"]["rows"]
    assert runs == ["good"], "kept, not measured again"
    assert rows["good"] == {"milliseconds": 1.5}
    assert rows["next"] == {"failed": "RuntimeError: planted"}
    assert rows["large"]["not_run"].startswith("out of memory")
    assert "| good | 1.500 |" in tables(results)


def test_what_would_take_too_long_or_too_much_is_not_run(tmp_path: Path) -> None:
    def never() -> dict[str, Any]:
        raise AssertionError("it was run")

    long = Piece("long", never, PACKAGED, (0, 1e9))
    large = Piece("large", never, PACKAGED, need=lambda: 10**18)
    machine = Machine(batch=2)
    results = benchmark(machine, tmp_path, sections=pieces(long, large))
    rows = results["sections"]["some"]["rows"]
    assert "it would take" in rows["long"]["not_run"]
    assert "of memory" in rows["large"]["not_run"]
    late = benchmark(machine, tmp_path, sections=pieces(long, seconds=0))
    assert "time is up" in late["sections"]["some"]["rows"]["long"]["not_run"]


def refusal(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        run(main, ["benchmark", *options])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_bad_input_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = f"--output={tmp_path}"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "device" in refusal(capsys, "--device=cuda", place)
    assert "device" in refusal(capsys, "--device=gpu", place)
    assert "low" in refusal(capsys, "--low=float8", place)
    assert "batch" in refusal(capsys, "--batch=0", "--device=cpu", place)
    (tmp_path / RESULTS).write_text("no JSON")
    assert "no benchmark's" in refusal(capsys, "--quick", "--device=cpu", place)


def test_too_little_memory_says_which_batch_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """One call of n images takes 2 steps of 100 bytes and a state of 100, times 1.2 n."""
    monkeypatch.setattr(machines, "_footprint", lambda *_: Footprint(100, 0, 100))
    monkeypatch.setattr(machines, "budget_bytes", lambda _: 5 * 360)
    Machine(batch=5)
    with pytest.raises(InputError, match=r"--batch 6: .* a batch of 5 fits"):
        Machine(batch=6)
    monkeypatch.setattr(machines, "budget_bytes", lambda _: 359)
    with pytest.raises(InputError, match="not even one image fits"):
        Machine(batch=6)


def test_the_largest_network_is_the_published_architecture() -> None:
    """552.8M weights; the published ones lack the learned variance's channels of the output."""
    with torch.device("meta"):
        unet = UNet2DModel(**(NETWORKS[IMAGENET].config or {}))
    assert sum(parameter.numel() for parameter in unet.parameters()) == 552_807_171


def test_all_of_a_defence_is_on_the_device_of_its_images() -> None:
    """Its classifier too; here the device of tensors without values stands for an accelerator."""
    images = torch.empty(2, 3, 8, 8, device="meta")
    defense = defense_of(Denoiser(Free(), linear_schedule()), 2, images)
    assert {tensor.device.type for tensor in defense.buffers()} == {"meta"}
    assert defense.classifier(images).shape == (2, 1)
