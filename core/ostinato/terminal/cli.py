"""The command line. torch is imported only inside the commands that need it."""

from __future__ import annotations

import json
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from ostinato.config.errors import Pause, UserError
from ostinato.terminal.new import new

if TYPE_CHECKING:
    from ostinato.config.sections import RunConfig

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Iterated RLHF from plugins: name the methods in a run file, run the loop with one "
    "command.",
    epilog="Begin with [bold]ostinato run quickstart[/], or see [bold]ostinato plugins[/] for the "
    "methods.",
)

Source = Annotated[
    str,
    typer.Argument(
        metavar="FILE", help="A run file (YAML), or the name of a world: quickstart or toy."
    ),
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a setting, such as rl.rollouts=10. May be given often.",
    ),
]
Seed = Annotated[
    int | None, typer.Option(help="Seed of every random draw; the run file's otherwise.")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an unexpected error.")]


def _leave(text: str, status: int) -> NoReturn:
    from ostinato.terminal.printing import visible

    typer.echo(visible(text), err=True)
    raise typer.Exit(status)


@contextmanager
def _plain_errors(debug: bool = False, out: Path | None = None) -> Iterator[None]:
    """What goes wrong as plain sentences and an exit status; tracebacks go to a file."""
    try:
        yield
    except UserError as error:
        _leave(str(error), 2)
    except Pause as pause:
        _leave(f"{pause}\nThe run is kept; the same command goes on with it.", 3)
    except KeyboardInterrupt:
        kept = "the run is kept; the same command goes on" if _holds_run(out) else "nothing ran yet"
        _leave(f"Interrupted: {kept}.", 130)
    except (typer.Exit, typer.Abort):
        raise
    except (Exception, SystemExit) as error:  # a plugin that exits has not finished the run
        if debug and isinstance(error, Exception):
            raise
        _leave(f"{_blame(error)} {_keep_traceback(error, out)}", 1)


def _holds_run(out: Path | None) -> bool:
    return out is not None and (out / "run.yaml").exists()


def _blame(error: BaseException) -> str:
    """One sentence: whose fault it is, and the error's type and first line."""
    notes = getattr(error, "__notes__", [])
    plugin = next((note for note in notes if note.startswith("in plugin")), None)
    where = f"An error {plugin}" if plugin else "An unexpected error, not in a plugin"
    first = next(iter(str(error).splitlines()), "")
    return f"{where}: {type(error).__name__}{': ' if first else ''}{first.rstrip('.')}."


def _keep_traceback(error: BaseException, out: Path | None) -> str:
    if out is None or not _holds_run(out):
        return "Add --debug to see the traceback."
    path = out / "error.txt"
    path.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    return f"The traceback is in {path}; the run is kept."


def _config(source: str, seed: int | None, sets: list[str] | None) -> tuple[RunConfig, list[str]]:
    """The checked config and the overrides that lead to it."""
    from ostinato.config.reading import load_config

    overrides = [*(sets or []), *([] if seed is None else [f"seed={seed}"])]
    return load_config(source, overrides), overrides


def _name(source: str, config: RunConfig) -> str:
    """What a run folder is called after: the run file, or the folder of a run that is replayed."""
    path = Path(source)
    if config._replayed is not None:
        return re.sub(r"-seed\d+$", "", path.absolute().parent.name) + "-replay"
    return path.stem


@contextmanager
def _loading() -> Iterator[None]:
    """A word on a terminal while torch and transformers are imported, which takes seconds."""
    from ostinato.terminal.printing import Screen

    console = Screen(stderr=True)
    said = console.status("Loading torch and transformers")
    with said if console.is_terminal else nullcontext():
        yield


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ostinato {version('ostinato')}")
        raise typer.Exit


@app.callback()
def _options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command()
def run(
    source: Source,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the run; runs/NAME-seedN otherwise. A run there goes on."),
    ] = None,
    seed: Seed = None,
    sets: Sets = None,
    debug: Debug = False,
) -> None:
    """Run iterated RLHF, or go on with a run that was cut short."""
    with _plain_errors(debug):
        config, overrides = _config(source, seed, sets)
        folder = out or Path("runs", f"{_name(source, config)}-seed{config.seed}")
    with _plain_errors(debug, folder):
        with _loading():
            from ostinato import loop
            from ostinato.report.pages import write_report
            from ostinato.terminal.console import RunConsole

        with RunConsole(source, overrides=sets or []) as console:
            loop.run(source, folder, overrides, watch=[write_report, console])


@app.command()
def check(
    source: Source,
    seed: Seed = None,
    sets: Sets = None,
    trace: Annotated[
        bool,
        typer.Option(
            "--trace",
            help="Also run two tiny iterations on toy models and show every hook call. What "
            "plugins ask people or judges is asked.",
        ),
    ] = False,
    debug: Debug = False,
) -> None:
    """Validate a run file; nothing is computed, no model is loaded."""
    with _plain_errors(debug):
        config, _ = _config(source, seed, sets)
        with _loading():
            from ostinato.engine import session
        from ostinato.terminal.brief import show_check

        active = session.check(config, source)
        show_check(source, config, active)
        if trace:
            from ostinato.terminal.trace import show_trace

            show_trace(config, active, source)


@app.command()
def plugins(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="One plugin, with its settings.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="A list of objects, for programs.")
    ] = False,
) -> None:
    """List the installed plugins, or show one with its hooks and settings."""
    with _plain_errors():
        with _loading():
            from ostinato.terminal import catalogue

            found = catalogue.entries(name)
        if as_json:
            typer.echo(json.dumps([entry.public() for entry in found], indent=1))
        elif name is None:
            catalogue.show_all(found)
        else:
            catalogue.show_one(found[0])


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs.")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE.html", help="Also compare the runs, grouped by config."),
    ] = None,
) -> None:
    """Compare runs by iteration, and write report.html into each."""
    with _plain_errors():
        from ostinato.terminal.comparison import report_runs

        report_runs(runs, out)


app.command()(_plain_errors()(new))


def main() -> None:
    """The console script."""
    sys.exit(app(prog_name="ostinato"))
