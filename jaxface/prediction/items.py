"""Where images come from: photos, folders, globs, videos, a list of paths on standard input."""

from __future__ import annotations

import glob
import os
import threading
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from jaxface.data.apart import frames_apart
from jaxface.data.decoding import BOUNDS, decode_photo, read_file, read_photo
from jaxface.data.headers import header
from jaxface.data.images import Unreadable
from jaxface.data.photos import SUFFIXES
from jaxface.data.videos import SUFFIXES as VIDEOS
from jaxface.data.videos import End, Frame
from jaxface.errors import UserError, tell

Key = tuple[str, int | None]
"""A path and, in a video, the frame's number: what a result is known by. A video's own, last result has no number."""


@dataclass(frozen=True)
class Item:
    """One image to look at.

    Attributes:
      path: as it is written into the results.
      video: reads the frames of one, None for a photo.
      turn: the how manieth frame to be read this is.
    """

    path: str
    video: Video | None = field(default=None, compare=False)
    turn: int = 0

    def load(self, least: int = 0) -> Frame | End | None:
        """The picture (of a photo the only frame); how the video ended, once; None behind that. Raises Unreadable.

        Args:
          least: of a photo's sides, where it may be decoded smaller (`jaxface.data.formats.Bounds`).
        """
        if self.video is not None:
            return self.video.read(self.turn)
        if not least:
            return Frame(0, None, *read_photo(Path(self.path)))
        data = read_file(Path(self.path))
        pixels, damage = decode_photo(data, replace(BOUNDS, least=least))
        found = header(data)
        smaller = found is not None and found.upright != pixels.shape[1::-1]
        return Frame(0, None, pixels, damage, found.upright if smaller else None)


class Video:
    """Frames of a video file in their order, read by several threads: each waits for its turn.

    Args:
      every: only every n-th frame is given.
      done: numbers of frames that are passed over.
    """

    def __init__(self, path: str, every: int = 1, done: Collection[int] = ()) -> None:
        self.path, self.ended = path, False
        self._frames = frames_apart(path, BOUNDS, every, done)
        self._turn, self._next, self._given = threading.Condition(), 0, 0

    def read(self, turn: int) -> Frame | End | None:
        """The next frame, after all earlier turns have had theirs; at last how the video ended, and then None.

        Raises Unreadable for a video without any frame.
        """
        with self._turn:
            self._turn.wait_for(lambda: self._next == turn)
            try:
                return None if self.ended else self._read()
            finally:
                self._next += 1
                self._turn.notify_all()

    def _read(self) -> Frame | End:
        try:
            found = next(self._frames)
        except Unreadable as error:
            self.ended = True
            if not self._given:
                raise
            return End(self._given, str(error))
        self.ended = isinstance(found, End)
        self._given += not self.ended
        if isinstance(found, End) and not found.frames:
            raise Unreadable(found.broken or "no frame in it")
        return found


def find_paths(words: Sequence[str], lines: Iterable[str] | None = None) -> list[str]:
    """The files that words name: files, folders and all below them, globs, and "-" for the paths on standard input; each once.

    What is passed over in folders, because its name is no photo's or video's, is said in one line.

    Raises UserError for a word that names nothing.
    """
    found: dict[str, None] = {}
    others: Counter[str] = Counter()
    for word in words:
        matches = sorted(glob.glob(word, recursive=True)) if glob.has_magic(word) and not os.path.lexists(word) else [word]
        if word == "-":
            matches = [line for line in (raw.rstrip("\r\n") for raw in lines or ()) if line]
        elif not matches or not (os.path.lexists(matches[0])):
            raise UserError(f"{word}: no such file or folder")
        for path in matches:
            found |= dict.fromkeys(walk(path, others) if os.path.isdir(path) and word != "-" else [path])
    if others:
        kinds = ", ".join(f"{count:,} {suffix}" for suffix, count in others.most_common())
        tell(f"passed over in folders, by their names no photos or videos: {kinds}")
    if not found:
        raise UserError(f"no photo or video in {' '.join(words) or 'nothing'}; known: {' '.join(SUFFIXES + VIDEOS)}")
    return list(found)


def walk(folder: str, others: Counter[str]) -> Iterator[str]:
    """All photos and videos in a folder and below it, also behind links, in the order of their names.

    Args:
      others: other files are counted here, by suffix.
    """
    seen = set()
    for parent, folders, files in os.walk(folder, followlinks=True, onerror=lambda error: others.update([f"folder {error.filename}"])):
        about = os.stat(parent)
        folders[:] = [] if (about.st_dev, about.st_ino) in seen else sorted(folders)  # a link may lead back
        for name in [] if (about.st_dev, about.st_ino) in seen else sorted(files):
            if name.lower().endswith(SUFFIXES + VIDEOS):
                yield os.path.join(parent, name)
            else:
                others[os.path.splitext(name)[1].lower() or "without a suffix"] += 1
        seen.add((about.st_dev, about.st_ino))


def in_shard(path: str, index: int, count: int) -> bool:
    """Whether a path is of the shard: by a hash of its name, so that new files move no old one."""
    return zlib.crc32(path.encode("utf-8", "surrogateescape")) % count == index


def is_video(path: str) -> bool:
    """Whether a file's name is a video's."""
    return path.lower().endswith(VIDEOS)


def items_of(paths: Iterable[str], done: Collection[Key], every: int = 1) -> Iterator[Item]:
    """The images of files, but for those that are done. A video gives items until one of them has come upon its end."""
    frames: dict[str, set[int]] = {}
    for path, frame in done:
        if frame is not None:
            frames.setdefault(path, set()).add(frame)
    for path in paths:
        if (path, None) in done:
            continue
        if not is_video(path):
            yield Item(path)
            continue
        video, turn = Video(path, every, frames.get(path, ())), 0
        while not video.ended:
            yield Item(path, video, turn)
            turn += 1
