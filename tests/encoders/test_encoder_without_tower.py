"""An encoder without towers says so at every call that needs one."""

import pytest
import torch

from pfedst.encoders import Pixels
from pfedst.errors import ConfigurationError

TENSOR = torch.zeros(1, 1, 4)


@pytest.mark.parametrize(
    ("call", "given"),
    [
        ("finish", (TENSOR,)),
        ("project", (TENSOR,)),
        ("block_weights", (["attn"],)),
        ("embed", (TENSOR, [])),
        ("with_block_weights", ([],)),
        ("encode_text", (["a photo"],)),
    ],
)
def test_pixels_are_no_encoder(call, given) -> None:
    with pytest.raises(ConfigurationError, match="tower"):
        getattr(Pixels(8), call)(*given)
    assert Pixels(8).nbytes == 0
