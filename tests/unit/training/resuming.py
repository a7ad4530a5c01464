"""What shows that a training went on from a checkpoint: begun anew with the same seed, it would end the same."""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from genret.training.callbacks import Progress


@dataclass
class Kept:
    """Copies of a training's checkpoints, in its order.

    Attributes:
        folder: Where they are kept.
        checkpoints: Their folders.
    """

    folder: Path
    checkpoints: list[Path] = field(default_factory=list)

    @property
    def progress(self) -> Progress:
        """Keeps each checkpoint."""
        return Progress(on_checkpoint=self._keep)

    def _keep(self, checkpoint: Path) -> None:
        self.checkpoints.append(Path(shutil.copytree(checkpoint, self.folder / f"kept-{len(self.checkpoints)}")))


@dataclass
class Steps:
    """The steps that a training logs while it runs, which are all that it does where there are few."""

    done: list[int] = field(default_factory=list)

    @property
    def progress(self) -> Progress:
        """Notes each step."""
        return Progress(on_log=lambda step, steps, values: self.done.append(step))


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was written."""
    return int(json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))["global_step"])
