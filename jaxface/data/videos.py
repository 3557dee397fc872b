"""Frames of video files, counted by decoding them: headers say how many there are, and are often wrong.

A frame's number is its place in the video, also behind frames that cannot be decoded; its time is the container's.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np

from jaxface.data.formats import Bounds
from jaxface.data.images import Unreadable

SUFFIXES = (
    *(".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".asf", ".flv", ".3gp", ".3g2"),
    *(".ogv", ".mxf", ".vob", ".mjpeg", ".h264", ".hevc"),
)
"""Of names of videos, in lower case."""
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,asf,flv,ogg,mxf,h264,hevc,ivf,m4v,mjpeg,gif,dv,obu"
"""What FFmpeg may take a file for: none that names other files or addresses (playlists)."""

CHUNK_HEAD = 8
"""Bytes of an AVI's chunk before its content."""


@dataclass(frozen=True)
class Frame:
    """One decoded frame.

    Attributes:
      number: its place in the video, from 0.
      seconds: its time from the start, None where the container has none.
      pixels: uint8 [H, W, 3] RGB, upright; None for a frame that was not asked for.
      damage: what its decoder complained of.
      size: width and height in full of a photo that was decoded smaller.
    """

    number: int
    seconds: float | None
    pixels: np.ndarray | None
    damage: str = ""
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class End:
    """How a video ended.

    Attributes:
      frames: that were decoded.
      broken: what is missing or damaged, '' where it was whole.
    """

    frames: int
    broken: str = ""


class Places:
    """The number of each frame: by its time where the video keeps to a rate, else by counting decoded and lost ones.

    Args:
      times: of all packets, in ticks of `base` seconds.
      rate: frames a second, as the container says; None if it does not.
      start: the video's first tick, as the container says; None if it does not.
    """

    def __init__(self, times: list[int], base: Fraction, rate: Fraction | None, start: int | None) -> None:
        times = sorted(set(times))
        self.start = start if start is not None and (not times or start <= times[0]) else next(iter(times), 0)
        self.step = self._step(times, base, rate)
        self.lost: list[int] = []
        self.decoded, self.next = 0, 0

    @staticmethod
    def _step(times: list[int], base: Fraction, rate: Fraction | None) -> Fraction | None:
        """Ticks of a frame, where all packets keep to them but for holes."""
        if not rate or len(times) < 2:
            return None
        steps = np.diff(times) * float(base * rate)
        wrong = np.abs(steps - np.round(steps)) > max(0.1, 1.01 * float(base * rate))
        holes = np.count_nonzero(np.round(steps) > 1)
        return 1 / (base * rate) if not wrong.any() and holes <= max(3, 0.02 * len(times)) else None

    def lose(self, time: int | None) -> None:
        """Counts a packet that could not be decoded."""
        self.lost += [] if time is None else [time]

    def number(self, time: int | None) -> int:
        """The place of the next decoded frame, which has this time."""
        if time is not None and self.step is not None:
            place = round((time - self.start) / self.step)
        else:
            place = self.decoded + sum(lost < time for lost in self.lost if time is not None)
        place = max(place, self.next)
        self.decoded, self.next = self.decoded + 1, place + 1
        return place


@contextmanager
def _opened(path: str) -> Iterator[tuple[Any, Any]]:
    """The container and its video stream. Raises Unreadable."""
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise Unreadable("no file but a folder, a pipe or a device")
        if os.path.exists(path) and not os.path.getsize(path):
            raise Unreadable("the file is empty")
        with open(path, "rb") as file, av.open(file, options={"format_whitelist": CONTAINERS}) as container:
            stream = container.streams.best("video")
            if stream is None:
                raise Unreadable("holds no video")
            yield container, stream
    except OSError as error:  # FFmpeg's errors are some, too
        raise Unreadable(error.strerror if type(error).__module__ == "builtins" else "cannot be read as a video") from None
    except (ValueError, av.error.FFmpegError):
        raise Unreadable("cannot be read as a video") from None


def read_frames(
    path: str, bounds: Bounds, every: int = 1, done: Collection[int] = (), complaints: Callable[[], str] = str
) -> Iterator[Frame | End]:
    """All frames of a video and at last its `End`, decoded in this process; pixels of every n-th that is not done.

    Args:
      complaints: gives what FFmpeg has complained of since the last call.

    Raises Unreadable for what is no video.
    """
    packets = _packets(path)
    with _opened(path) as (container, stream):
        bounds.check_size(stream.codec_context.width or 0, stream.codec_context.height or 0)
        places = Places([*packets.values()], stream.time_base, stream.average_rate, stream.start_time)
        count, broken, last = 0, "", 0.0
        demuxed = container.demux(stream)
        while True:
            packet = None
            try:
                packet = next(demuxed)
                decoded = packet.decode()
            except (StopIteration, av.error.EOFError):
                break
            except av.error.FFmpegError as error:
                broken = broken or error.strerror
                if packet is None:
                    break
                places.lose(packet.pts)
                continue
            for frame in decoded:
                bounds.check_size(frame.width, frame.height)
                time = packets.get(frame.pts, frame.pts)
                count, number = count + 1, places.number(time)
                seconds = None if time is None else float((time - places.start) * stream.time_base)
                last = seconds if seconds is not None else last
                wanted = number % every == 0 and number not in done
                pixels = upright(frame.to_ndarray(format="rgb24"), frame.rotation) if wanted else None
                damage = complaints() or ("damaged in the stream" if frame.is_corrupt or packet.is_corrupt else "")
                broken = broken or damage
                yield Frame(number, seconds, pixels, damage)
        broken = broken or complaints()
        missing = _shortfall(container, stream, count, last) or (
            f"{count} of {places.next} frames" if broken and places.next > count else ""
        )
        yield End(count, f"{missing} ({broken})" if missing and broken else missing or broken)


def _packets(path: str) -> dict[int, int]:
    """The times of all of a video's packets, nothing decoded, each with the time that it should have.

    They differ in AVI, which has no times: there FFmpeg counts what it reads, and only the index knows what it has lost.
    """
    times = {}
    with _opened(path) as (container, stream):
        avi = container.format.name == "avi"
        index = {entry.pos + CHUNK_HEAD: entry.timestamp for entry in getattr(stream, "index_entries", ())} if avi else {}
        try:
            for packet in container.demux(stream):
                if packet.pts is not None and packet.size:
                    times[packet.pts] = index.get(packet.pos, packet.pts)
        except (OSError, av.error.FFmpegError):
            pass  # decoding comes upon it, too
    return times


def _shortfall(container: Any, stream: Any, count: int, last: float) -> str:
    """What is missing by the container's own account of the video's frames or time; '' for nothing."""
    if stream.frames > count:
        return f"{count} of {stream.frames} frames"
    whole = _seconds(container, stream)
    step = float(1 / stream.average_rate) if stream.average_rate else 0.1
    if whole is not None and count and last + 3 * step + 0.1 < whole:
        return f"{last + step:.1f} of {whole:.1f} s"
    return ""


def _seconds(container: Any, stream: Any) -> float | None:
    """How long the video should be; None where only a container with sound says so."""
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    told = stream.metadata.get("DURATION", "").split(":")
    if len(told) == 3:
        try:
            return 3600 * int(told[0]) + 60 * int(told[1]) + float(told[2])
        except ValueError:
            return None
    alone = container.duration is not None and len(container.streams) == 1
    return container.duration / 1e6 if alone else None


def upright(image: np.ndarray, degrees: int) -> np.ndarray:
    """A frame turned counterclockwise by what its container says."""
    return np.ascontiguousarray(np.rot90(image, round(degrees / 90))) if degrees % 360 else image
