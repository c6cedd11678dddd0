# SPDX-License-Identifier: Apache-2.0
"""Changes of the rows and of the shape of the stream: selected, repeated, put together, moved, flattened.

Contract: data, by name; as `writes`, but the shape may be another afterwards.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from tests.fuzz.streams.forms import WIDTH, Form

D = WIDTH

SELECTED = {
    "every second": Form("x = x[..., ::2, :]", lambda x: x[..., ::2, :]),
    "last only": Form("x = x[..., -1:, :]", lambda x: x[..., -1:, :]),
    "last two": Form("x = x[..., -2:, :]", lambda x: x[..., -2:, :]),
    "but the first": Form("x = x[..., 1:, :]", lambda x: x[..., 1:, :]),
    "narrow": Form("x = x.narrow(-2, 1, 2)", lambda x: x[..., 1:3, :]),
    "half": Form("x = x.chunk(2, -2)[0]", lambda x: x[..., : (x.shape[-2] + 1) // 2, :]),
    "index": Form("x = x[..., K, :]", lambda x, K: x[..., K, :]),
    "index_select": Form("x = x.index_select(-2, K)", lambda x, K: x[..., K, :]),
    "gather": Form(
        "x = torch.gather(x, -2, K[:, None].expand(*x.shape[:-2], K.shape[0], 8))", lambda x, K: x[..., K, :]
    ),
    "take_along_dim": Form("x = torch.take_along_dim(x, K[None, :, None], 1)", lambda x, K: x[:, K], dims=(3,)),
    "mask": Form("x = x[M]", lambda x, M: torch.stack([row for row, here in _each(x, M) if here])),
    "flat index": Form("x = x.reshape(-1, 8)[J]", lambda x, J: x.reshape(-1, D)[J]),
    "one sequence": Form("x = x[0]", lambda x: x.unbind(0)[0], dims=(3,)),
    "one sequence of one": Form("x = x[:1]", lambda x: x.unbind(0)[0][None], dims=(3,)),
    "stride of sequences": Form("x = x[::2]", lambda x: x[::2], dims=(3,)),
}


def _each(x: torch.Tensor, mask: torch.Tensor) -> list[tuple[torch.Tensor, bool]]:
    return list(zip(x.reshape(-1, D).unbind(0), mask.reshape(-1).tolist(), strict=True))


MORE = {
    "registers in front": Form(
        "x = torch.cat([R.expand(*x.shape[:-2], 2, 8), x], -2)",
        lambda x, R: torch.cat([R.expand(*x.shape[:-2], 2, D), x], -2),
    ),
    "registers behind": Form(
        "x = torch.cat([x, R.expand(*x.shape[:-2], 2, 8)], -2)",
        lambda x, R: torch.cat([x, R.expand(*x.shape[:-2], 2, D)], -2),
    ),
    "registers in front and off again": Form(
        "x = torch.cat([R.expand(*x.shape[:-2], 2, 8), x], -2)[..., 2:, :]", lambda x, R: x
    ),
    "repeat_interleave": Form("x = x.repeat_interleave(2, -2)", lambda x: torch.stack([x, x], -2).flatten(-3, -2)),
    "repeat": Form("x = x.repeat(1, 2, 1)", lambda x: torch.cat([x, x], 1), dims=(3,)),
    "cat with itself": Form("x = torch.cat([x, x], -2)", lambda x: torch.cat([x, x], -2)),
    "pad": Form("x = F.pad(x, (0, 0, 1, 1))", lambda x: F.pad(x, (0, 0, 1, 1))),
    "pad with zeros": Form(
        "x = torch.cat([x.new_zeros(*x.shape[:-2], 1, 8), x], -2)", lambda x: F.pad(x, (0, 0, 1, 0))
    ),
    "sequences twice": Form("x = x.repeat_interleave(2, 0)", lambda x: torch.stack([x, x], 1).flatten(0, 1), dims=(3,)),
}

SHAPED = {
    "flatten": Form("x = x.flatten(0, 1)", lambda x: x.reshape(-1, D), dims=(3,)),
    "view": Form("x = x.reshape(-1, 8)", lambda x: x.reshape(-1, D), dims=(3,)),
    "unflatten": Form("x = x.unflatten(0, (2, -1))", lambda x: x.reshape(2, -1, D), dims=(2,)),
    "one more dimension": Form("x = x.unsqueeze(0)", lambda x: x[None], dims=(2,)),
    "flatten and back": Form("x = x.flatten(0, 1).unflatten(0, (2, -1))", lambda x: x, dims=(3,)),
    "flip": Form("x = x.flip(-2)", lambda x: x[..., torch.arange(x.shape[-2] - 1, -1, -1), :]),
    "roll": Form("x = x.roll(1, -2)", lambda x: torch.cat([x[..., -1:, :], x[..., :-1, :]], -2)),
    "permuted": Form("x = x[..., P, :]", lambda x, P: x[..., P, :]),
    "permuted and back": Form("x = x[..., P, :][..., P.argsort(), :]", lambda x, P: x),
    "halves exchanged": Form(
        "x = torch.cat([x[..., 2:, :], x[..., :2, :]], -2)",
        lambda x: torch.cat([x[..., 2:, :], x[..., :2, :]], -2),
    ),
    "sequences exchanged": Form("x = x.flip(0)", lambda x: torch.stack([*reversed(x.unbind(0))]), dims=(3,)),
    "sequences and tokens exchanged": Form("x = x.transpose(0, 1)", lambda x: x.transpose(0, 1), dims=(3,)),
    "sequences and tokens exchanged, contiguous": Form(
        "x = x.transpose(0, 1).contiguous()", lambda x: x.transpose(0, 1), dims=(3,)
    ),
    "stacked": Form("x = torch.stack(x.unbind(-2), -2)", lambda x: x),
    "features moved": Form("x = x.roll(1, -1)", lambda x: torch.cat([x[..., -1:], x[..., :-1]], -1)),
}

MIXED = {
    "mean of pairs": Form("x = x.unflatten(-2, (-1, 2)).mean(-2)", lambda x: (x[..., ::2, :] + x[..., 1::2, :]) / 2),
    "cumsum": Form("x = x.cumsum(-2)", lambda x: x.cumsum(-2)),
    "shifted added": Form("x = x + x.roll(1, -2)", lambda x: x + torch.cat([x[..., -1:, :], x[..., :-1, :]], -2)),
}

ROWS: dict[str, Form] = {**SELECTED, **MORE, **SHAPED, **MIXED}
