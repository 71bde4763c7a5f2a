"""The process: settings of glibc's malloc and of Python's garbage collector, file descriptors, and the form of the code."""

from __future__ import annotations

import ctypes
import gc
import resource
from collections.abc import Mapping
from importlib.util import find_spec

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
MALLOC_SETTINGS: Mapping[str, tuple[int, int]] = {
    "MALLOC_MMAP_THRESHOLD_": (_M_MMAP_THRESHOLD, 8 << 20),
    "MALLOC_TRIM_THRESHOLD_": (_M_TRIM_THRESHOLD, 16 << 20),
}
"""glibc's number of a malloc parameter and its value in bytes, by the environment variable that sets it, too.

A prompt of 400 KB is several allocations of that size. By default glibc may return each to the kernel when it is freed.
Getting new pages costs more than all other work on the prompt: with 8 requests in flight a server that does nothing took
0.45 to 1.25 ms of CPU for each request. With these values up to 16 MB of each malloc arena are kept.
"""
GC_THRESHOLDS = (20_000, 10, 10)
"""Thresholds of :func:`gc.set_threshold`; Python's first one is 700.

A body of many small lists is many allocations that the collector counts and then walks. For one of 150,000 empty lists
(600 kB) it took 19 ms of 25, with these thresholds 7 of 13 to 19; its longest pause fell from 14 to 7 ms. Ordinary requests
leave nothing to collect: 5 young collections in 20,000 requests before, none since. From Python 3.12 on the collector does
not run while a body is decoded, so these bodies cause one each in any case.
"""
FILE_DESCRIPTORS = 16_384
"""Soft limit of open files, if the hard one allows it. Each port takes up to 512 connections, and each engine's page one;
many systems begin with 1,024."""


def prepare(environ: Mapping[str, str]) -> None:
    """Raise the limit of open files, and set of malloc what ``environ``, the process's own, leaves open (only in glibc)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = FILE_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(FILE_DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    for name, (parameter, size) in MALLOC_SETTINGS.items():
        if name not in environ:
            mallopt(parameter, size)


def compiled() -> bool:
    """Whether the modules that every request passes are compiled to C."""
    found = find_spec("warmroute.prefix.index")
    return found is not None and found.origin is not None and not found.origin.endswith(".py")


def settle() -> None:
    """Exempt all present objects from garbage collection and collect less often. Call it once the picker serves."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
