"""Where images come from: photos, folders, globs, videos, a list of paths on standard input."""

from __future__ import annotations

import glob
import os
import threading
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import cv2

from jaxface.data.decoding import read_photo
from jaxface.data.formats import Decoded
from jaxface.data.images import Unreadable
from jaxface.data.photos import SUFFIXES
from jaxface.errors import UserError

VIDEOS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
Key = tuple[str, int | None]
"""A path and, in a video, the frame's number: what an item is known by."""


@dataclass(frozen=True)
class Item:
    """One image to look at.

    Attributes:
      path: as it is written into the results.
      frame: number of a video's frame, None for a photo.
      video: reads the frame.
      broken: why it cannot be read, where that is known already.
    """

    path: str
    frame: int | None = None
    video: Video | None = field(default=None, compare=False)
    broken: str | None = None

    @property
    def key(self) -> Key:
        return self.path, self.frame

    def load(self) -> Decoded | None:
        """The picture; None for a frame behind the video's end. Raises Unreadable."""
        if self.broken is not None:
            raise Unreadable(self.broken)
        return read_photo(Path(self.path)) if self.video is None else self.video.read(self.frame or 0)


class Video:
    """Frames of a video file in ascending order, read by several threads: each waits until the frames before its own are read."""

    def __init__(self, path: str, frames: Iterable[int]) -> None:
        self.path, self._order, self._turn = path, {frame: place for place, frame in enumerate(frames)}, threading.Condition()
        self._place, self._next, self._capture = 0, 0, cv2.VideoCapture()

    def read(self, frame: int) -> Decoded | None:
        """A frame as uint8 [H, W, 3] RGB; None behind the end."""
        with self._turn:
            self._turn.wait_for(lambda: self._place == self._order[frame])
            try:
                return self._read(frame)
            finally:
                self._place += 1
                if self._place == len(self._order):
                    self._capture.release()
                self._turn.notify_all()

    def _read(self, frame: int) -> Decoded | None:
        if self._place == 0:
            self._capture.open(self.path)
        while self._next < frame and self._capture.grab():
            self._next += 1
        found, image = self._capture.read()
        self._next += 1
        return Decoded(cv2.cvtColor(image, cv2.COLOR_BGR2RGB)) if found else None


def find_paths(words: Sequence[str], lines: TextIO | None = None) -> list[str]:
    """The files that words name: files, folders and all below them, globs, and "-" for the paths on standard input; each once.

    Raises UserError for a word that names nothing.
    """
    found: dict[str, None] = {}
    for word in words:
        if word == "-":
            found |= dict.fromkeys(line for line in (raw.rstrip("\r\n") for raw in lines or ()) if line)
        elif os.path.isdir(word):
            found |= dict.fromkeys(walk(word))
        elif os.path.exists(word):
            found[word] = None
        elif glob.has_magic(word):
            matches = sorted(glob.glob(word, recursive=True))
            found |= dict.fromkeys(path for match in matches for path in (walk(match) if os.path.isdir(match) else [match]))
        else:
            raise UserError(f"{word}: no such file or folder")
    if not found:
        raise UserError(f"no photo or video in {' '.join(words) or 'nothing'}; known: {' '.join(SUFFIXES + VIDEOS)}")
    return list(found)


def walk(folder: str) -> Iterator[str]:
    """All photos and videos in a folder and below it, in the order of their names."""
    for parent, folders, files in os.walk(folder):
        folders.sort()
        yield from (os.path.join(parent, name) for name in sorted(files) if name.lower().endswith(SUFFIXES + VIDEOS))


def in_shard(path: str, index: int, count: int) -> bool:
    """Whether a path is of the shard: by a hash of its name, so that new files move no old one."""
    return zlib.crc32(path.encode("utf-8", "surrogateescape")) % count == index


def frames_of(path: str, every: int) -> range:
    """The numbers of every n-th frame. Raises Unreadable for a video that has none."""
    capture = cv2.VideoCapture(path)
    count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 0
    capture.release()
    if count <= 0:
        raise Unreadable(f"{path}: {'cannot be read as a video' if os.path.exists(path) else 'No such file or directory'}")
    return range(0, count, every)


def is_video(path: str) -> bool:
    return path.lower().endswith(VIDEOS)


def items_of(paths: Iterable[str], done: set[Key], every: int = 1) -> list[Item]:
    """The images of files, but for those that are done; a video that cannot be read is one broken item."""
    items: list[Item] = []
    for path in paths:
        if is_video(path):
            try:
                left = [frame for frame in frames_of(path, every) if (path, frame) not in done]
            except Unreadable as error:
                left = []
                items += [] if (path, None) in done else [Item(path, broken=str(error))]
            video = Video(path, left)
            items += [Item(path, frame, video) for frame in left]
        elif (path, None) not in done:
            items.append(Item(path))
    return items
