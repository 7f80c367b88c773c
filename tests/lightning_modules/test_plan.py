"""`--plan`, `gradcheck`, and what memory and speed settings do to a run of `evaluate.py`."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import evaluate
from hetpure.__main__ import main as hetpure_command
from hetpure.evaluation.extent import extents
from hetpure.evaluation.plan import plan
from hetpure.evaluation.stopwatch import Stopwatch
from hetpure.gradients import Execution
from hetpure.program import run
from lightning_modules.evaluation_cli import evaluation_cli
from tests.lightning_modules.conftest import Finished
from tests.lightning_modules.runs import ALONE, PLAIN, command, main, refused, results

BPDA = "--model.defenses.masked.gradient=bpda"


def execution(*options: str) -> Execution:
    """How the purified row would be computed."""
    described = command(*ALONE, *options).model.described
    assert described is not None
    return described.execution["masked"]


def test_a_plan_is_printed_and_nothing_is_run(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of gradient checks what is expected stands in the total, and the most beside it."""
    monkeypatch.setattr(Stopwatch, "forward", 1e-3)  # a second is a thousand passes
    main("--plan")
    printed = " ".join(capsys.readouterr().out.split())
    for words in ("clean", "null", "pgd_linf", "black box", "n = 4", "Memory of a gradient",
                  "the whole evaluation on one device: about", "; blocks of 2 images",
                  "; memory: networks "):  # fmt: skip
        assert words in printed
    plain, masked = map(float, re.findall(r"gradient checks (\S+) s", printed))
    looks = extents((), 2)
    assert plain == (looks[0].work + looks[-1].work) / 1000 < masked < 10
    total = re.search(r"device: about (\S+) s, at most (\S+) (s|min) where", printed)
    assert total is not None
    expected, most = float(total[1]), float(total[2]) * {"s": 1, "min": 60}[total[3]]
    assert most == pytest.approx(expected + 2 * 60 - plain - masked, abs=3.1)
    assert not Path("runs").exists()


def test_a_plan_counts_the_calls_of_the_run(place: Path, finished: Finished) -> None:
    described = command().model.described
    assert described is not None
    lines = (finished.folder / "records.jsonl").read_text().splitlines()
    spent = Counter[tuple[str, str]]()
    for record in map(json.loads, lines):
        spent[record["defense"], record["attack"]] += record["network_calls"]
    planned = {
        (name, phase.name): phase.network_calls
        for name, row in plan(described).items()
        for phase in row.phases
    }
    assert planned.keys() == spent.keys()
    for key, calls in planned.items():
        if key[1] == "audit: reference attack":  # which plans to ask for a gradient in vain
            assert spent[key] <= calls
        else:
            assert spent[key] == calls


def test_an_execution_is_chosen_by_memory_and_kept_in_the_config(
    place: Path, finished: Finished
) -> None:
    """What it chose is part of the run, which goes on with it whatever memory is free then:
    test_evaluate.py."""
    assert execution() == Execution("tape", micro_batch=4), "two images, two draws"
    scarce = execution("--model.memory_budget=400KB")
    assert scarce.policy in ("tape", "hybrid") and scarce.micro_batch in (1, 2)
    saved = yaml.safe_load((finished.folder / "config.yaml").read_text())["model"]
    assert Execution(**saved["execution"]["masked"]) == execution()
    assert (saved["run"], saved["memory_budget"]) == ("one", None)


def test_a_row_is_computed_as_it_is_asked(place: Path) -> None:
    asked = '--model.execution={"masked": {"policy": "hybrid", "taped_steps": 1, "micro_batch": 4}}'
    assert execution(asked) == Execution("hybrid", 1, 4)
    with_policy = '--model.execution={"masked": {"micro_batch": 3}}'
    assert execution(with_policy, BPDA) == Execution("bpda", micro_batch=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.memory_budget=1KB"], "memory_budget"),
        (["--model.memory_budget=lots"], "8GB"),
        (["--model.memory_budget=0"], "bytes"),
        (['--model.execution={"nobody": {"policy": "tape"}}'], "nobody"),
        (['--model.execution={"masked": {"policy": "reverse"}}'], "checkpoint"),
        (['--model.execution={"masked": {"policy": "tape", "taped_steps": 2}}'], "hybrid"),
        (
            ['--model.execution={"masked": {"policy": "tape"}}', BPDA],
            "masked: execution says tape, and",
        ),
        (["--model.defenses.masked.gradient=tape", "--model.memory_budget=300KB"], "auto"),
        (["--model.defenses.masked.gradient=adjoint"], "HeterogeneousPurifier"),
        (["--model.defenses.plain.gradient=adjoint"], "a plain classifier"),
        (["--model.acceleration.precision=int8"], "bfloat16"),
        (
            ["--model.attack=AutoAttack"],
            "--model.attack.version is standard, and the defence",
        ),
        (
            ["--model.attacks={a: {attack: {class_path: Replay, init_args: {path: none}}}}"],
            "none holds no saved images",
        ),
        (["--model.cosine_bound=much"], "cosine_bound"),
    ],
)
def test_bad_input(
    options: list[str], message: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(capsys, "--config=config.yaml", *options)
    assert not Path("runs").exists()


def test_a_weaker_gradient_is_named(place: Path) -> None:
    """An approximation, low precision, looser bounds; each with what it was measured to be."""
    main(*ALONE, BPDA, "--model.acceleration.precision=bfloat16",
         "--model.acceleration.channels_last=true", "--model.cosine_bound=0.5",
         "--model.gradient_bound=1e-3", "--data.limit=2")  # fmt: skip
    content = results(place)
    check = content["defenses"]["masked"]["gradient_check"]
    assert check["passed"] and check["approximation"] and check["policy"] == "bpda"
    assert 0.5 < check["cosine_to_float32"] < 1
    assert content["defenses"]["plain"]["gradient_check"]["cosine_to_float32"] is None
    assert content["run"]["network_call"] == "bfloat16, channels last"
    for line in (
        f"masked: the attack's gradient is an approximation, bpda, with cosine"
        f" {check['cosine_to_exact']:.3f} to the exact one",
        "the diffusion network's calls: bfloat16, channels last",
        "gradients may be 0.001 from finite differences (full: 1e-05) and have cosines of 0.5"
        " (full: 0.99)",
    ):
        assert line in content["weaker_than_full"]
        assert line in (place / "runs/one/report.md").read_text()


def test_what_auto_chose_stands_in_the_config(place: Path) -> None:
    """And the run goes on, with that config or with its first one."""
    first = (*ALONE, "--model.acceleration.precision=auto", "--data.limit=2")
    main(*first)
    chosen = results(place)["run"]["network_call"]
    saved = yaml.safe_load((place / "runs/one/config.yaml").read_text())
    assert saved["model"]["acceleration"]["precision"] == chosen != "auto"
    evaluate.main([f"--config={place / 'runs/one/config.yaml'}"])
    main(*first)


def test_a_gradient_beyond_its_bound_strikes_its_row_out(place: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        main(*ALONE, "--model.acceleration.precision=bfloat16", "--data.limit=2",
             "--model.cosine_bound=0.9999999")  # fmt: skip
    assert stop.value.code == 1
    content = results(place)
    assert "below 0.9999999" in content["struck"]["masked"]
    assert content["struck"].keys() | content["defenses"].keys() == {"plain", "masked"}


def test_float16_that_overflows_says_what_to_change(place: Path, world: Path) -> None:
    """Weights so large that half precision has no number for what comes out."""
    weights = load_file(world / "diffusion/unet/diffusion_pytorch_model.safetensors")
    for name in ("conv_in.weight", "conv_in.bias"):
        weights[name] *= 1e6
    for file in ("unet/config.json", "scheduler/scheduler_config.json"):
        (place / "huge" / file).parent.mkdir(parents=True)
        (place / "huge" / file).write_text((world / "diffusion" / file).read_text())
    save_file(weights, place / "huge/unet/diffusion_pytorch_model.safetensors")
    with pytest.raises(SystemExit) as stop:
        main(*ALONE, "--model.denoisers.ddpm=huge", "--model.acceleration.precision=float16")
    assert stop.value.code == 1
    assert "bfloat16" in results(place)["struck"]["masked"]


@pytest.mark.parametrize(
    ("precision", "of_calls"), [("bf16-mixed", "bfloat16"), ("16-mixed", "float16")]
)
def test_lightnings_mixed_precision_is_that_of_the_network_calls(
    precision: str, of_calls: str, place: Path
) -> None:
    cli = evaluation_cli(["--config=config.yaml", f"--trainer.precision={precision}"])
    assert cli.model.config.acceleration.precision == of_calls
    assert cli.config.model.acceleration.precision == of_calls
    assert cli.trainer.precision == "32-true"


@pytest.mark.parametrize(("bound", "code"), [(1e-5, None), (1e-30, 1)])
def test_gradients_can_be_checked_alone(
    bound: float,
    code: int | None,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of a row with any name, on a terminal too."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    config = Path("config.yaml")
    config.write_text(config.read_text().replace("plain", "'[/x]'"))
    arguments = ["gradcheck", "--config=config.yaml", f"--model.gradient_bound={bound}"]
    try:
        run(hetpure_command, arguments)
        exit_code: Any = None
    except SystemExit as stop:
        exit_code = stop.code
    printed = capsys.readouterr().out
    assert exit_code == code and "masked" in printed and "[/x]" in printed
    assert ("FAIL" in printed, printed.count("PASS")) == ((True, 0) if code else (False, 2))
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), "--model.memory_budget"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you"), "--model.memory_budget"),
        (torch._dynamo.exc.BackendCompilerFailed(lambda: 0, RuntimeError("no g++"), None), "=off"),
    ],
    ids=["cuda", "cpu", "compiler"],
)
def test_what_the_machine_cannot_do_is_one_line(
    error: Exception, advice: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(arguments: list[str]) -> None:
        raise error

    assert advice in refused(capsys, program=fails)


def test_blocks_are_written_in_the_config(place: Path) -> None:
    main(*ALONE, PLAIN)
    assert json.loads(Path("runs/one/run.json").read_text())["block"] == 2
