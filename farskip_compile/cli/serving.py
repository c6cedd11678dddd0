# SPDX-License-Identifier: Apache-2.0
"""The command `farskip check serving CHECKPOINT`: does vLLM answer as transformers does, in the wiring asked for?

Contract: exit status 0 if it does, 1 if it does not or does not start, 2 for wrong usage. With `--json`, stdout holds
one JSON document and nothing else.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from farskip_compile.base.choices import ServedDtype
from farskip_compile.cli.options import AsJson, among, option
from farskip_compile.cli.output import needs, show, shown_errors

if TYPE_CHECKING:
    from rich.table import Table

    from farskip_compile.vllm.compare import ServingComparison


def serving_command(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="Its folder.", exists=True, file_okay=False)],
    tensor_parallel_size: Annotated[int, option("N", "Ranks that share each layer.", min=1)] = 1,
    farskip: Annotated[str | None, option("JSON", "What to ask for, if the checkpoint does not say it.")] = None,
    engine: Annotated[str, option("JSON", "Further arguments of vllm.LLM.")] = "{}",
    tokens: Annotated[int, option("N", "How many vLLM adds to each prompt.", min=1, max=4096)] = 16,
    prompts: Annotated[Path | None, option("FILE", "Text with a prompt in each line.", exists=True)] = None,
    dtype: Annotated[
        ServedDtype, option("TYPE", f"Of the parameters on both sides: {among(ServedDtype)}.")
    ] = "float32",
    tolerance: Annotated[
        float | None,
        option("NUMBER", "Largest difference of log-probabilities; by the type if left out.", min=0),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare vLLM's tokens and log-probabilities with transformers', both rewired as the checkpoint says."""
    needs("farskip check serving", "vllm")
    from farskip_compile.cli.progress import working
    from farskip_compile.vllm.compare import PROMPTS, compare

    arguments = {"tensor_parallel_size": tensor_parallel_size, **_mapping(engine, "--engine")}
    texts = PROMPTS if prompts is None else tuple(filter(None, prompts.read_text().splitlines()))
    with shown_errors(), working() as work:
        found = compare(
            checkpoint,
            options=_mapping(farskip, "--farskip") if farskip is not None else None,
            engine=arguments,
            prompts=texts,
            tokens=tokens,
            dtype=dtype,
            tolerance=tolerance,
            tell=work,
        )
    show(as_json, found.to_json, lambda console: _table(found, texts))
    if not found.holds:
        raise typer.Exit(1)


def _mapping(text: str, option: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"not JSON: {error}", param_hint=option) from None
    if not isinstance(found, dict):
        raise typer.BadParameter("a JSON object", param_hint=option)
    return found


def _table(found: ServingComparison, texts: tuple[str, ...]) -> Table:
    from rich.table import Table

    verdict = "served as asked" if found.holds else "NOT SERVED AS ASKED"
    title = "vLLM against transformers, rewired and as written"
    table = Table(title=title, caption=f"{verdict} (tolerance {found.tolerance:g})")
    pairs = zip(found.rewired, found.original, strict=True)
    lines = [[cell for row in rows for cell in (f"{row.equal} of {row.tokens}", f"{row.apart:.1e}")] for rows in pairs]
    table.add_column("prompt", overflow="ellipsis", no_wrap=True, ratio=1)
    for name, *cells in zip(("same tokens", "apart", "as written", "apart"), *lines, strict=True):
        table.add_column(name, justify="right", no_wrap=True, min_width=max(map(len, (name, *cells))))
    for text, cells in zip(texts, lines, strict=True):
        table.add_row(text, *cells)
    return table
