"""The published files of weights that recipes want, under the names of the folders made of them.

Hashes are those that public texts give: none was compared with a file here. Where no text gives
one, any file is taken."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path


@dataclass(frozen=True)
class PublishedFile:
    """One of them.

    Args:
        file: its name.
        where: it is published.
        licence: that it is under; empty where none is said.
        options: of `hetpure convert`.
        size: in bytes.
        sha256: of its content.
        md5: of its content.
        agreed: several texts give the hash; where one alone does, no file is refused for it.
        folder: any diffusers folder of that kind will do.
    """

    file: str
    where: str
    licence: str = ""
    options: str = ""
    size: int | None = None
    sha256: str | None = None
    md5: str | None = None
    agreed: bool = True
    folder: bool = False

    @property
    def hash(self) -> str:
        """In words."""
        kinds = {"SHA-256": self.sha256, "MD5": self.md5}
        known = [f"{kind} {digest}" for kind, digest in kinds.items() if digest]
        if not known:
            return "no published hash is known"
        return known[0] if self.agreed else f"{known[0]}, which one text alone gives"

    def matches(self, hashes: Mapping[str, str]) -> bool | None:
        """Whether a file of these hashes, by kind, is this one; None where that cannot be told."""
        kinds = {"sha256": self.sha256, "md5": self.md5}
        both = {k: d for k, d in kinds.items() if d is not None and k in hashes}
        return all(hashes[k].startswith(d) for k, d in both.items()) if both else None

    def how(self, folder: Path) -> str:
        """What makes the folder."""
        if self.folder:
            return f"putting {self.file} there"
        return " ".join(filter(None, ["hetpure convert", self.file, str(folder), self.options]))


_DRIVE = "https://drive.google.com/file/d/{}"
_DRIVE_FOLDER = "https://drive.google.com/drive/folders/{}"
_ROBUSTBENCH = "RobustBench's model zoo, " + _DRIVE
_TORCHVISION = "https://download.pytorch.org/models/{}"
_NVIDIA = "NVIDIA's source code licence, non-commercial"
_SCORE_SDE = PublishedFile(
    "checkpoint_8.pth",
    _DRIVE.format("16_-Ahc6ImZV5ClUc0vM5Iivf8OJ1VSif"),
    "Apache-2.0",
    size=1_707_310_559,
    md5="db26ca82b7ea36b75199abf6ed94339d",
    agreed=False,
)
_SVHN = "trained by the authors of ml-postech's and HetPure's code, no link is known"

FILES = {
    "cifar10_ddpmpp_table": replace(_SCORE_SDE, options="--pairing table"),
    "cifar10_ddpmpp_diffpure": replace(_SCORE_SDE, options="--pairing diffpure"),
    "cifar10_ddpm_ema": PublishedFile(
        "model-790000.ckpt",
        "https://heibox.uni-heidelberg.de/f/2e4f01e2d9ee49bab1d5/?dl=1; Diff-Pruning's"
        " ddpm_ema_cifar10.zip, a diffusers folder made of it, does as well without the hash",
        "MIT",
        size=143_046_049,
        md5="1fa350b952534ae442b1d5235cce5cd3",
    ),
    "cifar10_addt": PublishedFile(
        "what `hetpure train --config paper/addt_cifar10` made", "no link is known", folder=True
    ),
    "cifar100_ddpm": PublishedFile(
        "a DDPM of CIFAR-100 in diffusers' layout", "no link is known", folder=True
    ),
    "cifar100_addt": PublishedFile(
        "what `hetpure train --config paper/addt_cifar100` made", "no link is known", folder=True
    ),
    "svhn_ddpm": PublishedFile("ckpt.pth", _SVHN),
    "imagenet_guided": PublishedFile(
        "256x256_diffusion_uncond.pt",
        "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/256x256_diffusion_uncond.pt",
        "MIT",
        size=2_211_383_297,
        sha256="a37c32fffd316cd494cf3f35b339936debdc1576dad13fe57c42399a5dbc78b1",
        md5="fd9dd2335b8736d521de0aed54bd90ca",
    ),
    "cifar10_wrn_28_10_standard": PublishedFile(
        "Standard.pt",
        _ROBUSTBENCH.format("1t98aEuzeTL8P7Kpd5DIrCoCL21BNZUhC"),
        "MIT",
        "--mean 0 0 0 --std 1 1 1",
        sha256="6ed1c75dad63e8ebdbef365020dd1a7eee5e79cf8a1438bd3bdc3b9c7aab3d44",
        agreed=False,
    ),
    "cifar10_wrn_70_16_dropout": PublishedFile(
        "wrn-70-16-dropout/weights.pt",
        _DRIVE_FOLDER.format("1istqcnPNXJ-TQFdxRqNJuInzOtlYOG1b"),
        _NVIDIA,
        "--mean .4914 .4822 .4465 --std .2471 .2435 .2616",
        1_067_654_334,
        md5="8b9579d9a1bdeb809aee2289993b00a8",
        agreed=False,
    ),
    "cifar10_wrn_70_16_diffpure": PublishedFile(
        "wresnet-76-10/weights-best.pt",
        _DRIVE_FOLDER.format("1OeuFx2r26xeHncs8bGuqgY6ns_N77Avi"),
        _NVIDIA,
        size=2_134_963_836,
        md5="255712cf64b271ea6d63b564c7d4e396",
        agreed=False,
    ),
    "cifar10_wrn_28_10_gowal": PublishedFile(
        "Gowal2021Improving_28_10_ddpm_100m.pt",
        _ROBUSTBENCH.format("12L8YE6VBgUDKyW6GMSNefSYj2gg4LEKx"),
        "MIT",
    ),
    "cifar10_wrn_70_16_rebuffi": PublishedFile(
        "Rebuffi2021Fixing_70_16_cutmix_extra.pt",
        _ROBUSTBENCH.format("1qKDTp6IJ1BUXZaRtbYuo_t0tuDl_4mLg"),
        "Apache-2.0",
    ),
    "cifar10_wrn_28_10_addt": PublishedFile(
        "origin.t7", "ADDT's authors have it, no link is known"
    ),
    "cifar100_wrn_28_10_addt": PublishedFile(
        "wide-resnet-28x10-cifar100.t7", "ADDT's authors have it, no link is known"
    ),
    "svhn_wrn_28_10": PublishedFile("model.pt7", _SVHN, options="--mean 0 0 0 --std 1 1 1"),
    "imagenet_resnet50": PublishedFile(
        "resnet50-0676ba61.pth",
        _TORCHVISION.format("resnet50-0676ba61.pth"),
        "BSD-3-Clause",
        size=102_530_333,
        sha256="0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a",
    ),
    "imagenet_wide_resnet50_2": PublishedFile(
        "wide_resnet50_2-95faca4d.pth",
        _TORCHVISION.format("wide_resnet50_2-95faca4d.pth"),
        "BSD-3-Clause",
        sha256="95faca4d",
    ),
}
