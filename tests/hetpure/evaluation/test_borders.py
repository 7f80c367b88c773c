"""The seam measure, on seams that are known."""

import torch

from hetpure.evaluation.borders import border_inconsistency

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.rand(8, 3, 16, 16, generator=GENERATOR, dtype=torch.float64)
MASK = torch.zeros(8, 1, 16, 16, dtype=torch.float64)
MASK[..., 4:12, 4:12] = 1


def test_a_change_without_structure_has_no_seam() -> None:
    """White noise: 1 within four standard errors of the mean over pairs."""
    images = IMAGES.new_zeros(512, 3, 16, 16)
    noise = torch.randn(images.shape, generator=GENERATOR, dtype=torch.float64)
    found = border_inconsistency(images, noise, MASK[:1].expand(512, -1, -1, -1))
    assert abs(found.mean() - 1) < 4 * found.std() / 512**0.5 + 0.01  # a ratio's bias is positive


def test_a_step_at_the_border_is_a_seam_and_one_elsewhere_is_the_opposite() -> None:
    noise = 0.01 * torch.randn(IMAGES.shape, generator=GENERATOR, dtype=torch.float64)
    step = border_inconsistency(IMAGES, IMAGES + noise + 0.1 * MASK, MASK)
    assert step.min() > 10
    moved = border_inconsistency(IMAGES, IMAGES + noise + 0.1 * MASK.roll(3, -1), MASK)
    assert (moved < step / 4).all()


def test_edges_of_the_image_itself_cancel() -> None:
    noise = 0.01 * torch.randn(IMAGES.shape, generator=GENERATOR, dtype=torch.float64)
    edged = IMAGES + 5 * MASK
    plain = border_inconsistency(IMAGES, IMAGES + noise, MASK)
    torch.testing.assert_close(border_inconsistency(edged, edged + noise, MASK), plain)


def test_by_hand() -> None:
    """A 1x3 image, changes 0, 1, 3 with the border between the first two: 1 over 4."""
    mask = torch.tensor([[[[0.0, 1.0, 1.0]]]])
    change = torch.tensor([[[[0.0, 1.0, 3.0]]]])
    assert border_inconsistency(torch.zeros(1, 1, 1, 3), change, mask).item() == 0.25
    assert border_inconsistency(change, change, mask).isnan()
    assert border_inconsistency(torch.zeros(1, 1, 1, 3), change, mask * 0).isnan()
