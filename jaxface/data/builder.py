"""Finished shards as a TensorFlow Datasets data set, which `tensorflow_datasets` and grain read, without TensorFlow."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.core.dataset_builder import FileReaderBuilder

from jaxface.data.shards import features
from jaxface.data.tasks import Task


class _OwnInfo(tfds.core.DatasetInfo):
    """A description that is ours alone."""

    def initialize_from_bucket(self) -> None:
        """Asks nobody: the original makes a folder that it never removes, and looks into a bucket of Google's for a set of this name."""


class Faces(FileReaderBuilder):
    """A data set of faces whose files are written already.

    Args:
      files: of each split, the ArrayRecord files with their numbers of records, in order.
      tasks: whose labels are in them.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, files: Mapping[str, Sequence[tuple[Path, int]]], tasks: tuple[Task, ...], data_dir: Path) -> None:
        self.files, self.tasks = files, tasks
        super().__init__(data_dir=str(data_dir), file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        return _OwnInfo(builder=self, features=features(self.tasks), disable_shuffling=True)

    def _download_and_prepare(self, dl_manager: Any, download_config: Any = None) -> None:
        self.info.set_splits(tfds.core.splits.SplitDict([self._take(split, files) for split, files in self.files.items()]))

    def _take(self, split: str, files: Sequence[tuple[Path, int]]) -> tfds.core.SplitInfo:
        template = self._get_filename_template(split_name=split)
        for index, (file, _) in enumerate(files):
            _link(file, Path(template.sharded_filepath(shard_index=index, num_shards=len(files))))
        lengths = [length for _, length in files]
        size = sum(file.stat().st_size for file, _ in files)
        return tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=size, filename_template=template)

    def write(self) -> Path:
        """Writes the data set's description beside its files and returns their folder."""
        tfds.disable_progress_bar()
        with _quiet():
            self.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))  # ty: ignore[missing-argument]  a decorator hides its type
        return Path(self.data_dir)


def _link(source: Path, target: Path) -> None:
    """A second name for a file, or a copy where the file system has no such thing."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps TensorFlow Datasets' announcements off the terminal, whose progress is ours."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield
