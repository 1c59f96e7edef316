"""The command line: parses and prints, and knows nothing else.

Progress goes to stderr, results to stdout. What a user did wrong is one sentence and exit code 2; `--debug` before the
verb shows where it was raised. Everything heavy is imported inside the verb that needs it.
"""

from __future__ import annotations

import inspect
import json
import keyword
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Annotated, Any

import typer

from fathom.core.errors import FathomError, count_text
from fathom.core.flags import FLAGS

app = typer.Typer(
    name="fathom",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""From your own data to a deep network you can trust, in one command per step.

    \b
    fathom fit digits                         a first run, on data that needs no download
    fathom fit photos/ --epochs 5             a folder of class folders
    fathom fit adult.csv --target income      a table
    fathom predict runs/photos-1 cat.jpg
    fathom fit book.txt                       a language model: fathom generate, fathom chat
    fathom fit load.csv --horizon 24          a forecast
    fathom fit CartPole-v1                    an agent: fathom play

    Any key of the recipe can be set as section.key=value: network.dropout=0.5 training.label_smoothing=0.1
    """,
)
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="Run folder, or its name under runs/.")]
Data = Annotated[
    str | None,
    typer.Argument(metavar="DATA", help="Folder, file, built-in set or recipe.toml.", show_default=False),
]
Keys = Annotated[
    list[str] | None,
    typer.Argument(metavar="section.key=value", help="Any key of the recipe.", show_default=False),
]
NOTES = 5  # of the answers' notes are shown
FAULTS = 20  # of the inputs that cannot be read
Download = Annotated[bool, typer.Option("--download", help="Fetch a built-in set that is not on this machine.")]


def recipe_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command one option for each flag, and collect those that were given in `flags`."""

    def call(**given: Any) -> Any:
        flags = {name: given.pop(_parameter(name)) for name in FLAGS}
        return command(**given, flags=flags)

    own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "flags"]
    options = [
        inspect.Parameter(
            _parameter(name), inspect.Parameter.KEYWORD_ONLY, default=None,
            annotation=Annotated[flag.type | None, typer.Option(f"--{name}", help=flag.help, show_default=False)],
        )
        for name, flag in FLAGS.items()
    ]  # fmt: skip
    call.__signature__ = inspect.Signature([p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + options)  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in own + options}
    call.__doc__, call.__name__ = command.__doc__, command.__name__
    return call


def _parameter(flag: str) -> str:
    """The name of a flag as a parameter, which no word of Python itself can be (`from`)."""
    return f"{flag}_" if keyword.iskeyword(flag) else flag


def request(
    data: str | None, keys: list[str] | None, download: bool, flags: dict[str, Any]
) -> tuple[str | None, dict[str, Any]]:
    """The data, and all that changes the recipe: flags, words `section.key=value`, --download.

    Where no data are named, the first such word stands in their place.
    """
    from fathom.core.recipe import parse_assignment

    words = keys or []
    if data is not None and "=" in data and "." in data.partition("=")[0]:
        words, data = [data, *words], None
    changes = {**flags, **dict(parse_assignment(word) for word in words)}
    return data, {**changes, "data.download": True} if download else changes


@contextmanager
def piped() -> Iterator[str]:
    """A CSV table that comes through stdin, as a file."""
    from pathlib import Path
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        path = Path(folder) / "stdin.csv"
        path.write_bytes(sys.stdin.buffer.read())
        yield str(path)


def say(line: str) -> None:
    """A line for people, on stderr."""
    print(line, file=sys.stderr)


def show(value: Any, as_json: bool, how: str, *more: Any) -> None:
    """The result of a verb on stdout: JSON for programs, or `console.print_<how>` for people."""
    if as_json:
        print(json.dumps(value, indent=1, default=str))
        return
    from fathom import console

    getattr(console, f"print_{how}")(value, *more)


def show_pieces(pieces: Iterator[str]) -> None:
    """A text on stdout as it is written."""
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


def typed_lines() -> Iterator[str]:
    """The lines of stdin that say something, up to its end, "exit" or "quit"; a terminal is asked for each."""
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        if line in ("exit", "quit"):
            return
        if line:
            yield line


def print_version(asked: bool) -> None:
    """Print the version and leave; read before a verb is missed."""
    if asked:
        from importlib.metadata import version

        print(f"fathom {version('fathom')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def main_options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error was raised.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Options that stand before the verb; help where nothing follows."""
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
@recipe_options
def fit(
    data: Data = None,
    keys: Keys = None,
    resume: Annotated[
        str | None,
        typer.Option("--resume", metavar="RUN", help="Go on with a run that was stopped.", show_default=False),
    ] = None,
    download: Download = False,
    as_json: Json = False,
    *,
    flags: dict[str, Any],
) -> None:
    """Train a network on your data and judge it beside honest baselines."""
    from fathom.verbs.fit import fit as run_fit

    data, changes = request(data, keys, download, flags)
    run = run_fit(data, resume=resume, tell=(lambda line: None) if as_json else say, **changes)
    show({"run": str(run.path), **run.results}, as_json, "run")


@app.command()
@recipe_options
def plan(
    data: Data = None,
    keys: Keys = None,
    download: Download = False,
    as_json: Json = False,
    *,
    flags: dict[str, Any],
) -> None:
    """Show what fit would do, without training: schema, network and rivals, layers, time and memory."""
    from fathom.verbs.plan import plan as make_plan

    data, changes = request(data, keys, download, flags)
    show(make_plan(data, **changes), as_json, "plan")


@app.command()
def evaluate(
    run: RunArgument,
    data: Annotated[
        str | None,
        typer.Argument(metavar="DATA", help="Other data; the run's test split where not given.", show_default=False),
    ] = None,
    episodes: Annotated[
        int | None, typer.Option("--episodes", min=1, help="That an agent plays; 100 where not given.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Judge a run on its test split or on other data: metrics with intervals, baselines beside them."""
    from fathom.verbs.evaluate import evaluate as judge

    results = judge(run, data, episodes)
    show(results, as_json, "results")


@app.command()
def predict(
    run: RunArgument,
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT...", help="Files, folders or texts; - reads a CSV table.")],
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", help="Write a .csv, .parquet or .json file; boxes and pictures also into a .png, .jpg or folder.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Answer new inputs, with confidence. Boxes found in a.jpg are also drawn, into a-boxes.jpg in the current folder."""
    from pathlib import Path

    from fathom.verbs.drawing import are_boxes, classes_of, draw_here, is_drawn
    from fathom.verbs.predict import check_place, left_out, parted, write_answers
    from fathom.verbs.predict import predict as answer
    from fathom.verbs.rebuild import rebuilt, wanted
    from fathom.verbs.rebuild import write as write_pictures
    from fathom.verbs.result import load

    if output and wanted(run, Path(output)):
        files = write_pictures(*rebuilt(run, *inputs), Path(output), inputs)
        say(f"{len(files)} picture{'s' * (len(files) != 1)} written to {output}")
        return
    if output:
        check_place(run, Path(output), inputs)
    with ExitStack() as stack:
        answers = answer(run, *[stack.enter_context(piped()) if word == "-" else word for word in inputs])
    for told in left_out(run, inputs):
        say(f"Note      {told}")
    good, bad = parted(answers)
    classes = classes_of(load(run).schema) if are_boxes(good) else ()
    for line in bad[:FAULTS]:
        say(f"Bad       {line['input']}: {line['error']}")
    if len(bad) > FAULTS:
        say(f"Bad       and {len(bad) - FAULTS:,} more; --json and -o FILE list all.")
    noted = [line for line in answers if "note" in line]
    for line in noted[:NOTES]:
        say(f"Note      {line['input']}: {line['note']}")
    if len(noted) > NOTES:
        say(f"Note      and {len(noted) - NOTES} more; --json shows all.")
    if output:
        write_answers(answers, Path(output), classes)
        say(f"{_how_many(good)} written to {output}")
    if as_json or not output or is_drawn(good, Path(output)):
        show(answers if as_json else good, as_json, "answers")
    if are_boxes(good) and not output and not as_json:
        for told in draw_here(good, inputs, classes):
            say(told)
    if bad:
        say(f"{count_text(len(bad), 'input')} of {len(answers):,} could not be read; the others are answered.")
        raise typer.Exit(FathomError.exit_code)


def _how_many(answers: Sequence[dict[str, Any]]) -> str:
    """How many answers there are, and of boxes how many of these."""
    from fathom.verbs.drawing import are_boxes

    told = count_text(len(answers), "answer")
    boxes = sum(len(answer["answer"]) for answer in answers) if are_boxes(answers) else None
    return told if boxes is None else f"{told} ({'1 box' if boxes == 1 else f'{boxes:,} boxes'})"


@app.command()
def embed(
    run: RunArgument,
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT...", help="Files, folders or texts; - reads a CSV table.")],
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", help="Write the vectors to a .npy, .csv or .parquet file.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Turn inputs into vectors that are near each other where inputs are alike."""
    from pathlib import Path

    from fathom.verbs.embed import check_place, embedding, nearest, write_codes

    if output:
        check_place(Path(output), inputs)
    with ExitStack() as stack:
        made = embedding(run, *[stack.enter_context(piped()) if word == "-" else word for word in inputs])
    if output:
        write_codes(made, Path(output))
        say(f"{len(made.names)} vector{'s' * (len(made.names) != 1)} written to {output}")
    if as_json:
        vectors = zip(made.names, made.vectors.tolist(), strict=True)
        print(json.dumps([{"input": name, "vector": vector} for name, vector in vectors]))
    else:
        show({"names": made.names, "shape": made.vectors.shape, "nearest": nearest(made.vectors)}, False, "embedding")


Length = Annotated[int, typer.Option("--length", min=1, help="Tokens to write at most.")]
Temperature = Annotated[float, typer.Option("--temperature", help="Below 1 safer, above 1 wilder; 0 takes the likeliest.")]
TopK = Annotated[int, typer.Option("--top-k", help="Draw from this many likeliest tokens only; 0 from all.")]
TopP = Annotated[float, typer.Option("--top-p", help="Draw from the fewest tokens that hold this share.")]
Seed = Annotated[int, typer.Option("--seed", help="Of the draws.")]


@app.command()
def generate(
    run: RunArgument,
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="What the text begins with.")] = "",
    length: Length = 300,
    temperature: Temperature = 0.8,
    top_k: TopK = 0,
    top_p: TopP = 0.95,
    seed: Seed = 0,
    n: Annotated[
        int | None, typer.Option("-n", min=1, help="How many texts (1) or samples (64).", show_default=False)
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", help="Where samples are written: a grid as .png, a walk as .gif, rows as .csv.", show_default=False
        ),
    ] = None,
    walk: Annotated[bool, typer.Option("--walk", help="Samples on the way from one code to another.")] = False,
    of_class: Annotated[
        str | None, typer.Option("--class", help="What a conditional network is to make.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Make something new: text that goes on from a prompt, shown as it is written; or pictures and rows from nothing."""
    from fathom.verbs.generate import Sampling, stream
    from fathom.verbs.result import load
    from fathom.verbs.samples import asks_rows

    loaded = load(run)
    if asks_rows(loaded, output, walk, of_class):
        make_samples(loaded, n, output, seed, walk, of_class, as_json)
        return

    def tell(line: str) -> None:
        say(f"Note      {line}")

    texts = stream(loaded, prompt, length, Sampling(temperature, top_k, top_p, seed), n or 1, tell)
    if as_json:
        print(json.dumps(["".join(text) for text in texts], indent=1))
        return
    for i, text in enumerate(texts):
        if i:
            print("\n----\n")
        show_pieces(text)


def make_samples(
    run: Any, n: int | None, output: str | None, seed: int, walk: bool, of_class: str | None, as_json: bool
) -> None:
    """Pictures or rows, written to a file; rows are shown where none is named."""
    from pathlib import Path

    from fathom.verbs.samples import check_place, samples, write

    if output:
        check_place(Path(output))
    made = samples(run, n, seed, walk, of_class)
    if made.pictures is not None or output:
        place = Path(output or ("walk.png" if walk else "samples.png"))
        write(made, place)
        say(f"{len(made)} sample{'s' * (len(made) != 1)} written to {place}")
    if made.pictures is None and (as_json or not output):
        show(made.rows, as_json, "answers")


@app.command()
def chat(
    run: RunArgument,
    said: Annotated[
        list[str] | None, typer.Option("--say", metavar="TEXT", help="Say this and leave; may come again.", show_default=False)
    ] = None,
    length: Length = 100,
    temperature: Temperature = 0.8,
    top_k: TopK = 0,
    top_p: TopP = 0.95,
    seed: Seed = 0,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show tokens a second.")] = False,
) -> None:
    """Talk to a model of dialogues; "exit" or the end of the input leaves."""
    from fathom.verbs.chat import Conversation
    from fathom.verbs.generate import Sampling

    conversation = Conversation(run, length, Sampling(temperature, top_k, top_p, seed))
    for text in said or typed_lines():
        show_pieces(conversation.answer(text))
        if verbose:
            say(f"Note      {conversation.tokens} tokens so far, {conversation.tokens_a_second:,.0f} a second")


@app.command()
def play(
    run: RunArgument,
    output: Annotated[str, typer.Option("--output", "-o", help="The .gif or .mp4 file to write.")] = "agent.gif",
    episodes: Annotated[int, typer.Option("--episodes", min=1, help="How many to draw.")] = 1,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="Of the episodes; the run's own where not given.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Watch an agent: its environment drawn, with what it thinks of each action beside."""
    from fathom.verbs.play import play as draw

    show(draw(run, output, episodes, seed), as_json, "play")


@app.command()
def report(run: RunArgument) -> None:
    """Write the one-page report of a run again."""
    from fathom.verbs.report import report as write

    print(write(run))


@app.command()
def runs(
    out: Annotated[str, typer.Option("--out", help="Folder of run folders.")] = "runs",
    as_json: Json = False,
) -> None:
    """Show what was run."""
    from fathom.verbs.runs import runs as all_runs

    lines = all_runs(out)
    show(lines, as_json, "runs", out)


@app.command()
def compare(
    chosen: Annotated[list[str], typer.Argument(metavar="RUN RUN...", help="Two or more runs.")],
    as_json: Json = False,
) -> None:
    """Show runs side by side: results, and where their recipes differ."""
    from fathom.verbs.runs import compare as side_by_side

    table = side_by_side(*chosen)
    show(table, as_json, "comparison")


@app.command("list")
def list_components(
    kind: Annotated[
        str, typer.Argument(
            metavar="KIND",
            help="networks, fields, sources, algorithms, augmentations; keys (of the recipe), optimizers, schedules, losses.",
        ),
    ] = "networks",
    as_json: Json = False,
) -> None:
    """Show every component of a kind, with its hyperparameters."""
    from fathom.verbs.listing import listing

    entries = listing(kind)
    show(entries, as_json, "listing")


def main() -> None:
    """Run the command line, and turn what a user did wrong into a sentence and an exit code."""
    debug = "--debug" in sys.argv
    try:
        code = app(prog_name="fathom", standalone_mode=False)
    except FathomError as error:
        if debug:
            raise
        fail(str(error), error.exit_code)
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        fail(f"{_mended(error.format_message())} See: {context.command_path if context else 'fathom'} --help", 2)
    except (KeyboardInterrupt, typer.Abort):
        fail("Stopped.", 130)
    except BrokenPipeError:
        sys.exit(0)  # the reader of a pipe has left
    except OSError as error:
        if debug or error.filename is None:
            raise  # not about a file of the user's
        fail(f"{error.filename} cannot be used: {error.strerror}. --debug before the verb shows where.", 2)
    sys.exit(code if isinstance(code, int) else 0)


def _mended(message: str) -> str:
    """What the parser of the command line says, as a sentence without the words of Python."""
    from fathom.core.errors import plain

    message = plain(message).replace("Input should be", "it should be").rstrip(".")
    return message if message.endswith("?") else f"{message}."


def fail(sentence: str, code: int) -> None:
    """Say what is wrong and leave."""
    print(f"fathom: {sentence}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
