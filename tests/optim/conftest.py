"""Streams for agents' networks."""

import pytest

from neoteny.envs import StreamConfig


@pytest.fixture(scope="module")
def streams():
    ids = {"vector": "cartpole-rotations", "grid": "grid-layouts"}
    streams = {kind: StreamConfig(id).make(2, device="cpu") for kind, id in ids.items()}
    yield streams
    for stream in streams.values():
        stream.close()
