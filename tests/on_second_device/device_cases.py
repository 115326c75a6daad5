"""The second device is as strict as CUDA, and no stricter: what it refuses, what it allows, what it computes."""

import copy
import io

import numpy as np
import pytest
import torch
from second_device import DEVICE, SecondTensor
from torch import nn
from torch.nn.functional import embedding, scaled_dot_product_attention

HERE = torch.arange(6.0).view(2, 3)
ROW = torch.tensor([1])
PLACES = torch.zeros(2, 1, dtype=torch.long)


def loaded(tensor):
    file = io.BytesIO()
    torch.save({"tensor": tensor}, file)
    file.seek(0)
    return torch.load(file, weights_only=True)["tensor"]


REFUSED = {
    "add": lambda x: x + HERE,
    "add to the CPU": lambda x: HERE + x,
    "write to the CPU": lambda x: torch.tensor(1.0).add_(x[0, 0]),
    "matrix product": lambda x: x @ HERE.T,
    "a layer's weights": nn.Linear(3, 2),
    "a layer's input": lambda x: nn.Linear(3, 2, device=DEVICE)(HERE),
    "concatenation": lambda x: torch.cat([x, HERE]),
    "choice": lambda x: torch.where(HERE > 0, x, 0.0),
    "mask": lambda x: x.masked_fill(HERE > 0, 1.0),
    "assignment of values": lambda x: x.__setitem__(x > 1, torch.ones(4)),
    "gather": lambda x: x.gather(1, PLACES),
    "scatter": lambda x: x.scatter(1, PLACES, 1.0),
    "index_select": lambda x: x.index_select(0, ROW),
    "repeat_interleave": lambda x: x.repeat_interleave(torch.tensor([1, 2]), 0),
    "embedding": lambda x: embedding(ROW, x),
    "the CPU indexed": lambda x: HERE[x[0].long()],
    "comparison": lambda x: torch.equal(x, HERE),
    "membership": lambda x: torch.isin(x, HERE),
    "search": lambda x: torch.searchsorted(x[0], HERE[0]),
    "attention's mask": lambda x: scaled_dot_product_attention(
        *[x[None, None]] * 3, attn_mask=torch.ones(2, 2, dtype=torch.bool)
    ),
    "random numbers of the CPU": lambda x: torch.rand(2, device=DEVICE, generator=torch.Generator()),
    "numpy": lambda x: x.numpy(),
    "numpy's own way": np.asarray,
}
ALLOWED = {
    "numbers": lambda x: (x + torch.tensor(1.0)) * torch.tensor(2) + x[0, 0],
    "a number chosen": lambda x: torch.where(x > 1, x, torch.tensor(0.0)),
    "indices": lambda x: x[torch.tensor([1, 0])],
    "a mask as index": lambda x: x[torch.tensor([True, False])],
    "lists as indices": lambda x: x[[0, 1], [1, 1]],
    "views": lambda x: x.T[1:].reshape(-1).unsqueeze(0).expand(2, 4),
    "nested tensors": lambda x: torch.tensor([[x[0, 1], 2.0]], device=x.device),
    "factories": lambda x: torch.arange(3, device=x.device) + torch.full((3,), 2, device=x.device) + x.new_zeros(3),
    "saved and loaded": loaded,
    "copied": copy.deepcopy,
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_mixes_devices_is_refused(what):
    with pytest.raises((RuntimeError, TypeError), match=r"second:0|cpu"):
        REFUSED[what](HERE.to(DEVICE))


@pytest.mark.parametrize("what", ALLOWED)
def test_what_cuda_allows_is_computed(what):
    found = ALLOWED[what](HERE.to(DEVICE))
    assert isinstance(found, SecondTensor)
    assert found.device == DEVICE
    assert torch.equal(found.cpu(), ALLOWED[what](HERE))


def test_values_are_written_and_read_across_devices():
    there, here = torch.zeros(2, 3, device=DEVICE), torch.zeros(2, 3)
    there[0] = HERE[1]
    there[torch.tensor([1])] = 7.0
    here.copy_(there)
    assert here.tolist() == there.tolist() == [[3.0, 4.0, 5.0], [7.0, 7.0, 7.0]]
    there[:, 1:].add_(1.0)  # through a view
    assert there[1, 2].item() == 8.0


def test_a_layer_learns_there():
    layers = nn.Linear(3, 2), nn.Linear(3, 2)
    layers[1].load_state_dict(layers[0].state_dict())
    layers[1].to(DEVICE)
    for layer in layers:
        optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
        layer(HERE.to(layer.weight.device)).square().mean().backward()
        optimizer.step()
    assert layers[1].weight.grad.device == DEVICE
    torch.testing.assert_close(layers[1].weight.detach().cpu(), layers[0].weight.detach())


def test_autocast_is_a_gpus():
    layer = nn.Linear(3, 2, device=DEVICE)
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        out = layer(HERE.to(DEVICE))
        assert out.dtype == torch.bfloat16
        assert out.softmax(-1).dtype == torch.float32
        assert (out + 1.0).dtype == torch.bfloat16
