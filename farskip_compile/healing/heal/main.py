# SPDX-License-Identifier: Apache-2.0
"""`farskip heal`: from a checkpoint to a healed one.

In:    `HealSettings`; functions that show what is found, and ask whether to go on.
Out:   `FOLDER/model`: a checkpoint with tokenizer, manifest and guard; `FOLDER/report.md` and `report.json`.
Never: writes anything before the answer; judges by text that anything was chosen by; trains on held-out text; does a
       step again that is done (`steps`).

Steps:
1. Model and text (`material`); what a rewiring would change (`explain`): a refusal ends it here.
2. The estimate, and the question, unless a healing with these arguments has begun already.
3. What it brings on other hardware (`forecast`); the damage by row; which rows (`choice`).
4. Fold and training (`self_distill`), which keeps its own states in FOLDER.
5. Original, rewired, folded and healed (`judgement`), and the page. The manifest gets what was found.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from rich.console import RenderableType

from farskip_compile import errors
from farskip_compile.base.json_files import write_text
from farskip_compile.base.writing.locks import exclusive
from farskip_compile.errors import ConfigError
from farskip_compile.healing.distill.config import DistillConfig
from farskip_compile.healing.distill.main import CHECKPOINT, self_distill
from farskip_compile.healing.heal.choice import choose_rows, chosen_connectivity, damage_of
from farskip_compile.healing.heal.estimate import HealEstimate, estimate
from farskip_compile.healing.heal.forecast import forecast, in_words
from farskip_compile.healing.heal.judgement import judge
from farskip_compile.healing.heal.material import Half, Material, load_material
from farskip_compile.healing.heal.page import bits_per_byte, damage_page, estimate_page, markdown
from farskip_compile.healing.heal.recipes import config_for, options_of, steps_for
from farskip_compile.healing.heal.settings import HealSettings
from farskip_compile.healing.heal.steps import ANEW, STEPS, HealSteps
from farskip_compile.manifest import load_manifest, write_manifest
from farskip_compile.manifest.files import CONFIG
from farskip_compile.text_utils import amount
from farskip_compile.tools.explain import Explanation, explain

HEALING = "healing"
REPORT = "report"


class Declined(Exception):
    """The question was answered with no."""


@dataclass(frozen=True)
class Talk:
    """What the command does with what is found."""

    step: Callable[[str], None] = lambda text: None
    """A step begins, or is done already."""
    say: Callable[[str], None] = lambda text: None
    """What it found."""
    show: Callable[[RenderableType], None] = lambda found: None
    explained: Callable[[Explanation], None] = lambda found: None
    agrees: Callable[[], bool] = lambda: True
    """The question."""


def heal(settings: HealSettings, talk: Talk) -> dict[str, Any]:
    """Heal a checkpoint, or go on with it; returns the report.

    Raises:
        Declined: the question was answered with no; nothing is written.
        ConfigError: wrong arguments, or others than those that FOLDER was made with; text that is too short, or in two
            parts; or another healing writes into FOLDER.
        DistillationError: the loss is no longer finite, or a file is damaged.
        FarSkipError: the model can't be rewired as asked.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            "farskip heal CHECKPOINT runs in one process", way_out="on several ranks: farskip heal CONFIG.toml"
        )
    with ExitStack() as alone:
        if (settings.out / STEPS).exists():  # else nothing is written yet
            alone.enter_context(exclusive(settings.out, ANEW))
        return _heal(settings, talk, alone)


def _heal(settings: HealSettings, talk: Talk, alone: ExitStack) -> dict[str, Any]:
    talk.step("model and text")  # 1
    material = load_material(settings)
    steps = HealSteps(settings.out)
    number = steps_for(settings, material.train.counts.targets, material.train.counts.sequences)
    asked = _asked(settings, material, number)
    config_for(settings, number, (settings.connectivity, settings.layers))  # refused before anything is computed
    has_begun = steps.check(HEALING, asked)
    talk.say(_text_line(material))
    rewired = _explained(settings, material, steps, talk)
    wanted = _estimated(settings, material, steps, number, len(rewired["rows"]), talk)  # 2
    if not has_begun and "estimate" in steps.done and not talk.agrees():
        raise Declined
    alone.enter_context(exclusive(settings.out, ANEW))
    steps.release()
    words = in_words(_forecast(settings, material, steps, talk))  # 3
    talk.say(words)
    damage, plan = _planned(settings, material, steps, talk)
    chosen = chosen_connectivity(plan, settings)
    config = config_for(settings, number, chosen, wanted.step_seconds)
    healing = _healed(settings, material, steps, {**asked, "rows": plan["rows"]}, config, talk)  # 4
    names = ["original", "rewired", *(["folded"] if config.fold else []), "healed"]
    talk.step(f"judge: {', '.join(names)}")  # 5
    needs = {**asked, "rows": plan["rows"], "best step": healing["best_step"], "device": str(material.device)}
    judging, material_notes = material.judging, _texts(material)
    judged = steps.run("judgement", needs, lambda: {"rows": judge(settings, judging, chosen, folded=config.fold)})
    report = {
        "checkpoint": str(settings.checkpoint),
        "out": str(settings.out),
        "recipe": settings.recipe,
        "dtype": settings.dtype,
        "rows": judged["rows"],
        "bytes_per_token": judging.bytes_per_token,
        "text": material_notes,
        "explanation": rewired,
        "forecast": {"asked": settings.hardware is not None, "words": words},
        "damage": damage,
        "plan": plan,
        "healing": healing,
        "estimate": wanted.to_json(),
        "seconds": None if healing["resumed"] else sum(one["seconds"] for one in (damage, healing, judged)),
    }
    _save(settings, report)
    return report


def _asked(settings: HealSettings, material: Material, number: int) -> dict[str, Any]:
    """What decides the healed weights, by names that a message can use."""
    rows = {
        name: getattr(settings, name)
        for name in ("connectivity", "layers", "budget", "free")
        if getattr(settings, name)
    }
    if settings.chooses_rows:
        rows |= {name: getattr(settings, name) for name in ("hardware", "ep", "tp", "phase")}
    recipe = {"batch_size": settings.batch_size, **options_of(settings)}
    return {
        "checkpoint": [material.model_digest, settings.dtype],
        "text": material.text_digest,
        "number of steps": number,
        "choice of rows": rows,
        "recipe": {name: value for name, value in recipe.items() if name != "options"},
        "inner": settings.inner,
    }


def _explained(settings: HealSettings, material: Material, steps: HealSteps, talk: Talk) -> dict[str, Any]:
    needs = {"checkpoint": material.model_digest, "connectivity": settings.connectivity, "layers": settings.layers}

    talk.step("explain: what is rewired")

    def work() -> dict[str, Any]:
        args, kwargs = material.call()
        found = explain(material.model, *args, connectivity=settings.connectivity, layers=settings.layers, **kwargs)
        if (why := found.refusal) is not None:
            kind = getattr(errors, why.error, errors.UnsupportedPatternError)
            raise kind(f"{why.reason} {why.where}".strip(), way_out=why.way_out)
        assert found.report is not None
        talk.explained(dataclasses.replace(found, model=settings.checkpoint.name))
        return {"summary": found.report.summary(), "rows": list(found.report.rewired_rows)}

    found = steps.run("explanation", needs, work)
    if not found["rows"]:
        raise ConfigError("nothing would be rewired", way_out="another --connectivity, or other --layers")
    if "explanation" not in steps.done:
        talk.say(found["summary"])
    return found


def _estimated(
    settings: HealSettings, material: Material, steps: HealSteps, number: int, rows: int, talk: Talk
) -> HealEstimate:
    needs = {**_asked(settings, material, number), "device": str(material.device), "rows": rows}
    config = config_for(settings, number, (settings.connectivity, settings.layers))
    found = steps.run("estimate", needs, lambda: {"found": estimate(material, settings, config, rows).to_json()})
    wanted = HealEstimate(**found["found"])
    talk.step("estimate")
    talk.show(estimate_page(wanted))
    return wanted


def _forecast(settings: HealSettings, material: Material, steps: HealSteps, talk: Talk) -> dict[str, Any]:
    names = ("hardware", "ep", "tp", "phase", "connectivity")
    needs = {"checkpoint": material.model_digest, **{name: getattr(settings, name) for name in names}}
    talk.step(f"simulate: what it brings{f' on {settings.hardware}' if settings.hardware is not None else ''}")
    return steps.run("forecast", needs, lambda: forecast(settings))


def _planned(
    settings: HealSettings, material: Material, steps: HealSteps, talk: Talk
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The damage, and the rows."""
    asked = {name: getattr(settings, name) for name in ("connectivity", "layers")}
    needs = {"checkpoint": material.model_digest, "text": material.text_digest, **asked}
    talk.step("damage by row, before any healing")
    damage = steps.run("damage", needs, lambda: damage_of(material, settings))
    talk.say(damage_page(damage))
    names = ("budget", "free", *(("hardware", "ep", "tp", "phase") if settings.chooses_rows else ()))
    needs = {**needs, **{name: getattr(settings, name) for name in names}}
    talk.step("plan")
    plan = steps.run("plan", needs, lambda: choose_rows(damage, settings))
    chosen = f": {', '.join(plan['rows'])}" if settings.chooses_rows else ""
    freed = f", which frees {plan['freed']:.0%} of what all free" if "freed" in plan else ""
    talk.say(f"{len(plan['rows'])} of {amount(plan['of'], 'sub-block')} to rewire{freed}{chosen}")
    return damage, plan


def _healed(
    settings: HealSettings,
    material: Material,
    steps: HealSteps,
    needs: Mapping[str, Any],
    config: DistillConfig,
    talk: Talk,
) -> dict[str, Any]:
    def work() -> dict[str, Any]:
        resumed = any(settings.out.glob("state-*"))
        done = self_distill(material.model, material.train, config, held_out=material.choosing.batches)
        material.tokenizer.save_pretrained(settings.out / CHECKPOINT)
        return {
            "resumed": resumed,
            "before": done.before.figures,
            "after": done.after.figures,
            "learning_rate": done.learning_rate,
            "best_step": done.best_step,
            "steps": done.steps,
            "tokens": done.tokens,
            "notes": done.notes,
        }

    steps.begin(HEALING, needs)
    before = "fold and training" if config.fold else "training"
    if steps.known(HEALING, needs) is None:
        talk.step(f"{before}: {amount(config.steps, 'step')}; after Ctrl-C the same command continues")
    else:
        talk.step(f"{before}: done before")
    return steps.run(HEALING, needs, work)


def _save(settings: HealSettings, report: Mapping[str, Any]) -> None:
    """The page, and what the manifest is to say of it."""
    folder, healing = settings.out / CHECKPOINT, report["healing"]
    notes = {
        "recipe": settings.recipe,
        **{name: healing[name] for name in ("tokens", "steps", "best_step")},
        **healing["notes"],
        "recipe_of_self_distill": healing["notes"]["recipe"],
        "held_out": {
            name: {**row, "bits_per_byte": bits_per_byte(row["loss"], report["bytes_per_token"])}
            for name, row in report["rows"].items()
        },
        "held_out_sequences": report["text"]["judging"]["sequences"],
    }
    notes["recipe"] = settings.recipe
    manifest = dataclasses.replace(load_manifest(folder), healing=notes)
    write_manifest(manifest, folder)
    write_manifest(manifest, folder / CONFIG)
    write_text(settings.out / f"{REPORT}.json", json.dumps(report, indent=1) + "\n")
    write_text(settings.out / f"{REPORT}.md", markdown(report))


def _texts(material: Material) -> dict[str, Any]:
    def half(found: Half) -> dict[str, Any]:
        return {"sequences": found.sequences, "targets": found.targets, "bytes": found.bytes}

    return {
        "training": dataclasses.asdict(material.train.counts),
        "choosing": half(material.choosing),
        "judging": half(material.judging),
        "overlap": dataclasses.asdict(material.overlap) if material.overlap is not None else None,
    }


def _text_line(material: Material) -> str:
    halves = f"{material.choosing.sequences} choose, {material.judging.sequences} judge"
    documents = amount(material.held_out_documents, "document")
    return f"training text: {material.train.counts}; held out: {documents}, of its sequences {halves}"
