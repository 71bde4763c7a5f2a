"""Reading a metrics page: against prometheus_client's own parser, and against garbage."""

from __future__ import annotations

import math
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from warmroute.engines.dialects import Capacity, Series
from warmroute.engines.page import MOST_LINES, MOST_SAMPLE_BYTES, ScrapedPage
from warmroute.errors import ScrapeError

MOST = 1e6
NAMES = ["m", "m_total", "vllm:m", "vllm:m_by_reason", "m_"]
LABEL_VALUES = st.text(st.characters(codec="utf-8"), max_size=6) | st.sampled_from(
    ["}", '"', "\\", "\\n", 'a="b",', "x\ny", "m 1"]
)
VALUES = st.floats() | st.integers(-(10**6), 10**6).map(float)


@st.composite
def pages(draw: st.DrawFn) -> bytes:
    """A page as the client library writes it, of a few gauges whose names begin alike."""
    registry = CollectorRegistry()
    for name in draw(st.lists(st.sampled_from(NAMES), unique=True, min_size=1)):
        labels = draw(st.lists(st.sampled_from(["engine", "source", "a"]), unique=True, max_size=3))
        documentation = draw(st.sampled_from(["Words.", f"{name} 5", 'm{a="b"} 3\nm 4']))
        gauge = Gauge(name, documentation, labels, registry=registry)
        for values in draw(st.lists(st.tuples(*[LABEL_VALUES] * len(labels)), min_size=1, max_size=3, unique=True)):
            (gauge.labels(*values) if labels else gauge).set(draw(VALUES))
    return generate_latest(registry)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)  # the first text drawn builds a large table
@given(pages())
def test_every_sample_is_read_as_the_client_library_reads_it(text: bytes) -> None:
    expected: dict[str, list[tuple[dict[str, str], float]]] = {name: [] for name in NAMES}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            expected[sample.name].append((sample.labels, sample.value))
    page = ScrapedPage(text)
    for name in NAMES:
        found = [(sample.labels, sample.value) for sample in page.samples(name)]
        assert repr(found) == repr(expected[name])  # nan is not equal to itself


@given(st.binary(max_size=60) | st.binary(max_size=40).map(lambda tail: b"m{" + tail))
def test_garbage_is_a_scrape_error_or_nothing(text: bytes) -> None:
    for body in (text, b"m" + text, b'm{a="' + text, b"m 1\nm" + text, b'm{a="b"} ' + text):
        try:
            page = ScrapedPage(body)
            page.figures(Series("m", where=(("a", "b"),), label="c"))
            page.total((Series("m"),), MOST)
        except ScrapeError:
            pass


@pytest.mark.parametrize(
    "line",
    ["m ", "m{", 'm{a="b" 1', "m{} ", "m one", 'm{a="b} 1', "m\t"],
)
def test_a_wanted_line_that_cannot_be_read_is_an_error(line: str) -> None:
    with pytest.raises(ScrapeError, match=r"\bm\b"):
        ScrapedPage(f"n 1\n{line}\n".encode()).samples("m")


@pytest.mark.parametrize(
    ("line", "value"),
    [("m 1", 1.0), ("m\t2", 2.0), ("m{} 3", 3.0), ("m {} 4 1700000000", 4.0), ("m 5\r", 5.0), ("m +Inf", math.inf)],
)
def test_the_formats_variants_are_read(line: str, value: float) -> None:
    assert [sample.value for sample in ScrapedPage(line.encode()).samples("m")] == [value]


def test_comments_and_longer_names_are_not_samples() -> None:
    page = ScrapedPage(b"# HELP m 1\n# TYPE m gauge\nm_total 2\nxm 3\nm:x 4\n m 5\n")
    assert page.samples("m") == []


@pytest.mark.parametrize("filler", [b" ", b"\\", b'"', b'a="', b",", b"{", b'a="b" ', b"a"])
def test_time_is_linear_whatever_the_line_holds(filler: bytes) -> None:
    def seconds(repeats: int) -> float:
        text = b"m{" + filler * repeats
        best = math.inf
        for _ in range(3):
            began = time.thread_time()
            for body in (text, text + b"} 1"):
                try:
                    [sample.labels for sample in ScrapedPage(body).samples("m")]
                except ScrapeError:
                    pass
            best = min(best, time.thread_time() - began)
        return best

    assert seconds(80_000) < 100 * seconds(4_000) + 0.05  # 20 times as long: 20 times if linear, 400 times if quadratic


def test_figures_are_picked_by_labels_as_prometheus_does() -> None:
    page = ScrapedPage(b'm{kind="a",priority=""} 1\nm{kind="a",priority="7"} 2\nm{kind="a"} 4\nm{kind="b"} 8\n')
    assert page.figures(Series("m", where=(("kind", "a"), ("priority", "")))) == [1.0, 4.0]
    assert page.figures(Series("m", label="priority")) == [7.0]
    assert page.total((Series("absent"), Series("m")), MOST) == 15.0
    assert page.total((Series("absent"),), MOST) is None
    assert page.share((Series("m", where=(("kind", "a"),)),)) == 1


def test_figures_out_of_bounds_do_not_count() -> None:
    page = ScrapedPage(b'm{e="0"} -1\nm{e="1"} 3\nm{e="2"} 1e308\nm{e="3"} 1e308\nsum{e="0"} 6e5\nsum{e="1"} 6e5\n')
    assert page.total((Series("m"),), MOST) == 3.0
    assert page.total((Series("sum"),), MOST) is None
    assert page.share((Series("m"),)) == pytest.approx(3 / 4)


def test_a_share_is_clamped_rank_by_rank() -> None:
    assert ScrapedPage(b'm{e="0"} 0.5\nm{e="1"} 7\n').share((Series("m"),)) == pytest.approx(0.75)
    assert ScrapedPage(b"m -0.5\n").share((Series("m"),)) == 0.0


def test_a_page_of_too_many_lines_is_refused() -> None:
    ScrapedPage(b"x 1\n" * MOST_LINES)
    with pytest.raises(ScrapeError, match="lines"):
        ScrapedPage(b"x 1\n" * (MOST_LINES + 1))


def test_series_beyond_the_parse_budget_are_absent_and_the_others_are_read() -> None:
    page = ScrapedPage(b'long{a="' + b"x" * MOST_SAMPLE_BYTES + b'"} 1\nmany 1\n' + b"few 2\n" * 3)
    assert page.samples("long") == []
    assert [sample.value for sample in page.samples("few")] == [2.0] * 3
    page = ScrapedPage(b"many 1\n" * 19_000 + b"n" * 40 + b" 1\n")
    assert len(page.samples("many")) == 19_000
    assert len(page.samples("n" * 40)) == 1


def test_figures_that_are_not_finite_do_not_count() -> None:
    page = ScrapedPage(b'm{e="0"} NaN\nm{e="1"} 3\nn NaN\n')
    assert page.total((Series("m"),), MOST) == 3.0
    assert page.total((Series("n"),), MOST) is None


def test_capacity_adds_up_over_ranks_and_falls_back() -> None:
    capacity = (
        Capacity(Series("info", label="tokens")),
        Capacity(Series("info", label="blocks"), size=Series("info", label="block_size")),
    )
    told = b'info{engine="0",tokens="100",blocks="5",block_size="16"} 1\ninfo{engine="1",tokens="120"} 1\n'
    assert ScrapedPage(told).tokens(capacity, MOST) == 220
    counted = b'info{engine="0",tokens="None",blocks="5",block_size="16"} 1\ninfo{blocks="6",block_size="16"} 1\n'
    assert ScrapedPage(counted).tokens(capacity, MOST) == 176
    assert ScrapedPage(b'info{blocks="5"} 1\n').tokens(capacity, MOST) is None
    assert ScrapedPage(b"").tokens(capacity, MOST) is None
