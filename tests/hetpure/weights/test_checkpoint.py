"""Published files are read without running them: tensors come out, everything else is inert."""

import io
import pickle
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from hetpure.errors import InputError
from hetpure.weights.checkpoint import (
    _TensorReader,
    parts_of,
    read_parts,
    without_wrappers,
)
from tests.hetpure.weights.files import Bomb, edm_snapshot, whole_module

STATE = {
    "block.conv.weight": torch.arange(12.0).reshape(2, 3, 2),
    "block.norm.running_mean": torch.tensor([1.5, -2.0]),
    "block.norm.num_batches_tracked": torch.tensor(7),
    "low.weight": torch.tensor([0.5, 1.0]).half(),
    "empty.weight": torch.empty(0),
}


def same(found: object, state: dict[str, Tensor] = STATE) -> bool:
    assert isinstance(found, dict)
    assert found.keys() == state.keys()
    return all(
        torch.equal(found[name], value) and found[name].dtype == value.dtype
        for name, value in state.items()
    )


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_state_dicts_of_every_kind_of_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "weights"
    if kind == "safetensors":
        save_file(STATE, path)
    else:
        torch.save(STATE, path, _use_new_zipfile_serialization=kind == "zip")
    assert same(read_parts(path)[""])


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_whole_modules_give_their_state_dict(tmp_path: Path, zipped: bool) -> None:
    """Tensors that lie transposed or share their numbers too."""
    shared = torch.arange(6.0)
    state = STATE | {"a.weight": shared.reshape(2, 3).T, "b.weight": shared[2:4]}
    path = whole_module(state, tmp_path / "model.t7", zipped=zipped)
    assert same(read_parts(path)["net"], state)


def test_buffers_that_no_state_dict_holds_are_left_out(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.ones(1), persistent=False)
            self.register_buffer("kept", torch.zeros(1))

    Net.__module__, Net.__qualname__ = "tests.hetpure.weights.test_checkpoint", "Net"
    globals()["Net"] = Net
    for protocol in (2, 4):
        path = tmp_path / f"net{protocol}.t7"
        torch.save({"net": Net()}, path, pickle_protocol=protocol)
        assert list(read_parts(path)["net"]) == ["kept"]


def test_edms_snapshots_are_read_and_their_source_is_not_run(tmp_path: Path) -> None:
    state = {f"model.{name}": value for name, value in STATE.items()}
    path = edm_snapshot(state, tmp_path / "edm.pkl")
    found = read_parts(path)
    assert same(found["ema"], state)


class Nested:
    """A storage within a pickle, as EDM's snapshots hold them, whose file is a bomb."""

    def __init__(self, bomb: Bomb) -> None:
        stream = io.BytesIO()
        torch.save(bomb, stream)
        self.content = stream.getvalue()

    def __reduce__(self) -> tuple[Any, ...]:
        return torch.storage._load_from_bytes, (self.content,)


def bombs() -> dict[str, Callable[[Bomb, Path], Any]]:
    def plain(protocol: int) -> Callable[[Bomb, Path], Any]:
        return lambda bomb, path: path.write_bytes(pickle.dumps({"a": bomb}, protocol=protocol))

    def saved(zipped: bool) -> Callable[[Bomb, Path], Any]:
        return lambda bomb, path: torch.save(
            {"a": bomb, "w": torch.ones(2)}, path, _use_new_zipfile_serialization=zipped
        )

    def in_module(bomb: Bomb, path: Path) -> None:
        net = nn.Linear(1, 1)
        net.extra = bomb  # type: ignore[assignment]
        torch.save({"net": net}, path)

    return {
        **{f"pickle {n}": plain(n) for n in (0, 2, 4, 5)},
        "zip": saved(True),
        "legacy": saved(False),
        "module": in_module,
        "nested": lambda bomb, path: path.write_bytes(pickle.dumps({"a": Nested(bomb)})),
    }


@pytest.mark.parametrize("kind", bombs())
def test_no_pickle_is_executed(tmp_path: Path, kind: str) -> None:
    """The bomb is a bomb, and reading the file either takes its tensors or refuses it."""
    bomb, path = Bomb(tmp_path / "exploded"), tmp_path / "weights"
    bombs()[kind](bomb, path)
    try:
        found = read_parts(path)
    except InputError:
        found = {}
    assert not bomb.path.exists()
    if kind in ("zip", "legacy"):
        assert torch.equal(found[""]["w"], torch.ones(2))  # type: ignore[call-overload]
    if kind == "module":
        assert set(found["net"]) == {"weight", "bias"}
    pickle.loads(pickle.dumps(bomb))
    assert bomb.path.exists()


@pytest.mark.parametrize("name", sorted(_TensorReader.names))
def test_a_pickle_can_change_nothing_that_is_ours(tmp_path: Path, name: str) -> None:
    """It may set attributes of what it is given: of stand-ins made for it alone."""
    module, _, attribute = name.rpartition(".")
    path = tmp_path / "weights"
    told = f"c{module}\n{attribute}\n(N}}Vplanted\nVhere\nstb.".encode()  # BUILD, with slots
    path.write_bytes(b"\x80\x02" + told)
    stand_in = _TensorReader.names[name]
    with suppress(InputError):
        read_parts(path)
    assert not hasattr(stand_in, "planted")


@pytest.mark.parametrize("kind", ["TorchScript", "torch.export"])
def test_programs_are_refused_and_say_why(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "net.pt"
    network = nn.Linear(2, 2)
    if kind == "TorchScript":
        torch.jit.trace(network, torch.ones(1, 2)).save(str(path))  # type: ignore[no-untyped-call]
    else:
        path = tmp_path / "net.pt2"
        torch.export.save(torch.export.export(network, (torch.ones(1, 2),)), str(path))
    with pytest.raises(InputError, match=f"{kind} program.*state_dict"):
        read_parts(path)


@pytest.mark.parametrize(
    "content", [b"", b"\x80", b"PK\x03\x04", b"no weights", b"\x89PNG\r\n"], ids=repr
)
def test_other_files_are_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(InputError) as refused:
        read_parts(path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)
    with pytest.raises(InputError, match="cannot be read"):
        read_parts(tmp_path / "nowhere")


def test_a_pickle_without_tensors_has_no_parts(tmp_path: Path) -> None:
    for content in (None, 1, "text", [1, 2], {"a": {"b": 1}}):
        (tmp_path / "file").write_bytes(pickle.dumps(content))
        assert read_parts(tmp_path / "file") == {}


def test_tensors_outside_of_their_numbers_are_refused(tmp_path: Path) -> None:
    class Outside:
        def __reduce__(self) -> tuple[Any, ...]:
            storage = torch.arange(4.0).untyped_storage()
            typed = torch.TypedStorage(wrap_storage=storage, dtype=torch.float32, _internal=True)
            return torch._utils._rebuild_tensor_v2, (typed, 2, (3,), (1,), False, {})

    path = tmp_path / "weights"
    path.write_bytes(pickle.dumps({"w": Outside()}, protocol=4))
    with pytest.raises(InputError, match="outside of its numbers"):
        read_parts(path)


def test_parts_of_published_layouts() -> None:
    weights = {"module.0.w": torch.ones(1)}
    inner = {"w": torch.ones(1)}
    for name in ("state_dict", "model_state_dict", "model", "params", "net", "anything"):
        found = parts_of({name: weights, "epoch": 3, "optimizer": {"state": {0: inner}}})
        assert list(found) == [name]
        assert list(found[name]) == ["module.0.w"]
    listed = parts_of([weights, {"state": {}}, 5])
    assert list(listed) == ["0"]
    average = {"model": weights, "ema": {"decay": 0.9, "shadow_params": [torch.ones(1)]}}
    assert list(parts_of(average)) == ["ema", "model"]
    assert isinstance(parts_of(average)["ema"], list)


@pytest.mark.parametrize(
    ("raw", "average"),
    [
        ("state_dict", "state_dict_ema"),
        ("model_state_dict", "ema_state_dict"),
        ("g", "g_ema"),
        ("model", "model_ema"),
    ],
)
def test_an_average_comes_before_what_it_is_of(raw: str, average: str) -> None:
    weights = {"w": torch.ones(1)}
    assert list(parts_of({raw: weights, average: weights})) == [average, raw]
    assert list(parts_of({"semantic": weights, "model": weights})) == ["model", "semantic"]


def test_wrappers_names_are_taken_off() -> None:
    def names(*given: str) -> list[str]:
        return list(without_wrappers({name: torch.ones(3) for name in given}))

    assert names("module.0.conv.w", "module.0.fc.w") == ["conv.w", "fc.w"]
    assert names("module._orig_mod.a.w", "module._orig_mod.b.w") == ["a.w", "b.w"]
    assert names("model.a.w", "nu") == ["model.a.w", "nu"]
    assert names("0.weight", "2.weight") == ["0.weight", "2.weight"]
    # Wrappers that normalise: their numbers are kept.
    assert names("mu", "sigma", "model.a.w") == ["mu", "sigma", "a.w"]
    assert names("module.0.mean", "module.0.std", "module.1.a.w") == ["mean", "std", "a.w"]
    assert names("net.w", "net.bn.running_mean") == ["w", "bn.running_mean"]


def test_a_snapshot_of_another_preconditioning_is_refused(tmp_path: Path) -> None:
    """EDM publishes baselines under the same names inside VPPrecond."""
    path = edm_snapshot(STATE, tmp_path / "baseline.pkl", class_name="VPPrecond")
    with pytest.raises(InputError, match="VPPrecond"):
        read_parts(path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-30],
        lambda data: data[: len(data) // 2],
        lambda data: data[:60] + bytes(40) + data[100:],
        lambda data: b"\x80\x04\x8e" + b"\xff" * 7 + b"\x00",  # eight bytes of length
        lambda data: b"\x80\x02]q\x01q\xff0h\xff.",
    ],
    ids=["torn", "half", "holes", "huge", "memo"],
)
def test_damage_is_told_in_one_line(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    for zipped in (True, False):
        path = whole_module(STATE, tmp_path / "net.t7", zipped=zipped)
        path.write_bytes(damage(path.read_bytes()))
        with suppress(InputError):  # or it has no parts
            assert read_parts(path) == {} or zipped
