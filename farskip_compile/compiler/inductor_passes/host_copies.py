# SPDX-License-Identifier: Apache-2.0
"""The operators `farskip::to_host` and `farskip::on_host`: numbers on their way from a device to the host.

In:    `to_host(Tensor numbers) -> Tensor`: numbers on a device. `on_host(Tensor copy, Tensor[] held) -> Tensor`: what
       it has returned; and the numbers, which are in use until then.
Out:   `to_host` returns at once; what it returns is theirs only after `on_host`, which returns them, in one dimension.
Never: waits for anything but the copy. `Tensor.item` waits for all that was given to the device before, so that it has
       nothing to do when the host goes on.

The copy goes to memory that is pinned, in the order of the device's stream; an event after it says when it is there.
Numbers on the host are copied at once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from farskip_compile.records.announcement import LIBRARY

# a capture knows neither memory that is pinned in it nor a host that waits
LIBRARY.define("to_host(Tensor numbers) -> Tensor", tags=(torch.Tag.cudagraph_unsafe,))
LIBRARY.define("on_host(Tensor copy, Tensor[] held) -> Tensor", tags=(torch.Tag.cudagraph_unsafe,))

_events: dict[int, torch.Event] = {}
"""Of copies under way, by where they go; a copy that is under way has its memory."""


def _to_host(numbers: Tensor) -> Tensor:
    if numbers.device.type == "cpu":
        return numbers.clone().flatten()
    copy = torch.empty(numbers.numel(), dtype=numbers.dtype, pin_memory=True)
    copy.copy_(numbers.flatten(), non_blocking=True)
    _events[copy.data_ptr()] = event = torch.Event(numbers.device)
    event.record(torch.accelerator.current_stream(numbers.device))
    return copy


def _on_host(copy: Tensor, held: list[Tensor]) -> Tensor:
    event = _events.pop(copy.data_ptr(), None)
    if event is not None:
        event.synchronize()
    return copy.clone()


for name, function in (("to_host", _to_host), ("on_host", _on_host)):
    LIBRARY.impl(name, function, "CompositeExplicitAutograd")
torch.library.register_fake(
    "farskip::to_host", lambda numbers: numbers.new_empty([numbers.numel()], device="cpu"), lib=LIBRARY
)
torch.library.register_fake("farskip::on_host", lambda copy, held: torch.empty_like(copy), lib=LIBRARY)
