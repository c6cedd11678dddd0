# SPDX-License-Identifier: Apache-2.0
"""What a user does around a compile: copies, saves, resets, compiles again, exports, calls past the compiler.

In:    a `Session`: how a model is compiled, and acts, one after the other.
Out:   counts by verdict; or the first demand that is not met, as `Broken`.

Demands, for what each act calls: the bits of the form by hand for the connectivity that was asked for last; or an
error; XX a third function. Errors of PyTorch are counted by themselves; a session ends with an error.
"""

from __future__ import annotations

import copy
import io
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from farskip_compile import FarSkipError, FarSkipWarning, status
from farskip_compile.tools.status import Answer
from tests.fuzz.demands import Broken, check_refusal, demand
from tests.fuzz.streams.by_hand import compute
from tests.fuzz.streams.description import Description
from tests.fuzz.streams.source import Decoder, token_ids

LAYERS = ("routed", "shared")
DESCRIPTION = Description(LAYERS, ("+", "+"), ())
CONNECTIVITIES = ("full", "attention", "mlp", "none")


class Plain(Decoder):
    """Two layers, as a user writes them."""

    def __init__(self) -> None:
        super().__init__(LAYERS)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for layer in range(len(self.attention)):
            x = x + self.attention[layer](self.before[layer](x))
            x = x + self.feed_forward[layer](self.between[layer](x))
        return self.head(self.last(x))


class Around(nn.Module):
    """A module with the model in it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(ids) * 1.0


@dataclass(frozen=True)
class Session:
    """What one user does."""

    acts: tuple[str, ...]
    connectivity: str = "full"
    in_place: bool = False
    """`model.compile()` instead of `torch.compile(model)`."""
    strict: bool = True
    seed: int = 0


class Desk:
    """What a user has in hand: a compiled model."""

    def __init__(self, session: Session) -> None:
        torch.manual_seed(session.seed)
        self.session, self.connectivity = session, session.connectivity
        self.ids = token_ids()
        self.warned = False
        self.counts: Counter[str] = Counter()
        self.compile(Plain().double())

    def compile(self, model: nn.Module) -> None:
        """Compile `model` as the session does it."""
        options = {"inner": "eager", "connectivity": self.connectivity, "strict": self.session.strict}
        if self.session.in_place:
            model.compile(backend="farskip", options=options)
            self.model = model
        else:
            self.model = torch.compile(model, backend="farskip", options=options)

    @property
    def written(self) -> Any:
        """The module that the user wrote."""
        inner = getattr(self.model, "module", self.model)
        return getattr(inner, "_orig_mod", inner)

    def call(self, function: Callable[[Tensor], Tensor] | None = None, *, seen: bool = True) -> Tensor:
        """Call what is in hand, or `function`, and judge the result; `seen`: PyTorch lets a module see such a call."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = (self.model if function is None else function)(self.ids)
        self.warned |= any(issubclass(one.category, FarSkipWarning) for one in caught)
        # in the same mode: attention may run in other kernels without gradients
        expected = compute(DESCRIPTION, self.written, self.ids, self.connectivity)
        plain = compute(DESCRIPTION, self.written, self.ids, "none")
        if torch.equal(found, expected):
            self.counts["calls, right"] += 1
            return found
        demand(torch.equal(found, plain), "neither the form by hand nor the model as it is written")
        answer = status(self.model).answer
        said = "warned" if self.warned else "status" if not seen and answer is not Answer.REWIRED else ""
        if not said:
            raise Broken(f"the model ran as it is written: no error, no warning, and status says {answer}")
        self.counts[f"calls, as written: {said}"] += 1
        return found


def _call(desk: Desk) -> None:
    desk.call()


def _forward(desk: Desk) -> None:
    desk.call(desk.model.forward)


def _other_shape(desk: Desk) -> None:
    desk.ids = desk.ids[:, :-1] if desk.ids.shape[1] > 3 else token_ids()
    desk.call()


def _train_step(desk: Desk) -> None:
    desk.model.train()
    desk.call().square().mean().backward()
    with torch.no_grad():
        for parameter in desk.written.parameters():
            if parameter.grad is not None:
                parameter.sub_(0.1 * parameter.grad)
                parameter.grad = None


def _no_grad(desk: Desk) -> None:
    desk.model.eval()
    with torch.no_grad():
        desk.call()


def _deepcopy(desk: Desk) -> None:
    desk.model = copy.deepcopy(desk.model)
    desk.call()


def _original_after_a_copy(desk: Desk) -> None:
    copy.deepcopy(desk.model)
    desk.call()


def _averaged(desk: Desk) -> None:
    average = AveragedModel(desk.model)
    average.update_parameters(desk.model)
    before, desk.model = desk.model, average
    desk.call()
    desk.model = before


def _saved(desk: Desk) -> None:
    file = io.BytesIO()
    torch.save(desk.model, file)
    file.seek(0)
    desk.model = torch.load(file, weights_only=False)
    desk.call()


def _state(desk: Desk) -> None:
    model = Plain().double()
    model.load_state_dict(desk.written.state_dict())
    desk.compile(model)
    desk.call()


def _loaded_in_place(desk: Desk) -> None:
    desk.written.load_state_dict({name: value * 0.9 for name, value in desk.written.state_dict().items()})
    desk.call()


def _reset(desk: Desk) -> None:
    torch.compiler.reset()
    desk.call()


def _another_option(desk: Desk) -> None:
    place = CONNECTIVITIES.index(desk.connectivity)
    desk.connectivity = CONNECTIVITIES[(place + 1) % len(CONNECTIVITIES)]
    desk.compile(desk.written)
    desk.call()


def _two_options_in_turn(desk: Desk) -> None:
    if desk.session.in_place:
        return
    first, asked = desk.model, desk.connectivity
    _another_option(desk)
    second, other = desk.model, desk.connectivity
    for model, connectivity in ((first, asked), (second, other), (first, asked)):
        desk.model, desk.connectivity = model, connectivity
        desk.call()


def _outer(desk: Desk) -> None:
    desk.call(torch.compile(Around(desk.model), backend="eager"))


def _outer_of_ours(desk: Desk) -> None:
    options = {"inner": "eager", "connectivity": desk.connectivity}
    desk.call(torch.compile(Around(desk.model), backend="farskip", options=options))


def _export(desk: Desk) -> None:
    desk.call(lambda ids: torch.export.export(desk.model, (ids,)).module()(ids))


def _stance(name: str) -> Callable[[Desk], None]:
    def act(desk: Desk) -> None:
        desk.ids = desk.ids[:, :-1]
        with torch.compiler.set_stance(name):
            desk.call(seen=False)
        desk.ids = token_ids()

    return act


def _limit(desk: Desk) -> None:
    with torch._dynamo.config.patch(recompile_limit=1):
        for _ in range(3):
            _other_shape(desk)
            _no_grad(desk)


def _suppressed(desk: Desk) -> None:
    with torch._dynamo.config.patch(suppress_errors=True):
        _other_shape(desk)


def _disabled(desk: Desk) -> None:
    desk.call(lambda ids: torch.compiler.disable(desk.model)(ids), seen=False)


def _functional(desk: Desk) -> None:
    state = {**dict(desk.model.named_parameters()), **dict(desk.model.named_buffers())}
    desk.call(lambda ids: torch.func.functional_call(desk.model, state, (ids,)))


def _hooked(desk: Desk) -> None:
    handle = desk.model.register_forward_hook(lambda module, args, output: None)
    desk.call()
    handle.remove()


def _replaced(desk: Desk) -> None:
    desk.written.head.weight = nn.Parameter(desk.written.head.weight.detach() * 1.1)
    desk.call()


def _in_a_mode(desk: Desk) -> None:
    with torch.inference_mode():
        desk.call()


ACTS: dict[str, Callable[[Desk], None]] = {
    "call": _call,
    "call with another shape": _other_shape,
    "train a step": _train_step,
    "evaluate": _no_grad,
    "infer": _in_a_mode,
    "deepcopy": _deepcopy,
    "call the original after a copy": _original_after_a_copy,
    "average": _averaged,
    "save and load": _saved,
    "load into another one": _state,
    "load in place": _loaded_in_place,
    "reset": _reset,
    "compile with another option": _another_option,
    "two options in turn": _two_options_in_turn,
    "call forward": _forward,
    "compile around it": _outer,
    "compile around it, with ours": _outer_of_ours,
    "export": _export,
    "stance force_eager": _stance("force_eager"),
    "stance eager_on_recompile": _stance("eager_on_recompile"),
    "stance fail_on_recompile": _stance("fail_on_recompile"),
    "beyond the limit": _limit,
    "errors suppressed": _suppressed,
    "compiler disabled": _disabled,
    "functional_call": _functional,
    "hook": _hooked,
    "replace a parameter": _replaced,
}


@st.composite
def sessions(draw: st.DrawFn) -> Session:
    """Two to six acts, the first of them a call in half of the sessions."""
    acts = [draw(st.sampled_from(sorted(ACTS))) for _ in range(draw(st.integers(2, 5)))]
    if draw(st.booleans()):
        acts.insert(0, "call")
    connectivity = draw(st.sampled_from(["full", "full", "full", "attention", "mlp"]))
    strict = draw(st.sampled_from([True, True, False]))
    return Session(tuple(acts), connectivity, draw(st.booleans()), strict, draw(st.integers(0, 9)))


def check_session(example: Session) -> Counter[str]:
    """Check one session.

    Raises:
        Broken: a demand is not met.
    """
    torch.compiler.reset()
    desk = Desk(example)
    act = ""
    try:
        for act in example.acts:
            ACTS[act](desk)
            desk.counts[f"act {act}"] += 1
    except FarSkipError as error:
        check_refusal(error)
        return desk.counts + Counter({f"refused {type(error).__name__}": 1, f"{act}: {type(error).__name__}": 1})
    except Broken as error:
        raise Broken(f"{act}: {error}") from error
    except Exception as error:  # PyTorch's own: loud, and not ours to judge
        return desk.counts + Counter({"PyTorch's errors": 1, f"{act}: {type(error).__name__}": 1})
    finally:
        torch.compiler.reset()
    return desk.counts + Counter({"accepted": 1, "full: rewired": int(desk.counts["calls, right"] > 0)})
