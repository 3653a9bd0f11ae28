"""Write plots as SVG text: elements, axes and numbers. The page's style gives colours to the
classes."""

import html
import math
from collections.abc import Sequence


def number(value: float) -> str:
    """Format a coordinate."""
    if not math.isfinite(value):
        raise ValueError(f"svg: a coordinate must be finite, got {value}")
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text in ("", "-0") else text


def short(value: float, digits: int = 3) -> str:
    """Format a value for people: 1.23 M, 0.045, 2e-07."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    size = abs(value)
    for factor, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= factor:
            scaled = value / (1e3 if unit == "k" else factor)
            return f"{scaled:.{digits}g} {unit}"
    return f"{value:.{max(digits, len(str(int(size))))}g}"


def percent(share: float) -> str:
    """Format a share, with enough digits to tell it from 0 and from 1."""
    value = 100 * share
    if value == 0 or value == 100:
        return f"{value:.0f} %"
    if value < 0.01:
        return "< 0.01 %"
    if value > 99.9:
        return "> 99.9 %"
    return f"{value:.2f} %" if value < 1 else f"{value:.1f} %"


def escaped(text: object) -> str:
    return html.escape(str(text), quote=True)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return round numbers inside [low, high]."""
    if not high > low:
        return [low]
    raw = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    found = []
    while (value := first * step) <= high + 1e-9 * step:
        found.append(0.0 if abs(value) < 1e-12 * step else value)
        first += 1
    return found


def log_ticks(low: float, high: float) -> list[float]:
    """Return the powers of ten inside [low, high], or round numbers if there are fewer than two."""
    found = [10.0**k for k in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)]
    if len(found) > 6:
        found = found[:: math.ceil(len(found) / 6)]
    return found if len(found) > 1 else ticks(low, high, 4)


class Axis:
    """Maps values to coordinates, on a linear or a logarithmic scale."""

    def __init__(
        self, low: float, high: float, start: float, end: float, *, log: bool = False
    ) -> None:
        if not high > low:
            half = max(0.5, abs(low) / 16)
            low, high = (low / 2, low * 2) if log else (low - half, low + half)
        self.low, self.high, self.start, self.end, self.log = low, high, start, end, log

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            value, low, high = math.log(max(value, low)), math.log(low), math.log(high)
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, count: int = 5) -> list[float]:
        return log_ticks(self.low, self.high) if self.log else ticks(self.low, self.high, count)


class Svg:
    """A plot. ``title`` is read by screen readers. ``marks`` counts the elements that show data."""

    def __init__(self, width: float, height: float, title: str, *, kind: str) -> None:
        self.width, self.height, self.title, self.kind = width, height, title, kind
        self.parts: list[str] = []
        self.marks = 0
        self.data: dict[str, str] = {}

    def _add(self, text: str, hover: str | None, mark: bool) -> None:
        self.marks += mark
        if hover is not None:
            name, _, rest = text.partition(" ")
            text = f"{name} {rest.removesuffix('/>')}><title>{escaped(hover)}</title></{name[1:]}>"
        self.parts.append(text)

    def rect(
        self, x: float, y: float, w: float, h: float, style: str, *,
        hover: str | None = None, mark: bool = True, radius: float = 0.0, fill: str = "",
    ) -> None:  # fmt: skip
        corner = f' rx="{number(radius)}"' if radius else ""
        own = f' style="{fill}"' if fill else ""
        self._add(
            f'<rect class="{style}" x="{number(x)}" y="{number(y)}" width="{number(max(w, 0.0))}" '
            f'height="{number(max(h, 0.0))}"{corner}{own}/>',
            hover,
            mark,
        )

    def line(
        self, x: float, y: float, x2: float, y2: float, style: str, *,
        hover: str | None = None, mark: bool = False,
    ) -> None:  # fmt: skip
        self._add(
            f'<line class="{style}" x1="{number(x)}" y1="{number(y)}" x2="{number(x2)}" '
            f'y2="{number(y2)}"/>',
            hover,
            mark,
        )

    def polyline(
        self,
        points: Sequence[tuple[float, float]],
        style: str,
        *,
        hover: str | None = None,
        colour: str = "",
    ) -> None:
        text = " ".join(f"{number(x)},{number(y)}" for x, y in points)
        own = f' style="{colour}"' if colour else ""
        self._add(f'<polyline class="{style}" points="{text}"{own}/>', hover, True)

    def path(
        self, d: str, style: str, *, hover: str | None = None, mark: bool = True, colour: str = ""
    ) -> None:
        own = f' style="{colour}"' if colour else ""
        self._add(f'<path class="{style}" d="{d}"{own}/>', hover, mark)

    def circle(
        self,
        x: float,
        y: float,
        r: float,
        style: str,
        *,
        hover: str | None = None,
        colour: str = "",
    ) -> None:
        own = f' style="{colour}"' if colour else ""
        self._add(
            f'<circle class="{style}" cx="{number(x)}" cy="{number(y)}" r="{number(r)}"{own}/>',
            hover,
            True,
        )

    def text(
        self, x: float, y: float, text: object, style: str = "t", *,
        anchor: str = "start", turn: float = 0.0, hover: str | None = None,
    ) -> None:  # fmt: skip
        turned = f' transform="rotate({number(turn)} {number(x)} {number(y)})"' if turn else ""
        title = f"<title>{escaped(hover)}</title>" if hover else ""
        self.parts.append(
            f'<text class="{style}" x="{number(x)}" y="{number(y)}" text-anchor="{anchor}"'
            f"{turned}>{escaped(text)}{title}</text>"
        )

    def __str__(self) -> str:
        if not self.marks:
            raise ValueError(f"svg: the plot {self.title!r} is empty")
        data = "".join(f' data-{k}="{escaped(v)}"' for k, v in self.data.items())
        title = escaped(self.title)
        return (
            f'<svg class="plot {self.kind}" viewBox="0 0 {number(self.width)} '
            f'{number(self.height)}" role="img" aria-label="{title}"{data}>'
            f"{''.join(self.parts)}</svg>"
        )


def clipped_name(name: str, characters: int) -> str:
    """Shorten a module path from the left, because its end says more than its beginning."""
    return name if len(name) <= characters else "…" + name[-(characters - 1) :]
