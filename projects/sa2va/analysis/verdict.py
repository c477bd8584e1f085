"""Whether a run has converged: a verdict, the numbers it rests on, and what to do.

The rules, in this order; their constants are below, and docs/report.md states them:

1. *diverged*: a loss is not finite, or the smoothed loss gave back more than half of what it had
   gained.
2. *too short to say*: fewer than :data:`LEAST_POINTS` logged losses.
3. *over-fitting*: after the best validation at least :data:`PATIENCE` more, the last of them lower
   by more than :data:`METRIC_STEP`, while the training loss fell on (by the rule of 4).
4. *still improving*: the loss falls over the last fifth (the interval of its slope is below 0, and
   the fall is more than :data:`LOSS_STEP` of the loss), or the best validation of the last fifth
   is above all earlier ones by more than :data:`METRIC_STEP`.
5. *not learning*: the smoothed loss ends less than :data:`LEAST_GAIN` below its start, or no
   validation was above 0.
6. *converged*: the loss is flat over the last fifth, and the interval of its slope is narrow
   enough to say so.
7. *unclear*: anything else.

The slope is Theil's and Sen's, the median of the slopes of all pairs of points, with the interval
from Kendall's tau (Sen, JASA 63:1379, 1968): a few spikes do not move it. It is taken over the
logged values, which are means over ``log_processor.window_size`` iterations: to smooth them once
more would make neighbours alike and the interval too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.stats import theilslopes

from .logs import TrainingLog

TAIL = 0.2
"""Share of the run over which the slope is taken."""
LEAST_POINTS = 20
LEAST_TAIL = 6
"""The last fifth is lengthened to as many points; fewer than five have no 95 % interval."""
LOSS_STEP = 0.02
"""Relative change of the loss over the last fifth that counts."""
METRIC_STEP = 0.01
"""Change of the validation metric that counts (Dice and the like, 0 to 1)."""
PATIENCE = 3
"""Validations without a new best before they mean anything."""
LEAST_GAIN = 0.05
GIVEN_BACK = 0.5
SPIKE = 6.0
"""Median absolute deviations above the smoothed loss that make a spike; 1.5 times the loss too."""
ENDED = 0.02
"""Share of the highest learning rate below which the schedule has ended."""


@dataclass(frozen=True)
class Trend:
    """The loss at the end of a run: ``change`` relative to its median, with a 95 % interval."""

    change: float
    low: float
    high: float
    points: int
    first: float
    last: float

    @property
    def falls(self) -> bool:
        """Surely, and by an amount that counts."""
        return self.high < 0 and self.change < -LOSS_STEP

    @property
    def is_flat(self) -> bool:
        """Whatever it does, it is little: the whole interval lies within twice the step."""
        return self.low >= -2 * LOSS_STEP and self.high <= 2 * LOSS_STEP


@dataclass(frozen=True)
class Validation:
    """A validation metric over the run; values are defined ones."""

    metric: str
    best: float
    best_step: float
    last: float
    last_step: float
    count: int
    since: int
    gain: float
    """Best of the last fifth above the best before it; ``nan`` where one is empty."""


@dataclass(frozen=True)
class Verdict:
    """What is to be said of a run.

    Attributes:
        word: one of those of the module's docstring.
        reasons: sentences with numbers, the deciding one first.
        advice: what to do; may be empty.
        trend: of the loss, None where there are too few points.
        validation: None where nothing was validated.
        spikes: iterations at which the loss jumped up.
        lr_share: last learning rate as a share of the highest; ``nan`` where not logged.
    """

    word: str
    reasons: list[str]
    advice: str = ""
    trend: Trend | None = None
    validation: Validation | None = None
    spikes: list[int] = field(default_factory=list)
    lr_share: float = math.nan


def smooth(values: np.ndarray, width: int | None = None) -> np.ndarray:
    """Centred running median of ``values`` [N], shorter at the ends; ``nan`` is left out.

    Args:
        values: float64 [N].
        width: in points; a twentieth of them, from 3, by default.
    """
    half = (width or max(3, len(values) // 20)) // 2
    windows = [values[max(0, k - half) : k + half + 1] for k in range(len(values))]
    medians = [np.median(w[~np.isnan(w)]) if (~np.isnan(w)).any() else math.nan for w in windows]
    return np.array(medians, float)


def judge(log: TrainingLog, metric: str = "vessel/dice", lower_is_better: bool = False) -> Verdict:
    """Judges a run.

    Args:
        log: what it logged.
        metric: of validation; what is not logged is left out.
        lower_is_better: of ``metric``.
    """
    steps, loss = log.curve("loss")
    finite = np.isfinite(loss)
    line = smooth(np.where(finite, loss, math.nan))
    spikes = find_spikes(steps, loss, line)
    validation = _validation(log, metric, lower_is_better)
    shared = {"validation": validation, "spikes": spikes, "lr_share": _lr_share(log)}
    if not finite.all():
        at = int(steps[~finite][0])
        reason = f"the loss is not finite at {(~finite).sum()} logged iterations, first at {at}"
        return Verdict("diverged", [reason], _LOWER_RATE, **shared)
    if len(loss) < LEAST_POINTS:
        reason = f"{len(loss)} losses were logged; {LEAST_POINTS} are needed for a verdict"
        advice = "train longer, or log more often: default_hooks.logger.interval"
        return Verdict("too short to say", [reason], advice, **shared)
    trend = _trend(steps, loss, steps[-1] - TAIL * (steps[-1] - steps[0]))
    shared["trend"] = trend
    first, best, last = line[0], line.min(), line[-1]
    facts = [_about(trend), *_about_validation(validation), *_about_rest(shared, spikes)]
    if last - best > GIVEN_BACK * (first - best) and last > best * (1 + LEAST_GAIN):
        at = int(steps[line.argmin()])
        reason = (
            f"the smoothed loss fell from {first:.4g} to {best:.4g} (iteration {at}) and rose "
            f"again to {last:.4g}"
        )
        return Verdict("diverged", [reason, *facts], _LOWER_RATE, **shared)
    if validation is not None and _has_fallen(validation, lower_is_better):
        since = _trend(steps, loss, validation.best_step)
    else:
        since = None
    if since is not None and since.falls:
        reason = (
            f"since the best {metric} {validation.best:.4f} (iteration "
            f"{validation.best_step:.0f}) it went to {validation.last:.4f}, while the training "
            f"loss changed by {since.change:+.1%} [{since.low:+.1%}, {since.high:+.1%}]"
        )
        advice = (
            "use best_*.pth; more frames, stronger augmentation, fewer trained parameters or "
            "fewer iterations"
        )
        return Verdict("over-fitting", [reason, *facts], advice, **shared)
    better = validation is not None and validation.gain > METRIC_STEP
    if trend.falls or better:
        return Verdict("still improving", facts, _advice_to_go_on(shared["lr_share"]), **shared)
    nothing = validation is not None and validation.best <= 0 and not lower_is_better
    if last > first * (1 - LEAST_GAIN) or nothing:
        reason = f"the smoothed loss went from {first:.4g} to {last:.4g}"
        reason += f", and no {metric} was above 0" if nothing else ""
        advice = "see 'loss does not fall' in docs/errors.md"
        return Verdict("not learning", [reason, *facts], advice, **shared)
    if trend.is_flat:
        fell = validation is not None and _drop(validation, lower_is_better) > METRIC_STEP
        advice = "use best_*.pth: validation has fallen since" if fell else ""
        return Verdict("converged", facts, advice, **shared)
    advice = "the loss is too noisy for a verdict: rely on validation, or on larger batches"
    return Verdict("unclear", facts, advice, **shared)


_LOWER_RATE = (
    "lower optim_wrapper.optimizer.lr, lengthen the warm-up, or clip harder "
    "(optim_wrapper.clip_grad.max_norm)"
)


def find_spikes(steps: np.ndarray, loss: np.ndarray, line: np.ndarray) -> list[int]:
    """Iterations whose loss stands far above the smoothed one."""
    known = np.isfinite(loss) & np.isfinite(line)
    if known.sum() < 3:
        return []
    above = loss[known] - line[known]
    scale = np.median(np.abs(above))
    high = (above > SPIKE * scale) & (loss[known] > 1.5 * np.abs(line[known]))
    return [int(step) for step in steps[known][high]]


def _trend(steps: np.ndarray, loss: np.ndarray, begin: float) -> Trend:
    """From iteration ``begin`` on, or earlier where that leaves too few points."""
    tail = steps >= min(begin, steps[-LEAST_TAIL])
    slope, _, low, high = theilslopes(loss[tail], steps[tail], alpha=0.95)
    length = steps[-1] - steps[tail][0]
    scale = length / max(abs(float(np.median(loss[tail]))), 1e-12)
    return Trend(
        *(float(value * scale) for value in (slope, low, high)),
        points=int(tail.sum()),
        first=float(steps[tail][0]),
        last=float(steps[-1]),
    )


def _validation(log: TrainingLog, metric: str, lower_is_better: bool) -> Validation | None:
    steps, values = log.curve(metric, validation=True)
    known = np.isfinite(values)
    if not known.any():
        return None
    steps, values = steps[known], values[known]
    sign = -1.0 if lower_is_better else 1.0
    at = int((sign * values).argmax())
    last_fifth = steps > (1 - TAIL) * log.train[-1]["step"]
    recent, earlier = sign * values[last_fifth], sign * values[~last_fifth]
    return Validation(
        metric=metric,
        best=float(values[at]),
        best_step=float(steps[at]),
        last=float(values[-1]),
        last_step=float(steps[-1]),
        count=len(values),
        since=len(values) - 1 - at,
        gain=float(recent.max() - earlier.max()) if len(earlier) and len(recent) else math.nan,
    )


def _has_fallen(found: Validation, lower: bool) -> bool:
    """Whether validation is past its best, by time and by an amount that counts."""
    return found.since >= PATIENCE and _drop(found, lower) > METRIC_STEP


def _drop(found: Validation, lower: bool) -> float:
    return (found.last - found.best) if lower else (found.best - found.last)


def _lr_share(log: TrainingLog) -> float:
    _, rates = log.curve("lr")
    return float(rates[-1] / rates.max()) if len(rates) and rates.max() > 0 else math.nan


def _about(trend: Trend) -> str:
    return (
        f"training loss at the end (iterations {trend.first:.0f} to "
        f"{trend.last:.0f}, {trend.points} points): {trend.change:+.1%} "
        f"[{trend.low:+.1%}, {trend.high:+.1%}]"
    )


def _about_validation(found: Validation | None) -> list[str]:
    if found is None:
        return []
    text = (
        f"best {found.metric} {found.best:.4f} at iteration {found.best_step:.0f}, "
        f"{found.since} validations before the last ({found.last:.4f}; {found.count} in all)"
    )
    return [text]


def _about_rest(shared: dict, spikes: Sequence[int]) -> list[str]:
    share = shared["lr_share"]
    texts = [] if math.isnan(share) else [f"learning rate: {share:.1%} of its highest at the end"]
    if spikes:
        texts.append(f"{len(spikes)} spikes of the loss, the last at iteration {spikes[-1]}")
    return texts


def _advice_to_go_on(lr_share: float) -> str:
    if lr_share <= ENDED:
        return (
            "train longer: the learning rate reached its end while the run still improved; set "
            "train_cfg.max_iters and the ends of param_scheduler higher, and start anew"
        )
    return "train on: the schedule has not ended"
