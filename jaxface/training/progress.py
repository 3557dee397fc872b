"""What a run remembers from step to step beside its arrays."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from jaxface.errors import UserError
from jaxface.runs.config import Config
from jaxface.training.optimizer import EarlyStop, Plateau


@dataclass
class Progress:
    """What a run remembers beside its arrays; a checkpoint keeps it as JSON.

    Attributes:
      plateau: the schedule's state.
      early: the early stop's.
      due: whether an epoch's steps are done and its validation is not.
      unreadable: records that were drawn and could not be read, with why.
      identity: hashes of the base weights and the records that the run stands on; empty in checkpoints of earlier versions.
    """

    plateau: Plateau
    early: EarlyStop
    due: bool = False
    unreadable: set[str] = field(default_factory=set)
    identity: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def start(cls, config: Config) -> Progress:
        """Before the first step."""
        options = config.optimizer
        plateau = Plateau(options.plateau_factor, options.plateau_patience)
        return cls(plateau, EarlyStop(options.early_stop, by_loss=len(config.tasks) == 1))

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Progress:
        """Of what `to_json` gave. Raises UserError for what another version wrote that this one cannot take up."""
        try:
            plateau, early = Plateau(**value["plateau"]), EarlyStop(**value["early"])
            others = {name: value[name] for name in value.keys() - {"plateau", "early", "unreadable"}}
            return cls(plateau=plateau, early=early, unreadable=set(value.get("unreadable", ())), **others)
        except (TypeError, KeyError) as error:
            raise UserError(
                f"the saved state has other fields than this version knows ({error}): go on with the version that it was saved by"
            ) from None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"unreadable": sorted(self.unreadable)}
