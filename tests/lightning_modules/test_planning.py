"""`--plan`, `check`, and what memory and speed options do to a run of `evaluate.py`."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning import LightningModule

import evaluate
from hetpure import __main__ as hetpure_command
from hetpure.evaluation import cost
from hetpure.gradients import Execution
from lightning_modules.cli import run
from lightning_modules.evaluation_cli import evaluation_cli, print_gradient_checks

CONFIG = """
seed_everything: 0
model:
  classifier: fashion_mnist_wrn
  denoisers: {ddpm: fashion_mnist_ddpm}
  defenses:
    plain: {}
    purified:
      denoiser: ddpm
      mask: {threshold: 0.5}
      purifier:
        class_path: hetpure.purifiers.HeterogeneousPurifier
        init_args: {t_large: 0.1, t_small: 0.05, steps: 20}
  attack:
    class_path: hetpure.attacks.PGD
    init_args: {epsilon: 16/255, steps: 2, step_size: 4/255, eot_samples: 3, mask: recomputed}
  audit: {images: 1, queries: 2}
  protocol: {report_draws: 3, selection_draws: 2}
  folder: runs
data:
  class_path: datamodules.fashion_mnist.FashionMNIST
  init_args: {source: packaged, test_split: test, limit: 3, batch_size: 2}
trainer:
  accelerator: cpu
  devices: 1
  inference_mode: false
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
"""


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(CONFIG)


def evaluated(*options: str) -> tuple[Path, dict[str, Any]]:
    """Runs an evaluation; its folder and results."""
    before = set(Path("runs").glob("*"))
    evaluate.main(["--config=config.yaml", *options])
    (folder,) = set(Path("runs").glob("*")) - before
    return folder, json.loads((folder / "results.json").read_text())


def refused(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """The one line with which a command stops."""
    with pytest.raises(SystemExit) as stop:
        run(evaluate.main, ["--config=config.yaml", *options])
    assert stop.value.code == 2
    printed = capsys.readouterr().err
    errors = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and printed.rstrip().endswith(errors[0])
    assert "Traceback" not in printed
    assert not list(Path("runs").glob("*/records.jsonl"))
    return errors[0]


def test_a_plan_is_printed_and_nothing_is_run(capsys: pytest.CaptureFixture[str]) -> None:
    evaluate.main(["--config=config.yaml", "--plan"])
    printed = " ".join(capsys.readouterr().out.split())
    for part in ("clean", "null", "pgd_linf", "black box", "n = 3", "Memory of a gradient"):
        assert part in printed
    assert printed.count("gradient check (2 images, 3 directions)") == 2
    assert "; memory: networks 5.9 MB, beside them up to" in printed
    assert "the whole evaluation on one device: about" in printed
    assert not Path("runs").exists()


def test_a_plan_counts_the_calls_of_the_run() -> None:
    cli = evaluation_cli(["--config=config.yaml", "--model.memory_budget=12MB"])
    cli.prepare()
    rows = cli.model.plan()
    _, results = evaluated("--model.memory_budget=12MB")
    assert rows["purified"].execution == Execution("hybrid", 1, 1), "two taped steps take 12.7 MB"
    purified = rows["purified"]
    assert purified.gradients.network_calls == 2 * (3 + 2) and purified.gradients.seconds > 0
    assert purified.gradient_bytes <= 12_000_000 < purified.footprint.need(1, 3, 2)
    assert purified.gradient_check_bytes > purified.gradient_bytes, "the least of it in float64"
    for name, row in rows.items():
        spent = results["defenses"][name]["cost"]["network_calls"]
        assert sum(phase.network_calls for phase in row.phases) == spent


def test_what_was_chosen_is_in_the_config_and_is_not_chosen_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A budget that tapes nothing whole: fewer rows at once, and the written config alone repeats
    the run record for record, whatever the memory then is. A run goes on where there is less."""
    folder, results = evaluated("--model.memory_budget=60MB")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    chosen = config["model"]["execution"]
    assert set(chosen) == {"plain", "purified"}
    assert chosen["purified"] == results["defenses"]["purified"]["execution"]
    assert chosen["purified"]["policy"] in ("hybrid", "checkpoint", "tape")
    assert chosen["plain"] == {"policy": "tape", "taped_steps": None, "micro_batch": 2}
    own, roomy = evaluated("--model.run=roomy")
    assert roomy["defenses"]["purified"]["execution"] != chosen["purified"]
    lines = (own / "records.jsonl").read_text()
    (own / "records.jsonl").write_text(lines[:-1])
    with monkeypatch.context() as patch:
        patch.setattr("lightning_modules.evaluation.budget_bytes", lambda _: 1)
        for budget in ("null", "1MB"):
            same = ["--config=config.yaml", "--model.run=roomy"]
            evaluate.main([*same, f"--model.memory_budget={budget}"])
    assert (own / "records.jsonl").read_text() == lines
    again, repeated = evaluated(f"--config={folder / 'config.yaml'}", "--model.memory_budget=8GB")
    assert repeated["defenses"]["purified"]["execution"] == chosen["purified"]
    assert (again / "records.jsonl").read_bytes() == (folder / "records.jsonl").read_bytes()


def test_a_row_can_be_told_how(capsys: pytest.CaptureFixture[str]) -> None:
    told = '{"purified": {"policy": "hybrid", "taped_steps": 1, "micro_batch": 4}}'
    folder, results = evaluated(f"--model.execution={told}")
    row = results["defenses"]["purified"]
    assert row["execution"] == {"policy": "hybrid", "taped_steps": 1, "micro_batch": 4}
    assert row["gradient_check"]["policy"] == "hybrid, 1 of 3 steps taped"
    assert row["gradient_check"]["policy"] in row["gradient_check"]["compared"]
    assert row["gradient_check"]["passed"]
    assert "hybrid, 1 of 3 steps taped" in (folder / "report.md").read_text()
    gradients = 3 * 2 * 3  # images, iterations, draws
    # Calls, images; report and selection of the clean images, the null attack and two candidates.
    answers = 3 * 3 * ((3 + 2) + (3 + 2) + (3 + 2 * 2))
    spent = row["cost"]["network_calls"] - row["cost"]["audit_calls"]
    assert spent == gradients * (3 + 2) + answers


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--model.memory_budget=1MB", "--model.memory_budget"),
        ("--model.memory_budget=lots", "8GB"),
        ("--model.memory_budget=0", "bytes"),
        ('--model.execution={"nobody": {"policy": "tape"}}', "nobody"),
        ('--model.execution={"purified": {"policy": "reverse"}}', "checkpoint"),
        ('--model.execution={"purified": {"policy": "tape", "taped_steps": 2}}', "hybrid"),
        ("--model.defenses.purified.gradient=adjoint", "HeterogeneousPurifier"),
        ("--model.defenses.plain.gradient=adjoint", "a plain classifier"),
        ("--model.acceleration.precision=int8", "bfloat16"),
        ("--model.cosine_bound=much", "cosine_bound"),
        ("--model.gradient_bound=1e-30", "--model.gradient_bound"),
    ],
)
def test_bad_input(option: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in refused(capsys, option)


def test_an_explicit_tape_that_does_not_fit_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "--model.defenses.purified.gradient=tape", "--model.memory_budget=11MB")
    assert "tape" in line and "auto" in line and "11.0 MB" in line


@pytest.mark.parametrize("policy", ["bpda", "classifier_only"])
def test_an_approximation_is_named(policy: str) -> None:
    folder, results = evaluated(f"--model.defenses.purified.gradient={policy}")
    (named,) = (line for line in results["weaker_than_full"] if "approximation" in line)
    gradient_check = results["defenses"]["purified"]["gradient_check"]
    assert gradient_check["approximation"] and gradient_check["passed"]
    assert -1 <= gradient_check["cosine_to_exact"] < 0.999
    assert named == (
        f"purified: the attack's gradient is an approximation, {policy}, with cosine"
        f" {gradient_check['cosine_to_exact']:.3f} to the exact one"
    )
    assert named in (folder / "report.md").read_text()
    assert gradient_check["policy"] == policy


def test_low_precision_is_named_and_held_against_float32(
    capsys: pytest.CaptureFixture[str],
) -> None:
    bfloat16 = [
        "--model.acceleration.precision=bfloat16",
        "--model.acceleration.channels_last=true",
        "--model.cosine_bound=0.98",  # two images of a short plan are near .99
    ]
    folder, results = evaluated(*bfloat16)
    assert results["run"]["network_call"] == "bfloat16, channels last"
    gradient_check = results["defenses"]["purified"]["gradient_check"]
    assert 0.9 < gradient_check["cosine_to_float32"] < 1
    assert "the diffusion network's calls: bfloat16, channels last" in results["weaker_than_full"]
    assert "bfloat16, channels last" in (folder / "report.md").read_text()
    assert results["defenses"]["plain"]["gradient_check"]["cosine_to_float32"] is None
    (folder / "records.jsonl").unlink()
    line = refused(capsys, *bfloat16, "--model.cosine_bound=0.999999")
    assert "--model.cosine_bound" in line and "below 0.999999" in line


@pytest.mark.parametrize(
    ("precision", "own"), [("bf16-mixed", "bfloat16"), ("16-mixed", "float16")]
)
def test_lightnings_mixed_precision_is_that_of_the_network_calls(precision: str, own: str) -> None:
    cli = evaluation_cli(["--config=config.yaml", f"--trainer.precision={precision}"])
    assert cli.model.acceleration.precision == own
    assert cli.config.model.acceleration.precision == own
    assert cli.trainer.precision == "32-true"


def test_check_says_pass_and_runs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    run(hetpure_command.main, ["check_gradients", "--config=config.yaml"])
    printed = capsys.readouterr().out
    assert printed.count("PASS") == 2 and "FAIL" not in printed
    assert "purified" in printed
    assert not Path("runs").exists()


def test_a_gradient_check_that_costs_too_much_looks_at_less(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where nothing may be spent: of 15 steps one of each kind."""
    monkeypatch.setattr(cost, "MINUTE", 0.0)
    monkeypatch.setattr(cost, "ATTACK_STEPS", 0)
    steps = "--model.defenses.purified.purifier.init_args.steps=100"
    cli = evaluation_cli(["--config=config.yaml", steps])
    cli.prepare()
    found = print_gradient_checks(cli)["purified"]["gradient_check"]
    assert found["passed"] and (found["images"], found["directions"]) == (1, 1)
    assert (found["steps"], found["of_steps"]) == (4, 15)


def test_check_fails_with_an_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run(
            hetpure_command.main,
            ["check_gradients", "--config=config.yaml", "--model.gradient_bound=1e-30"],
        )
    assert stop.value.code == 1
    assert "FAIL" in capsys.readouterr().out


def test_float16_that_overflows_says_what_to_change(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights so large that half precision has no number for what comes out."""
    import lightning_modules.evaluation as evaluation

    load = evaluation.load_denoiser

    def huge(name: str) -> LightningModule:
        denoiser = load(name)
        with torch.no_grad():
            denoiser.network.conv_in.weight.mul_(1e6)
            denoiser.network.conv_in.bias.mul_(1e6)
        return denoiser  # type: ignore[return-value]

    monkeypatch.setattr(evaluation, "load_denoiser", huge)
    assert "bfloat16" in refused(capsys, "--model.acceleration.precision=float16")


def test_execution_and_gradient_do_not_contradict(capsys: pytest.CaptureFixture[str]) -> None:
    """What is said of one row in two places is one thing, or is refused."""
    told = '{"purified": {"micro_batch": 4}}'
    bpda = "--model.defenses.purified.gradient=bpda"
    _, results = evaluated(f"--model.execution={told}", bpda)
    assert results["defenses"]["purified"]["execution"]["policy"] == "bpda"
    for records in Path("runs").glob("*/records.jsonl"):
        records.unlink()
    line = refused(capsys, '--model.execution={"purified": {"policy": "tape"}}', bpda)
    assert "tape" in line and "bpda" in line


def test_looser_bounds_are_named() -> None:
    _, results = evaluated("--model.cosine_bound=0.5", "--model.gradient_bound=1e-3")
    (line,) = (line for line in results["weaker_than_full"] if "finite differences" in line)
    assert "0.001" in line and "0.5" in line and "1e-05" in line and "0.99" in line


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), "--model.memory_budget"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you"), "--model.memory_budget"),
        (torch._dynamo.exc.BackendCompilerFailed(lambda: 0, RuntimeError("no g++"), None), "=off"),
    ],
    ids=["cuda", "cpu", "compiler"],
)
def test_what_the_machine_cannot_do_is_one_line(
    error: Exception, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(arguments: list[str]) -> None:
        raise error

    with pytest.raises(SystemExit) as stop:
        run(main, [])
    assert stop.value.code == 2
    printed = capsys.readouterr().err
    assert said in printed and printed.count("\n") == 1


def test_an_adjoint_of_a_surrogate_is_not_asked_of_the_defence() -> None:
    options = [
        "--model.defenses.purified.gradient=adjoint",
        '--model.defenses.purified.surrogate={"class_path": "hetpure.purifiers.UniformPurifier",'
        ' "init_args": {"steps": 20, "sampler": {"class_path": "hetpure.samplers.VPSDE"}}}',
    ]
    _, results = evaluated(*options)
    row = results["defenses"]["purified"]
    assert row["execution"]["policy"] == "adjoint"
    assert row["gradient_check"]["passed"] and row["surrogate_gradient_check"]["approximation"]
