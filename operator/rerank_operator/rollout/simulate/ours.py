"""The operator's own judge under simulation. It decides nothing itself: it asks what the operator asks."""

from collections.abc import Sequence

from rerank_operator.rollout.judge.judge import TOGETHER, Judge, Settings, Verdict, judge_golden
from rerank_operator.rollout.judge.windows import Window
from rerank_operator.rollout.simulate.policy import Outcome

INTERVAL, SPARSE_INTERVAL = 5.0, 60.0
"""Seconds between looks, and where so little comes that most looks would find nothing to compare."""

DEFAULT = Settings()


class Ours:
    """A golden set that shows too little lets no user's request to the canary."""

    def __init__(
        self, weights: Sequence[float], baseline: Window, horizon: float, settings: Settings = DEFAULT
    ) -> None:
        """``horizon`` changes nothing: a verdict is valid whenever it comes."""
        self._weights, self._baseline = weights, baseline
        self._settings = settings
        self._judge = Judge(weights, baseline, settings, golden=False)
        self._held = False
        self._reason = ""
        self._came = TOGETHER

    @property
    def interval(self) -> float:
        return INTERVAL if self._came >= TOGETHER else SPARSE_INTERVAL

    @property
    def weight(self) -> float:
        return 0.0 if self._held else self._judge.weight

    @property
    def reason(self) -> str:
        return self._reason

    def golden(self, stable: Sequence[float], canary: Sequence[float]) -> Outcome | None:
        self._judge = Judge(self._weights, self._baseline, self._settings, golden=True)
        verdict = judge_golden(stable, canary, self._settings)
        self._held = verdict.action == "hold"
        return self._outcome(verdict)

    def look(self, now: float, stable: Window, canary: Window) -> Outcome | None:
        self._came = len(stable.seconds) + len(canary.seconds)
        return None if self._held else self._outcome(self._judge.look(now, stable, canary))

    def _outcome(self, verdict: Verdict) -> Outcome | None:
        if verdict.action in ("rollback", "promote"):
            self._reason = verdict.reason
            return verdict.action
        return None
