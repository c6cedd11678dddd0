# SPDX-License-Identifier: Apache-2.0
"""`compile="layers"`: the same healing as with the whole model compiled, and the model is left as it was."""

from __future__ import annotations

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from farskip_compile import ConfigError
from farskip_compile.compiler.ranks.fake import fake_ranks
from farskip_compile.errors import PartialModelError
from farskip_compile.healing.distill import self_distill
from tests.compare import relative_difference
from tests.distill.common import EAGER, VOCABULARY, batches, small, weights
from tests.distill.test_self_distill import Aliased

DATA, HELD_OUT = batches(6), batches(2, seed=7)
OPTIONS = {"learning_rate": 1e-3, "options": EAGER, "clip": 0.5, "patience": None, "progress": False}
STREAMS = {"stream_weight": 1.0, "accumulate": 2, "logits_memory": 3 * VOCABULARY * 8}  # three positions at a time


def healed(how, steps=20, **more):
    torch.compiler.reset()
    model = small()
    done = self_distill(
        model, DATA, held_out=HELD_OUT, steps=steps, evaluate_every=5, compile=how, **{**OPTIONS, **more}
    )
    return done, weights(model)


def test_it_is_the_whole_compile_bit_for_bit():
    (whole, expected), (layers, found) = (healed(how) for how in ("whole", "layers"))
    assert whole.before.kl > 0.1  # were the teacher rewired, too, they would agree
    assert [(at, one.figures) for at, one in layers.history] == [(at, one.figures) for at, one in whole.history]
    assert layers.manifest == whole.manifest
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_with_streams_in_chunks():
    """The streams are put together outside of the compiled layers, in another order of sums."""
    (whole, expected), (layers, found) = (healed(how, **STREAMS) for how in ("whole", "layers"))
    assert layers.after.kl == pytest.approx(whole.after.kl, rel=1e-12)
    assert max(relative_difference(found[name], value) for name, value in expected.items()) < 1e-12


def test_fold_and_trials_run_the_model_as_written():
    more = {"fold": True, "fold_batches": 2, "learning_rate": "auto", "steps": 3}
    (whole, expected), (layers, found) = (healed(how, **more) for how in ("whole", "layers"))
    assert layers.notes == whole.notes
    assert layers.notes["folded"]["kl"] != layers.before.kl
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


class Ends(list):
    def __iter__(self):
        yield from self[:2]
        raise InterruptedError


@pytest.mark.parametrize("how", ["done", "data that fails", "held-out text that fails"])
def test_the_model_is_put_back(how):
    model = small()
    named = {name: dict(vars(one)) for name, one in model.named_modules()}
    hooks = [(one, len(one._forward_pre_hooks), len(one._forward_hooks)) for one in model.modules()]
    data, held_out = Ends(DATA) if how == "data that fails" else DATA, list(HELD_OUT)
    if how == "held-out text that fails":
        held_out.append("no batch")
    options = {**OPTIONS, "steps": 3, "compile": "layers", "stream_weight": 1.0}
    if how == "done":
        self_distill(model, data, held_out=held_out, **options)
    else:
        with pytest.raises(InterruptedError if how == "data that fails" else ConfigError):
            self_distill(model, data, held_out=held_out, **options)
    for name, one in model.named_modules():
        assert "forward" not in vars(one)
        assert vars(one).keys() - named[name].keys() <= {"_is_torch_compile"}, name  # torch's own note
    assert [(one, len(one._forward_pre_hooks), len(one._forward_hooks)) for one in model.modules()] == hooks
    plain = small(seed=3)
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model(HELD_OUT[0]), plain(HELD_OUT[0]))


def test_a_teacher_that_moves_with_its_student_is_refused():
    with pytest.raises(ConfigError, match="no longer gives the logits"):
        self_distill(
            Aliased(small()), DATA, held_out=HELD_OUT, steps=2, learning_rate=1e-2, options=EAGER, compile="layers"
        )


def test_layers_that_can_not_be_told_are_refused():
    model = small()
    model.twin = small(seed=1).layers
    with pytest.raises(PartialModelError, match="both may be the layers") as caught:
        self_distill(model, DATA, held_out=HELD_OUT, steps=1, compile="layers", **OPTIONS)
    assert caught.value.way_out == 'compile="whole"'


def test_layers_that_are_computed_again():
    pytest.importorskip("transformers")
    from farskip_compile.models.transformers_form import tiny_deepseek_v3
    from farskip_compile.tools.prepare import prepare

    found = []
    for again in (False, True):
        torch.compiler.reset()
        torch.manual_seed(0)
        model = tiny_deepseek_v3().double()
        prepare(model)
        options = {**OPTIONS, "steps": 2, "compile": "layers", "stream_weight": 2.0, "gradient_checkpointing": again}
        done = self_distill(model, DATA, held_out=HELD_OUT, **options)
        found.append((done.after.kl, weights(model)))
    (kl, plain), (kl_again, other) = found
    assert kl_again == pytest.approx(kl, rel=1e-12)
    assert max(relative_difference(value, plain[name]) for name, value in other.items()) < 1e-12


def test_units_inside_of_a_whole_graph_are_refused():
    with fake_ranks(2):
        model = small()
        mesh = init_device_mesh("cpu", (2,))
        for layer in model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        with pytest.raises(PartialModelError, match="on 2 modules inside of the model") as caught:
            self_distill(model, DATA, held_out=HELD_OUT, steps=1, **OPTIONS)
    assert 'compile="layers"' in caught.value.way_out
