# SPDX-License-Identifier: Apache-2.0
"""The command `farskip simulate MODEL --device PROFILE`: what FarSkip will bring, without the hardware.

Contract: exit status 0 if there is a prediction, 1 if the model was refused, 2 for wrong usage. With `--json`, stdout
holds one JSON document and nothing else.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from farskip_compile.cli.output import AsJson, quiet, show, shown_errors


def simulate_command(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="deepseek-v3 and others, or a folder with a config.json.")
    ],
    device: Annotated[str, typer.Option(help="Hardware profile: mi300x, h100 and others, or a JSON file.")],
    ep: Annotated[int, typer.Option(help="Ranks that share the experts.")] = 8,
    tp: Annotated[int, typer.Option(help="Ranks that share the attention; 1: data-parallel attention.")] = 1,
    phase: Annotated[str, typer.Option(help="prefill (time to first token), decode or train.")] = "prefill",
    prompt: Annotated[int, typer.Option(help="Tokens of a sequence; in decode, tokens in its cache.")] = 2048,
    batch: Annotated[int, typer.Option(help="Sequences of all ranks together.")] = 8,
    exchange: Annotated[
        str | None, typer.Option(help="all-reduce, all-to-all or all-gather; by default as serving engines do.")
    ] = None,
    pieces: Annotated[int, typer.Option(help="Predict exchanges in so many pieces, too (all-to-all).")] = 1,
    micro_batches: Annotated[int, typer.Option(help="2: predict the batch in two overlapped parts, too.")] = 1,
    also: Annotated[
        str, typer.Option(help="Other connectivities to predict, with commas: lag2, ladder, attention, mlp.")
    ] = "",
    products: Annotated[str, typer.Option(help="bfloat16, or float8 as engines serve 8-bit checkpoints.")] = "bfloat16",
    skew: Annotated[float, typer.Option(help="Exponent of Zipf's law for how often experts are chosen.")] = 0.0,
    loads: Annotated[
        Path | None, typer.Option(help="JSON list: how often each expert was chosen, as recorded.")
    ] = None,
    layers: Annotated[int | None, typer.Option(help="Only this many layers, from the first on.")] = None,
    interference: Annotated[
        float | None, typer.Option(help="Fraction by which compute slows down while a collective is in flight.")
    ] = None,
    measured: Annotated[
        float | None, typer.Option(help="Seconds of the step as written, if measured: the prediction starts from them.")
    ] = None,
    slower: Annotated[
        float | None, typer.Option(help="Compute time over the profile's, as found with --measured on another step.")
    ] = None,
    as_json: AsJson = False,
    trace: Annotated[Path | None, typer.Option(help="Write a Chrome trace (.json or .json.gz).")] = None,
    png: Annotated[Path | None, typer.Option(help="Draw the prediction into this file (needs matplotlib).")] = None,
) -> None:
    """Predict what FarSkip brings to a model at full size, on hardware that is not here."""
    from farskip_compile.cli.terminal import Terminal

    quiet("torch", "transformers")
    with shown_errors():
        from farskip_compile.simulate.picture import draw_prediction
        from farskip_compile.simulate.predict import predict
        from farskip_compile.simulate.results import prediction_json
        from farskip_compile.simulate.scenario import Scenario
        from farskip_compile.simulate.text import prediction_text
        from farskip_compile.simulate.trace import write_trace

        scenario = Scenario(
            model=model,
            device=device,
            ep=ep,
            tp=tp,
            phase=phase,
            prompt=prompt,
            batch=batch,
            exchange=exchange,  # type: ignore[arg-type]
            pieces=pieces,
            micro_batches=micro_batches,
            also=tuple(filter(None, also.split(","))),  # type: ignore[arg-type]
            products=products,  # type: ignore[arg-type]
            skew=skew,
            loads=_loads(loads),
            layers=layers,
            interference=interference,
            measured=measured,
            slower=slower,
        )
        status = Terminal(stderr=True).status(
            f"{scenario.architecture.name} on {scenario.ranks} x {scenario.profile.name}"
        )
        with status, warnings.catch_warnings(action="ignore"):
            found = predict(scenario)
        if trace is not None:
            write_trace(found, trace)
        if png is not None:
            draw_prediction(found, png)
    show(
        as_json,
        lambda: prediction_json(found),
        lambda _: prediction_text(found),
        [("trace, for ui.perfetto.dev", trace), ("picture", png)],
    )


def _loads(path: Path | None) -> tuple[float, ...] | None:
    from farskip_compile.json_files import Reader, read_json

    if path is None:
        return None
    way_out = "a JSON list of numbers, one for each expert"
    found: Any = read_json(path, "loads", way_out=way_out)
    return Reader(str(path), way_out=way_out).value(tuple[float, ...], found, "the whole")
