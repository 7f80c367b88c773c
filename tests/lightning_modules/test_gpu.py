"""On a GPU as on CPUs. Where there is none, these tests are skipped."""

from pathlib import Path

import pytest
import torch

import hetpure
from hetpure.evaluation.protocol import Record
from hetpure.evaluation.reading import read_results, read_run
from hetpure.noise import BatchNoise, Noise, Purpose, Stream, noise_for
from tests.lightning_modules.runs import ALONE, main

GPU = "--trainer.accelerator=gpu"
COUNT = torch.cuda.device_count()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not COUNT, reason="no gpu")]


def records_of(run: str) -> list[Record]:
    return read_run(Path("runs") / run).records


def test_a_run_gives_the_same_records_twice(place: Path) -> None:
    for run in ("one", "two"):
        main(GPU, f"--model.run={run}")
    assert records_of("one") == records_of("two")


def test_a_run_that_was_killed_goes_on(place: Path) -> None:
    """What a kill leaves is the blocks that were finished."""
    main(GPU)
    whole = records_of("one")
    blocks = sorted(Path("runs/one/blocks").iterdir())
    for path in (*blocks[::2], Path("runs/one/records.jsonl"), Path("runs/one/results.json")):
        path.unlink()
    main(GPU)
    assert records_of("one") == whole


@pytest.mark.skipif(COUNT < 2, reason="no second gpu")
def test_two_processes_share_a_run(place: Path) -> None:
    main(GPU, *ALONE)
    main(GPU, *ALONE, "--model.run=two", "--trainer.devices=2", "--trainer.strategy=ddp")
    assert records_of("one") == records_of("two")


def test_the_gradient_check_is_computed_there(place: Path) -> None:
    main(GPU, *ALONE)
    for row in read_results(Path("runs/one"))["defenses"].values():
        assert row["gradient_check"]["passed"] and row["gradient_check"]["device"].startswith(
            "cuda"
        )


def test_no_step_waits_for_it() -> None:
    defense = hetpure.load_defense("fashion_mnist").cuda()
    purifier, denoiser = defense.purifier, defense.denoiser
    assert purifier is not None and denoiser is not None
    images = torch.rand(2, 1, 28, 28).cuda()
    noise, mask = noise_for(images), defense.mask(images)
    state = purifier.start(denoiser, images, noise)
    for step in defense.plan:  # warms up: steps differ in what they draw
        purifier.advance(denoiser, step, state, images, mask, noise)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in defense.plan:
            state = purifier.advance(denoiser, step, state, images, mask, noise)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_noise_has_the_same_words_on_every_device() -> None:
    """Normal numbers, there compiled, to rounding of their logarithms and cosines."""
    samples, like = torch.tensor([3, 2**31]), torch.empty(2, 3, 32, 32)
    here = Noise.of(5, Stream.ATTACK, 2**40).on(samples)
    there = BatchNoise(5, *(t.cuda() for t in (here.samples, here.forward, here.reverse)))
    words = [noise.words(Purpose.REVERSE, 900, 3, 999).cpu() for noise in (here, there)]
    assert torch.equal(*words)
    normals = there.normal(Purpose.REVERSE, like.cuda(), step=900, repeat=3).cpu()
    expected = here.normal(Purpose.REVERSE, like, step=900, repeat=3)
    torch.testing.assert_close(normals, expected, rtol=0, atol=1e-6)
