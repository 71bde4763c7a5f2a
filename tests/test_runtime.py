"""Settings of malloc and the garbage collector: each is understood and has its effect."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from warmroute.runtime import GC_THRESHOLDS, MALLOC_SETTINGS

pytestmark = pytest.mark.integration


def run(program: str, **environ: str) -> subprocess.CompletedProcess[str]:
    cleared = {name: value for name, value in os.environ.items() if name not in MALLOC_SETTINGS}
    argv = [sys.executable, "-c", program]
    return subprocess.run(argv, env=cleared | environ, capture_output=True, text=True, timeout=120, check=True)


PROMPTS = """
import os, resource
from warmroute import runtime
{prepare}
def eight_prompts():
    parts = [b"x" * 400_000 for _ in range(8)]
eight_prompts()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    eight_prompts()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
def test_memory_of_large_prompts_is_used_again() -> None:
    """Page faults of 50 times eight prompts of 400 KB; as the C library would have it, it may be 100 for each prompt."""
    kept = int(run(PROMPTS.format(prepare="runtime.prepare(os.environ)")).stdout)
    given_back = int(run(PROMPTS.format(prepare="")).stdout)
    assert kept < 400
    assert given_back > 10 * kept


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
def test_the_users_malloc_settings_stay() -> None:
    own = run(
        PROMPTS.format(prepare="runtime.prepare(os.environ)"),
        MALLOC_TRIM_THRESHOLD_="131072",
        MALLOC_MMAP_THRESHOLD_="131072",
    )
    assert int(own.stdout) > 10_000


def test_serve_prepares() -> None:
    program = (
        "import sys; from warmroute import cli, runtime\n"
        "def prepare(environ): print('prepared', flush=True); sys.exit()\n"
        "runtime.prepare = prepare; sys.argv = ['warmroute', 'serve', '--endpoints-file=pods.json']; cli.main()"
    )
    assert run(program).stdout == "prepared\n"


COLLECTIONS = """
import gc
from warmroute import runtime
from warmroute.request.parse import parse
{freeze}
young = full = 0
def count(phase, info):
    global young, full
    if phase == "stop":
        young, full = young + (info["generation"] < 2), full + (info["generation"] == 2)
gc.callbacks.append(count)
lists = b",".join([b"[]"] * 150_000)
body = b'{{"model": "m", "messages": [{{"role": "user", "content": "x"}}], "tools": [' + lists + b"]}}"
for _ in range(5):
    parse("/v1/chat/completions", "application/json", body)
print(young, full, gc.get_freeze_count(), *gc.get_threshold())
"""


def test_bodies_of_many_values_cause_few_collections() -> None:
    young, _, frozen, *thresholds = map(int, run(COLLECTIONS.format(freeze="runtime.settle()")).stdout.split())
    untuned, _, none_frozen, *_ = map(int, run(COLLECTIONS.format(freeze="")).stdout.split())
    assert (frozen > 10_000, none_frozen) == (True, 0)
    assert tuple(thresholds) == GC_THRESHOLDS
    assert 0 < young < 100
    assert untuned > 3 * young or sys.version_info >= (3, 12)  # it does not run inside the decoder from then on


@pytest.mark.parametrize("own", [100, None])
def test_the_soft_limit_of_open_files_is_raised_as_far_as_the_hard_one_allows(own: int | None) -> None:
    program = f"""
import os, resource
from warmroute import runtime
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
hard = {own} or hard
resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
runtime.prepare(os.environ)
soft, now = resource.getrlimit(resource.RLIMIT_NOFILE)
most = runtime.FILE_DESCRIPTORS
print(soft == (most if hard == resource.RLIM_INFINITY else min(most, hard)), now == hard)
"""
    assert run(program).stdout.split() == ["True", "True"]
