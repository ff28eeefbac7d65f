"""What the live page shows beside the metrics: the pipeline's outline, the newest bottleneck, and a
few rejected rows for each reason.

The loop writes, the service's thread reads. What is noted is replaced and never edited, so that
nothing is locked; and it is bounded, however long the run and whatever its rows hold.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from engine.observing.logs import plain_value, redact
from engine.observing.metrics import safe_label
from engine.running.bottleneck import Bottleneck
from engine.types import PARTITION, POSITION, Rejects

SAMPLES = 3
"""The rejected rows kept for each stage and reason, the newest."""
SAMPLE_SECONDS = 1.0
"""The least seconds between two samples of a reason: its rows may come in every batch."""
MAX_REASONS = 32
"""The pairs of stage and reason with samples; all of them are counted in the metrics."""
MAX_TEXT = 300
"""The most characters of a text that are kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectedRow:
    """A rejected row, for people.

    Attributes:
        at: when it was rejected, in seconds since the epoch.
        detail: why.
        value: the row as text.
    """

    at: float
    partition: str
    position: int
    detail: str
    value: str


class Notes:
    """Keeps what the page shows beside the metrics.

    Args:
        outline: what the pipeline reads, does and writes, as plain values.
    """

    def __init__(
        self, outline: Mapping[str, Any] | None = None, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._outline = plain_value(outline or {})
        self._clock = clock
        self._bottleneck: dict[str, Any] | None = None
        self._samples: dict[tuple[str, str], tuple[RejectedRow, ...]] = {}
        self._lag_units: dict[str, str] = {}

    def diagnosed(self, bottleneck: Bottleneck) -> None:
        """Note the newest bottleneck."""
        self._bottleneck = {"at": self._clock(), "text": str(bottleneck), **asdict(bottleneck)}

    def lags(self, units: Mapping[str, str]) -> None:
        """Note what the lag of each partition counts: records, rows or bytes."""
        self._lag_units = dict(units)

    def rejected(self, reject: Rejects) -> None:
        """Note the first of these rows, if no row of this reason was noted just now."""
        key, now = (safe_label(reject.stage), safe_label(reject.reason)), self._clock()
        before = self._samples.get(key, ())
        if before and now - before[0].at < SAMPLE_SECONDS:
            return
        if not before and len(self._samples) >= MAX_REASONS:
            return
        rows = reject.rows.select(PARTITION, POSITION, "detail", "value").head(SAMPLES).rows()
        new = tuple(
            RejectedRow(
                at=now,
                partition=_short(partition),
                position=position,
                detail=_short(detail),
                value=_short(value),
            )
            for partition, position, detail, value in rows
        )
        self._samples = {**self._samples, key: (*new, *before)[:SAMPLES]}

    def facts(self, samples: bool) -> dict[str, Any]:
        """Return the notes as JSON types, without secrets.

        Args:
            samples: whether to show rejected rows.
        """
        rows = [
            {"stage": stage, "reason": reason, **asdict(row)}
            for (stage, reason), kept in self._samples.items()
            for row in kept
        ]
        return {
            "outline": self._outline,
            "bottleneck": plain_value(self._bottleneck),
            "lag_units": plain_value(self._lag_units),
            "samples": plain_value(rows) if samples else None,
        }


def _short(text: str | None) -> str:
    """Return the beginning of a text, without secrets: cut in two, none would be recognised."""
    text = redact((text or "")[: 10 * MAX_TEXT])
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]} ..."


__all__ = ["Notes", "RejectedRow"]
