"""Check, before the first step, that the data supervises a run's losses: a term without truth is silently 0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from four_d.data.loading import DataConfig
from four_d.data.sources import Sources
from four_d.errors import UserError
from four_d.losses import LossConfig
from four_d.losses.supervision import TRUTHS, Need


def unsupervised(losses: Mapping[str, LossConfig], data: DataConfig, sources: Sources) -> list[str]:
    """One line for each term that some source cannot supervise, and for ``dual`` views of sources with one camera.

    UserError where no term of positive weight has its truth anywhere.
    """
    shares = {name: sources.having(loss.needs) for name, loss in losses.items()}
    if not any(loss.weight and any(shares[name].values()) for name, loss in losses.items()):
        lacking = "; ".join(f"{name} needs {_words(loss.needs)}" for name, loss in losses.items())
        raise UserError(
            f"no loss has its truth in data.sources ({lacking or 'losses is empty'}), so nothing would be learnt; add "
            f"a loss that the sources can teach, or a source that has what these need"
        )
    lines = [_line(name, losses[name].needs, having) for name, having in shares.items() if min(having.values()) < 1]
    alone = sources.of_one_camera() if data.views is not None and data.views.dual else []
    if alone:
        lines.append(
            f"note: data.views.dual has no effect on {', '.join(alone)}: no clip there has a second camera, so "
            f"pictures are compared with the example's own camera only"
        )
    return lines


def _line(name: str, needs: Sequence[Need], having: Mapping[str, float]) -> str:
    if not any(having.values()):
        return (
            f"warning: the loss {name} stays 0: no clip of data.sources has what it needs, {_words(needs)}; "
            f"add a source that does, or remove the loss"
        )
    parts = ", ".join(f"{_percent(share)} of {source}" for source, share in having.items())
    return f"note: the loss {name} needs {_words(needs)}, and learns from part of the clips: {parts}"


def _words(needs: Sequence[Need]) -> str:
    return " and ".join(TRUTHS[need].source for need in needs)


def _percent(share: float) -> str:
    """Format as whole percents, with 0 and 100 only for exactly none and all."""
    return f"{share:.0%}" if share in (0, 1) else f"{min(max(share, 0.01), 0.99):.0%}"
