"""`hf://owner/name`: the cache first, a download only then, and a line that says what to do."""

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from hetpure.errors import InputError
from hetpure.weights import load_denoiser, resolve
from tests.hetpure.weights.folders import diffusion_folder


class Hub:
    """Stands in the place of huggingface_hub's function, and keeps what it was asked."""

    def __init__(self, cached: Path | None = None, online: Path | None = None) -> None:
        self.cached, self.online, self.asked = cached, online, list[dict[str, Any]]()

    def __call__(self, repository: str, **wanted: Any) -> str:
        self.asked.append({"repository": repository} | wanted)
        folder = self.cached if wanted["local_files_only"] else self.online
        if folder is None:
            raise OSError("there is no network")
        return str(folder)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    return hub


def test_what_is_in_the_cache_is_not_asked_for(hub: Hub, tmp_path: Path) -> None:
    hub.cached, _ = diffusion_folder(tmp_path)
    load_denoiser("hf://google/ddpm-cifar10-32@main")
    assert [asked["local_files_only"] for asked in hub.asked] == [True]
    assert hub.asked[0]["repository"] == "google/ddpm-cifar10-32"
    assert hub.asked[0]["revision"] == "main"


def test_what_is_not_is_downloaded_and_that_is_said(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.online, _ = diffusion_folder(tmp_path)
    assert resolve("hf://owner/name") == hub.online
    assert [asked["local_files_only"] for asked in hub.asked] == [True, False]
    assert "downloading" in capsys.readouterr().out
    patterns = hub.asked[-1]["allow_patterns"]
    assert not any(pattern.endswith((".bin", ".pt", ".ckpt")) for pattern in patterns)


def test_half_a_folder_in_the_cache_is_completed(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "half").mkdir()
    hub.cached = tmp_path / "half"
    hub.online, _ = diffusion_folder(tmp_path)
    assert resolve("hf://owner/name") == hub.online


def test_a_bin_is_asked_for_where_there_are_no_safetensors(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(b"")
    hub.online = tmp_path
    assert resolve("hf://owner/name") == tmp_path
    assert any(pattern.endswith(".bin") for pattern in hub.asked[-1]["allow_patterns"])


def test_offline_it_says_what_to_do(hub: Hub) -> None:
    with pytest.raises(InputError, match=r"hf download owner/name --revision v1.*HF_HOME"):
        resolve("hf://owner/name@v1")
    for name in ("hf://name", "hf://a/b/c", "hf://owner/name@"):
        with pytest.raises(InputError, match="hf://owner/name"):
            resolve(name)
