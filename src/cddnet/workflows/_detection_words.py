"""What rows of detectability say: figures, and a sentence where PSNR rises alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cddnet.metrics.detectability import Estimate
from cddnet.workflows._evaluation import Finding, Interval
from cddnet.workflows._observer import LOW_DOSE, LesionRow

# A gain of less than this share of d', that of a tenth more dose, counts as none.
_LEAST_GAIN = 0.05


def statement(
    name: str, psnr_gain_db: float, *, low_dose: Estimate, d_prime: Estimate, change: Estimate
) -> str | None:
    """What to say where PSNR rises over the low dose and d' is not seen to: None otherwise.

    Parameters: name of the row and its lesion; d' of both; change: d' less that of the low dose,
    with its own interval, which is the narrower where both were seen under the same noise.
    A rise counts where its interval lies above 5 % of d'; a fall that is certain is called one.
    """
    if not psnr_gain_db > 0 or change.low > _LEAST_GAIN * low_dose.value:
        return None
    verdict = "down" if change.high < 0 else "not"
    return (
        f"PSNR up, detectability {verdict}: {name} gains {psnr_gain_db:.2f} dB over the low dose, "
        f"d' is {_text(d_prime)} against {_text(low_dose)} (change {_text(change, sign='+')})"
    )


def statements(rows: Sequence[LesionRow], psnr_gain_db: Mapping[str, float]) -> tuple[str, ...]:
    """A sentence for each row and lesion that deserves one; psnr_gain_db: row -> gain."""
    low = {row.lesion: row.detection.d_prime for row in rows if row.row == LOW_DOSE}
    said = (
        statement(
            f"{row.row}, {row.lesion.described}",
            psnr_gain_db[row.row],
            low_dose=low[row.lesion],
            d_prime=row.detection.d_prime,
            change=row.change,
        )
        for row in rows
        if row.row in psnr_gain_db and row.row != LOW_DOSE
    )
    return tuple(text for text in said if text)


def findings(rows: Sequence[LesionRow]) -> tuple[Finding, ...]:
    """Figures of the rows for an evaluation; their intervals are those named in `within`."""
    return tuple(
        Finding(
            row=row.row,
            family="detectability",
            name=f"{name}, {row.lesion.described}",
            value=Interval(value=value.value, low=value.low, high=value.high),
            unit="",
            within=row.within,
        )
        for row in rows
        for name, value in (
            ("d' (LG-CHO)", row.detection.d_prime),
            ("d' over low dose (LG-CHO)", row.change),
            ("AUC (LG-CHO)", row.detection.auc),
            ("contrast recovery", row.recovery),
        )
        if row.row != LOW_DOSE or name != "d' over low dose (LG-CHO)"
    )


def _text(estimate: Estimate, *, sign: str = "") -> str:
    value, low, high = (format(number, f"{sign}.2f") for number in estimate)
    return f"{value} [{low}, {high}]"
