"""python -m jaxface.predict RUN PATH...: what a run predicts of every face, or picture, in photos, folders and videos."""

from __future__ import annotations

import io
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any

import cv2
import tyro

from jaxface.cli import parse
from jaxface.compiled import use_compiled_programs
from jaxface.data.tasks import Task
from jaxface.errors import UserError, run_command, tell
from jaxface.evaluation.trust import Caution
from jaxface.files import read, to_json
from jaxface.large_pages import use_large_pages
from jaxface.launchers import launched
from jaxface.prediction import engines
from jaxface.prediction.items import find_paths, in_shard, is_video, items_of
from jaxface.prediction.limits import Limits
from jaxface.prediction.options import FaceOptions
from jaxface.ranges import Count, Place, Range, Share, Where, Word, ranged, refuse_idle

Json = dict[str, Any]


@ranged()
class Options:
    """Says of every face what a run's model sees. The same command again goes on where the last one stopped.

    Attributes:
      run: a run folder.
      paths: photos, folders and all below them, globs, videos; "-" reads paths from standard input, one a line.
      out: a .jsonl, .csv or .parquet file; JSON lines on standard output if not given.
      content: know files by a hash of their content, not by size and time, when a job goes on: what has changed is looked at again.
      draw: a folder for annotated copies of photos and videos.
      every: look at every n-th frame of a video.
      tracks: follow faces through videos: each has a `track`, and a video's last row one answer for each track, pooled over its frames.
      batch_size: faces that the model sees at once, over all local devices.
      threads: that read, decode and find faces; as many as there are cores for this process if not given.
      shard: I/N: only the files whose names' hash falls on I of N; each shard writes a file of its own. Processes that SLURM, Open MPI or
        Kubernetes (JAX_NUM_PROCESSES, JAX_PROCESS_ID) started know theirs.
      processes: of this machine that share the files, each with its part of the cores and a file of results of its own, as shards have.
      find: how faces are found.
      serve: answer photos over HTTP instead, with a page to try it.
      adapters: a folder of runs on one base, to serve all of them in the place of RUN: requests name whom they ask.
      memory: of these, how many stay in memory; the others are read when they are asked for.
      token_file: a file with a word that whoever knows it may replace and remove adapters with while the server runs.
      limits: of the server.
      trust: how sure answers have to be.
      weights: where the run's base weights are, if not where they were; known by their hash.
      engine: what computes the model: jax; onnxruntime, onnxruntime-int8, openvino-int8 on what `jaxface.export` wrote into the run folder
        (--to onnx, --to onnx --precision int8); auto takes the fastest of these that is there, and says which.
      most_loss: the share of faces that auto may have in another class than jax, as the export measured it.
    """

    run: Annotated[Where | None, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")] = None
    paths: Annotated[tuple[str, ...], Place(), tyro.conf.Positional, tyro.conf.arg(metavar="PATH...")] = ()
    out: Where | None = None
    content: bool = False
    draw: Where | None = None
    every: Annotated[int, Range(1, 10**6)] = 1
    tracks: bool = False
    batch_size: Count = 32
    threads: Annotated[int | None, Range(1, 1024)] = None
    shard: Annotated[str | None, Word(r"\d{1,6}/\d{1,6}", "I/N, such as 0/4")] = None
    processes: Annotated[int, Range(1, 1024)] = 1
    find: tyro.conf.OmitArgPrefixes[FaceOptions] = field(default_factory=FaceOptions)
    serve: bool = False
    adapters: Where | None = None
    memory: Count = 256
    token_file: Where | None = None
    limits: tyro.conf.OmitArgPrefixes[Limits] = field(default_factory=Limits)
    trust: tyro.conf.OmitArgPrefixes[Caution] = field(default_factory=Caution)
    weights: tuple[Where, ...] = ()
    engine: engines.Name = engines.DEFAULT
    most_loss: Share = 0.01

    def __post_init__(self) -> None:
        if self.serve and (self.paths or self.out or self.draw):
            raise UserError("--serve takes no PATH, --out or --draw: photos come over HTTP")
        if self.tracks and self.trust.asked:
            raise UserError("--tracks pools answers: --coverage, --most-errors and --threshold-age are of single pictures")
        if self.serve and (self.run is None) == (self.adapters is None):
            raise UserError("--serve: name a RUN, or --adapters and a folder of runs")
        if not self.serve and (self.adapters or self.token_file):
            raise UserError("--adapters and --token-file are for --serve")
        if not self.serve and self.run is None:
            raise UserError("name a run folder, and photos, folders or videos")
        if self.processes > 1 and (self.serve or self.shard or self.out is None or "-" in self.paths):
            raise UserError("--processes needs --out and PATHs, and neither --shard, --serve nor '-': each process writes a shard's file")
        if not self.serve and not self.paths:
            raise UserError("name photos, folders or videos, or '-' for paths on standard input (or --serve)")
        refuse_idle(self, not self.serve, "it is for files, not --serve", "content", "every", "tracks", "threads", "shard", "processes")
        refuse_idle(self, self.out is not None, "a job goes on where it has an --out", "content")
        refuse_idle(self.limits, self.serve, "it is for --serve")
        refuse_idle(self, self.adapters is not None, "it is for --adapters", "memory", "token_file")
        refuse_idle(self.limits, self.adapters is not None, "it is for --adapters", "adapter_waiting")
        refuse_idle(self, self.engine == engines.AUTO, "it is for --engine auto", "most_loss")
        looks = self.engine == engines.AUTO or engines.ENGINES.get(self.engine).weights
        refuse_idle(self, looks, f"--engine {self.engine} takes an export, which holds all weights", "weights")
        if self.adapters and len(self.weights) > 1:
            raise UserError("--weights: adapters share one file of base weights: name one")

    def model(self) -> Json:
        """What the predictor is told of the model."""
        return {"weights": self.weights, "engine": self.engine, "most_loss": self.most_loss, "caution": self.trust}


def shard_of(word: str | None, environment: Mapping[str, str]) -> tuple[int, int]:
    """Which part of the files is this process's, I of N: as told, or as a launcher says.

    The processes never meet, so that none waits for another or dies with it. Raises UserError for a shard that there is not.
    """
    if word is None and (told := launched(environment)):
        word = "/".join(told)
    try:
        index, count = map(int, (word or "0/1").split("/"))
    except ValueError:
        raise UserError(f"--shard {word}: expected I/N, such as 0/4") from None
    if not 0 <= index < count:
        raise UserError(f"--shard {word}: expected 0/{max(count, 1)} to {max(count, 1) - 1}/{max(count, 1)}")
    return index, count


def shard_path(out: Path, index: int, count: int) -> Path:
    """The file of a shard: `faces.jsonl` becomes `faces.0-of-4.jsonl`."""
    return out if count == 1 else out.with_name(f"{out.stem}.{index}-of-{count}{out.suffix}")


def standard_input() -> Iterable[str]:
    """Lines of standard input; a name that is not UTF-8 stays the file's."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    return sys.stdin


def predict(options: Options) -> Counter[str]:
    """Runs the job and returns how many images there were of each status, those done before included."""
    from jaxface.digests import stamp_of
    from jaxface.prediction.journal import Journal
    from jaxface.prediction.predictor import Predictor
    from jaxface.prediction.stream import predict_stream
    from jaxface.progress import Track

    index, count = shard_of(options.shard, os.environ)
    named = find_paths(options.paths, standard_input())
    if (options.every > 1 or options.tracks) and not any(map(is_video, named)):
        tell("no file is a video: --every and --tracks have no effect")  # tomorrow there may be one in the same folder
    paths = [path for path in named if in_shard(path, index, count)]
    if options.draw and not options.out and any(map(is_video, paths)):
        raise UserError("--draw needs --out for videos: they are drawn from the results, once all are there")
    assert options.run is not None
    predictor = Predictor(options.run, options.find, options.batch_size, **options.model())
    about: Json = predictor.about() | {"every": options.every, "shard": f"{index}/{count}", "tracks": options.tracks}
    statuses: Counter[str] = Counter()
    with Journal(shard_path(options.out, index, count), about) if options.out else nullcontext() as journal:
        changed = journal.take_up({path: stamp_of(path, options.content) for path in paths}) if journal else 0
        if changed:
            tell(f"{changed:,} files have changed since they were looked at: they are looked at again")
        done = set(journal.done) if journal else set()
        items, new = items_of(paths, done, options.every), set()
        before = sum((path, None) in done for path in paths)
        draw = options.draw
        finish = None if draw is None else _drawer(draw, predictor.named)
        with Track("predict", len(paths), unit="files", done=before) as track:
            results = predict_stream(predictor, items, threads=options.threads, finish=finish)
            if options.tracks:
                from jaxface.prediction.tracks import followed  # slow to import

                results = followed(results, about, journal.rows() if journal else ())
            for result in results:
                statuses[result["status"]] += 1
                new.add(result["path"])
                if journal:
                    journal.write(result)
                else:
                    print(to_json(result), flush=True)
                track.note("" if result["frame"] is None else f"frame {result['frame']:,}")
                track.advance(result["frame"] is None)
        if journal:
            journal.finish()
            statuses = Counter(row["status"] for row in journal.rows())
            if options.draw:
                draw_rest(options.draw, journal.rows(), predictor.named, new)
    return statuses


def _drawer(folder: Path, tasks: Mapping[str, Task]) -> Callable[[Any, Json], None]:
    """Draws a photo's result."""
    from jaxface.prediction.annotate import draw_photo

    return lambda item, result: draw_photo(folder, result, tasks)


def draw_rest(folder: Path, rows: Iterable[Json], tasks: Mapping[str, Task], new: Collection[str]) -> None:
    """The annotated copies of all videos and photos among the results that are not there yet; of videos that are new again, too."""
    from jaxface.prediction.annotate import draw_photo, draw_video, place

    frames: defaultdict[str, dict[int, list[Json]]] = defaultdict(dict)
    for row in rows:
        if row["frame"] is not None:
            frames[row["path"]][row["frame"]] = row["faces"]
        elif not place(folder, row["path"], ".jpg").exists():
            draw_photo(folder, row, tasks)
    for path, faces in frames.items():
        if path in new or not place(folder, path, ".mp4").exists():
            draw_video(folder, path, faces, tasks)


def serve(options: Options) -> None:
    """Serves a run, or a folder of adapters."""
    from jaxface.prediction.adapter_server import AdapterServer
    from jaxface.prediction.predictor import Predictor
    from jaxface.prediction.server import serve as run_server

    find, size = options.find, options.batch_size
    if options.adapters is None:
        assert options.run is not None
        run_server(Predictor(options.run, find, size, small_batches=True, **options.model()), options.limits)
        return
    if options.engine != engines.DEFAULT:
        raise UserError(f"--engine {options.engine}: adapters are computed by the engine {engines.DEFAULT} alone")
    token = read_token(options.token_file)  # what is wrong with it shows before anything large is read
    rules = {"memory": options.memory, "device": options.memory, "caution": options.trust}
    run_server(AdapterServer(options.adapters, next(iter(options.weights), None), find, size, **rules), options.limits, token)


def read_token(path: Path | None) -> str | None:
    """The word in a file. Raises UserError for a file that holds none, or one that is easily guessed."""
    if path is None:
        return None
    with read(path):
        words = path.read_text(errors="replace").split()
    if len(words) != 1 or not words[0].isascii() or len(words[0]) < 16:
        raise UserError(f"{path}: expected one word of at least 16 letters and digits, as `openssl rand -hex 16` prints")
    return words[0]


def main() -> None:
    """Predicts, or serves."""
    options = parse(Options, prog="python -m jaxface.predict")
    cv2.setNumThreads(1)  # photos are read in threads of our own: OpenCV's would fight the model for the cores
    if options.serve:
        serve(options)
        return
    if options.processes > 1:
        from jaxface.prediction.processes import commands, run_all

        run_all(commands(sys.argv[1:], options.processes))
        return
    statuses = predict(options)
    told = ", ".join(f"{count:,} {status}" for status, count in sorted(statuses.items()))
    tell(f"{options.out or 'done'}: {told or 'nothing to do'}")


if __name__ == "__main__":
    use_large_pages()
    use_compiled_programs()
    run_command(main)
