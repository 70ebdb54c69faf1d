"""Looks at a training before it starts: what would stop it, what limits its speed, and one line that would help."""

import dataclasses
import os
import pathlib
from typing import Any

from carbrand import checks, files
from carbrand.data import manifest
from carbrand.errors import ConfigError
from carbrand.training import (
    advice,
    cases,
    draft,
    finders,
    findings,
    machine,
    measure,
    optimizer,
    preflight,
    train,
    workers,
)
from carbrand.training.advice import Advice, Measured
from carbrand.training.cases import Case
from carbrand.training.findings import Finding
from carbrand.training.measure import Rate

REPORT = "doctor.json"
_FORMAT_VERSION = 1
_BUSY = 0.5  # threads per core that others run
FIND = ("rate", "batch")
_ONE_THREAD = ("read", "decode", "augment")


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What was found.

    Attributes:
      facts: Of the training; see `cases.facts`.
      findings: Of the preflight.
      load: Threads that wanted a core before, on average over a minute.
      rates: By part, see `measure.measure`; empty if not measured.
      advice: None if not measured.
      rate_curve: None unless a rate was looked for.
      batch_speeds: None unless a batch was looked for.
    """

    facts: dict[str, Any]
    findings: list[Finding]
    load: float
    rates: dict[str, Rate] = dataclasses.field(default_factory=dict)
    advice: Advice | None = None
    rate_curve: finders.RateCurve | None = None
    batch_speeds: finders.BatchSpeeds | None = None


def run(
    data: str | os.PathLike[str],
    *,
    seconds: float = 5.0,
    check_only: bool = False,
    run_dir: str | os.PathLike[str] | None = None,
    find: str | None = None,
    output: str | os.PathLike[str] | None = None,
) -> Diagnosis:
    """Checks and measures the training that gin's bindings ask for, and prints what it finds.

    Args:
      data: A records folder.
      seconds: To measure each part, besides the time to compile.
      check_only: Do not measure.
      run_dir: The folder of the run, if it is known: for the space on its disk, and whether it can go on with these
        settings.
      find: Do not measure, but look for a "rate", by a short training, or for a "batch" size; see `finders`.
      output: A folder that gets `doctor.json`, and the picture of what was found.

    Raises:
      ConfigError: There are errors, printed before; or an option cannot work.
      DataError: `data` is no complete records folder.
    """
    checks.number("--seconds", seconds, above=0)
    if output is not None:
        checks.folder("--output", output)
    if find is not None:
        checks.choice("--find", find, FIND)
        if check_only:
            raise ConfigError(f"--check --find={find}: nothing is looked for while only checking. Leave one out.")
    if run_dir is not None:
        checks.folder("--run", run_dir)
    dataset = manifest.load(data)
    drafted = draft.from_gin(train.run)
    place = None if run_dir is None else pathlib.Path(run_dir)
    case = Case(pathlib.Path(data), dataset, drafted.settings, machine.look(), place, workers.here(), drafted.keeping)
    found = [findings.from_setting(error) for error in drafted.errors]
    found += preflight.check(case, drafted.unsound)
    facts = cases.facts(case)
    print(_introduction(case, facts, is_sound=not drafted.errors), *found, sep="\n")
    errors = sum(finding.severity == "error" for finding in found)
    diagnosis = Diagnosis(facts, found, os.getloadavg()[0])
    if not errors and not check_only:
        work = {None: _measure, "rate": _find_rate, "batch": _find_batch}[find]
        with workers.none() as alone:  # one alone can be measured
            diagnosis, text = work(dataclasses.replace(case, workers=alone), diagnosis, seconds)
        print(f"\n{text}")
    if output is not None:
        report = {"format_version": _FORMAT_VERSION, "data": os.fspath(data), **dataclasses.asdict(diagnosis)}
        pathlib.Path(output).mkdir(parents=True, exist_ok=True)
        files.write_json(pathlib.Path(output) / REPORT, report)
        if diagnosis.rate_curve is not None:
            finders.draw(diagnosis.rate_curve, pathlib.Path(output) / finders.RATE_PICTURE)
    if errors:
        raise ConfigError(f"{data}: {errors} error{'s' * (errors > 1)} to mend before training, listed above.")
    return diagnosis


def _measure(case: Case, diagnosis: Diagnosis, seconds: float) -> tuple[Diagnosis, str]:
    rates = measure.measure(case, seconds)
    diagnosis = dataclasses.replace(diagnosis, rates=rates, advice=advice.advise(_measured(case, rates)))
    return diagnosis, f"{_table(case, rates)}\n\n{_verdict(case, diagnosis)}"


def _find_rate(case: Case, diagnosis: Diagnosis, _: float) -> tuple[Diagnosis, str]:
    found = finders.find_rate(case)
    steps, last = len(found.rates), found.rates[-1]
    lines = [f"{steps} steps of the {case.phases[-1].name} phase, from a rate of {found.rates[0]:.0e} to {last:.2g}"]
    if found.suggestion is None:
        lines.append("the loss never fell: look at the data with `carbrand preview`")
    else:
        lowest = min(range(steps), key=found.losses.__getitem__)
        knob = "head_learning_rate" if case.phases[-1].name == "head" else "learning_rate"
        peak = found.suggestion / optimizer.batch_factor(case.settings.optimizer, case.batch_size)
        lines += [
            f"the loss was lowest, {found.losses[lowest]:.3g}, at a rate of {found.rates[lowest]:.2g}",
            f"advice: A tenth of it is a peak to begin with. Try:\n  optimizer.{knob} = {peak:.2g}",
        ]
    return dataclasses.replace(diagnosis, rate_curve=found), "\n".join(lines)


def _find_batch(case: Case, diagnosis: Diagnosis, seconds: float) -> tuple[Diagnosis, str]:
    found = finders.find_batch(case, seconds)
    lines = [f"{'batch':>7} {'images/s':>9} {'per CPU-s':>10}"]
    for size, speed in found.speeds.items():
        lines.append(f"{size:>7} {_number(speed.images_per_s)} {_number(speed.images_per_cpu_s, 10)}")
    if found.limit is not None:
        lines.append(f"{found.limit:>7} does not fit into the memory")
    lines.append(
        "advice: Larger ones are hardly faster. Try, with a learning rate for it:\n"
        f"  train.run.batch_size = {found.suggestion}"
    )
    return dataclasses.replace(diagnosis, batch_speeds=found), "\n".join(lines)


def _measured(case: Case, rates: dict[str, Rate]) -> Measured:
    """The cost of each part is what it adds to the one before."""
    seconds = {name: 1 / rates[name].images_per_cpu_s for name in _ONE_THREAD if name in rates}
    return Measured(
        settings=case.settings,
        input=rates["input"].images_per_s,
        compute=rates["frozen" if "frozen" in rates else "step"].images_per_s,
        read=seconds["read"],
        decode=max(seconds["decode"] - seconds["read"], 0.0),
        augment=max(seconds["augment"] - seconds["decode"], 0.0) if "augment" in seconds else 0.0,
        threads=case.threads,
        cores=case.machine.cores,
        gpus=len(case.machine.gpu_bytes),
        has_bfloat16=case.machine.has_bfloat16,
        stored_short_px=case.stored_short_px,
        is_cached="frozen" in rates,
    )


def _introduction(case: Case, facts: dict[str, Any], *, is_sound: bool) -> str:
    photos = ", ".join(f"{count:,} {split}" for split, count in facts["photos"].items())
    lines = [f"{case.data}: {facts['brands']} brands; photos: {photos}"]
    if is_sound:
        lines += [_plan(case, facts), _needs(case, facts)]
    return "\n".join(lines)


def _plan(case: Case, facts: dict[str, Any]) -> str:
    steps = ", then ".join(f"{name} {count:,} steps" for name, count in facts["steps"].items()) or "no step"
    device = facts["device"] if case.replicas == 1 else f"{case.replicas} {facts['device']}s"
    return f"plan: {steps}; {facts['steps_per_epoch']:.1f} steps an epoch; {case.batch_size} photos a step on {device}"


def _needs(case: Case, facts: dict[str, Any]) -> str:
    free, gpu_bytes = case.machine.free_bytes, case.machine.gpu_bytes
    replicas, inputs = facts["replica_bytes"], facts["input_bytes"]
    if gpu_bytes:
        memory = (
            f"{_gb(replicas)} of each GPU's memory ({_gb(min(gpu_bytes, key=lambda b: b or 0))}), {_gb(inputs)} here"
        )
    else:
        memory = f"{_gb(case.replicas_here * replicas + inputs)} of memory"
    return f"needs about {memory} ({_gb(free)} free), and {_gb(facts['disk_bytes'])} of disk for the run"


def _gb(count: float | None) -> str:
    return "unknown" if count is None else f"{count / 1e9:.1f} GB"


def _table(case: Case, rates: dict[str, Rate]) -> str:
    what = {
        "read": "records from disk, 1 thread",
        "decode": "and decoded, cut and resized, 1 thread",
        "augment": "and varied, 1 thread",
        "bound": f"decoding whole JPEGs alone, {_threads(case)}",
        "input": f"batches as training reads them, {_threads(case)}",
        "transfer": "from host to GPU",
        "frozen": "frozen layers, once over each photo",
        "step": "training step on stored features" if "frozen" in rates else "training step on one batch",
        "end to end": "input with frozen layers" if "frozen" in rates else "input with training steps",
    }
    rows = [f"{'':<11} {'images/s':>9} {'per CPU-s':>10}"]
    for name, text in what.items():
        if name in rates:
            rows.append(
                f"{name:<11} {_number(rates[name].images_per_s)} {_number(rates[name].images_per_cpu_s, 10)}  {text}"
            )
    if "transfer" not in rates:
        rows.append(f"{'transfer':<11} {'-':>9} {'-':>10}  none: input and step share the same memory")
    return "\n".join(rows)


def _number(value: float, width: int = 9) -> str:
    return f"{value:>{width},.0f}" if value >= 100 else f"{value:>{width}.1f}"


def _threads(case: Case) -> str:
    return f"{case.threads} thread{'s' * (case.threads > 1)}"


def _verdict(case: Case, diagnosis: Diagnosis) -> str:
    rates, found = diagnosis.rates, diagnosis.advice
    assert found
    compute = "frozen" if "frozen" in rates else "step"
    speeds = {name: f"{_number(rates[name].images_per_s, 0)} images/s" for name in ("input", compute)}
    slow, fast = ("input", compute) if found.limit == "input" else (compute, "input")
    limit = f"{slow}, {speeds[slow]}; {fast} alone is {_number(found.ratio, 0)} times as fast, {speeds[fast]}"
    if found.limit == "neither":
        limit = f"neither: {slow} {speeds[slow]}, {fast} {speeds[fast]}"
    share = rates["input"].images_per_cpu_s / rates["bound"].images_per_cpu_s
    lines = [
        f"limit: {limit}",
        f"input: {share:.0%} of the bound, by CPU time",
        f"time: {_times(case, rates)}",
        f"advice: {found.reason}" + (f" Try:\n  {found.line}" if found.line else ""),
    ]
    if diagnosis.load > _BUSY * case.machine.cores:
        busy = f"load {diagnosis.load:.1f} on {case.machine.cores} cores before measuring"
        lines.insert(0, f"This machine is busy ({busy}): images/s are lower than they could be.")
    return "\n".join(lines)


def _times(case: Case, rates: dict[str, Rate]) -> str:
    phase = case.phases[-1]
    images = (phase.stop - phase.start) * case.batch_size
    if not phase.is_cached:
        took = f"about {_duration(images / rates['end to end'].images_per_s)} for the {phase.name} phase"
    else:
        photos = case.num_photos + case.photos_in("validation")
        once, then = photos / rates["end to end"].images_per_s, images / rates["step"].images_per_s
        took = f"about {_duration(once)} for the frozen layers, then {_duration(then)} for the {phase.name} phase"
    return f"{took}, without validation"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
