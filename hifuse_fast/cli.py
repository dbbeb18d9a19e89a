"""The command line: `hifuse-fast predict | bench | info`. A thin layer: options in, one clear line out when they do not fit.

Exit codes: 0 done; 1 done, but some images could not be read or, of `bench`, an output was wrong; 2 wrong usage or input;
130 interrupted.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import torch
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import hifuse_fast
from hifuse_fast.app import predict
from hifuse_fast.app.network import load_network
from hifuse_fast.app.output import Row, write_csv, write_json
from hifuse_fast.backends.select import BACKENDS
from hifuse_fast.data import images
from hifuse_fast.data.classes import load_classes
from hifuse_fast.files import STDOUT, writing

_BAD_IMAGES, _BAD_INPUT, _INTERRUPTED = 1, 2, 130
_PATH = click.Path(path_type=Path)
_RGB = (float, float, float)
_DTYPE = click.Choice(list(predict.DTYPES))


class _InputError(click.ClickException):
    exit_code = _BAD_INPUT


class _Commands(click.Group):
    """Turns the errors that tell of bad input into one line on stderr; any other error is a defect and keeps its traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("Interrupted: nothing was written.", err=True)
            ctx.exit(_INTERRUPTED)
        except (ValueError, OSError, hifuse_fast.BackendError, torch.OutOfMemoryError) as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:  # `| head` is no error
                raise
            raise _InputError(_one_line(str(error))) from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(hifuse_fast.__version__, prog_name="hifuse-fast")
def main() -> None:
    """HiFuse for medical image classification, fast on CPUs and GPUs."""


@main.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def info(as_json: bool) -> None:
    """Show what this machine has, what was built, and which backend serves what, or why it does not."""
    found = hifuse_fast.info()
    click.echo(json.dumps(dataclasses.asdict(found), indent=2) if as_json else str(found))


@main.command("predict")
@click.argument("paths", nargs=-1, required=True, type=_PATH)
@click.option("--checkpoint", required=True, type=_PATH, help="Weights: a torch file, safetensors, or a frozen network.")
@click.option("--classes", type=_PATH, help="Names: the official class_indices.json, or text with a name per line.")
@click.option("--output", "-o", type=_PATH, help="File to write, .csv or .json.  [default: CSV on stdout]")
@click.option("--format", "file_format", type=click.Choice(["csv", "json"]), help="[default: by the suffix of --output]")
@click.option("--model", type=click.Choice(hifuse_fast.list_models()), help="[default: what the checkpoint holds]")
@click.option("--channel-gate", type=click.Choice(["sigmoid", "double_sigmoid"]),
              help="double_sigmoid for official checkpoints from before 2024-01-16.  [default: as the file says]")  # fmt: skip
@click.option("--ema", is_flag=True, help="Take the moving average of the weights, where the checkpoint holds both.")
@click.option("--greyscale", is_flag=True,
              help="For a network of one channel: convert images, and take the first of --mean and --std.")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, ...")
@click.option("--dtype", type=_DTYPE, help="[default: float32; of a frozen network's file, its own]")
@click.option("--backend", type=click.Choice(BACKENDS), default="auto", show_default=True)
@click.option("--image-size", type=click.IntRange(1), default=224, show_default=True, help="Side of the centre crop.")
@click.option("--resize", type=click.IntRange(1), help="Shorter side before the crop.  [default: 256 / 224 of --image-size]")
@click.option("--mean", nargs=3, type=_RGB, default=(0.5, 0.5, 0.5), show_default=True, help="Of R, G, B in [0, 1].")
@click.option("--std", nargs=3, type=_RGB, default=(0.5, 0.5, 0.5), show_default=True, help="Of R, G, B in [0, 1].")
@click.option("--max-pixels", type=click.IntRange(1), default=images.MAX_PIXELS, show_default=True,
              help="Larger images are not decoded.")  # fmt: skip
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="Threads that decode images.")
@click.pass_context
def predict_command(
    ctx: click.Context,
    *,
    paths: tuple[Path, ...],
    checkpoint: Path,
    classes: Path | None,
    output: Path | None,
    file_format: str | None,
    model: str | None,
    channel_gate: str | None,
    ema: bool,
    greyscale: bool,
    batch_size: int,
    device: str,
    dtype: str | None,
    backend: str,
    image_size: int,
    resize: int | None,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    max_pixels: int,
    workers: int,
) -> None:
    """Classify images: files, and folders with everything below them.

    An image that cannot be read is named on stderr and has its error in the results; the others are not lost, and the exit code
    is 1.
    """
    files = _list(paths)
    preprocess = images.Preprocess(image_size, resize or round(image_size * 256 / 224), mean, std)
    as_json = _file_format(output, file_format) == "json"
    _check_output(output, [*files, checkpoint, *([] if classes is None else [classes])])
    on = _device(device)
    Image.MAX_IMAGE_PIXELS = max_pixels  # Pillow's own limit, one for the whole process, follows the user's
    warnings.filterwarnings("ignore", module="PIL")  # damage that matters is an error
    failed: list[Path] = []
    with (
        writing(STDOUT if output is None else output) as file,
        hifuse_fast.use_backend(backend),
        _progress(len(files), output) as on_progress,
    ):
        network = load_network(
            checkpoint, on, dtype, backend, size=model, channel_gate=channel_gate, ema=ema, greyscale=greyscale, note=_note
        )
        names = load_classes(classes, network.options.num_classes)
        rows = predict.predict(
            files, network.model, network.prepare(preprocess), names, batch_size=batch_size, device=on,
            dtype=network.input_dtype, workers=workers, max_pixels=max_pixels, on_progress=on_progress,
        )  # fmt: skip
        rows = _name_failures(rows, failed)
        if as_json:
            header = {
                "hifuse_fast": hifuse_fast.__version__,
                "torch": torch.__version__,
                "checkpoint": str(checkpoint),
                "model": network.described(),
                "preprocess": dataclasses.asdict(preprocess),
                "device": str(on),
                "dtype": network.dtype,
                "backend": backend,
            }
            write_json(file, rows, names, header)
        else:
            write_csv(file, rows, names)
    if failed:
        click.echo(f"{len(failed)} of {len(files)} images could not be used; the results of the others are complete.", err=True)
        ctx.exit(_BAD_IMAGES)


def _check_output(output: Path | None, inputs: Sequence[Path]) -> None:
    """ValueError where the results would replace what they are made of."""
    for path in inputs:
        if output is not None and output.exists() and path.exists() and output.samefile(path):
            raise ValueError(f"output {output} is one of the inputs, {path}: name another file")


@main.command()
@click.option("--model", type=click.Choice(hifuse_fast.list_models()), default="hifuse_small", show_default=True)
@click.option("--images", "folder", type=_PATH, help="Folder of your own images, besides the samples of scikit-image.")
@click.option("--batch-size", type=click.IntRange(1), multiple=True, default=(1, 8), show_default=True)
@click.option(
    "--dtype",
    type=click.Choice(list(predict.DTYPES)),
    multiple=True,
    help="[default: float32, and bfloat16 where PyTorch has kernels for it: not on an x86 CPU without AVX-512]",
)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), multiple=True, help="[default: every one that is there]")
@click.option("--threads", type=click.IntRange(1), help="CPU threads.  [default: torch's choice]")
@click.option("--seconds", type=click.FloatRange(0), default=150.0, show_default=True, help="Time to measure, in all.")
@click.option("--results", type=_PATH, default=Path("benchmarks/results"), show_default=True, help="Folder for table and plot.")
@click.pass_context
def bench(
    ctx: click.Context,
    *,
    model: str,
    folder: Path | None,
    batch_size: tuple[int, ...],
    dtype: tuple[str, ...],
    device: tuple[str, ...],
    threads: int | None,
    seconds: float,
    results: Path,
) -> None:
    """Measure the fast network against the reference on real images, outputs checked.

    --batch-size, --dtype and --device may be given several times; every combination is measured.
    """
    from hifuse_fast.bench import network

    code = network.run(
        model, results=results, images=folder, batch_sizes=batch_size, dtypes=dtype or None, devices=device or None,
        threads=threads, budget_s=seconds,
    )  # fmt: skip
    ctx.exit(code)


def _list(paths: tuple[Path, ...]) -> list[Path]:
    files = images.list_images(paths)
    if not files:
        raise ValueError(f"no images in {', '.join(map(str, paths))}: looked for {' '.join(sorted(images.SUFFIXES))}")
    return files


def _file_format(output: Path | None, file_format: str | None) -> str:
    suffix = "csv" if output is None else output.suffix.lower().removeprefix(".")
    file_format = file_format or suffix
    if file_format not in ("csv", "json"):
        raise ValueError(f"output must end in .csv or .json, or --format must say which of the two it is; got {output}")
    return file_format


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {name} is not there: torch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices")
    return device


@contextmanager
def _progress(total: int, output: Path | None) -> Iterator[Callable[[int], None]]:
    """A bar on stderr, where that is a terminal and the results do not go to one too; yields the function that moves it."""
    console = Console(stderr=True)
    shown = console.is_terminal and (output is not None or not sys.stdout.isatty())
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not shown, redirect_stdout=False) as progress:
        task = progress.add_task("images", total=total)
        yield lambda done: progress.update(task, completed=done)


def _name_failures(rows: Iterator[Row], failed: list[Path]) -> Iterator[Row]:
    """The rows as they come; one with an error is named on stderr and its file noted in `failed`."""
    for row in rows:
        if row.error is not None:
            failed.append(row.path)
            _note(f"{row.path}: {row.error}")
        yield row


def _note(text: str) -> None:
    """On stderr, beside the results."""
    click.echo(_one_line(text), err=True)


def _one_line(text: str) -> str:
    """`text` on one line, with what a terminal would not print, or obey, written as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in " ".join(text.splitlines()))


if __name__ == "__main__":
    main()
