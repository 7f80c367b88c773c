"""`hetpure convert`: published weights become a folder of ours."""

from pathlib import Path
from typing import Any

from hetpure.commands.parsing import call, parser_of
from hetpure.errors import InputError
from hetpure.weights import convert as converting
from hetpure.weights.check import check_classifier, check_denoiser
from hetpure.weights.formats import Betas, Hints, PublishedPairing


def convert(
    source: str,
    target: str,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    sample_size: int | None = None,
    head_channels: int | None = None,
    beta_schedule: Betas | None = None,
    steps: int | None = None,
    pairing: PublishedPairing | None = None,
    part: str | None = None,
    architecture: str | None = None,
    num_classes: int | None = None,
    network: dict[str, Any] | None = None,
    attention_blocks: list[str] | None = None,
    check: bool = False,
) -> None:
    """Turns a published file of weights into a folder that evaluations and trainings read.

    The format is recognised by the names in the file. No pickle is executed.

    Args:
        source: the file: safetensors, what torch.save wrote, or a pickle.
        target: folder to write.
        mean: a classifier's normalisation, pixel [0, 1], where not its format's.
        std: as mean.
        sample_size: height and width of a diffusion's images, where not the published network's; of
            a classifier's, for check.
        head_channels: channels of an attention head of OpenAI's networks, where not published.
        beta_schedule: noise schedule of OpenAI's networks, where not published.
        steps: of that schedule.
        pairing: of time and noise level, of score_sde's networks: network is their training's and
            the default, table that of HetPure's code, diffpure that of DiffPure's.
        part: entry of the file to take where it holds several, as state_dict.
        architecture: import path of the class of a classifier of your own (my_package.Net), or
            another library's, as timm:NAME, in place of a format; its code is imported.
        num_classes: logits of that classifier.
        network: arguments of that class, as JSON.
        attention_blocks: modules of that classifier that the attention mask reads.
        check: run what was written once; a wrong map shows in the numbers.
    """
    hints, custom = Hints(sample_size, head_channels, beta_schedule, steps, pairing), None
    if architecture is not None:
        if num_classes is None:
            raise InputError("--architecture needs --num_classes, the number of its logits")
        custom = converting.CustomNetwork(
            architecture, num_classes, network or {}, attention_blocks
        )
    elif (num_classes, network, attention_blocks) != (None, None, None):
        raise InputError("--num_classes, --network, --attention_blocks belong to --architecture")
    converted = converting.convert(
        Path(source), Path(target), hints, mean=mean, std=std, part=part, custom=custom
    )
    print(f"{source}: {converted.format}")
    for line in converted.remarks:
        print(f"  {line}")
    if check:
        diffusion = converted.kind == "diffusion"
        folder = converted.folder
        lines = check_denoiser(folder) if diffusion else check_classifier(folder, sample_size)
        print(*(f"  {line}" for line in lines), sep="\n")
    option = "--model.classifier" if converted.kind == "classifier" else "--model.denoisers.ddpm"
    print(f"{target}: a {converted.kind}, for hetpure evaluate {option} {target}")


def main(arguments: list[str]) -> None:
    """Parses the arguments and converts."""
    parser = parser_of(convert, "mean", "std", "attention_blocks", "check")
    for name in ("mean", "std"):
        of_channels = "of a classifier, pixel [0, 1], by channel"
        parser.add_argument(f"--{name}", type=float, nargs="+", help=of_channels)
    parser.add_argument(
        "--attention_blocks", nargs="+", help="its modules that the attention mask reads"
    )
    parser.add_argument("--check", action="store_true", help="run what was written once")
    call(convert, arguments, parser)
