"""The official AutoAttack behind the adapter: whose row, whose noise, and no trace left behind."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from datamodules.fashion_mnist import FashionMNIST
from hetpure.attacks.attack import Addresses, Monitor, check_candidates
from hetpure.attacks.autoattack import AutoAttack
from hetpure.attacks.row_model import Listener, RowModel
from hetpure.classifiers import Classifier
from hetpure.defense import Defense
from hetpure.denoiser import Denoiser
from hetpure.errors import InputError
from hetpure.gradients import Execution, GradientError
from hetpure.noise import BatchNoise, Group, Noise, Stream
from hetpure.purifiers import HeterogeneousPurifier, UniformPurifier
from hetpure.samplers import DDPM
from hetpure.weights import load_classifier

SAMPLES = torch.tensor([31, 7, 100, 5])
NOISE = Noise.of(7, Stream.DW_BOX)
ADDRESSES = Addresses(SAMPLES, NOISE)
BOTH = ("forward", "reverse")
PURIFIER = UniformPurifier(steps=20)
FEW = ["apgd-ce", "fab-t", "square"]
norms = pytest.mark.parametrize("norm", ["linf", "l2"])


@dataclass
class Call:
    """One call of the defence."""

    images: Tensor
    noise: BatchNoise
    mask: Tensor | None


class Spy(Defense):
    """Remembers what it is asked."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.calls: list[Call] = []

    def forward(
        self, images: Tensor, noise: BatchNoise, mask: Any = None, policy: Any = None
    ) -> Tensor:
        self.calls.append(Call(images.detach().clone(), noise, mask))
        return super().forward(images, noise, mask, policy)


class Counter(Monitor):
    def __init__(self) -> None:
        self.differentiated = self.asked = 0

    def rows(self, count: int) -> None:
        self.differentiated += count

    def answered(self, count: int) -> None:
        self.asked += count


class Toy(nn.Module):
    """A network (B, C, H, W) -> (B, classes) from a function of the flat images."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> Tensor:
        return self.function(images.flatten(1))  # type: ignore[no-any-return]


def toy(function: Any, classes: int = 4) -> Defense:
    return Defense(Classifier(Toy(function), num_classes=classes, mean=[0.0], std=[1.0]))


def weights(classes: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(64, classes, generator=generator, dtype=torch.float64)


def linear(classes: int) -> Classifier:
    return toy(lambda x: x @ weights(classes), classes).classifier


def small(**settings: Any) -> AutoAttack:
    budget = {"steps": 3, "eot_samples": 2, "square_queries": 5, "epsilon": 0.05}
    return AutoAttack(**{"version": "rand", **budget, **settings})


def predicted(defense: Defense, images: Tensor, addresses: Addresses = ADDRESSES) -> Tensor:
    """What the defence answers with the locked noise, (B,)."""
    return defense(images, NOISE.on(addresses.samples)).argmax(1)


def sizes(offsets: Tensor, norm: str) -> Tensor:
    return offsets.flatten(-3).norm(dim=-1, p=float("inf") if norm == "linf" else 2)


@pytest.fixture
def stochastic(smooth_classifier: Classifier, denoiser: Denoiser) -> Spy:
    return Spy(smooth_classifier, PURIFIER, denoiser)


@norms
@pytest.mark.parametrize("epsilon", [0.0, 0.05])
def test_every_row_carries_its_own_sample_id(
    epsilon: float, norm: str, stochastic: Spy, images: Tensor
) -> None:
    """Balls that do not meet say whose a row is; the library hands on some of the rows only."""
    labels = predicted(stochastic, images)
    labels[0] = (labels[0] + 1) % 4  # wrong from the start: never attacked
    stochastic.calls.clear()
    found = small(epsilon=epsilon, norm=norm)(stochastic, images, labels, ADDRESSES)
    position = {int(sample): place for place, sample in enumerate(SAMPLES)}
    asked = set()
    for call in stochastic.calls:
        whose = [position[int(sample)] for sample in call.noise.samples]
        assert (sizes(call.images - images[whose], norm) <= epsilon + 1e-6).all()
        asked.add(tuple(whose))
    assert (0, 1, 2, 3) in asked
    assert any(0 not in whose for whose in asked)
    assert torch.equal(found[0, 0], images[0])
    if epsilon == 0:
        assert torch.equal(found[0], images)


def test_rows_in_any_order(images: Tensor) -> None:
    defense = Named(linear(4))
    model = RowModel(defense, images, ADDRESSES, small().threat, Monitor())
    rows = images[[2, 0, 3, 2]].float() + 0.05
    model(rows)
    assert defense.calls[0].noise.samples.tolist() == [100, 31, 5, 100]
    assert model(rows[:0]).shape == (0, 4)
    with pytest.raises(AssertionError, match="outside the ball Linf 0.05"):
        model(rows + 0.01)


@pytest.mark.parametrize("known", [(), ("forward",), BOTH])
def test_each_call_is_on_fresh_noise_but_for_what_is_known(
    known: Any, smooth_classifier: Classifier, denoiser: Denoiser, images: Tensor
) -> None:
    purifier = UniformPurifier(steps=20, sampler=DDPM())
    defense = Spy(smooth_classifier, purifier, denoiser)
    assert defense.groups == {*BOTH}
    labels = predicted(defense, images)
    defense.calls.clear()
    addresses = replace(ADDRESSES, known=known, member=3)
    small()(defense, images, labels, addresses)
    count = len(defense.calls)
    assert count > 10
    for group in BOTH:
        streams = {int(s) for c in defense.calls for s in getattr(c.noise, f"{group}_stream")}
        draws = [{*getattr(c.noise, f"{group}_draw").tolist()} for c in defense.calls]
        assert all(len(draw) == 1 for draw in draws)  # told apart by sample id
        different = set.union(*draws)
        if group in known:
            assert streams == {Stream.DW_BOX}
            assert different == {0}
        else:
            assert streams == {Stream.ATTACK}
            assert len(different) == count
            assert {draw >> 40 for draw in different} == {3}


def test_the_mask_is_that_of_each_row(
    classifier: Classifier, denoiser: Denoiser, images: Tensor
) -> None:
    defense = Spy(classifier, HeterogeneousPurifier(steps=20), denoiser)
    labels = predicted(defense, images)
    defense.calls.clear()
    small(steps=1)(defense, images, labels, ADDRESSES)
    for call in defense.calls:
        assert call.mask is not None
        assert torch.equal(call.mask, defense.mask(call.images, call.noise.samples))


class Named(Spy):
    """Says that its answer hangs on noise, which it does not."""

    @property
    def groups(self) -> frozenset[Group]:
        return frozenset(("forward",))


@norms
def test_fab_asks_about_each_image_as_if_it_were_alone(norm: str) -> None:
    """It leaves the ball, where the nearest image may be another: here they lie in a row on the way
    to the other class."""
    defense = Named(linear(4))
    image = torch.full((1, 64), 0.5, dtype=torch.float64)
    (logits,) = image @ weights(4)
    first, second = logits.argsort(descending=True)[:2]
    away = weights(4)[:, second] - weights(4)[:, first]
    step = away.sign() if norm == "linf" else away / away.norm()
    distance = (logits[first] - logits[second]) / (away @ step)
    images = (image + torch.arange(4)[:, None] * distance / 5 * step).reshape(4, 1, 8, 8)
    labels = predicted(defense, images)
    addresses = replace(ADDRESSES, known=BOTH)
    attack = small(version="standard", attacks=("fab-t",), epsilon=0.001, norm=norm)

    def asked(places: list[int]) -> dict[int, list[Tensor]]:
        """The moved images, by sample id, that are asked about one by one."""
        defense.calls.clear()
        whose = addresses.take(torch.tensor(places))
        attack(defense, images[places], labels[places], whose)
        found: dict[int, list[Tensor]] = {place: [] for place in places}
        for call in defense.calls:
            place = SAMPLES.tolist().index(int(call.noise.samples[0]))
            if len(call.images) == 1 and not torch.equal(call.images[0], images[place].float()):
                found[place].append(call.images[0])
        return found

    together = asked([0, 1, 2, 3])
    strayed = False
    for place in range(4):
        rows = torch.stack(together[place])
        alone = torch.stack(asked([place])[place])
        assert len(rows) > 12
        assert torch.equal(rows, alone[: len(rows)])  # what follows is about the result
        distance = torch.stack([sizes(rows - image, norm) for image in images])
        strayed |= bool((distance.argmin(0) != place).any())
    assert strayed


def test_images_that_cannot_be_told_apart(stochastic: Spy, images: Tensor) -> None:
    labels = predicted(stochastic, images)
    images[3] = images[1]
    with pytest.raises(InputError, match="samples 7 and 5 are the same image.*batch_size") as error:
        small()(stochastic, images, labels, ADDRESSES)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="samples 7 and 5 are the same image"):
        small(epsilon=0)(stochastic, images, labels, ADDRESSES)
    images[3, 0, 0, 0] += 0.08
    with pytest.raises(InputError, match="samples 7 and 5 are Linf 0.08 apart, and their balls"):
        small()(stochastic, images, labels, ADDRESSES)
    small(epsilon=0.039)(stochastic, images, labels, ADDRESSES)


def test_a_deterministic_defense_may_see_an_image_twice(
    smooth_classifier: Classifier, images: Tensor
) -> None:
    images[3] = images[1]
    defense = Defense(smooth_classifier)
    labels = predicted(defense, images)
    found = small(version="standard", epsilon=0.3)(defense, images, labels, ADDRESSES)
    assert (predicted(defense, found[0]) != labels).all()


@pytest.fixture
def tracer() -> Iterator[Any]:
    def trace(frame: Any, event: str, argument: Any) -> None:
        return None

    before = sys.gettrace()
    sys.settrace(trace)
    yield trace
    sys.settrace(before)


def broken(flat: Tensor) -> Tensor:
    raise ZeroDivisionError("the defence's own")


def test_traces_and_generators_are_left_as_they_were(
    tracer: Any, smooth_classifier: Classifier, images: Tensor, capsys: Any
) -> None:
    """The library ends tracing and seeds the global generator; also where it fails half-way."""
    defense = Defense(smooth_classifier)
    labels = predicted(defense, images)
    state = torch.get_rng_state()
    first = small()(defense, images, labels, ADDRESSES)
    assert sys.gettrace() is tracer
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ZeroDivisionError, match="the defence's own"):
        small()(toy(broken), images, labels, ADDRESSES)
    assert sys.gettrace() is tracer
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert torch.equal(small()(defense, images, labels, ADDRESSES), first)
    assert capsys.readouterr().out == ""


def test_the_seed_is_the_noises(smooth_classifier: Classifier, images: Tensor) -> None:
    defense = Defense(smooth_classifier)
    labels = predicted(defense, images)
    attack = small(epsilon=0.3, attacks=("apgd-ce",))
    first = attack(defense, images, labels, ADDRESSES)
    other = attack(defense, images, labels, replace(ADDRESSES, noise=Noise.of(8, Stream.DW_BOX)))
    assert not torch.equal(first, other)


def test_verbose_says_what_the_library_says(
    smooth_classifier: Classifier, images: Tensor, capsys: Any
) -> None:
    defense = Defense(smooth_classifier)
    small(verbose=True)(defense, images, predicted(defense, images), ADDRESSES)
    assert "robust accuracy after APGD-CE" in capsys.readouterr().out


def test_the_same_candidates_twice(stochastic: Spy, images: Tensor) -> None:
    labels = predicted(stochastic, images)
    first, second = (small()(stochastic, images, labels, ADDRESSES) for _ in range(2))
    assert torch.equal(first, second)


@norms
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_what_it_finds_is_in_the_ball_and_wrong(
    norm: str, dtype: torch.dtype, smooth_classifier: Classifier, images: Tensor
) -> None:
    """What it does not find is the image itself."""
    defense = Defense(smooth_classifier.to(dtype))
    images = images.to(dtype)
    labels = predicted(defense, images)
    epsilon = 0.03 if norm == "linf" else 0.25
    attack = small(version="standard", epsilon=epsilon, norm=norm, steps=10, square_queries=30)
    found = attack(defense, images, labels, ADDRESSES)
    assert found.shape == (1, *images.shape)
    assert found.dtype == dtype
    check_candidates(found, images, SAMPLES, attack.threat)
    assert (sizes(found[0] - images, norm) <= epsilon + 1e-6).all()
    wrong = predicted(defense, found[0]) != labels
    moved = (found[0] != images).flatten(1).any(1)
    assert torch.equal(moved, wrong)
    assert 0 < wrong.sum() < 4


@pytest.mark.parametrize("version", ["standard", "rand"])
def test_what_is_counted_is_what_was_planned(
    version: Any, smooth_classifier: Classifier, images: Tensor
) -> None:
    """An image that is never broken costs the bound, and every batch is no larger than allowed."""
    defense = Spy(smooth_classifier)
    labels = predicted(defense, images)
    for micro_batch in (None, 3):
        defense.execution = Execution("tape", micro_batch=micro_batch)
        defense.calls.clear()
        counter = Counter()
        attack = small(version=version, epsilon=0)
        attack(defense, images, labels, ADDRESSES, monitor=counter)
        assert counter.differentiated == 4 * attack.purifications(defense)
        checked = 3 if micro_batch else 4  # rows of the first batch
        checks = 2 if version == "rand" else 7
        assert counter.asked == 4 * attack.queries(defense) - checks * (4 - checked)
        assert max(len(call.images) for call in defense.calls) == checked
        assert sum(len(call.images) for call in defense.calls) == (
            counter.asked + counter.differentiated
        )


@pytest.mark.parametrize(("known", "eot"), [((), 2), (BOTH, 1)], ids=["unknown", "all known"])
def test_each_gradient_of_rand_is_a_mean(known: Any, eot: int, images: Tensor) -> None:
    """Over so many draws, or one where nothing is left to draw."""
    defense, counter = Named(linear(4)), Counter()
    attack = small(epsilon=0)
    assert attack.purifications(defense, known) == 2 * 4 * eot
    addresses = replace(ADDRESSES, known=known)
    attack(defense, images, predicted(defense, images), addresses, monitor=counter)
    assert counter.differentiated == 4 * attack.purifications(defense, known)
    assert counter.asked == 4 * attack.queries(defense, known)


def test_standard_is_for_deterministic_defenses(stochastic: Spy, images: Tensor) -> None:
    labels = predicted(stochastic, images)
    with pytest.raises(InputError, match="version=rand, or AutoEOT"):
        small(version="standard")(stochastic, images, labels, ADDRESSES)
    known = replace(ADDRESSES, known=("forward",))  # DDIM draws no other
    attack = small(version="standard", steps=4, targets=2, epsilon=0.2)
    found = attack(stochastic, images, labels, known)
    assert (predicted(stochastic, found[0]) != labels).any()


class Doubtful:
    """Answers a little differently every time, though it says that it draws no noise."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, flat: Tensor) -> Tensor:
        self.calls += 1
        return flat @ weights(4) + torch.tensor([self.calls, 0, 0, 0])


class Infinite(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, flat: Tensor) -> Tensor:
        return flat.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient * torch.inf


@pytest.mark.parametrize(
    ("function", "version", "kind", "message"),
    [
        (lambda x: (x @ weights(4))[1:], "rand", InputError, "the classifier gives torch.float64"),
        (lambda x: x.detach() @ weights(4), "rand", InputError, "does not require grad"),
        (lambda x: x @ weights(4) * torch.nan, "rand", GradientError, "defence answers holds NaN"),
        (
            lambda x: Infinite.apply(x) @ weights(4),  # type: ignore[no-untyped-call]
            "rand",
            GradientError,
            "the gradient holds NaN",
        ),
        (Doubtful(), "standard", InputError, "asked twice"),
        (lambda x: (x @ weights(4)).softmax(1), "standard", InputError, "need logits"),
    ],
    ids=["rows lost", "detached", "nan", "infinite slope", "random", "probabilities"],
)
def test_errors_are_one_line(
    function: Any, version: Any, kind: type[Exception], message: str, images: Tensor
) -> None:
    defense = toy(function)
    labels = (images.flatten(1) @ weights(4)).argmax(1)
    with pytest.raises(kind, match=message) as error:
        small(version=version, epsilon=0.001)(defense, images, labels, ADDRESSES)
    assert isinstance(error.value, InputError)
    assert "\n" not in str(error.value)


def test_other_warnings_are_passed_on() -> None:
    with pytest.warns(UserWarning, match="^AutoAttack: Square has decreased it.$"):
        Listener(False).warning("Square has decreased it. See flags_doc.md for details.")


@pytest.mark.parametrize(
    ("classes", "ran", "noted"),
    [(2, FEW, ["apgd-t"]), (3, FEW, ["apgd-t"]), (4, ["apgd-ce", "apgd-t", *FEW[1:]], [])],
)
def test_few_classes(classes: int, ran: list[str], noted: list[str], images: Tensor) -> None:
    defense = Defense(linear(classes))
    attack = small(version="standard", epsilon=0.3)
    assert list(attack.parts(classes)) == ran
    assert [note.split("without ")[1].split(",")[0] for note in attack.notes(classes)] == noted
    labels = predicted(defense, images)
    found = attack(defense, images, labels, ADDRESSES)
    assert (predicted(defense, found[0]) != labels).all()


def test_rand_with_two_classes_leaves_dlr_out() -> None:
    assert small().parts(2) == ("apgd-ce",)
    assert small().parts(3) == ("apgd-ce", "apgd-dlr")
    assert "apgd-dlr, which needs 3 classes" in small().notes(2)[0]
    with pytest.raises(InputError, match="none of AutoAttack's apgd-dlr"):
        small(attacks=("apgd-dlr",)).parts(2)


def test_every_reduction_is_named() -> None:
    assert AutoAttack().weaker_than_full() == []
    assert AutoAttack(version="rand").weaker_than_full() == []
    assert AutoAttack(version="rand", targets=1, square_queries=1).weaker_than_full() == []
    assert AutoAttack(eot_samples=1).weaker_than_full() == []
    said = AutoAttack(steps=9, targets=8, square_queries=7, attacks=("apgd-t", "square"))
    assert said.weaker_than_full() == [
        "autoattack_standard_linf: 9 steps (official: 100)",
        "autoattack_standard_linf: 8 targets (official: 9)",
        "autoattack_standard_linf: 7 square queries (official: 5000)",
        "autoattack_standard_linf: without apgd-ce, fab-t",
    ]
    assert AutoAttack(version="rand", eot_samples=2, attacks=("apgd-ce",)).weaker_than_full() == [
        "autoattack_rand_linf: 2 eot samples (official: 20)",
        "autoattack_rand_linf: without apgd-dlr",
    ]


@pytest.mark.parametrize(
    "settings",
    [{"epsilon": -1}, {"epsilon": float("nan")}, {"norm": "l1"}, {"version": "plus"}, {"steps": 0},
     {"attacks": ("square",)}, {"attacks": ()}],
    ids=str,
)  # fmt: skip
def test_settings_that_cannot_be(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="--model.attack"):
        small(**settings)


def test_standard_on_the_packaged_classifier() -> None:
    data = FashionMNIST(limit=8)
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    images, labels, samples = batch["image"], batch["label"], batch["sample"]
    defense = Defense(load_classifier("fashion_mnist_wrn"))
    attack = small(version="standard", epsilon=4 / 255, targets=2, square_queries=10)
    found = attack(defense, images, labels, Addresses(samples, NOISE))
    check_candidates(found, images, samples, attack.threat)
    addresses = Addresses(samples, NOISE)
    clean = (predicted(defense, images, addresses) == labels).sum()
    assert (predicted(defense, found[0], addresses) == labels).sum() < clean
