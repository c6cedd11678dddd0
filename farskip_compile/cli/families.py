# SPDX-License-Identifier: Apache-2.0
"""The command `farskip check families [FAMILY...]`: how this package handles every MoE model of transformers.

Contract: exit status 0 if no family is wrong or unchecked and, with `--against`, none that worked before stopped
working; 1 otherwise; 2 for wrong usage. With `--json`, stdout holds one JSON document and nothing else.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from farskip_compile.cli.options import AsJson, option
from farskip_compile.cli.output import cannot_write, needs, quiet, show, show_document, shown_errors

WORKS = ("rewired", "rewired in part", "recognised", "refused")
"""From best to worst; a refusal with a reason is a valid answer, too."""
BAD = ("WRONG", "unchecked")


def families_command(
    families: Annotated[
        list[str] | None, typer.Argument(metavar="FAMILY", help="Model types; none: every family.")
    ] = None,
    as_json: AsJson = False,
    page: Annotated[
        Path | None, option("FILE", "Write the table as a Markdown page, and as JSON in the same folder.")
    ] = None,
    against: Annotated[
        Path | None, option("FILE", "JSON of an earlier run; fail if a family was better there.")
    ] = None,
    listing: Annotated[bool, option(None, "Name the families and stop.", "--list")] = False,
) -> None:
    """Build every MoE family of transformers tiny, capture it, rewire it, and compare it with an eager oracle."""
    needs("farskip check families", extra="hf")
    _quiet()
    from farskip_compile.cli.progress import working
    from farskip_compile.cli.terminal import Terminal
    from farskip_compile.tools.zoo.families import moe_families
    from farskip_compile.tools.zoo.run import ZooEntry, check_family
    from farskip_compile.tools.zoo.table import page as markdown
    from farskip_compile.tools.zoo.table import summary, text

    with working("looking for families in transformers"):
        known = {family.model_type: family for family in moe_families()}
    if listing:
        if as_json:
            show_document({"families": list(known)})
        else:
            typer.echo("\n".join(known))
        return
    unknown = [name for name in families or [] if name not in known]
    if unknown:
        raise typer.BadParameter(f"no MoE family {', '.join(unknown)}; `farskip check families --list` names them all")
    wanted = [known[name] for name in families or known]
    with shown_errors():
        recorded = read_recorded(against) if against is not None else []  # which `page` may overwrite
    errors = Terminal(stderr=True)
    entries: list[ZooEntry] = []
    with working() as work:
        for family in wanted:
            work(f"{len(entries) + 1} of {len(wanted)}: {family.model_type}")
            entries.append(check_family(family))
    if page is not None:
        try:
            page.write_text(markdown(entries), encoding="utf-8")
            page.with_suffix(".json").write_text(json.dumps([entry.to_json() for entry in entries], indent=1) + "\n")
        except OSError as error:
            raise cannot_write(page, error, "--page") from None
    show(
        as_json,
        lambda: {"families": [entry.to_json() for entry in entries], "summary": summary(entries)},
        lambda console: text(entries, console.width),
    )
    worse = regressions(entries, recorded)
    for line in worse:
        errors.print(line, style="red")
    if worse or any(entry.status in BAD for entry in entries):
        raise typer.Exit(1)


def read_recorded(path: Path) -> list[dict[str, Any]]:
    """Return family and status of each entry in the JSON of an earlier run.

    Raises:
        ConfigError: it can't be read, or is something else.
    """
    from farskip_compile.base.json_files import JsonReader, read_json

    way_out = "the JSON file beside a page that `farskip check families --page` wrote"
    reader = JsonReader(str(path), way_out=way_out)
    found = read_json(path, "earlier run", way_out=way_out)
    recorded = []
    for number, entry in enumerate(reader.decode(tuple[Any, ...], found)):
        if not isinstance(entry, Mapping):
            reader.refuse(str(number), "a JSON object", entry)
        recorded.append({key: reader.decode(str, entry.get(key), f"{number}.{key}") for key in ("family", "status")})
    return recorded


def regressions(entries: list[Any], recorded: list[dict[str, Any]]) -> list[str]:
    """Return a line for each family that is worse than in the earlier run; families that it lacks are new."""
    before = {old["family"]: old["status"] for old in recorded}
    return [
        f"{entry.family} was {before[entry.family]!r} and is {entry.status!r}: {entry.reason}"
        for entry in entries
        if entry.family in before and rank(entry.status) > rank(before[entry.family])
    ]


def rank(status: str) -> int:
    """Return the place of a status in `WORKS`; smaller is better."""
    return WORKS.index(status) if status in WORKS else len(WORKS)


def _quiet() -> None:
    """Silence what transformers says about tiny configurations."""
    quiet("torch")
    warnings.simplefilter("ignore")
    from transformers.utils import logging as theirs

    theirs.set_verbosity_error()
