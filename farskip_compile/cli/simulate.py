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

from farskip_compile.base.choices import ExpertExchange, Phase, ProductDtype
from farskip_compile.cli.options import AsJson, among, option
from farskip_compile.cli.output import needs, quiet, show, shown_errors

STEP, MORE, FIGURES = "The step", "What to predict beside it", "Figures that are better known"
"""Panels of the help."""


def simulate_command(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="deepseek-v3 and others, or a folder with a config.json.")
    ],
    device: Annotated[str, option("PROFILE", "Of the hardware: mi300x, h100 and others, or a JSON file.")],
    ep: Annotated[int, option("N", "Ranks that share the experts.", panel=STEP)] = 8,
    tp: Annotated[int, option("N", "Ranks that share the attention; 1: data-parallel attention.", panel=STEP)] = 1,
    phase: Annotated[
        Phase,
        option("PHASE", "prefill (time to first token), decode (one token a sequence) or train.", panel=STEP),
    ] = Phase.PREFILL,
    prompt: Annotated[int, option("N", "Tokens of a sequence; in decode, tokens in its cache.", panel=STEP)] = 2048,
    batch: Annotated[int, option("N", "Sequences of all ranks together.", panel=STEP)] = 8,
    exchange: Annotated[
        ExpertExchange | None,
        option(
            "KIND",
            f"How tokens get to their experts: {among(ExpertExchange)}; as serving engines do, if left out.",
            panel=STEP,
        ),
    ] = None,
    pieces: Annotated[int, option("N", "Exchanges in so many pieces (all-to-all).", panel=MORE)] = 1,
    micro_batches: Annotated[int, option("N", "2: the batch in two overlapped parts.", panel=MORE)] = 1,
    also: Annotated[
        str, option("FORM,...", "Other connectivities, with commas: lag2, ladder, attention, mlp.", panel=MORE)
    ] = "",
    products: Annotated[
        ProductDtype,
        option("TYPE", "Of matrix products: bfloat16, or float8 as engines serve 8-bit checkpoints.", panel=STEP),
    ] = "bfloat16",
    skew: Annotated[float, option("EXPONENT", "Of Zipf's law for how often experts are chosen.", panel=FIGURES)] = 0.0,
    loads: Annotated[
        Path | None, option("FILE", "JSON list: how often each expert was chosen, as recorded.", panel=FIGURES)
    ] = None,
    layers: Annotated[int | None, option("N", "Only this many layers, from the first on.", panel=STEP)] = None,
    interference: Annotated[
        float | None, option("SHARE", "By which compute slows down while a collective is in flight.", panel=FIGURES)
    ] = None,
    measured: Annotated[
        float | None,
        option("SECONDS", "Of the step as written, if measured: the prediction starts from them.", panel=FIGURES),
    ] = None,
    slower: Annotated[
        float | None,
        option("FACTOR", "Compute time over the profile's, as found with --measured on another step.", panel=FIGURES),
    ] = None,
    as_json: AsJson = False,
    trace: Annotated[Path | None, option("FILE", "Write a Chrome trace (.json or .json.gz).")] = None,
    png: Annotated[Path | None, option("FILE", "Draw the prediction into this file (needs matplotlib).")] = None,
) -> None:
    """Predict what FarSkip brings to a model at full size, on hardware that is not here."""
    needs("farskip simulate", extra="hf")
    if png is not None:
        needs("--png", extra="plot")
    from farskip_compile.cli.progress import working

    quiet("torch", "transformers")
    with shown_errors():
        from farskip_compile.measure.simulate.picture import draw_prediction
        from farskip_compile.measure.simulate.predict import predict
        from farskip_compile.measure.simulate.results import prediction_json
        from farskip_compile.measure.simulate.scenario import Scenario
        from farskip_compile.measure.simulate.text import prediction_text
        from farskip_compile.measure.simulate.trace import write_trace

        scenario = Scenario(
            model=model,
            device=device,
            ep=ep,
            tp=tp,
            phase=phase,
            prompt=prompt,
            batch=batch,
            exchange=exchange,
            pieces=pieces,
            micro_batches=micro_batches,
            also=tuple(filter(None, also.split(","))),  # type: ignore[arg-type]
            products=products,
            skew=skew,
            loads=_loads(loads),
            layers=layers,
            interference=interference,
            measured=measured,
            slower=slower,
        )
        what = f"{scenario.architecture.name} on {scenario.ranks} x {scenario.profile.name}"
        with working(what), warnings.catch_warnings(action="ignore"):
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
    from farskip_compile.base.json_files import JsonReader, read_json

    if path is None:
        return None
    way_out = "a JSON list of numbers, one for each expert"
    found: Any = read_json(path, "loads", way_out=way_out)
    return JsonReader(str(path), way_out=way_out).decode(tuple[float, ...], found)
