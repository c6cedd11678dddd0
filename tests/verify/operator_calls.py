# SPDX-License-Identifier: Apache-2.0
"""Ways to call each operator that the account of rows has a rule for.

`CALLS` has, for each name, expressions over `v` (a value), `o` (another one), `w`, `w3`, `z` (numbers), `i`, `i3`
(indices), `n` (the last size), `torch`, `F`, and `d`, what the test offers for calls that are no expressions.
"""

from __future__ import annotations

_TEXT = """
zeros_like: torch.zeros_like(v); torch.zeros_like(input=v)
ones_like: torch.ones_like(v)
full_like: torch.full_like(v, 2.0)
rand_like: torch.rand_like(v)
randn_like: torch.randn_like(v)
new_zeros: v.new_zeros(2, 3)
new_ones: v.new_ones((2, 3))
new_full: v.new_full((2, 2), 1.5)
to: v.to(torch.float32); v.to(o)
float: v.float()
double: v.double()
half: v.half()
bfloat16: v.bfloat16()
type: v.type(torch.float32)
type_as: v.type_as(o)
_to_copy: torch.ops.aten._to_copy(v, dtype=torch.float32)
convert_element_type: torch.ops.prims.convert_element_type(v, torch.float32)
int: v.int(); v.int().double()
long: v.mul(2).long(); v.long().double() * v
bool: v.bool(); (v > 0).double() * o; torch.where(v > o, v, 0.0); torch.where(o > 0, v, -v)
dropout: F.dropout(v, 0.5); F.dropout(v, p=0.3, training=False)
native_dropout: torch.native_dropout(v, 0.5, True)[0]
feature_dropout: torch.feature_dropout(v, 0.5, True)
truediv: v / o; 1 / v
floordiv: v // o
mod: v % o
invert: ~(v > 0)
and_: (v > 0) & (o > 0)
or_: (v > 0) | (o > 0)
xor: (v > 0) ^ (o > 0)
neg: -v; torch.neg(input=v)
pos: +v
pow: v ** 2; 2 ** v; torch.pow(v, o)
iadd: d.call(operator.iadd, v.clone(), o)
_get_data_attr: v.data; v.data + o
imul: d.call(operator.imul, v.clone(), o)
isub: d.call(operator.isub, v.clone(), o)
itruediv: d.call(operator.itruediv, v.clone(), o)
contiguous: v.contiguous()
clone: v.clone(); torch.clone(input=v)
alias: torch.ops.aten.alias(v)
detach: v.detach()
silu: F.silu(v)
log_sigmoid: F.logsigmoid(v)
relu6: F.relu6(v)
hardswish: F.hardswish(v)
hardsigmoid: F.hardsigmoid(v)
softplus: F.softplus(v)
one_hot: F.one_hot((v > 0).long(), 2); F.one_hot((v > 0).long(), 2).double() * o.unsqueeze(-1);
    F.one_hot((v > 0).long(), 2).double() * o; F.one_hot(v.argmax(-1), 5).sum(1, keepdim=True).double() * o
softmax: torch.softmax(v, 1); v.softmax(dim=-1); F.softmax(v, dim=-2); F.softmax(v); torch.softmax(v, axis=0);
    torch.softmax(input=v, dim=1); torch.softmax(v, -1, dtype=torch.float32)
log_softmax: F.log_softmax(v, 0); v.log_softmax(-1)
_softmax: torch.ops.aten._softmax(v, 1, False); torch.ops.aten._softmax(v, -1, False)
_log_softmax: torch.ops.aten._log_softmax(v, 1, False); torch.ops.aten._log_softmax(v, -1, False)
slice: torch.ops.aten.slice(v, 0, 1, 3); torch.ops.aten.slice(v, -1, 1, 4); torch.ops.aten.slice(v, 1);
    torch.ops.aten.slice(v)
select: torch.ops.aten.select(v, 0, 1); torch.ops.aten.select(v, -1, 2) * o; torch.ops.aten.select(v, 1, 0);
    v.select(-1, 1)
cumsum: v.cumsum(0); torch.cumsum(v, dim=-1); torch.cumsum(v, axis=1); (v > 0).cumsum(1) * o
cumprod: v.cumprod(-2)
logcumsumexp: v.logcumsumexp(dim=0)
flip: v.flip(0); v.flip(2, 1); v.flip(1, 2); v.flip([-1]); v.flip(dims=(1,)); torch.flip(v, dims=[-1, 0]);
    torch.flip(v, (2,)); v.flip([])
roll: v.roll(1); v.roll(2, 1); v.roll(1, -1); v.roll(1, dims=0); torch.roll(v, shifts=2, dims=1);
    torch.roll(v, shifts=(2, 1), dims=(2, 1)); torch.roll(v, (1, 2), (2, 0)); v.roll(shifts=1)
sort: v.sort()[0]; v.sort(1)[0]; v.sort(dim=0, descending=True)[0]; torch.sort(v, -1, True)[1];
    torch.sort(v, stable=True, dim=1)[0]; v.sort(1)[1] * o; torch.sort(v, axis=1)[0]
argsort: v.argsort(); v.argsort(1).double() * v; v.argsort(stable=True, dim=0) * o
msort: torch.msort(v); v.msort()
glu: F.glu(v); F.glu(v, 1); F.glu(v, dim=0)
topk: v.topk(1)[0]; v.topk(1, 1)[0]; torch.topk(v, k=1, dim=0)[0]; v.topk(2, -1)[1] * o; v.topk(2)[0] * o
kthvalue: v.kthvalue(1)[0]; v.kthvalue(1, 1)[0]; torch.kthvalue(v, 1, dim=0, keepdim=True)[0];
    v.kthvalue(1, -1, True)[1] * o; v.kthvalue(1)[0].unsqueeze(-1) * o
sum: v.sum(); v.sum(0); v.sum(dim=1); v.sum(dim=[]); v.sum(()); v.sum([0, -1], True); torch.sum(v, (1, 2));
    torch.sum(v, axis=-1); torch.sum(input=v, dim=0, keepdim=True); torch.sum(a=v, axis=1); torch.sum(x=v, dim=-1);
    v.sum(-1, keepdim=True) * o; v.sum(dtype=torch.float32); (v > 0).sum(1, keepdim=True) * o
mean: v.mean(); v.mean(-1); v.mean(dim=(0, 1)); v.mean(1, True) + o; v.mean(-1, True) + o; v.mean(axis=-1)
prod: v.prod(); v.prod(1); v.prod(dim=-1); v.prod(dtype=torch.float32)
any: (v > 0).any(); (v > 0).any(1, True) * o; v.any(dim=-1, keepdim=True) * o
all: (v > 0).all(); (v > 0).all(-1, True) * o; v.gt(0).all(dim=0) * o
amax: v.amax(); v.amax(1); v.amax(dim=(-1,), keepdim=True); v.amax(())
amin: v.amin((0, 2)); v.amin(-1)
logsumexp: v.logsumexp(1); v.logsumexp((-1,), keepdim=True)
var: v.var(); v.var(True); v.var(-1); v.var(1, True); v.var(dim=-1, correction=0); v.var(False)
std: v.std(); v.std(True); v.std(False); v.std(1); torch.std(v, True); torch.std(v, dim=-1);
    torch.std(v, -1, True, True)
var_mean: torch.var_mean(v)[1]; torch.var_mean(v, 1)[0]; torch.var_mean(v, dim=-1)[1]; torch.var_mean(v, True)[0]
nansum: v.nansum(); v.nansum(-1)
count_nonzero: v.gt(0).count_nonzero(); torch.count_nonzero(v, dim=1)
max: v.max(); v.max(1)[0]; v.max(dim=-1)[1]; torch.max(v, o); v.max(o); torch.max(v, other=o);
    torch.max(v, -1, True)[0]
min: v.min(); v.min(-1)[0]; torch.min(v, o); torch.min(w[0], v); torch.min(z, v)
argmax: v.argmax(); v.argmax(-1); v.argmax(1).unsqueeze(-1) * o; v.argmax(-1).unsqueeze(-1) * o;
    v.argmax(dim=0, keepdim=True) * o
argmin: v.argmin(-1, True) * o
median: v.median(); v.median(1)[0]; v.median(-1)[0]; v.median(-1, True)[1] * o
nanmedian: v.nanmedian(); v.nanmedian(1)[0]; v.nanmedian(-1, True)[1] * o
mode: v.mode()[0]; v.mode(1)[0]; torch.mode(v, -1, True)[1] * o
aminmax: v.aminmax()[0]; v.aminmax(dim=1)[1]; torch.aminmax(v, dim=-1, keepdim=True)[1] + o
cummax: v.cummax(-1)[0]; v.cummax(1)[0]; torch.cummax(v, dim=-1)[1] * o
cummin: v.cummin(0)[0]; v.cummin(-1)[1] * o
norm: v.norm(); v.norm(2, -1); v.norm(dim=1); torch.norm(v, p=2, dim=-1, keepdim=True); v.norm(1)
linalg_vector_norm: torch.linalg.vector_norm(v); torch.linalg.vector_norm(v, 2, -1);
    torch.linalg.vector_norm(v, dim=1)
layer_norm: F.layer_norm(v, (n,)); F.layer_norm(v, v.shape[-2:]); F.layer_norm(v, (n,), o);
    F.layer_norm(v, normalized_shape=(n,)); F.layer_norm(v, v.shape);
    F.layer_norm(v, (n,), o.mean((0, 1))); F.layer_norm(v, (n,), None, o[0, 0])
rms_norm: F.rms_norm(v, (n,)); F.rms_norm(v, v.shape[1:]); F.rms_norm(v, (n,), weight=o)
native_layer_norm: torch.native_layer_norm(v, [v.size(-1)], None, None, 1e-5)[1];
    torch.native_layer_norm(v, v.shape, None, None, 1e-5)[0]
linear: F.linear(v, w); F.linear(v, o); F.linear(w, o); F.linear(v, w, w[0]); F.linear(v, weight=w, bias=o);
    F.linear(input=v, weight=w); F.linear(w, w, o); F.linear(v, w[0]); F.linear(w, w, v.mean(-1)[0])
matmul: v @ o; v @ v.mT; torch.matmul(v, w); torch.matmul(w, v); torch.matmul(v, other=o);
    v.matmul(o.transpose(0, 1)); v @ w[0]; w[0] @ v
mm: torch.mm(v[0], o[0]); torch.mm(w, v[0]); v.mm(w); torch.mm(v[0], mat2=w); v[:, 0].mm(o[0])
bmm: torch.bmm(v, o); v.bmm(o.transpose(1, 2)); torch.bmm(input=v, mat2=o)
addmm: torch.addmm(w, v[0], o[0]); torch.addmm(o, v, w); torch.addmm(v, w, w); torch.addmm(o, w, w);
    torch.addmm(w[0], v, w, beta=0.5); torch.addmm(input=o, mat1=v, mat2=w)
baddbmm: torch.baddbmm(v, v, o); torch.baddbmm(o, v, v.mT); torch.baddbmm(w, v, o); torch.baddbmm(o, v, o.mT, beta=0)
addbmm: torch.addbmm(w, v, o); torch.addbmm(o[0], v, v)
einsum: torch.einsum('abc,cd->abd', v, w); torch.einsum('abc,abc->ab', v, o); torch.einsum('abc,abd', v, o);
    torch.einsum('abb->ab', v); torch.einsum('aab->ab', v); torch.einsum('aba->ab', v); torch.einsum('abb->a', v);
    torch.einsum('...c,cd->...d', v, w); torch.einsum('a...,a...->...', v, o);
    torch.einsum('b a c, a b c -> a b c', v, o); torch.einsum('abc,adc->abd', v, o);
    torch.einsum('...bc,...bd->...cd', [v, o]); torch.einsum('abc->cba', v); torch.einsum('abc,dec->abde', v, o);
    torch.einsum('...ab->...ba', v); torch.einsum('abc,ab->abc', v, o[..., 0]);
    torch.einsum('ab...,cb...->ac...', v, o)
view: v.contiguous().view(-1, v.size(-1)); v.contiguous().view(v.size(0), -1); v.contiguous().view(-1);
    v.view(torch.int64); v.view(torch.int64).view(torch.float64)
reshape: v.reshape(-1); v.reshape(v.size(1), v.size(0), -1); v.reshape(v.size(2), -1);
    v.reshape(-1, v.size(-1)).reshape(v.shape); torch.reshape(v, shape=(-1, v.size(1)))
_unsafe_view: torch.ops.aten._unsafe_view(v, [-1, 1, v.size(-1)])
view_as: v.contiguous().view_as(o)
reshape_as: v.reshape_as(o)
flatten: v.flatten(); v.flatten(1); torch.flatten(v, 0, 1); v.flatten(start_dim=-2)
unflatten: v.unflatten(-1, (1, -1)); v.flatten(0, 1).unflatten(0, (v.size(0), -1));
    v.flatten(0, 1).unflatten(0, (-1, v.size(0)))
unsqueeze: v.unsqueeze(0); v.unsqueeze(-1); v.unsqueeze(dim=2) * o; v.unsqueeze(1) + o;
    v.unsqueeze(0) * o.unsqueeze(1)
squeeze: v.squeeze(); v.squeeze(0); v.squeeze(dim=1); v.squeeze() * o
transpose: v.transpose(0, 1); v.transpose(-1, 0); v.transpose(dim0=1, dim1=2);
    torch.transpose(input=v, dim0=0, dim1=1) * o
swapaxes: v.swapaxes(0, 2); torch.swapaxes(v, axis0=0, axis1=1)
swapdims: v.swapdims(1, 0)
t: v.t(); v[0].t(); torch.t(v[:, 0])
permute: v.permute(1, 2, 0); v.permute((2, 0, 1)); v.permute(dims=(0, 2, 1)); torch.permute(v, dims=(-1, 0, 1))
movedim: v.movedim(0, 1); torch.movedim(v, (0, 1), (2, 0)); v.movedim(source=0, destination=-1);
    torch.movedim(v, destination=[0, 1], source=[1, 2])
moveaxis: torch.moveaxis(v, 0, -1)
repeat: v.repeat(1, 1, 2); v.repeat(2, 1, 1); v.repeat((2, 1, 3, 1)); v.repeat(repeats=(1, 2, 1));
    v.repeat(2, 1, 1, 1).flatten(0, 1)
tile: v.tile(2); v.tile((1, 2)); torch.tile(v, dims=(2, 1, 1)); v.tile(2, 1, 1, 1)
repeat_interleave: v.repeat_interleave(2, 0); v.repeat_interleave(2, dim=-1); v.repeat_interleave(2);
    torch.repeat_interleave(v, repeats=2, dim=1); v.repeat_interleave(2, 1).repeat(1, 2, 1);
    torch.repeat_interleave(v, i[: 1] + 1, dim=2); v.repeat_interleave(2, 0).unflatten(0, (-1, 2));
    v.repeat_interleave(2, 0).unflatten(0, (2, -1))
view_as_complex: torch.view_as_complex(v.unsqueeze(-1).repeat(1, 1, 1, 2)); torch.view_as_complex(v.contiguous());
    torch.view_as_complex(input=v.contiguous()).real; torch.complex(v, o).imag;
    d.write(torch.complex(w, w), (0,), torch.complex(v, o)[0])
view_as_real: torch.view_as_real(torch.complex(v, o));
    torch.view_as_real(torch.view_as_complex(v.contiguous())).flatten(-2)
getattr: v.T; v.mT; v[0].T; v.real; v.data
expand: v.unsqueeze(0).expand(2, -1, -1, -1); v[:, :1].expand(-1, 3, -1);
    v.unsqueeze(2).expand(-1, -1, 2, -1).flatten(1, 2); v.mean(-1, True).expand(-1, -1, 3)
expand_as: v.expand_as(o); v[..., :1].expand_as(o); v.gather(1, i3[:, :1]).expand_as(v) * o
broadcast_to: torch.broadcast_to(v, (2, -1, -1, -1))
pad: F.pad(v, (1, 1)); F.pad(v, (0, 0, 1, 1), value=2.0); F.pad(v, (1, 1), 'circular');
    F.pad(v, pad=(0, 1), mode='reflect'); F.pad(v, (0, 0, 0, 0, 1, -1)); F.pad(v, (-1, 0)); F.pad(input=v, pad=(1, 0))
constant_pad_nd: torch.constant_pad_nd(v, (1, 0), 3.0); torch.constant_pad_nd(v, (0, 0, 0, 1))
chunk: v.chunk(2, -1)[0]; v.chunk(2)[0]; torch.chunk(v, 2, dim=1)[1]; torch.chunk(v, 2, axis=-1)[0];
    torch.chunk(v, 2, axis=0)[0]
split: v.split(1, -1)[1]; v.split(1)[0]; torch.split(v, 1, dim=1)[0]; v.split([1, v.size(-1) - 1], dim=2)[1];
    v.split(1, 0)[0]
unbind: v.unbind()[0]; v.unbind(-1)[0]; v.unbind(dim=1)[0]; torch.unbind(v, axis=1)[0]; torch.unbind(v, axis=2)[0] * o
split_with_sizes: v.split_with_sizes([1, v.size(-1) - 1], -1)[0]; v.split_with_sizes([1, v.size(0) - 1])[0]
tensor_split: v.tensor_split(2, -1)[0]; v.tensor_split(2)[0]; torch.tensor_split(v, (1,), dim=1)[0]
cat: torch.cat([v, o], -1); torch.cat([v, o]); torch.cat((v, w.expand(v.size(0), -1, -1)), dim=-1);
    torch.cat([v, o], axis=1); torch.cat(tensors=[v, o], dim=2); torch.cat([v, v, o], 1)
stack: torch.stack([v, o]); torch.stack([v, o], 1); torch.stack([v, o], dim=-1);
    torch.stack([v, v], -2).flatten(1, 2); torch.stack([v, o], axis=2)
concat: torch.concat([v, o], -1)
concatenate: torch.concatenate([v, o], axis=0); torch.concatenate([v, o], dim=-1)
getitem: v[0]; v[:, 0]; v[..., 0]; v[:, :, 1:]; v[:, 1:]; v[..., ::2]; v[:, ::2]; v[None]; v[:, None] * o;
    v[..., None, :]; v[:, :, None]; v[True]; v[True, :, :, :]; v[i]; v[:, i]; v[..., i]; v[[0, 1]]; v[..., [1, 0]];
    v[v > 0]; v[v[..., 0] > 0]; v[..., v[0, 0] > 0]; v[i, :, i]; v[:, i, i]; v[-1]; v[..., -1]; v[..., -1, None] * o;
    w[(v > 0).long()[..., 0]]; v[0, ..., 0]; v[:, i[:, None], i]; v[None, ..., None, 0]; v[..., :1] * o; v[:, :1] * o;
    v[:]; v[...]; v[..., (o > 0).long()[0, 0]]; v[:, 0:, :]; w[v.argmax(1)]; w[(v > 0).long().sum(1) % 2];
    w[v.argmax(-1)] * o
index: torch.ops.aten.index(v, [None, i]); torch.ops.aten.index(v, [None, None, i]); torch.ops.aten.index(v, [i])
gather: v.gather(-1, i3); v.gather(1, i3); torch.gather(v, dim=-1, index=i3[:, :1]); v.gather(-1, (o > 0).long());
    v.gather(-1, o.argsort(-1)); v.gather(2, o.argsort(1)); v.gather(2, i3[:, :1]) * o; v.gather(0, i3);
    torch.gather(v, index=v.argsort(-1), dim=2); v.gather(-1, (v > 0).long().sum(1, True).expand(v.shape) % 2);
    v.gather(-1, v.topk(1)[1]) * o
take_along_dim: torch.take_along_dim(v, i3); torch.take_along_dim(v, i3, -1); torch.take_along_dim(v, i3, dim=1);
    torch.take_along_dim(v, i3[:1, :1], 2); torch.take_along_dim(v[:, :1], i3, -1)
index_select: v.index_select(-1, i); v.index_select(1, i); torch.index_select(v, dim=2, index=i);
    torch.index_select(v, 0, i); v.index_select(2, v.argmax(-1)[0])
embedding: F.embedding(i, w); F.embedding((v > 0).long(), w); F.embedding(i, v[0]); F.embedding(i, v.flatten(0, 1));
    F.embedding(v.argmax(-1), w) * o; F.embedding(v.argmax(1), w) * o
scatter: v.scatter(-1, i3, 0.5); v.scatter(1, i3, 0.5); v.scatter(-1, i3, o); v.scatter(dim=-1, index=i3, src=o);
    torch.zeros_like(v).scatter(-1, v.argsort(-1), o); torch.zeros_like(v).scatter(-1, v.argsort(1), v);
    torch.zeros_like(v).scatter(2, v.topk(1)[1], 1.0) * o; torch.zeros_like(v).scatter(1, v.topk(1)[1], 1.0) * o;
    v.scatter(2, i3[:, :1], o); z.scatter(-1, i3, o) * v; v.scatter(0, i3, o, reduce='add');
    torch.scatter(v, index=i3, dim=1, src=o); z.scatter(-1, i3[:, :1], o).cumsum(-1) + o
scatter_add: v.scatter_add(-1, i3, o); v.scatter_add(1, i3, o); torch.zeros_like(v).scatter_add(-1, i3, o);
    torch.zeros_like(v).scatter_add(0, i3, o); v.clone().scatter_add_(-1, i3, o)
scatter_reduce: v.scatter_reduce(-1, i3, o, 'amax'); v.scatter_reduce(1, i3, o, reduce='sum')
index_add: v.index_add(0, i, o); v.index_add(-1, i, o); torch.zeros_like(v).index_add(1, i, o);
    v.clone().index_add_(2, i, o)
index_copy: v.index_copy(0, i, o); torch.index_copy(v, 2, i, o)
index_put: v.index_put((i,), o); v.index_put((i, i), w[0]); torch.zeros_like(v).index_put((i,), o, accumulate=True);
    d.call(torch.index_put, w, (i, i), v[0, 0])
index_fill: v.index_fill(-1, i, 0.5); v.index_fill(1, i, 0.5)
masked_scatter: v.masked_scatter(v > 0, o); v.masked_scatter(o > 0, w.expand(v.size(0), -1, -1))
setitem: d.write(v, (0,), o[0]); d.write(v, (Ellipsis, 0), o[..., 0]);
    d.write(torch.zeros_like(v), (slice(None),), o); d.write(torch.zeros_like(v), v > 0, 1.0);
    d.write(v, (slice(None), 0), 1.0); d.write(torch.zeros_like(v), o > 0, 2.0) * v
copy: v.clone().copy_(o); torch.zeros_like(v).copy_(o); d.through(v, o); d.through(torch.zeros_like(v), o);
    d.through(z, o); d.part(z, o); d.part(v, o); d.part(torch.zeros_like(v), v)
put_sum: d.call(put_sum, v, (i,), o[0], 'picked + added'); d.call(put_sum, v, (None, i), o[:, :1], 'picked - added');
    d.call(put_sum, o, (i, i), v[0, 0], 'added + picked')
added_alone: d.call(added_alone_on, v, i, o); d.call(added_alone_on, v, i, v)
after_write: d.call(after_write, v, o); d.call(after_write, v.flatten(0, 1), o) * 2
_scaled_mm: d.call(scaled, v, w, v[:, :1], w[:1]); d.call(scaled, v, w, v[:1, :1], w[:1]); d.call(scaled, v, w, o, w);
    d.call(scaled, v, w, w[:1, :1], o[:1]); d.call(scaled, w, v, w[:, :1], v[:1]); d.call(scaled, v, o, w, w);
    d.call(scaled, v.mT, w, w[:1, :1], w[:1], o); d.call(scaled, v, w, w[:1, :1], w[:1], w[0])
_grouped_mm: d.call(grouped, v, w.expand(2, -1, -1), i + 1);
    d.call(grouped, v, w.expand(2, -1, -1), (v > 0).long().sum(1))
zeros: d.call(torch.zeros, n) + v
ones: d.call(torch.ones, n) * v
full: d.call(torch.full, (n,), 1.5) * v
arange: d.call(torch.arange, n) * v
size: v * v.size(0); v / v.size(dim=-1)
stride: v * v.stride(0)
numel: v * v.numel()
dim: v * v.dim()
is_floating_point: v * v.is_floating_point()
narrow: v.narrow(1, 0, 1); torch.narrow(v, 0, 0, 1); v.narrow(-1, 0, 1) * 2
bincount: torch.bincount((v > 0).long().flatten())
histc: torch.histc(v, 2)
unique: torch.unique(v); torch.unique(v > 0)
nonzero: (v > 0).nonzero(); torch.nonzero(v)
searchsorted: torch.searchsorted(w[0].sort()[0], v.contiguous()); torch.searchsorted(v.sort(-1)[0], o.contiguous())
bucketize: torch.bucketize(v, w[0].sort()[0]); torch.bucketize(v, w[0].sort()[0]) * o
scaled_dot_product_attention: F.scaled_dot_product_attention(v, o, o);
    F.scaled_dot_product_attention(query=v, key=v, value=o)
conv1d: F.conv1d(v.transpose(1, 2), w3); F.conv1d(v, w3[:, : 1].expand(-1, v.size(1), -1), padding=1)
convolution: torch.convolution(v, w3, None, [1], [0], [1], False, [0], 1)
"""


def _read(text: str) -> dict[str, list[str]]:
    """A line for each operator; calls are set off by `;`, and go on in lines that are indented."""
    lines = text.strip().replace("\n   ", "").splitlines()
    named = (line.split(":", 1) for line in lines)
    return {name: [call.strip() for call in calls.split(";")] for name, calls in named}


CALLS = _read(_TEXT)
