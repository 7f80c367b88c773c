"""The rows of an evaluation's table: what is defended how, built and put on a device."""

from collections.abc import Iterable, Mapping
from copy import copy
from dataclasses import dataclass, field, fields, replace
from functools import partial

from torch import Tensor

from hetpure.acceleration import Acceleration, accelerate, accelerated_classifier
from hetpure.attacks import Attack
from hetpure.attention import AttentionMask, Mask
from hetpure.classifiers import Classifier
from hetpure.defense import Defense
from hetpure.denoiser import Denoiser
from hetpure.errors import InputError
from hetpure.evaluation.protocol import Cell
from hetpure.evaluation.stopwatch import Stopwatch
from hetpure.gradients import APPROXIMATIONS, Execution, Policy
from hetpure.memory import choose
from hetpure.purifiers import Purifier


@dataclass(frozen=True)
class DefenseConfig:
    """One row of the table.

    Args:
        purifier: what stands before the classifier; nothing is the plain classifier.
        denoiser: key of the diffusion weights in `denoisers`.
        mask: attention mask of a heterogeneous purifier, or another kind by its class_path.
        gradient: policy of the gradient; see `hetpure.gradients.Execution`.
        classifier: packaged name or folder of a classifier of its own, in place of the one that
            all rows share.
        purified_size: height and width at which images are purified, where that is not their own:
            they are resized to it and back, bilinearly, within the gradient.
        surrogate: a purifier that the attack differentiates in place of the defence's own, as
            published evaluations did. Weaker than the full attack, and the results say so.
    """

    purifier: Purifier | None = None
    denoiser: str | None = None
    mask: AttentionMask | Mask = field(default_factory=AttentionMask)
    gradient: Policy = "auto"
    surrogate: Purifier | None = None
    classifier: str | None = None
    purified_size: int | None = None


@dataclass(frozen=True)
class Row:
    """One row of the table, built.

    `defense` is evaluated, `surrogate` attacked in its place where there is one. `gradient` is the
    policy of the config. `cells` are run against it on every block, the clean images first;
    `audit` are the cells of the audit, each on a slice that grows.
    """

    name: str
    defense: Defense
    surrogate: Defense | None
    gradient: Policy = "auto"
    cells: tuple[Cell, ...] = ()
    audit: tuple[Cell, ...] = ()

    @property
    def attacked(self) -> Defense:
        """What the attack differentiates."""
        return self.surrogate or self.defense

    def asked_by(self, cell: Cell) -> Defense:
        """What an attack asks: the surrogate for gradients, and for answers beside them. An attack
        without gradients asks the defence itself."""
        if cell.itself:
            return self.defense
        follows = cell.attack.cost(self.attacked, cell.known).gradients > 0
        return self.attacked if follows else self.defense

    def copy(self) -> "Row":
        """The same row on the same networks, which can be computed in another way."""
        return replace(self, defense=copy(self.defense), surrogate=copy(self.surrogate))

    def compute(self, wish: Execution, images: Tensor, attack: Attack, budget: int) -> None:
        """Chooses how the row is computed: what its config and the `wish` leave open, by memory for
        blocks like `images` (B, C, H, W) under the attack. InputError where the two contradict each
        other, or where nothing fits into `budget` bytes."""
        attacked = self.attacked
        if wish.policy == "auto":
            wish = replace(wish, policy=self.gradient)
        elif self.gradient not in ("auto", wish.policy):
            raise InputError(
                f"{self.name}: execution says {wish.policy}, and its gradient in defenses"
                f" {self.gradient}: take one of them away"
            )
        entries = len(images) * attack.cost(attacked).draws
        footprint, seconds = attacked.footprint(images), Stopwatch(attacked, images).step
        try:
            chosen = choose(wish, len(attacked.plan), entries, footprint, budget, seconds)
        except InputError as error:
            raise InputError(f"{self.name}: {error}") from None
        # Where a surrogate is attacked, the audit alone differentiates the defence itself.
        self.defense.execution = Execution("checkpoint", micro_batch=chosen.micro_batch)
        attacked.execution = chosen

    def inexact(self) -> list[str]:
        """How its attack's gradient is not that of the defence; its cosine is to follow."""
        lines = []
        policy = self.attacked.execution.policy
        if self.surrogate is not None:
            lines.append(
                f"the attack differentiates a surrogate of {self.surrogate.network_calls} network"
                f" calls, not the defence's {self.defense.network_calls}"
                f" ({_differing(self.surrogate.purifier, self.defense.purifier)}); its gradient has"
            )
        if policy in APPROXIMATIONS:
            lines.append(f"the attack's gradient is an approximation, {policy}, with")
        return lines


def check_names(what: str, names: Iterable[object]) -> None:
    """InputError where a name is no text, but what YAML makes of a word such as 100 or on."""
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise InputError(
                f"{what}: a name is text, and one is {name!r}, which YAML makes of a number, of on,"
                " yes and null, and of nothing: write the name in quotes, as '100'"
            )


def build_rows(
    configs: Mapping[str, DefenseConfig],
    classifier: Classifier,
    classifiers: Mapping[str, Classifier],
    denoisers: Mapping[str, Denoiser],
    acceleration: Acceleration,
) -> dict[str, Row]:
    """Every row by name; rows share the networks, accelerated ones too. `classifiers` are those
    that rows name for themselves."""
    fast = {key: accelerate(denoiser, acceleration) for key, denoiser in denoisers.items()}
    looked_at = {block for config in configs.values() for block in _blocks(config, acceleration)}
    called = {
        name: accelerated_classifier(
            classifier if name is None else classifiers[name], acceleration, looked_at
        )
        for name in {config.classifier for config in configs.values()}
    }
    rows = {}
    for name, config in configs.items():
        key = config.denoiser
        build = partial(
            Defense,
            called[config.classifier],
            denoiser=None if key is None else fast[key],
            mask=config.mask,
            purified_size=config.purified_size,
        )
        surrogate, policy = None, config.gradient
        if config.surrogate is not None:
            surrogate, policy = build(config.surrogate, policy=policy), "auto"
        rows[name] = Row(name, build(config.purifier, policy=policy), surrogate, config.gradient)
    return rows


def _blocks(config: DefenseConfig, acceleration: Acceleration) -> tuple[str, ...]:
    """The modules of the classifier that a row's mask names for itself."""
    if isinstance(config.mask, AttentionMask):
        return config.mask.blocks or ()
    if acceleration.fold_batch_norm and config.purifier is not None and config.purifier.needs_mask:
        raise InputError(
            f"a {type(config.mask).__name__} may look at any module of the classifier, and"
            " acceleration.fold_batch_norm changes what some put out: leave it at false"
        )
    return ()


def _differing(surrogate: Purifier | None, purifier: Purifier | None) -> str:
    """In which settings a surrogate is not the defence's purifier."""
    if surrogate is None or type(surrogate) is not type(purifier):
        return f"{type(surrogate).__name__}, not {type(purifier).__name__}"
    pairs = [
        (f.name, getattr(surrogate, f.name), getattr(purifier, f.name)) for f in fields(surrogate)
    ]
    return ", ".join(f"{name} {a}, not {b}" for name, a, b in pairs if a != b) or "no difference"
