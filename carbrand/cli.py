"""The command line: one subcommand per stage. A stage is imported only inside its handler, so that help is instant."""

import argparse
import importlib.util
import io
import logging
import os
import pathlib
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from absl import app, flags
from absl import logging as absl_logging
from absl.flags import argparse_flags

import carbrand
from carbrand import quiet
from carbrand.data import paths
from carbrand.errors import CarbrandError, ConfigError, GateError
from carbrand.files import FULL_DISK

_EPILOG = """the whole flow:
  carbrand build --input photos --output records
  carbrand verify records
  carbrand preview --data records --output preview.png --gin_file probe
  carbrand doctor --data records --gin_file probe --gin_param "weights.path='imagenet'"
  carbrand train --data records --run runs/first --gin_file probe --gin_param "weights.path='imagenet'"
  carbrand evaluate --run runs/first --data records
  carbrand export --run runs/first --data records --output model
  carbrand predict --model model some_photo.jpg
  carbrand serve --model model --log predictions
  carbrand monitor --model model --log predictions --output monitoring
  carbrand review --model model --log predictions --output to_label

Bad input exits with 2, a failed gate with 3."""


def main() -> None:
    """Entry point of the `carbrand` command."""
    _open_closed_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: names need not fit into the terminal's encoding
    app.run(_run, flags_parser=_parse)


def _open_closed_streams() -> None:
    """Opens standard streams that are closed: else a file opened later takes a stream's number, and gets its text."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):  # each takes the least number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, pathlib.Path(os.devnull).open(mode))  # noqa: SIM115


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    arguments, beam_arguments = list(argv[1:]), []
    if "--" in arguments:
        cut = arguments.index("--")
        arguments, beam_arguments = arguments[:cut], arguments[cut + 1 :]
    parser = make_parser()
    options = parser.parse_args(arguments)
    if beam_arguments and options.command not in ("build", "verify", "predict"):
        parser.error(f"carbrand {options.command} takes nothing after --; only build, verify and predict do, for Beam")
    options.beam_arguments = beam_arguments
    flags.FLAGS(argv[:1])  # absl wants its own flags parsed; the stages have none
    return options


def _run(options: argparse.Namespace) -> int:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported
    logging.basicConfig(format="%(message)s", level=logging.WARNING, force=True)
    logging.getLogger("carbrand").setLevel(logging.INFO)
    absl_logging.set_verbosity(absl_logging.WARNING)  # TensorFlow tells of its own doings at INFO
    try:
        return options.handler(options) or 0
    except CarbrandError as error:
        _tell(error, str(error).partition("\n  In call to configurable ")[0])  # which gin adds
        return error.exit_code
    except BrokenPipeError:
        output = select.poll()
        output.register(sys.stdout.fileno(), 0)
        if not output.poll(0):  # it is another pipe that is broken
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # who read the output has enough of it
        return 1
    except OSError as error:
        if error.filename is None and isinstance(error.__context__, OSError):
            error = error.__context__  # in whose place gin has raised one without these attributes
        if error.errno in FULL_DISK:  # of which file, Python does not say
            _tell(error, "no space left on the disk that is written to. Free some, then run it again.")
            return CarbrandError.exit_code
        if error.filename is None:  # of no file that the user named
            raise
        _tell(error, f"{error.filename}: {error.strerror}. Look at this path.")
        return CarbrandError.exit_code
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130


def _tell(error: Exception, message: str) -> None:
    """Prints an error as one line: names of files may hold ends of lines, and what would control the terminal."""
    print(f"{type(error).__name__}: {paths.printable(message)}", file=sys.stderr)


def make_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands."""
    parser = argparse_flags.ArgumentParser(
        prog="carbrand",
        description="From a folder of labelled car photos to a brand classifier in production.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        inherited_absl_flags=None,
    )
    parser.add_argument("--version", action="version", version=f"carbrand {carbrand.__version__}")
    stages = parser.add_subparsers(dest="command", required=True, metavar="STAGE")
    for add in (
        _add_demo,
        _add_build,
        _add_verify,
        _add_preview,
        _add_doctor,
        _add_train,
        _add_tune,
        _add_evaluate,
        _add_explain,
        _add_export,
        _add_predict,
        _add_serve,
        _add_monitor,
        _add_review,
    ):
        add(stages)
    return parser


def _add_stage(stages: argparse._SubParsersAction, name: str, purpose: str, example: str) -> argparse.ArgumentParser:
    return stages.add_parser(
        name,
        help=purpose,
        description=purpose[0].upper() + purpose[1:] + ".",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        inherited_absl_flags=None,
        allow_abbrev=False,
    )


def _add_gin(stage: argparse.ArgumentParser) -> None:
    stage.add_argument(
        "--gin_file", action="append", default=[], help="recipe: a path, or probe, transfer, finetune, scratch, smoke"
    )
    stage.add_argument(
        "--gin_param", action="append", default=[], metavar="NAME=VALUE", help="binding, over the recipe's"
    )


def _add_checkpoint(stage: argparse.ArgumentParser) -> None:
    stage.add_argument(
        "--checkpoint",
        default="latest",
        help="of the run: latest (default), or best on the validation split, if train.run.keep_best kept it",
    )


def _load_tensorflow() -> None:
    """Imports TensorFlow without the lines that its C++ side writes before any log level counts."""
    with quiet.output():
        import tensorflow  # noqa: F401


def _add_demo(stages: argparse._SubParsersAction) -> None:
    stage = _add_stage(
        stages, "demo", "draw sample photos, then run the whole flow on them", "carbrand demo --dir demo"
    )
    stage.add_argument("--dir", default="demo", help="folder for photos, records, run and model (default: %(default)s)")
    stage.add_argument("--photos_per_brand", type=int, default=None, help="how many photos of each brand to draw")
    stage.add_argument("--epochs", type=float, default=None, help="passes over the training photos")
    stage.set_defaults(handler=_demo)


def _demo(options: argparse.Namespace) -> int:
    from carbrand.demo import demo

    given = {
        name: getattr(options, name) for name in ("photos_per_brand", "epochs") if getattr(options, name) is not None
    }
    demo.run(options.dir, **given)
    return 0


def _add_build(stages: argparse._SubParsersAction) -> None:
    stage = _add_stage(
        stages,
        "build",
        "turn labelled photos into checked, deduplicated, leak-free TFRecords",
        "carbrand build --input photos --output records\n"
        "  carbrand build --input 'gs://bucket/photos/*/*.jpg' --output records -- --runner FlinkRunner\n"
        "  carbrand build --input photos.csv --column brand=make --group_by model --output records\n"
        "  carbrand build --input new_photos --append records --output records_2",
    )
    where = stage.add_argument_group("where")
    where.add_argument(
        "--input",
        required=True,
        metavar="SRC",
        help="folder with one folder per brand, pattern (photos/*/*.jpg, gs://…), table (.csv, .tsv, .jsonl, .parquet "
        "with the columns path, brand and perhaps model, group, split), or tfds:NAME",
    )
    where.add_argument("--output", required=True, metavar="DIR", help="folder for the records")
    where.add_argument("--append", default=None, metavar="RECORDS", help="add to these records, as a new version")
    where.add_argument(
        "--overwrite",
        action="store_true",
        help="replace records in DIR, once the new ones are complete",
    )
    where.add_argument("--cache_dir", default=None, metavar="DIR", help="keep checked photos here, for the next build")
    names = stage.add_argument_group("how to read the source")
    names.add_argument(
        "--column", action="append", default=[], metavar="OURS=THEIRS", help="for example split=original_split"
    )
    names.add_argument(
        "--paths_from", default="", metavar="DIR", help="what paths in a table are relative to (default: its folder)"
    )
    names.add_argument(
        "--aliases", default=None, metavar="CSV", help="table of other names, with columns name and brand"
    )
    names.add_argument(
        "--brand_from",
        default=None,
        metavar="REGEX",
        help=r"finds the brand in a label: '(?P<brand>\S+) (?P<model>.*)'",
    )
    content = stage.add_argument_group(
        "what the records hold (not together with --append, which keeps the old choices)"
    )
    content.add_argument("--split", default=None, help="shares of train, validation, test (default: 0.8,0.1,0.1)")
    content.add_argument("--seed", type=int, default=None, help="of the splits and of the order (default: 0)")
    content.add_argument(
        "--resize_short", type=int, default=None, metavar="PX", help="shrink the short side (default: 256; 0: do not)"
    )
    content.add_argument("--jpeg_quality", type=int, default=None, help="of photos encoded again (default: 95)")
    content.add_argument(
        "--near_duplicates", default=None, metavar="POLICY", help="keep_one (default), keep_group or off"
    )
    content.add_argument(
        "--conflicts", default=None, metavar="POLICY", help="photos under several brands: keep_out (default) or keep"
    )
    content.add_argument(
        "--group_by", default=None, metavar="COLUMN", help="group (default), model or none: these stay in one split"
    )
    shards = stage.add_argument_group("how the records are stored, and what is still accepted")
    shards.add_argument("--num_shards", type=int, default=None, help="files of train, exactly (default: by size)")
    shards.add_argument("--shard_mib", type=int, default=None, help="size of a file, about (default: 128)")
    shards.add_argument("--readers", type=int, default=None, help="each gets two files or more (default: 1)")
    shards.add_argument("--max_reject_fraction", type=float, default=None, help="fail with exit 3 above (default: 0.1)")
    stage.add_argument(
        "--workers", type=int, default=None, help="processes here (default: one per core, but threads for few photos)"
    )
    stage.usage = "carbrand build --input SRC --output DIR [options] [-- BEAM OPTIONS]"
    stage.set_defaults(handler=_build)


def _build(options: argparse.Namespace) -> int:
    for name in ("input", "output", "append"):
        if getattr(options, name) == "":
            raise ConfigError(f"--{name} is empty. Name a place.")
    _need_beam("build")
    if options.input.startswith("tfds:"):
        _load_tensorflow()
    from beam_jobs import build_dataset, build_output
    from carbrand.data import splits

    chosen = _given(options, "seed", "jpeg_quality", "near_duplicates", "conflicts", "group_by")
    if options.split is not None:
        chosen["fractions"] = splits.parse_fractions(options.split)
    if options.resize_short is not None:
        chosen["resize_short_px"] = options.resize_short or None
    build_dataset.run(
        options.input,
        options.output,
        build_output.Choices(**chosen) if chosen else None,
        columns=_columns(options.column),
        paths_from=options.paths_from,
        aliases=options.aliases,
        brand_from=options.brand_from,
        append_to=options.append,
        workers=options.workers,
        cache_dir=options.cache_dir,
        beam_args=options.beam_arguments,
        overwrite=options.overwrite,
        **_given(options, "num_shards", "shard_mib", "readers", "max_reject_fraction"),
    )
    return 0


def _add_verify(stages: argparse._SubParsersAction) -> None:
    stage = _add_stage(
        stages,
        "verify",
        "check every byte of a folder of records; names the shard and record that differ and exits with 3",
        "carbrand verify records\n  carbrand verify records --workers 8",
    )
    stage.add_argument("data", metavar="DIR", help="folder of records")
    stage.add_argument("--workers", type=int, default=None, help="check with Apache Beam, in so many processes")
    stage.usage = "carbrand verify DIR [--workers N] [-- BEAM OPTIONS]"
    stage.set_defaults(handler=_verify)


def _verify(options: argparse.Namespace) -> int:
    from carbrand.data import verify

    started = time.monotonic()
    if options.workers is not None or options.beam_arguments:
        _need_beam("verify --workers")
        from beam_jobs import verify_dataset

        problems = verify_dataset.run(options.data, workers=options.workers, beam_args=options.beam_arguments)
    else:
        problems = verify.run(options.data)
    verify.report(options.data, problems, time.monotonic() - started)
    return 0


def _given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The options that were given: the others have their defaults where they are used."""
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}


def _columns(pairs: list[str]) -> dict[str, str]:
    columns = dict(pair.partition("=")[::2] for pair in pairs)
    for ours, theirs in columns.items():
        if not ours or not theirs:
            raise ConfigError(f"--column={ours}{theirs}: give OURS=THEIRS, for example brand=make.")
    return columns


def _need_beam(stage: str) -> None:
    if importlib.util.find_spec("apache_beam") is None:
        raise ConfigError(f"`carbrand {stage}` needs Apache Beam. Run: pip install 'carbrand[beam]'")


def _add_preview(stages: argparse._SubParsersAction) -> None:
    stage = _add_stage(
        stages,
        "preview",
        "draw what the network really sees: photos out of the training pipeline, varied, mixed and labelled",
        "carbrand preview --data records --output preview.png --gin_file finetune --gin_param augment.cutmix_alpha=1.0",
    )
    stage.add_argument("--data", required=True, help="folder of records")
    stage.add_argument("--output", required=True, metavar="PNG", help="the picture: .png or .jpg")
    stage.add_argument(
        "--split", default="train", help="train, as training sees it; validation or test, as evaluation does"
    )
    stage.add_argument("--photos", type=int, default=None, help="how many (default: 48)")
    stage.add_argument(
        "--step", type=int, default=None, help="of the training (default: the first one after the head's epochs)"
    )
    _add_gin(stage)
    stage.set_defaults(handler=_preview)


def _preview(options: argparse.Namespace) -> int:
    from carbrand.data import manifest

    splits = manifest.load(options.data).splits
    _load_tensorflow()
    from carbrand import config
    from carbrand.data import preview
    from carbrand.training import settings, train

    config.parse(options.gin_file, options.gin_param)
    bound = train.bound_settings()
    if options.split == "train" and splits["train"].num_examples:
        chosen = vars(settings.inputs_at(options.step, splits["train"].num_examples, bound))
    else:
        chosen = {"preprocess": bound.preprocess, "batch_size": bound.schedule.batch_size, **_given(options, "step")}
    preview.run(options.data, options.output, split=options.split, **chosen, **_given(options, "photos"))
    print(f"Preview: {options.output}")
    return 0


def _add_doctor(stages: argparse._SubParsersAction) -> None:
    stage = _add_stage(
        stages,
        "doctor",
        "check a training before it starts, then measure what limits its speed; names one change that would help",
        "carbrand doctor --data records --gin_file finetune --gin_param \"weights.path='imagenet'\"\n"
        "  carbrand doctor --data records --gin_file probe --gin_param \"weights.path='random'\" --check\n"
        "  carbrand doctor --data records --gin_file finetune --gin_param \"weights.path='imagenet'\" --find rate",
    )
    stage.add_argument("--data", required=True, help="folder of records")
    _add_gin(stage)
    stage.add_argument("--seconds", type=float, default=5.0, help="to measure each part (default: %(default)s)")
    stage.add_argument("--check", action="store_true", help="only check, which takes seconds; exits with 2 on errors")
    stage.add_argument(
        "--find",
        default=None,
        metavar="WHAT",
        help="instead: rate, the learning rate by a short training while it rises; or batch, the size from which on "
        "steps are hardly faster, or do not fit",
    )
    stage.add_argument("--output", default=None, metavar="DIR", help="folder for doctor.json and learning_rate.png")
    stage.set_defaults(handler=_doctor)


def _doctor(options: argparse.Namespace) -> int:
    from carbrand.data import manifest

    manifest.load(options.data)
    _load_tensorflow()
    from carbrand import config
    from carbrand.training import doctor

    config.parse(options.gin_file, options.gin_param)
    doctor.run(
        options.data,
        seconds=options.seconds,
        check_only=options.check,
        find=options.find,
        output=options.output,
    )
    return 0


def _add_train(stages: argparse._SubParsersAction) -> None:
    stage = _add_stage(
        stages,
        "train",
        "train on records, or go on with an interrupted run",
        "carbrand train --data records --run runs/first --gin_file finetune "
        "--gin_param \"weights.path='imagenet'\" --gin_param train.run.batch_size=64",
    )
    stage.add_argument("--data", required=True, help="folder of records")
    stage.add_argument("--run", required=True, help="folder for checkpoints, metrics and config; resumes what is there")
    _add_gin(stage)
    stage.add_argument(
        "--workers",
        type=int,
        default=None,
        metavar="N",
        help="train in N processes on this machine, which share its GPUs; on several machines, set TF_CONFIG instead",
    )
    stage.add_argument(
        "--dry_run", action="store_true", help="only check data, config, devices and run, as `carbrand doctor --check`"
    )
    stage.set_defaults(handler=_train)


def _train(options: argparse.Namespace) -> int:
    from carbrand.data import manifest

    manifest.load(options.data)  # a wrong folder is said before TensorFlow takes its seconds to load
    if options.workers is not None:
        from carbrand.training import launcher

        command = _worker_command(options)
        if not options.dry_run:
            return launcher.run(command, options.workers)
        environment = os.environ | launcher.variables(options.workers)[0]
        return subprocess.run([*command, "--dry_run"], env=environment, check=False).returncode
    _load_tensorflow()
    from carbrand import config
    from carbrand.training import doctor, train

    config.parse(options.gin_file, options.gin_param)
    if options.dry_run:
        doctor.run(options.data, check_only=True, run_dir=options.run)
        print(f"{options.run}: nothing that would stop the training was found; nothing was written.")
        return 0
    result = train.run(options.data, options.run)
    print(f"{options.run}: {result.steps} steps, validation accuracy {result.validation_accuracy:.1%}")
    return 0


def _worker_command(options: argparse.Namespace) -> list[str]:
    """The command of one worker."""
    command = [sys.executable, "-m", "carbrand", "train", "--data", options.data, "--run", options.run]
    for name in ("gin_file", "gin_param"):
        for value in getattr(options, name):
            command += [f"--{name}", value]
    return command


def _add_tune(stages: argparse._SubParsersAction) -> None:
    stage = _add_stage(
        stages,
        "tune",
        "search for better settings, by trainings that are compared on the validation split; goes on where it stopped",
        "carbrand tune --data records --study studies/probe --space probe --gin_file probe "
        "--gin_param \"weights.path='imagenet'\" --trials 30\n"
        "  carbrand train --data records --run runs/best --gin_file studies/probe/best.gin\n\n"
        "a search space is a text file, a gin name and its values in each line:\n"
        "  optimizer.learning_rate = log(1e-4, 1e-1)     # a number, evenly over its logarithm\n"
        "  model.dropout = uniform(0, 0.5)               # a number, evenly\n"
        "  train.run.epochs = int(2, 10)                 # a whole number, both ends included\n"
        "  train.run.batch_size = choice(16, 32, 64)     # one of these values, of any kind",
    )
    stage.add_argument("--data", required=True, help="folder of records")
    stage.add_argument(
        "--study", required=True, help="folder for the trials, best.gin, trials.csv, study.png; resumes what is there"
    )
    stage.add_argument("--space", required=True, metavar="FILE", help="search space: a path, or probe, finetune")
    _add_gin(stage)
    stage.add_argument("--trials", required=True, type=int, metavar="N", help="trials to have in all, of all tuners")
    stage.add_argument(
        "--metric", default=None, help="loss (default) or accuracy of the last validation; few photos tie in accuracy"
    )
    stage.add_argument(
        "--pruner",
        default=None,
        help="who gives up bad trials early: asha (default), hyperband, none; for a few short trials: none",
    )
    stage.add_argument("--seed", type=int, default=None, help="of the values drawn (default: 0)")
    stage.add_argument(
        "--storage", default=None, metavar="URL", help="database for several tuners (default: a file in the study)"
    )
    stage.set_defaults(handler=_tune)


def _tune(options: argparse.Namespace) -> int:
    from carbrand.training import tune, tune_report

    result = tune.run(
        options.data,
        options.study,
        options.space,
        trials=options.trials,
        gin_files=options.gin_file,
        gin_params=options.gin_param,
        **_given(options, "metric", "pruner", "seed", "storage"),
    )
    print(tune_report.table(result.trials, result.metric), end="")
    print(f"Best: {pathlib.Path(options.study) / tune_report.BEST}")
    return 0


def _add_evaluate(stages: argparse._SubParsersAction) -> None:
    stage = _add_stage(
        stages,
        "evaluate",
        "accuracy, precision, recall, F1 and confusion matrix over a split, each photo exactly once",
        "carbrand evaluate --run runs/first --data records --split test",
    )
    _add_run_or_model(stage, nargs="+", help="folder of a run; of several, a table and a picture compare them")
    stage.add_argument("--data", required=True, help="folder of records")
    stage.add_argument("--split", default="test", help="train, validation or test (default: %(default)s)")
    stage.add_argument(
        "--output", default=None, help="folder for the report (default: evaluation-SPLIT in the run or model)"
    )
    _add_checkpoint(stage)
    stage.add_argument(
        "--baseline",
        default=None,
        metavar="REPORT",
        help="report folder, or report.json, of the model before: exit with 3 if this one is worse on the same photos",
    )
    stage.set_defaults(handler=_evaluate)


def _evaluate(options: argparse.Namespace) -> int:
    from carbrand.data import manifest

    manifest.load(options.data)
    runs = options.run or [None]
    are_several = len(runs) > 1
    if are_several and (options.output is None or options.baseline is not None):
        raise ConfigError("--run names several runs: give --output, the folder for the comparison, and no --baseline.")
    _load_tensorflow()
    from carbrand.evaluation import compare, evaluate

    if are_several:
        evaluate.check_several(runs, options.split, options.output, options.checkpoint)
    folders = []
    for run in runs:
        _, folder = evaluate.run(
            options.data,
            run_dir=run,
            model_dir=options.model,
            split=options.split,
            output=None if are_several else options.output,
            which=options.checkpoint,
            baseline=options.baseline,
        )
        folders.append(folder)
        print((folder / "report.txt").read_text(), end="")
        print(f"Report: {folder / 'report.html'}\n")
    if are_several:
        print(compare.run(folders, options.output), end="")
        print(f"Comparison: {pathlib.Path(options.output) / compare.PICTURE}")
    return 0


def _add_run_or_model(stage: argparse.ArgumentParser, **of_run: Any) -> None:
    model = stage.add_mutually_exclusive_group(required=True)
    model.add_argument("--run", **of_run)
    model.add_argument("--model", help="folder of an exported model")


def _add_explain(stages: argparse._SubParsersAction) -> None:
    stage = _add_stage(
        stages,
        "explain",
        "show where in photos a brand was seen, as a picture with heat maps",
        "carbrand explain --run runs/first --output explained.png photo.jpg other.jpg",
    )
    _add_run_or_model(stage, help="folder of a run")
    stage.add_argument("--output", required=True, help="picture to write, .png or .jpg")
    stage.add_argument(
        "--brand", action="append", help="whose heat map to show; may be repeated (default: the 3 most probable)"
    )
    stage.add_argument("paths", nargs="+", metavar="PHOTO", help="photos")
    _add_checkpoint(stage)
    stage.set_defaults(handler=_explain)


def _explain(options: argparse.Namespace) -> int:
    _load_tensorflow()
    from carbrand.evaluation import explain

    explain.run(
        options.paths,
        options.output,
        run_dir=options.run,
        model_dir=options.model,
        which=options.checkpoint,
        brands=options.brand or (),
    )
    print(f"Picture: {pathlib.Path(options.output)}")
    return 0


def _add_export(stages: argparse._SubParsersAction) -> None:
    stage = _add_stage(
        stages,
        "export",
        "write a checkpoint of a run as a model that answers as the run does: a SavedModel and, as may be, TFLite",
        "carbrand export --run runs/first --data records --output model\n"
        "  carbrand export --run runs/first --data records --output model --formats float16,int8",
    )
    stage.add_argument("--run", required=True, help="folder of a run")
    stage.add_argument("--data", required=True, help="the run's records, on which the export must answer as the run")
    stage.add_argument("--output", required=True, help="folder for the model; an older one in it stays, as a version")
    stage.add_argument(
        "--formats", default="", metavar="LIST", help="TFLite files beside the SavedModel: float16, int8, or both"
    )
    _add_checkpoint(stage)
    stage.set_defaults(handler=_export)


def _export(options: argparse.Namespace) -> int:
    from carbrand.data import manifest

    manifest.load(options.data)
    _load_tensorflow()
    from carbrand.serving import export

    formats = [name for name in options.formats.split(",") if name]
    folder = export.run(options.run, options.output, data=options.data, which=options.checkpoint, formats=formats)
    print(f"Model: {folder}")
    return 0


def _add_predict(stages: argparse._SubParsersAction) -> None:
    stage = _add_stage(
        stages,
        "predict",
        "predict the brand of photos; exits with 1 if some could not be read",
        "carbrand predict --model model photo.jpg more_photos/ 'old/*.webp' --format csv --output predictions.csv\n"
        "  curl -s https://example.com/car.jpg | carbrand predict --model model -\n"
        "  carbrand predict --model model --list photos.csv --workers 4 --output predictions   # with Apache Beam",
    )
    stage.add_argument("--model", required=True, help="folder of an exported model")
    stage.add_argument(
        "paths", nargs="*", metavar="PATH", help="photos, folders of photos, patterns, or - for a photo through stdin"
    )
    stage.add_argument(
        "--list", default=None, metavar="FILE", help="more of them: a text with one per line (-: stdin), or a table"
    )
    stage.add_argument(
        "--format", default=None, help="table (default), csv or jsonl; with Beam jsonl (default) or parquet"
    )
    stage.add_argument("--output", default=None, help="file to write to (default: the terminal); with Beam a folder")
    stage.add_argument(
        "--workers",
        type=int,
        default=None,
        help="predict with Apache Beam, in so many processes; goes on where it ended",
    )
    stage.usage = "carbrand predict --model DIR PATH … [options] [-- BEAM OPTIONS]"
    stage.set_defaults(handler=_predict)


def _predict(options: argparse.Namespace) -> int:
    from carbrand import exported

    exported.load(options.model)
    with_beam = options.workers is not None or bool(options.beam_arguments)
    if with_beam and options.output is None:
        raise ConfigError("--workers, and options for Beam, need --output, the folder for the predictions.")
    if with_beam:
        _need_beam("predict --workers")
    _load_tensorflow()
    chosen = {"names_from": options.list, "output": options.output}
    if options.format is not None:
        chosen["output_format"] = options.format
    if with_beam:
        from beam_jobs import predict_images

        total, failures = predict_images.run(
            options.model, options.paths, **chosen, workers=options.workers, beam_args=options.beam_arguments
        )
    else:
        from carbrand.serving import predict

        total, failures = predict.run(options.model, options.paths, **chosen)
    if options.output is not None:
        print(f"Predictions: {pathlib.Path(options.output)}")
    if failures:
        print(f"{failures} of {total} photos could not be read.", file=sys.stderr)
    return 1 if failures else 0


def _add_serve(stages: argparse._SubParsersAction) -> None:
    stage = _add_stage(
        stages,
        "serve",
        "answer over HTTP: TensorFlow Serving's REST paths, uploads, a page to drop a photo on, metrics",
        "carbrand serve --model model --log predictions\n"
        "  curl -F photo=@photo.jpg http://127.0.0.1:8501/predict\n\n"
        "with CARBRAND_API_KEY in the environment, requests need the header 'Authorization: Bearer KEY'",
    )
    stage.add_argument("--model", required=True, help="folder of an exported model; newer versions are taken up")
    stage.add_argument("--host", default=None, help="address to listen on (default: 127.0.0.1; 0.0.0.0: all)")
    stage.add_argument("--port", type=int, default=None, help="(default: 8501)")
    stage.add_argument("--name", default=None, help="of the model in TensorFlow Serving's paths (default: carbrand)")
    stage.add_argument("--log", default=None, metavar="DIR", help="folder for what was answered, one line per photo")
    stage.add_argument("--keep_photos", action="store_true", help="keep the photos in that folder too")
    limits = stage.add_argument_group("limits")
    limits.add_argument("--max_batch", type=int, default=None, help="photos per pass of the network (default: 32)")
    limits.add_argument("--max_delay_ms", type=float, default=None, help="a photo's wait for others (default: 5)")
    limits.add_argument("--max_waiting", type=int, default=None, help="photos at a time; then 503 (default: 256)")
    limits.add_argument("--max_body_mib", type=int, default=None, help="of a request (default: 64)")
    limits.add_argument("--max_pixels", type=int, default=None, help="of a photo (default: 40000000)")
    limits.add_argument(
        "--timeout_s", type=float, default=None, help="for a request to arrive, and for its answer (default: 30)"
    )
    stage.add_argument(
        "--poll_s", type=float, default=None, help="between looks for a newer version (default: 5; 0: none)"
    )
    limits.add_argument("--drain_s", type=float, default=None, help="of answering on after SIGTERM (default: 5)")
    stage.set_defaults(handler=_serve)


def _serve(options: argparse.Namespace) -> int:
    from carbrand import exported

    exported.load(options.model)
    _need_serve()
    _load_tensorflow()
    from carbrand.serving import serve

    if options.keep_photos and options.log is None:
        raise ConfigError("--keep_photos needs --log, the folder for them.")
    limits = (
        "max_batch",
        "max_delay_ms",
        "max_waiting",
        "max_body_mib",
        "max_pixels",
        "timeout_s",
        "drain_s",
        "poll_s",
    )
    given = _given(options, "host", "port", "name", *limits)
    serve.run(options.model, log_dir=options.log, keep_photos=options.keep_photos, **given)
    return 0


def _need_serve() -> None:
    try:
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigError(f"`carbrand serve` needs {error.name}. Run: pip install 'carbrand[serve]'") from error


def _add_monitor(stages: argparse._SubParsersAction) -> None:
    stage = _add_stage(
        stages,
        "monitor",
        "compare what a server answered with what its model answers for held-out photos; exits with 3 if that drifted",
        "carbrand monitor --model model --log predictions --output monitoring\n"
        "  carbrand monitor --model model --log predictions --since 2026-11-01 --until 2026-12-01 --output november\n"
        "  carbrand monitor --model model --log predictions --since 2026-11-01 --reference predictions --output change",
    )
    stage.add_argument("--model", required=True, help="folder of an exported model; or of a version, such as model/1")
    stage.add_argument("--log", required=True, metavar="DIR", help="what `carbrand serve --log` wrote")
    stage.add_argument("--output", required=True, metavar="DIR", help="folder for the report")
    _add_period(stage)
    stage.add_argument(
        "--reference",
        default=None,
        metavar="LOG",
        help="compare with this log instead of held-out photos; of the same log, with what lies before --since",
    )
    stage.add_argument(
        "--labels",
        default=None,
        metavar="TABLE",
        help="true brands of photos in the log (columns sha256 and brand): tells the accuracy in production",
    )
    stage.add_argument(
        "--min_shift", type=float, default=None, help="share of the photos from which on a shift counts (default: 0.1)"
    )
    stage.set_defaults(handler=_monitor)


def _add_period(stage: argparse.ArgumentParser) -> None:
    stage.add_argument("--since", default=None, metavar="TIME", help="only answers from this date or time on, UTC")
    stage.add_argument("--until", default=None, metavar="TIME", help="only answers before this date or time, UTC")


def _monitor(options: argparse.Namespace) -> int:
    from carbrand.monitoring import monitor, text

    found = monitor.run(
        options.model,
        options.log,
        options.output,
        **_given(options, "since", "until", "reference", "labels", "min_shift"),
    )
    output = pathlib.Path(options.output)
    print((output / monitor.TEXT).read_text(encoding="utf-8"), end="")
    print(f"Report: {output / monitor.REPORT}")
    if found.drifted:
        raise GateError(f"{options.log}: {text.verdict(found)} Look at {output / monitor.REPORT}.")
    return 0


def _add_review(stages: argparse._SubParsersAction) -> None:
    stage = _add_stage(
        stages,
        "review",
        "choose photos for a person to look at: of a server's log to be labelled, or of records with doubtful labels",
        "carbrand review --model model --log predictions --output to_label      # then open to_label/review.html\n"
        "  carbrand review --model model --data records --output doubtful",
    )
    stage.add_argument("--model", required=True, help="folder of an exported model")
    source = stage.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--log",
        metavar="DIR",
        help="what `carbrand serve --log --keep_photos` wrote: photos chosen by chance, unsure and unknown ones",
    )
    source.add_argument("--data", metavar="RECORDS", help="records: photos whose labels the others contradict")
    stage.add_argument("--output", required=True, metavar="DIR", help="new folder for review.html, review.csv, photos")
    stage.add_argument("--photos", type=int, default=None, metavar="N", help="at most so many (default: 100)")
    _add_period(stage)
    stage.add_argument("--seed", type=int, default=None, help="of the photos chosen by chance (default: 0)")
    stage.set_defaults(handler=_review)


def _review(options: argparse.Namespace) -> int:
    if options.data is not None:
        _load_tensorflow()
    from carbrand.monitoring import review

    given = _given(options, "log", "data", "photos", "since", "until", "seed")
    found = review.run(options.model, options.output, **given)
    print(f"Review, {len(found)} photos: {pathlib.Path(options.output) / review.PAGE}")
    return 0
