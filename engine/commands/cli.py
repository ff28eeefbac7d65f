"""The command line: ``headrace run | check | explore | profile | folds | interpret | export |
compress | versions | replay | predict | adopt | reference | schema``.

Exit codes: 0 done (also after a signal), 1 failed, 2 the user's mistake, 3 too many rejected rows,
141 the reader of the output left, as other tools end at SIGPIPE (``headrace ... | head``); a second
signal ends with 128 and its number.

Nothing heavy is imported up here: a signal is answered before the first library is loaded.
"""

from __future__ import annotations

import argparse
import codecs
import contextlib
import io
import os
import re
import shlex
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from engine.errors import HeadraceError, ReaderLeft, UserError, nearest
from engine.system import environment, signals

if TYPE_CHECKING:
    from rich.console import RenderableType

    from engine.run import Run

NEWEST, NONE = "newest", "none"
"""What --promote and --shadow without a number stand for."""
EXIT = {"done": 0, "failed": 1, "mistake": 2, "too_many_rejects": 3, "reader_left": 141}

RUN = """\
Read a source, clean its rows with the [scrub] stages, and train, serve or only write them.

  headrace run deploy/pipelines/pedestrians.toml
  headrace run my.toml --set loader.batch_rows=512 --set 'sink.path="out"'
  HEADRACE_SERVICE__PORT=9200 headrace run my.toml

A table given to --set ('sink={path="out"}') is merged with that of the file, key by key; one of
another kind takes its place.

A second run of the same file resumes where the last one stopped; --fresh starts over: checkpoints,
results and dead letters go. Versions of models that are published stay, as engines may serve them;
new ones get the numbers after them.
Ctrl-C (SIGINT) or SIGTERM finishes the current batch, saves and exits with 0; a second one ends the
process at once, with 130 or 143.
"""
CHECK = """\
Validate the file, open the source, decode a sample, and report what each stage does to it and what
would fail later. Writes nothing.

  headrace check deploy/pipelines/pedestrians.toml
"""
EXPLORE = """\
Describe a file, or the source of a pipeline, in one pass and bounded memory: types, missing and
distinct values, distributions, order and gaps in time, duplicates, classes, correlations, drift;
what the pipeline's stages do to it; and the [scrub] stages it needs.

  headrace explore payments.parquet
  headrace explore 'logs/*.csv.gz' --html logs.html
  headrace explore prices.csv --set 'source.schema.zip="string"'
  headrace explore deploy/pipelines/pedestrians.toml --json found.json

A topic is read to its current end, without joining the group. Writes only the files you name.
"""
EXPORT = """\
Write the model of the newest checkpoint as a float32 ONNX file that contains imputation, clipping,
scaling and category codes.

  headrace export deploy/pipelines/pedestrians.toml --to model.onnx
"""
COMPRESS = """\
Make smaller candidates of the exported model (int8, float16), test each on held-out rows, and keep
the fastest that passes the gate.

  headrace compress deploy/pipelines/pedestrians.toml
"""
VERSIONS = """\
List the versions of a model that a pipeline publishes or serves, and say which one serves. Engines
that serve the folder follow within a moment.

  headrace versions deploy/pipelines/pedestrians.toml
  headrace versions runs/pedestrians/versions --rollback      # the one before serves again
  headrace versions runs/pedestrians/versions --promote 7
  headrace versions runs/pedestrians/versions --promote       # the newest, and those to come
  headrace versions runs/pedestrians/versions --shadow 8      # answers beside it, unseen
  headrace versions runs/pedestrians/versions --shadow        # none does any more

After --rollback, or --promote of an older version, new versions are published and do not serve,
until the newest is promoted. The exit code is 2 where no engine can serve what the pointer names,
or a version is to be in the shadow that is not there or damaged.
"""
REPLAY = """\
Process dead letters again once the cause is fixed, in the pipeline file, the model or the code.
Stages may be added, and stages that learn nothing may be changed or removed; the others keep what
they have learned. Each dead letter is read once; a row that is rejected again is a new dead letter.
Stop the pipeline first: both resume from the same checkpoint.

  headrace replay deploy/pipelines/pedestrians.toml
"""
PROFILE = """\
Run a sample of a pipeline and report its bottleneck (source, decode, scrub, model or sink; bound by
CPU, GPU or I/O), its memory, the setting to change and the measured gain. Results, dead letters and
checkpoints go to a temporary folder; a topic is read without joining the group, never written to.

  headrace profile deploy/pipelines/pedestrians.toml
  headrace profile my.toml --seconds 20 --trace trace.json    # open it in Perfetto or
  chrome://tracing
"""
FOLDS = """\
Cross-validate a pipeline that learns from a bounded source: one run per fold, each in its own
folder. Rows of the fold are predicted and never learned; the table has each fold, the mean and the
deviation.

  headrace folds deploy/pipelines/phishing.toml --folds 10

A [scrub] stage of kind "split" assigns rows to folds (folds, by, stratify); without one they are
assigned in turn.
"""
INTERPRET = """\
Show what the model of a pipeline relies on, and where it is wrong: the importance of each column,
by permutation, with an interval; integrated gradients of networks; reliability of probabilities;
errors by slice; the worst rows with their positions.

  headrace interpret deploy/pipelines/phishing.toml
  headrace interpret my.toml --html model.html --rows 2000 --metric auc
  headrace interpret serve.toml --target label    # a model file of [infer]; its rows have labels

The model is that of the newest checkpoint, or the file that [infer] serves. It is judged on rows
that were held out ([export], or a 'split' stage), else on the newest rows of the source. Learns
nothing, and writes only the files you name.
"""
PREDICT = """\
Read files and write their rows with the predictions of a model.

  headrace predict runs/pedestrians/model.onnx --input 'new/*.parquet' --output predictions
"""
ADOPT = """\
Look at an ONNX file that was made elsewhere: inputs, outputs, operators, batch size. Free a fixed
batch size, prove on a few rows that the answers stay the same, and print the [infer] table that
serves it.

  headrace adopt detector.onnx
  headrace adopt detector.onnx --shape image=n,3,h,w --to free.onnx
  headrace adopt detector.onnx --pipeline photos.toml --write

A file that is already free is not written again.
"""
REFERENCE = """\
Print every key of a table of the pipeline file, with its type, unit, default and meaning. Without a
table, list the tables.

  headrace reference
  headrace reference loader
  headrace reference source.kafka
  headrace reference --markdown > reference.md
"""
SCHEMA = """\
Print a JSON Schema of pipeline files, so that editors can complete and check them. For Taplo (Even
Better TOML), put this line at the top of the pipeline file:

  #:schema ./headrace.schema.json

  headrace schema > headrace.schema.json
"""
SPOKEN = {
    "_predict": {
        "[source] path": "--input",
        "[sink] path": "--output",
        "[sink] format": "--format",
        "[infer] model": "MODEL",
        "The model of [infer]": "MODEL",
        "the model of [infer]": "MODEL",
    },
    "_explore": {"[source] path": "FILE"},
}
"""Names of pipeline keys in commands that have no pipeline file."""
KEY_AND_VALUE = re.compile(
    r"(?P<set>\bset )?\[(?P<table>(?:source|loader|scrub|infer|sink|dead_letters)(?:\.\w+)*)\] "
    r"(?P<key>\w+)\b"
    r"(?: = (?P<value>\{(?:[^{}]|\{[^{}]*\})*\}|\[[^\]]*\]|\"[^\"]*\"|'[^']*'|[\w%]+(?:\.\w+)*))?"
)
"""A key of a table in a sentence, such as ``set [sink] path = "x"``."""
COMMAND_SYNONYMS = {
    "serve": "run (a pipeline with [infer] serves)",
    "infer": "run (a pipeline with [infer] serves)",
    "train": "run (a pipeline with [model] trains)",
    "start": "run",
    "validate": "check",
    "test": "check",
    "lint": "check",
    "inspect": "explore",
    "describe": "explore",
    "explain": "interpret",
    "importance": "interpret",
    "evaluate": "interpret",
    "score": "predict",
    "import": "adopt",
    "quantize": "compress",
    "promote": "versions FILE --promote",
    "rollback": "versions FILE --rollback",
    "models": "versions",
    "registry": "versions",
    "cv": "folds",
    "bench": "profile",
    "config": "reference",
    "help": "--help",
}
"""Names of commands in other tools -> the name here."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the ``headrace`` command; return the exit code.

    Args:
        arguments: those of this process unless given; only then is the process the command's own.
    """
    if arguments is None:
        signals.install()
        environment.collect_rarely()
    _open_streams()
    try:
        with signals.handling(signals.stop):
            options = _parsed(list(sys.argv[1:] if arguments is None else arguments))
            signals.set_resumable(options.command in (_run, _replay))
            return _done(options)
    except signals.StopRequested:
        signals.write_line(signals.stop_message())
        return EXIT["done"]


def _done(options: argparse.Namespace) -> int:
    """Run the command; turn every outcome into one sentence and an exit code."""
    from engine.observing import logs

    logs.setup(options.log_format, options.log_level, spoken=lambda said: _spoken(said, options))
    try:
        for remark in environment.remarks():
            _log().warning("%s", remark)
        command: Callable[[argparse.Namespace], int] = options.command
        with _compiling_reported(options):
            return command(options)
    except signals.StopRequested:
        raise
    except UserError as error:
        return _say(_spoken(str(error), options), EXIT["mistake"])
    except HeadraceError as error:
        from engine.running.reject_limit import TooManyRejects

        code = EXIT["too_many_rejects" if isinstance(error, TooManyRejects) else "failed"]
        return _say(_spoken(str(error), options), code)
    except ReaderLeft:
        return EXIT["reader_left"]
    except BaseException as error:  # noqa: BLE001 - the last line of defence: one sentence, details on demand
        if options.log_level == "debug":
            import traceback

            traceback.print_exc()
        return _say(_unexpected(error), EXIT["failed"])


def _compiling_reported(options: argparse.Namespace) -> contextlib.AbstractContextManager[None]:
    """Say, for the block, that loops are compiled; commands that read no data load no compiler."""
    if options.command in (_versions, _reference, _schema):
        return contextlib.nullcontext()
    from engine.observing import compiling

    return compiling.reported()


def _parsed(arguments: list[str]) -> argparse.Namespace:
    """Parse the arguments. Exits with 2 and the usage if they make no sense, like argparse."""
    parser, commands = _parser()
    word = arguments[0] if arguments else ""
    if word and not word.startswith("-") and word not in commands:
        near = (
            f" Did you mean {COMMAND_SYNONYMS[word]}?"
            if word in COMMAND_SYNONYMS
            else nearest(word, commands)
        )
        parser.error(f"there is no command '{word}'.{near}")
    return parser.parse_args(arguments)


class _Parser(argparse.ArgumentParser):
    """A parser that reports where its help cannot be written, which argparse ignores; it does not
    import `engine.commands.output`, which loads for longer than the help takes."""

    def error(self, message: str) -> NoReturn:
        """Name a wrong argument in one sentence; the usage is for arguments that make no sense
        together."""
        if message.startswith("argument "):
            self.exit(EXIT["mistake"], f"headrace: {message.removeprefix('argument ')}.\n")
        super().error(message)

    def _print_message(self, message: str, file: Any = None) -> None:
        if file is not sys.stdout:
            super()._print_message(message, file)
            return
        try:
            sys.stdout.write(message)
            sys.stdout.flush()
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            if isinstance(error, BrokenPipeError):  # whoever reads no more needs no word
                raise SystemExit(EXIT["reader_left"]) from None
            _say(f"Standard output cannot be written: {error.strerror}.", EXIT["failed"])
            raise SystemExit(EXIT["failed"]) from None


def _run(options: argparse.Namespace) -> int:
    return _runs(options, fresh=options.fresh)


def _replay(options: argparse.Namespace) -> int:
    return _runs(options, replay=True)


def _runs(options: argparse.Namespace, *, fresh: bool = False, replay: bool = False) -> int:
    from engine.commands.progress import Progress
    from engine.run import Run

    with Progress() as progress:
        run = Run(options.file, options.set, watch=progress.watch, replay=replay)
        summary = run.run(fresh=fresh)
    with signals.handling(signals.ignore):
        from engine.commands.output import finish

        finish(summary)
    return EXIT["done"]


def _check(options: argparse.Namespace) -> int:
    from engine.commands.preflight import preflight
    from engine.run import Run

    if options.rows < 1:
        raise UserError(f"Expected --rows of 1 or more, got {options.rows}.")
    good = preflight(Run(options.file, options.set), options.rows)
    return EXIT["done" if good else "mistake"]


def _explore(options: argparse.Namespace) -> int:
    from engine.commands.output import console
    from engine.commands.progress import Progress
    from engine.explore import explore, page, terminal

    if options.rows is not None and options.rows < 1:
        raise UserError(f"Expected --rows of 1 or more, got {options.rows}.")
    _require_target(options.html, "--html")
    _require_target(options.json, "--json")
    with Progress() as progress:
        findings = explore(
            options.what, options.set, rows=options.rows, time=options.time, watch=progress.look
        )
    _show(findings, terminal.parts(findings), page.write, options)
    if findings.unreadable:
        console().print(
            "! More records could not be read than [dead_letters] limit allows in a run.",
            style="yellow", highlight=False, markup=False,
        )  # fmt: skip
    return EXIT["mistake" if findings.unreadable else "done"]


def _profile(options: argparse.Namespace) -> int:
    from engine.commands.output import console
    from engine.commands.profile import profile
    from engine.config import Pipeline

    pipeline = Pipeline.load(options.file, options.set)
    _require_target(options.trace, "--trace")
    with console().status("profiling"):
        result = profile(
            pipeline, seconds=options.seconds, trace=options.trace, trials=not options.no_trials
        )
    for part in result.tables():
        console().print(part, highlight=False, soft_wrap=isinstance(part, str))
    return EXIT["done"]


def _folds(options: argparse.Namespace) -> int:
    from engine.commands.folds import folds
    from engine.commands.output import console
    from engine.commands.progress import Progress
    from engine.config import Pipeline

    pipeline = Pipeline.load(options.file, options.set)
    with Progress() as progress:
        result = folds(pipeline, options.folds, watch=progress.watch)
    for part in result.tables():
        console().print(part, highlight=False, soft_wrap=isinstance(part, str))
    return EXIT["done"]


def _interpret(options: argparse.Namespace) -> int:
    from engine.commands.progress import Progress
    from engine.interpret import interpret, page, terminal

    _require_target(options.html, "--html")
    _require_target(options.json, "--json")
    with Progress() as progress:
        found = interpret(
            options.file,
            options.set,
            rows=options.rows,
            repeats=options.repeats,
            metric=options.metric,
            label=options.target,
            watch=progress.step,
        )
    _show(found, terminal.parts(found), page.write, options)
    return EXIT["done"]


def _show(
    found: Any,
    parts: Iterable[RenderableType],
    write_page: Callable[[Any, Path], None],
    options: argparse.Namespace,
) -> None:
    """Print what was found, and write the page and the JSON that are asked for."""
    from engine.commands.output import console

    for part in parts:
        console().print(part, highlight=False, soft_wrap=isinstance(part, str))
    if options.html is not None:
        write_page(found, options.html)
        console().print(f"Wrote {options.html}.", highlight=False, markup=False)
    if options.json is not None:
        _write_json(found.plain(), options.json)


def _write_json(figures: Any, path: Path) -> None:
    """Write figures as JSON, and say so. Raises: HeadraceError if they cannot be written."""
    import json

    from engine.commands.output import console
    from engine.system import atomic

    with _write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write(path, json.dumps(figures, indent=2, ensure_ascii=False) + "\n")
    console().print(f"Wrote {path}.", highlight=False, markup=False)


def _trained(options: argparse.Namespace) -> Run:
    from engine.run import Run

    run = Run(options.file, options.set)
    if not run.trains:
        raise UserError(f"{options.file} has no [model] to train: expected a training pipeline.")
    run.require_learned()
    return run


def _export(options: argparse.Namespace) -> int:
    from engine.artifacts import export_path
    from engine.commands.output import console

    _require_target(options.to, "--to")
    run = _trained(options)
    path = options.to or export_path(run.pipeline)
    # Not locked: it is done beside the engine that goes on learning, and a file appears whole.
    with _write_errors(path):
        run.export(path)
    console().print(f"Wrote {path}.")
    return EXIT["done"]


def _compress(options: argparse.Namespace) -> int:
    from engine import artifacts
    from engine.commands.output import console, show
    from engine.system.lock import locked

    run = _trained(options)
    whole, model = run.pipeline.float_model_path, run.pipeline.model_path
    figures = run.folder / artifacts.COMPRESSION_FILE
    with locked((), [model]):
        with _write_errors(whole):
            run.export(whole)
        with _write_errors(model):
            report = artifacts.compress(run.parts)
        with _write_errors(figures):
            report.to_json(figures)
    show(console(), report.tables())
    console().print(f"Wrote {model} and {figures}.")
    return EXIT["done"]


def _versions(options: argparse.Namespace) -> int:
    from engine.commands.output import console
    from engine.commands.versions import change, listed, registry_of, versions_of
    from engine.versions.registry import follow

    versions = versions_of(options.file, options.set)
    moves = options.promote is not None or options.rollback
    registry = registry_of(options.file, options.set) if moves else None
    sentence = change(
        versions, promote=options.promote, rollback=options.rollback, shadow=options.shadow
    )
    console().print(listed(versions), highlight=False)
    if sentence:
        console().print(sentence, highlight=False, markup=False, soft_wrap=True)
    if registry is not None:
        follow(registry)
    versions.current()  # raises where no engine can serve what the pointer names
    if not sentence:
        versions.require_shadow()
    return EXIT["done"]


def _predict(options: argparse.Namespace) -> int:
    from engine.commands.output import finish
    from engine.commands.progress import Progress
    from engine.config import Pipeline
    from engine.run import Run
    from engine.system import atomic

    atomic.require_folder(Path(options.output), "--output")
    if any(Path(options.output).glob("part-*")):
        raise UserError(f"{options.output} holds results already: name another --output folder.")
    table: dict[str, Any] = {
        "name": "predict",
        "folder": str(Path(options.output) / ".headrace"),
        "source": {"kind": "files", "path": options.input},
        "infer": {"model": str(options.model)},
        "sink": {"kind": "files", "path": options.output, "format": options.format},
    }
    with Progress() as progress:
        run = Run(Pipeline.of(table, options.set, where="the command line"), watch=progress.watch)
        summary = run.run(fresh=True)
    with signals.handling(signals.ignore):
        finish(summary)
    return EXIT["done"]


def _adopt(options: argparse.Namespace) -> int:
    from engine.commands.adopt import adopt

    adopt(
        options.model,
        pipeline=options.pipeline,
        overrides=options.set,
        write=options.write,
        to=options.to,
        shapes=options.shape,
    )
    return EXIT["done"]


def _require_target(path: Path | None, option: str) -> None:
    """Check before the work starts that the output path of an option can be written, and its folder
    created. Creates nothing. Raises: UserError."""
    from engine.system import atomic

    if path is not None:
        atomic.require_file(path, option)


@contextlib.contextmanager
def _write_errors(path: Path) -> Iterator[None]:
    """Raises: HeadraceError for what is known only when it is written, as a full disk is."""
    try:
        yield
    except OSError as error:
        raise HeadraceError(
            f"'{path}' cannot be written: {error.strerror or error}; what was there stays as it "
            "was: mend that, and run the command again."
        ) from error


def _reference(options: argparse.Namespace) -> int:
    from engine.commands import reference
    from engine.commands.output import console, put

    if options.markdown:
        put(reference.markdown())
        return EXIT["done"]
    for part in reference.pages(options.table):
        console().print(part, highlight=False, markup=False)
    return EXIT["done"]


def _schema(options: argparse.Namespace) -> int:
    import json

    from engine.commands.output import put
    from engine.commands.reference import schema

    put(json.dumps(schema(), indent=1) + "\n")
    return EXIT["done"]


def _parser() -> tuple[argparse.ArgumentParser, Collection[str]]:
    """Return the parser and the names of its commands."""
    from importlib.metadata import version

    parser = _Parser(
        prog="headrace",
        description="Clean streams of records, train models online, and serve quantized models.",
        epilog="Each command's --help has an example. Exit codes: 0 done, 1 failed, "
        "2 your mistake, 3 too many rejected rows, 141 the reader of the output left (| head).",
    )
    parser.add_argument("--version", action="version", version=f"headrace {version('headrace')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = _command(commands, "run", "run a pipeline file", RUN, _run)
    run.add_argument(
        "--fresh", action="store_true", help="delete the checkpoints and results, and start over"
    )
    check = _command(commands, "check", "try a pipeline file without running it", CHECK, _check)
    check.add_argument("--rows", type=int, default=1_000, help="records in the sample (1000)")
    _add_explore(commands)
    export = _command(commands, "export", "write the trained model as ONNX", EXPORT, _export)
    export.add_argument(
        "--to", type=_path, help="the model file (default: in the pipeline's folder)"
    )
    _command(
        commands,
        "compress",
        "compress the exported model, if the gate accepts it",
        COMPRESS,
        _compress,
    )
    _add_versions(commands)
    _command(commands, "replay", "process dead letters again", REPLAY, _replay)
    _add_profile(commands)
    folds = _command(commands, "folds", "cross-validate a pipeline that learns", FOLDS, _folds)
    folds.add_argument(
        "--folds", type=int, default=5, help="number of folds, if no split stage sets it (5)"
    )
    _add_interpret(commands)
    _add_predict(commands)
    _add_adopt(commands)
    _add_reference(commands)
    _command(commands, "schema", "print a JSON Schema for editors", SCHEMA, _schema, file=False)
    return parser, commands.choices


def _add_profile(commands: Any) -> None:
    profile = _command(
        commands, "profile", "find the bottleneck and the setting to change", PROFILE, _profile
    )
    profile.add_argument("--seconds", type=float, default=5.0, help="length of the sample (5)")
    profile.add_argument("--trace", type=_path, help="write a trace of all threads, for Perfetto")
    profile.add_argument(
        "--no-trials", action="store_true", help="only find the bottleneck, try no settings"
    )


def _add_reference(commands: Any) -> None:
    reference = _command(
        commands,
        "reference",
        "print every key of a pipeline file",
        REFERENCE,
        _reference,
        file=False,
    )
    reference.add_argument(
        "table", metavar="TABLE", nargs="?", help="for instance loader or source.kafka"
    )
    reference.add_argument("--markdown", action="store_true", help="print all tables as one page")


def _add_explore(commands: Any) -> None:
    explore = _command(
        commands,
        "explore",
        "describe the data of a file or a source",
        EXPLORE,
        _explore,
        file=False,
    )
    explore.add_argument(
        "what", type=_named, metavar="FILE|PIPELINE",
        help="file or glob: CSV, NDJSON, Parquet, ...; or TOML",
    )  # fmt: skip
    explore.add_argument("--html", type=_path, help="write an HTML page with plots")
    explore.add_argument("--json", type=_path, help="write all figures as JSON")
    explore.add_argument("--rows", type=int, help="read only the first ROWS rows (all)")
    explore.add_argument("--time", metavar="SQL", help="SQL expression for the time of a row")


def _add_interpret(commands: Any) -> None:
    interpret = _command(
        commands,
        "interpret",
        "what a model relies on, and where it is wrong",
        INTERPRET,
        _interpret,
    )
    interpret.add_argument("--html", type=_path, help="write an HTML page with plots")
    interpret.add_argument("--json", type=_path, help="write all figures as JSON")
    interpret.add_argument(
        "--rows", type=int, default=10_000, help="judge at most ROWS rows, the newest (10000)"
    )
    interpret.add_argument("--repeats", type=int, default=10, help="permutations per column (10)")
    interpret.add_argument(
        "--metric",
        help="what importance is measured by: mae, rmse, r2; pinball (of quantiles); log_loss, "
        "brier, accuracy, f1, auc, average_precision (mae, pinball, log_loss)",
    )
    interpret.add_argument(
        "--target", type=_named, metavar="COLUMN", help="label of a pipeline that serves"
    )


def _add_versions(commands: Any) -> None:
    versions = _command(
        commands, "versions", "list the versions of a model, promote one", VERSIONS, _versions,
        file=False,
    )  # fmt: skip
    versions.add_argument(
        "file", type=_named, metavar="FILE|FOLDER", help="pipeline file, or folder of versions"
    )
    moves = versions.add_mutually_exclusive_group()
    moves.add_argument(
        "--promote", type=_version, nargs="?", const=NEWEST, metavar="NUMBER",
        help="let this version serve (the newest)",
    )  # fmt: skip
    moves.add_argument(
        "--rollback", action="store_true", help="let the version before the current one serve"
    )
    moves.add_argument(
        "--shadow", type=_version, nargs="?", const=NONE, metavar="NUMBER",
        help="let this version answer a share of the rows beside it, unseen (none)",
    )  # fmt: skip


def _add_predict(commands: Any) -> None:
    predict = _command(
        commands, "predict", "add predictions to files", PREDICT, _predict, file=False
    )
    predict.add_argument(
        "model", type=_path, metavar="MODEL", help="a model.onnx written by headrace"
    )
    predict.add_argument(
        "--input",
        type=_named,
        required=True,
        help="file or glob: CSV, NDJSON, Parquet, Arrow, Avro",
    )
    predict.add_argument("--output", type=_named, required=True, help="folder for the results")
    predict.add_argument(
        "--format", default="parquet", help="parquet, ndjson, csv or arrow (parquet)"
    )


def _add_adopt(commands: Any) -> None:
    adopt = _command(
        commands, "adopt", "serve an ONNX file made elsewhere", ADOPT, _adopt, file=False
    )
    adopt.add_argument("model", type=_path, metavar="FILE", help="the ONNX file")
    adopt.add_argument(
        "--pipeline", type=_named, help="the pipeline whose columns its inputs are matched with"
    )
    adopt.add_argument("--write", action="store_true", help="write [infer] into the pipeline file")
    adopt.add_argument("--to", type=_path, help="the changed file (FILE.adopted.onnx)")
    adopt.add_argument(
        "--shape",
        action="append",
        default=[],
        metavar="INPUT=SIZES",
        help="a new shape of an input, names for free sizes, e.g. image=n,3,h,w; repeatable",
    )


def _command(
    commands: Any,
    name: str,
    short: str,
    text: str,
    command: Callable[[argparse.Namespace], int],
    *,
    file: bool = True,
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=short, description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(command=command)
    if file:
        parser.add_argument("file", type=_named, metavar="FILE", help="the pipeline file (TOML)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a key of the file, e.g. loader.batch_rows=512; repeatable; export=false or "
        "scrub.NAME=false takes a table out",
    )
    parser.add_argument(
        "--log-level", default="info", choices=["debug", "info", "warning", "error"]
    )
    parser.add_argument("--log-format", default="auto", choices=["auto", "text", "json"])
    return parser


def _named(text: str) -> str:
    """Return a name; an empty one is an unset variable of a script."""
    if not text:
        raise argparse.ArgumentTypeError("expected a name, got an empty text")
    return text


def _version(text: str) -> int | str:
    """Return the number of a version; argparse asks for those of `NEWEST` and `NONE`, too."""
    if text in (NEWEST, NONE):
        return text
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected the number of a version, got '{text}'")
    return int(text)


def _path(text: str) -> Path:
    return Path(_named(text))


def _spoken(sentence: str, options: argparse.Namespace) -> str:
    """Rewrite a sentence for a command without a pipeline file: a key of a table becomes an
    argument or --set."""
    named = SPOKEN.get(options.command.__name__, {})
    # Only commands that take data or a pipeline file have `what`.
    # Some commands take a pipeline file or data as `what`; the others have no such argument.
    if not named or str(getattr(options, "what", "")).endswith(".toml"):
        return sentence
    sentence = re.sub(
        r"\[(\w+)\] in the command line: (expected .*) for '(\w+)', got",
        r"[\1] \3: \2, got",
        sentence,
    )
    for key, word in named.items():
        sentence = re.sub(rf'{re.escape(key)} = (?=")', f"{word} ", sentence)
        sentence = re.sub(rf"{re.escape(key)}(?!\w)", word, sentence)
    sentence = re.sub(r"\bset \[(\w+)\] (\w+) to ", r"set [\1] \2 = ", sentence)
    sentence = KEY_AND_VALUE.sub(_as_option, sentence)
    return sentence.replace("[source.schema]", "--set source.schema.COLUMN=TYPE")


def _as_option(match: re.Match[str]) -> str:
    """Return a key of a table as --set; what names no key stays as it is."""
    table, key, value = match["table"], match["key"], match["value"]
    if key not in _keys_of(table) and not (table == "scrub" and value):
        return match[0]
    option = f"{table}.{key}" if value is None else f"{table}.{key}={value}"
    if match["set"] and value is None:
        option = f"{option}=VALUE"
    return f"{'give ' if match['set'] else ''}--set {shlex.quote(option)}"


def _keys_of(table: str) -> set[str]:
    """Return the keys of a table of any kind."""
    from engine.commands.reference import tables  # imports every kind

    sections = (table, f"{table.rpartition('.')[0]}.NAME")
    return {key.name for one in tables() if one.section in sections for key in one.entries()}


def _say(error: object, code: int) -> int:
    from engine.observing import logs

    logs.say(f"headrace: {error}")
    return code


def _unexpected(error: BaseException) -> str:
    """Describe an unexpected exception in one sentence."""
    import traceback

    from engine.user_code.calls import whose

    where = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(where.filename).name}:{where.lineno}"
    who = whose(error)
    if isinstance(error, SystemExit):
        return (
            f"{who or 'Code of the pipeline'} called sys.exit({error.code!r}) ({place}), which "
            "ends no run: raise an error where it cannot go on, or let the source end."
        )
    unloaded = isinstance(error, ImportError | MemoryError) or "shared object" in str(error)
    if isinstance(error, OSError) and error.filename is not None:
        return f"'{error.filename}' cannot be used: {error.strerror} ({place})."
    if isinstance(error, OSError) and error.strerror and not who:
        return f"A file cannot be read or written: {error.strerror} ({place})."
    if unloaded and environment.address_space() is not None:
        return (
            f"There is no room for the libraries ({type(error).__name__}: {error}): 'ulimit -v' "
            "limits addresses, of which they reserve more than they use; raise it, or limit memory "
            "by a control group instead (systemd: MemoryMax)."
        )
    if _is_memory_short(error):
        asked = re.search(r"allocate (\d+) bytes", str(error))
        size = f" ({int(asked[1]) / 2**30:,.0f} GiB at once)" if asked else ""
        return (
            f"{who or 'The engine'} asked for more memory than there is{size} ({place}): make it "
            "or its batches smaller, or give the process more."
        )
    head = f"{who} raised " if who else ""
    detail = f": {error}" if str(error) else ""
    return f"{head}{type(error).__name__}{detail} ({place}); --log-level debug shows more."


def _is_memory_short(error: BaseException) -> bool:
    """Return whether there was no memory: of numpy a MemoryError, of torch a RuntimeError."""
    words = ("allocate memory", "out of memory", "failed to allocate")
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(word in text for word in words)


def _open_streams() -> None:
    """Point a closed standard stream at nowhere; otherwise the next opened file would take its
    descriptor and receive its output. Let a stream that is not UTF-8 show what it can."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and codecs.lookup(stream.encoding).name != "utf-8":
            stream.reconfigure(errors="backslashreplace")


def _log() -> Any:
    import logging

    return logging.getLogger("headrace.cli")


if __name__ == "__main__":
    sys.exit(main())
