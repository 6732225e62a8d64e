"""Which runs a sweep consists of: merged configurations, digests, what needs what, what is finished already."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from legibility.recipes._code import code_of_library
from legibility.recipes._find import Found, find, near
from legibility.recipes._folder import CHECKPOINT, DIGEST, ERROR, RECORD, read_failure, read_origin
from legibility.recipes._recipe import RESERVED, Arm, Control
from legibility.recipes._vary import vary
from legibility.tradeoff import load_record

_REPORT = "InterpretabilityReport"


@dataclass(frozen=True)
class Job:
    """One run, complete: it can be sent to another process.

    Args:
        recipe: Name or path of the recipe, for people.
        module: Module of the recipe, to import.
        path: The module's file.
        preset: Preset's name.
        arm: Name of the arm or control.
        seed: Seed of the run.
        folder: Where everything of the run lies.
        config: The merged configuration, in LightningCLI's shape.
        overrides: Arguments from the command line, in LightningCLI's syntax.
        digest: Of all that decides the result: equal digests, equal runs.
        start: Folder of the run whose checkpoint this one starts from: the base, or a control's model.
        control: What is measured, if nothing is trained.
        needs: Folders of the runs that must be finished before.
        project: Project of Weights & Biases to log to; it decides nothing and is not in the digest.
    """

    recipe: str
    module: str
    path: Path
    preset: str
    arm: str
    seed: int
    folder: Path
    config: Mapping[str, Any]
    overrides: tuple[str, ...]
    digest: str
    start: Path | None = None
    control: Control | None = None
    needs: tuple[Path, ...] = ()
    project: str | None = None

    @property
    def label(self) -> str:
        """For people: ``digits/quick/plain/seed-0``."""
        return f"{self.recipe}/{self.preset}/{self.arm}/seed-{self.seed}"

    @property
    def named(self) -> str:
        """As the recipe is found again: by its name, an own one by its path."""
        return str(self.path) if "." not in self.module else self.recipe

    def state(self) -> Literal["open", "finished", "failed", "other"]:
        """``"finished"`` if this very run is complete, ``"other"`` if the folder holds another complete run.

        ``"failed"`` if this very run was tried and failed; one that was killed, or interrupted, is ``"open"``.
        """
        digest = self.folder / DIGEST
        if not digest.is_file():
            return "open" if read_failure(self.folder, self.digest) is None else "failed"
        if digest.read_text(encoding="utf-8").strip() != self.digest:
            return "other"
        if self.arm == RESERVED:
            return "finished" if (self.folder / CHECKPOINT).is_file() else "open"
        try:
            load_record(self.folder / RECORD)
        except (OSError, ValueError):
            return "open"
        return "finished"


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Lays one configuration over another: mappings are merged, everything else is replaced.

    Another ``class_path`` brings its own ``init_args``: those of the class below are dropped.

    Example:
        >>> merge({"trainer": {"max_steps": 9, "logger": False}}, {"trainer": {"max_steps": 3}})
        {'trainer': {'max_steps': 3, 'logger': False}}
        >>> merge({"class_path": "a.A", "init_args": {"x": 1}}, {"class_path": "a.B"})
        {'class_path': 'a.B'}
    """
    if "class_path" in above and above["class_path"] != below.get("class_path"):
        return dict(above)
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def plan(
    names: Sequence[str],
    *,
    preset: str | None = None,
    arms: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    strengths: Sequence[float] = (),
    out: Path,
    overrides: Sequence[str] = (),
) -> list[Job]:
    """The runs of some recipes, each after those that it needs.

    Args:
        names: Names or paths of recipes.
        preset: Preset's name; None for each recipe's first.
        arms: Arms and controls, also ``ARM-xTIMES`` for an arm at another strength; None for all. What they need is
            added.
        seeds: None for those of the preset.
        strengths: Multiples of each arm's own strengths at which it is run too.
        out: Folder of all runs.
        overrides: Arguments in LightningCLI's syntax, for every run.

    Raises:
        ValueError: If a recipe, preset or arm does not exist (the message lists what does), or recipes share a name.
    """
    found = [find(name) for name in names]
    if len({one.recipe.name for one in found}) < len(found):
        raise ValueError(f"two of the recipes {', '.join(names)} have the same name and would share a folder")
    varied = [vary(one.recipe, arms, strengths) for one in found]
    known = [arm for recipe, _ in varied for arm in (*recipe.arms, *recipe.controls)]
    for arm in arms or ():
        if arm not in known:
            raise ValueError(f"no arm {arm!r}: {near(arm, known)}")
    if bad := [text for text in overrides if not text.startswith("--") or "=" not in text]:
        form = "overrides are written --key=value, e.g. --trainer.max_epochs=3"
        if not any(text.startswith("--") or "=" in text for text in bad):
            form = (
                "belongs to no argument; several values of one are written with commas, without spaces, e.g. "
                f"--arms plain,mine --seeds 0,3; {form}"
            )
        raise ValueError(f"{' '.join(bad)}: {form}")
    return [
        job
        for one, (recipe, wanted) in zip(found, varied, strict=True)
        for job in _of_recipe(replace(one, recipe=recipe), preset, wanted, seeds, out, tuple(overrides))
    ]


def unfinished(jobs: Sequence[Job], again: str | None = None) -> list[Job]:
    """What is still to be done: all but finished runs, and no base that nothing starts from.

    Args:
        jobs: Runs, each after those that it needs.
        again: An arm that is run even if it is finished.
    """
    opened = [job for job in jobs if job.arm == again or job.state() != "finished"]
    starts = {job.start for job in opened}
    return [job for job in opened if job.arm != RESERVED or job.folder in starts]


def without_failed(jobs: Sequence[Job]) -> list[Job]:
    """Runs that have not failed before, and that need none which has."""
    kept: list[Job] = []
    failed: set[Path] = set()
    for job in jobs:
        if job.state() == "failed" or failed.intersection(job.needs):
            failed.add(job.folder)
        else:
            kept.append(job)
    return kept


def other_code(jobs: Sequence[Job]) -> str:
    """What is to be said of finished runs that other code of this library made; nothing if there are none."""
    done = [job for job in jobs if job.state() == "finished"]
    others = [job.label for job in done if read_origin(job.folder).get("library") != code_of_library()]
    if not others:
        return ""
    some = ", ".join(others[:3]) + f" and {len(others) - 3} more" * (len(others) > 3)
    return f"Made by other code of legibility than this, and kept: {some}. Another --out runs all anew."


def forget_failures(jobs: Sequence[Job]) -> None:
    """What has failed is open again: whoever comes to it first tries it, and others take what comes of that."""
    for job in jobs:
        if job.state() == "failed":
            (job.folder / ERROR).unlink(missing_ok=True)


def _of_recipe(
    found: Found,
    preset: str | None,
    arms: Sequence[str] | None,
    seeds: Sequence[int] | None,
    out: Path,
    overrides: tuple[str, ...],
) -> Iterator[Job]:
    recipe = found.recipe
    preset = next(iter(recipe.presets)) if preset is None else preset
    if preset not in recipe.presets:
        raise ValueError(f"recipe {recipe.name!r} has no preset {preset!r}: {near(preset, list(recipe.presets))}")
    chosen = recipe.presets[preset]
    shared = merge(found.config, chosen.config)
    wanted = set(recipe.arms) | set(recipe.controls) if arms is None else set(arms)
    for name in wanted & set(recipe.controls):
        wanted |= {arm for arm in (recipe.controls[name].of, recipe.controls[name].matches) if arm is not None}
    code = found.code

    def job(arm: str, seed: int, config: dict[str, Any], control: Control | None, **links: Any) -> Job:
        digests = [done.digest for done in before if done.folder in links.get("needs", ())]
        decisive = [arm, seed, config, overrides, code, repr(control), digests]
        return Job(
            found.recipe.name,
            found.module,
            found.path,
            preset,
            arm,
            seed,
            folder(arm, seed),
            config,
            overrides,
            hashlib.sha256(json.dumps(decisive, sort_keys=True, default=str).encode()).hexdigest(),
            control=control,
            **links,
        )

    def folder(arm: str, seed: int) -> Path:
        return out / recipe.name / preset / arm / f"seed-{seed}"

    for seed in chosen.seeds if seeds is None else seeds:
        before: list[Job] = []
        links: dict[str, Any] = {}
        if recipe.base is not None and wanted & (set(recipe.arms)):
            config = _with_arm(shared, recipe.arms[recipe.base.arm])
            trainer = config["trainer"]
            trainer["max_steps"] = chosen.base_steps or recipe.base.max_steps
            trainer["callbacks"] = [entry for entry in trainer["callbacks"] if not is_report(entry)]
            before.append(job(RESERVED, seed, config, None))
            links = {"start": before[0].folder, "needs": (before[0].folder,)}
            yield before[0]
        for name, arm in recipe.arms.items():
            if name in wanted:
                before.append(job(name, seed, _with_arm(shared, arm), None, **links))
                yield before[-1]
        for name, control in recipe.controls.items():
            if name in wanted:
                needed = [control.of] if control.matches is None else [control.of, control.matches]
                config = _with_arm(shared, Arm(config=recipe.arms[control.of].config))
                needs = tuple(folder(arm, seed) for arm in needed)
                yield job(name, seed, config, control, start=needs[0], needs=needs)


def _with_arm(shared: Mapping[str, Any], arm: Arm) -> dict[str, Any]:
    config = merge(shared, arm.config)
    trainer = dict(config.get("trainer") or {})
    callbacks = [dict(entry) for entry in trainer.get("callbacks") or []]
    if not any(is_report(entry) for entry in callbacks):
        raise ValueError(f"the recipe's YAML must list {_REPORT} under trainer.callbacks: it writes the run record")
    trainer["callbacks"] = callbacks + [dict(entry) for entry in arm.callbacks]
    return config | {"trainer": trainer}


def is_report(entry: Mapping[str, Any]) -> bool:
    """Whether an entry of ``trainer.callbacks`` is the report.

    Example:
        >>> is_report({"class_path": "legibility.lightning_plugins.InterpretabilityReport"})
        True
    """
    return str(entry.get("class_path", "")).rpartition(".")[2] == _REPORT
