"""Charts for the report: inline SVG for the marks, HTML for the words, so that text keeps its size on a narrow screen.

Every function returns a string of HTML in which all text is escaped. A chart is a <figure> with a title, a legend where
it has several series, native tooltips, and its numbers as a table behind a <details>. Colours come from report.css.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from html import escape

MAX_POINTS = 240
TABLE_ROWS = 12


@dataclass
class Series:
    """One named line: points are (x, y) in ascending x."""

    name: str
    points: list[tuple[float, float]]


@dataclass
class Reference:
    """A value to compare bars with, such as the chance level of each series."""

    name: str
    values: list[float]


def number(value: float, digits: int = 4) -> str:
    """A number for people: thousands grouped, `digits` significant digits, very small ones as a power of ten."""
    if value != value or math.isinf(value):
        return str(value)
    if value and abs(value) < 1e-3:
        return f"{value:.2g}".replace("e-0", "e-")
    if abs(value) >= 10 ** (digits - 1) or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def percent(value: float) -> str:
    return f"{value:.1f}"


def html_table(
    caption: str,
    head: list[str],
    rows: list[list[str]],
    *,
    groups: list[tuple[str, int]] = (),
    marked: set[int] = frozenset(),
) -> str:
    """A table whose first column names the rows; rows in `marked` are set apart. Cells are escaped here.

    groups names neighbouring columns together, as (name, number of columns); the first column belongs to none.
    """
    heads = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    over = "".join(f'<th scope="colgroup" colspan="{span}">{escape(name)}</th>' for name, span in groups)
    over = f'<tr class="over"><td></td>{over}</tr>' if over else ""
    body = []
    for i, row in enumerate(rows):
        kind = ' class="apart"' if i in marked else ""
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        body.append(f'<tr{kind}><th scope="row">{escape(row[0])}</th>{cells}</tr>')
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f'<caption class="hidden">{escape(caption)}</caption>'
        f"<thead>{over}<tr>{heads}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _figure(title: str, note: str, legend: list[str], plot: str, table: str) -> str:
    keys = "".join(f'<li><i class="key c{i}"></i>{escape(name)}</li>' for i, name in enumerate(legend))
    legend_html = f'<ul class="legend">{keys}</ul>' if len(legend) > 1 else ""
    note_html = f'<p class="note">{escape(note)}</p>' if note else ""
    return (
        f"<figure><figcaption><h3>{escape(title)}</h3>{note_html}</figcaption>{legend_html}{plot}"
        f"<details><summary>Numbers as a table</summary>{table}</details></figure>"
    )


# --- lines -----------------------------------------------------------------------------------------------------------


def thin_out(points: list[tuple[float, float]], limit: int = MAX_POINTS) -> list[tuple[float, float]]:
    """At most `limit` points: neighbours are averaged, numbers that are not finite are dropped."""
    finite = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    size = math.ceil(len(finite) / limit)
    if size <= 1:
        return finite
    groups = [finite[i : i + size] for i in range(0, len(finite), size)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers that cover [low, high] in about `count` steps."""
    span = high - low or abs(high) or 1.0
    power = 10 ** math.floor(math.log10(span / count))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if span / (m * power) <= count + 1e-9)
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return [i * step for i in range(first, last + 1)]


def line_chart(title: str, series: list[Series], *, note: str = "", y_format: Callable[[float], str] = number) -> str:
    """Lines over the training step; "" where no series has two points."""
    series = [Series(s.name, thin_out(s.points)) for s in series]
    series = [s for s in series if len(s.points) >= 2]
    if not series:
        return ""
    ys = [y for s in series for _, y in s.points]
    y_ticks = ticks(min(0.0, *ys), max(ys))
    x_low = min(s.points[0][0] for s in series)
    x_high = max(s.points[-1][0] for s in series)

    def place(x: float, y: float) -> tuple[float, float]:
        """Position in a square of 1000 units, y downwards."""
        height = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return 1000 * (x - x_low) / ((x_high - x_low) or 1.0), 1000 * (1 - height)

    heights = [place(x_low, tick)[1] for tick in y_ticks]
    grid = "".join(f'<line class="grid" x1="0" x2="1000" y1="{y:.1f}" y2="{y:.1f}"/>' for y in heights)
    lines = "".join(_polyline(i, [place(x, y) for x, y in s.points]) for i, s in enumerate(series))
    y_labels = "".join(
        f'<span style="top:{y / 10:.2f}%">{escape(y_format(tick))}</span>' for tick, y in zip(y_ticks, heights)
    )
    x_marks = [x_low, (x_low + x_high) / 2, x_high]
    x_labels = "".join(f"<span>{escape(number(round(x), 6))}</span>" for x in x_marks)
    plot = (
        f'<div class="plot"><div class="y">{y_labels}</div>'
        f'<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{grid}{lines}{_hover_strips(series, place, y_format)}</svg>"
        f'<div class="x">{x_labels}</div><div class="x-title">step</div></div>'
    )
    return _figure(title, note, [s.name for s in series], plot, _line_table(title, series, y_format))


def _polyline(i: int, points: list[tuple[float, float]]) -> str:
    return f'<polyline class="line c{i}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>'


def _hover_strips(series: list[Series], place: Callable, y_format: Callable[[float], str]) -> str:
    """Invisible columns, one per point of the longest series, whose tooltip names every line's value nearest to it."""
    longest = max(series, key=lambda s: len(s.points)).points
    left = [place(x, 0)[0] for x, _ in longest]
    edges = [0.0] + [(a + b) / 2 for a, b in zip(left, left[1:])] + [1000.0]
    strips = []
    for i, (x, _) in enumerate(longest):
        words = [f"step {number(round(x), 9)}"] + [f"{s.name} {y_format(_nearest(s, x))}" for s in series]
        strips.append(
            f'<rect class="strip" x="{edges[i]:.1f}" y="0" width="{edges[i + 1] - edges[i]:.1f}" height="1000">'
            f"<title>{escape(chr(10).join(words))}</title></rect>"
        )
    return "".join(strips)


def _nearest(series: Series, x: float) -> float:
    return min(series.points, key=lambda point: abs(point[0] - x))[1]


def _line_table(title: str, series: list[Series], y_format: Callable[[float], str]) -> str:
    xs = [x for x, _ in max(series, key=lambda s: len(s.points)).points]
    count = min(TABLE_ROWS, len(xs))
    chosen = [xs[round(i * (len(xs) - 1) / (count - 1))] for i in range(count)]
    rows = [[number(round(x), 9)] + [y_format(_nearest(s, x)) for s in series] for x in chosen]
    return html_table(title, ["step"] + [s.name for s in series], rows)


# --- bars ------------------------------------------------------------------------------------------------------------


def bar_chart(
    title: str,
    names: list[str],
    rows: list[tuple[str, list[float]]],
    *,
    note: str = "",
    top: float | None = None,
    reference: Reference | None = None,
    row_head: str = "language",
    value_format: Callable[[float], str] = percent,
) -> str:
    """Horizontal bars: one row per (label, values), one bar per name; a thin mark shows the reference of each bar."""
    top = top or ticks(0, max(max(values) for _, values in rows) or 1.0)[-1]
    lines = []
    for label, values in rows:
        bars = []
        for i, value in enumerate(values):
            width = 100 * min(max(value / top, 0.0), 1.0) if math.isfinite(value) else 0.0
            mark = _reference_mark(reference, i, top)
            tip = escape(f"{label}, {names[i]}: {value_format(value)}")
            bars.append(
                f'<div class="bar"><svg width="100%" height="14" role="img" aria-label="{tip}"><title>{tip}</title>'
                f'<rect class="track" width="100%" height="14" rx="3"/>'
                f'<rect class="fill c{i}" width="{width:.2f}%" height="14" rx="3"/>{mark}</svg>'
                f"<span>{escape(value_format(value))}</span></div>"
            )
        lines.append(f'<div class="row"><b>{escape(label)}</b><div>{"".join(bars)}</div></div>')
    if reference:
        note = f"{note} The thin upright mark is {reference.name}.".strip()
    table_rows = [[label] + [value_format(value) for value in values] for label, values in rows]
    if reference:
        table_rows.append([reference.name] + [value_format(value) for value in reference.values])
    table = html_table(title, [row_head] + names, table_rows, marked={len(rows)})
    return _figure(title, note, names, f'<div class="bars">{"".join(lines)}</div>', table)


def _reference_mark(reference: Reference | None, i: int, top: float) -> str:
    if reference is None:
        return ""
    x = 100 * min(reference.values[i] / top, 1.0)
    return f'<rect class="mark" x="{x:.2f}%" width="2" height="14"/>'
