"""Traces as they are stored: plain, .gz, .xz or .zst. A file that was cut off is an error, never a shorter trace."""

from __future__ import annotations

import gzip
import io
import lzma
from pathlib import Path
from typing import IO, Any

from warmroute.errors import ConfigurationError

ZSTANDARD_CHUNK = 1 << 16
"""Bytes of a .zst file that are decompressed together."""


def open_trace(path: Path) -> io.BufferedIOBase:
    """The file, decompressed as its suffix says. Raises OSError, and ConfigurationError without the package for .zst."""
    if path.suffix == ".zst":
        try:
            import zstandard
        except ImportError:
            raise ConfigurationError(
                f"reading {path} needs the package zstandard: install warmroute-lab with its extra `zstd`"
            ) from None
        return io.BufferedReader(_Zstandard(path.open("rb"), zstandard))
    if path.suffix == ".gz":
        return gzip.open(path, "rb")
    if path.suffix == ".xz":
        return lzma.open(path, "rb")
    return path.open("rb")


class _Zstandard(io.RawIOBase):
    """The content of a .zst file. Of a file that was cut off, zstandard's own reader gives the beginning without an error.

    Raises EOFError for such a file and OSError for one that is no such file.
    """

    def __init__(self, file: IO[bytes], zstandard: Any) -> None:
        self._file, self._zstandard = file, zstandard
        self._decompressor = zstandard.ZstdDecompressor()
        self._frame: Any = None
        self._compressed = self._content = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._content and (self._compressed or self._fill()):
            self._decompress()
        size = min(len(buffer), len(self._content))
        buffer[:size] = self._content[:size]
        self._content = self._content[size:]
        return size

    def close(self) -> None:
        self._file.close()
        super().close()

    def _fill(self) -> bool:
        """Read more of the file. False at its end."""
        self._compressed = self._file.read(ZSTANDARD_CHUNK)
        if not self._compressed and self._frame is not None:
            raise EOFError("it was cut off: its last frame has no end")
        return bool(self._compressed)

    def _decompress(self) -> None:
        if self._frame is None:
            self._frame = self._decompressor.decompressobj()
        try:
            self._content = self._frame.decompress(self._compressed)
        except self._zstandard.ZstdError as error:
            raise OSError(str(error)) from error
        self._compressed = self._frame.unused_data if self._frame.eof else b""
        if self._frame.eof:
            self._frame = None
