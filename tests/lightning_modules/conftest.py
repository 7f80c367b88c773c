"""What tests that start processes share."""

import pytest

from tests.ports import next_port


@pytest.fixture(autouse=True)
def _port_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning takes the environment's, and leaves there what it chose itself."""
    monkeypatch.setenv("MASTER_PORT", str(next_port()))
