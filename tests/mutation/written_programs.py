# SPDX-License-Identifier: Apache-2.0
"""Small programs that write in place in the ways that models do, to plant faults of `normalize` in.

Each takes two tensors [4, 3] of floats, and returns a tuple of tensors.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tests.fuzz import custom_ops  # noqa: F401  registers them

Tensors = tuple[Tensor, ...]


def operators(x: Tensor, s: Tensor) -> Tensors:
    y = x * 2
    y -= s
    y.add_(s, alpha=0.5)
    y.div_(s)
    return (y * 1,)


def two_views(x: Tensor, s: Tensor) -> Tensors:
    y = x * 2
    v = y.view(-1)
    early = v * 1
    y.add_(s)
    v.mul_(3.0)
    y.add_(2.0)
    return early, v * 1, y * 1


def rows(x: Tensor, s: Tensor) -> Tensors:
    """Through a view of a view, one that overlaps another; two that hold as many elements, in other places."""
    y = x * 2
    row, column = y[0], y[:, 0]
    row[1:].add_(s[0, 1:])
    column.mul_(3.0)
    first, second = y[:2], y[2:]
    first.sub_(s[:2])
    y.t().mul_(s.t())
    return row * 1, column * 1, second * 1, y * 1


def moved_rows(x: Tensor, s: Tensor) -> Tensors:
    y = x * 2
    first, second = y[:2], y[2:]
    first.sub_(s[:2])
    return first * 1, second * 1


def transposed(x: Tensor, s: Tensor) -> Tensors:
    y = (x[:3] * 2).contiguous()
    t = y.t()
    y.sub_(s[:3])
    return t * 1, y * 1


def of_another_type(x: Tensor, s: Tensor) -> Tensors:
    y = (x * 2).to(torch.bfloat16)
    y += s
    y.add_(s)
    mask = (x > 0).to(x.dtype)
    mask.lt_(s)
    return y * 1, mask * 1


def copies(x: Tensor, s: Tensor) -> Tensors:
    a, b = torch.empty_like(x), x * 3
    a.copy_(b)
    a[:, 0].add_(1.0)
    c = torch.empty_like(x, dtype=torch.bfloat16)
    c.copy_(s)
    d = torch.empty_like(x)
    d.copy_(s[0])
    return a * 1, b * 1, c * 1, d * 1


def puts(x: Tensor, s: Tensor) -> Tensors:
    y, rows, columns = x * 2, (s[:, 0] * 0).long() + torch.arange(4), (s[:, 0] * 0).long() + torch.tensor([2, 0, 1, 0])
    y[rows, columns] = s[:, 0]
    z = x * 2
    z[z > 0] = s[0, 0]
    z[columns] += s
    return y * 1, z * 1


def functions(x: Tensor, s: Tensor) -> Tensors:
    y = x * 2
    z = F.leaky_relu(y, 0.5, True)
    w = F.silu(z, inplace=True)
    return y * 1, z * s, w * 1


def inputs(x: Tensor, s: Tensor) -> Tensors:
    read = s * 1
    s.add_(x)
    again = s * 1
    s[1:].mul_(x[1:])
    return read, again, s * 1


def drawn(x: Tensor, s: Tensor) -> Tensors:
    y, z = x * 2, s * 2
    y.bernoulli_(0.5)
    z.bernoulli_(0.5)
    return y * 1, z * 1


def unknown(x: Tensor, s: Tensor) -> Tensors:
    y = torch.empty_like(x)
    view = y.view(-1)
    torch.ops.farskip_fuzz.overwrite(x, y)
    first = y * 1
    torch.ops.farskip_fuzz.overwrite(s, y)
    torch.ops.farskip_fuzz.halve_(y)
    return first, y * 1, view * 1


def unknown_rows(x: Tensor, s: Tensor) -> Tensors:
    y = x * 2
    row = y[0]
    torch.ops.farskip_fuzz.halve_(y)
    early = row * 1
    torch.ops.farskip_fuzz.overwrite(s, y)
    return early, row * 1


def opened(x: Tensor, s: Tensor) -> Tensors:
    def body(a: Tensor, b: Tensor) -> Tensors:
        view = a.view(-1)
        view.mul_(2.0)
        return a - b, a * 3

    y = x * 2
    view = y.view(-1)
    one, other = checkpoint(body, y, s, use_reentrant=False)
    return one, other, view * 1


def differences(x: Tensor, s: Tensor) -> Tensors:
    return (
        torch.rsub(x, s),
        torch.rsub(x, 1.5),
        torch.sub(input=x, other=s),
        torch.sub(x, s, alpha=2),
        torch.rsub(x, 2, alpha=3),
    )


def without_gradients(x: Tensor, s: Tensor) -> Tensors:
    y = x * 2
    with torch.no_grad():
        y.mul_(s)
    z = x * 3
    z.detach().add_(s)
    return y * s, z * s


def in_autocast(x: Tensor, s: Tensor) -> Tensors:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = x[:3] * 2.001
        y.addmm_(x[:3] * 1.0001, s[:3])
    return (y * 1,)


def exchanged(x: Tensor, s: Tensor) -> Tensors:
    import torch.distributed as dist

    from farskip_compile._compat import collectives

    part = collectives.reduce_scatter(torch.cat([x, s], 0).view(2, 4, 3) * 2, "sum", 1, dist.group.WORLD)
    return (collectives.all_gather(part.relu(), 1, dist.group.WORLD) * 3,)


def out_of_order(x: Tensor, s: Tensor) -> Tensors:
    import torch.distributed as dist
    import torch.distributed._functional_collectives as funcol

    sent = funcol.all_gather_tensor(x * 2, 0, dist.group.WORLD)
    one, other = sent.chunk(2, 0)
    return (torch.cat([other, one], 1) * 3,)
