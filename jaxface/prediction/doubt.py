"""What is added to answers where they are asked how sure they are: sets, withheld answers, and which side of a threshold an age is on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from jaxface.data.shares import digits
from jaxface.data.tasks import Task, known
from jaxface.errors import UserError
from jaxface.evaluation.trust import Abstention, Caution, Sets, Threshold, chance_of, threshold_task
from jaxface.runs.validation_answers import require_validation

Json = dict[str, Any]
SIDES = {"above": "at least {:g}", "below": "below {:g}", "unsure": "unsure"}
"""A decision about a threshold in words."""


class Doubt:
    """The sets, confidences and threshold of a run, fitted on its validation records.

    Raises UserError if it keeps no answers on those, if a task has no label there, or no task is an age where one is asked for.
    """

    def __init__(self, run: Path, model: str, tasks: Sequence[Task], caution: Caution) -> None:
        self.caution = caution
        validation = require_validation(run, model)
        never = [task.name for task in tasks if not known(validation.labels[task.name]).any()]
        if never:
            raise UserError(f"{run}: no validation record has a label of {', '.join(never)}: nothing to fit on")
        of_classes = [task for task in tasks if task.classes]
        coverage, errors, at = caution.coverage, caution.most_errors, caution.threshold_age
        if errors is not None and not of_classes:
            raise UserError(f"most_errors {errors}: it has no effect, no task of {run} has classes: leave it out")
        self.sets = {} if coverage is None else {task.name: Sets.fit(validation, task, coverage) for task in tasks}
        self.held = {} if errors is None else {task.name: Abstention.fit(validation, task, errors) for task in of_classes}
        self.aged = None if at is None else threshold_task(tuple(tasks))
        self.threshold = None if self.aged is None else Threshold.fit(validation, self.aged, float(at or 0), caution.at_most)

    def add(self, task: Task, answer: Json, shares: np.ndarray) -> Json:
        """An answer with what it is asked for, from its shares `[W]`."""
        if task.name in self.sets:
            answer["set"] = task.of.in_set(task, shares, self.sets[task.name].limit)
        if task.name in self.held:
            answer["abstains"] = bool(task.of.confidence(task, shares[None])[0] < self.held[task.name].least)
        if self.threshold is not None and self.aged == task:
            chance = chance_of(task, shares[None], self.threshold.at, self.threshold.residuals)
            decision = SIDES[str(self.threshold.decisions(chance)[0])].format(self.threshold.at)
            answer["at_least"] = {"threshold": self.threshold.at, "probability": digits(chance[0]), "decision": decision}
        return answer

    def about(self) -> Json:
        """What a reader of the answers needs to know."""
        return {"caution": asdict(self.caution) | {"age": self.aged.name if self.aged else None}}


def columns(about: Mapping[str, Any], task: Task) -> dict[str, type]:
    """Further columns of a task in a table of answers."""
    asked = about.get("caution", {})
    found: dict[str, type] = {f"{task.name}_set": str} if asked.get("coverage") else {}
    found |= {f"{task.name}_abstains": str} if asked.get("most_errors") and task.classes else {}
    if asked.get("age") == task.name:
        found |= {f"{task.name}_at_least": float, f"{task.name}_decision": str}
    return found


def cells(task: Task, answer: Json) -> Json:
    """What an answer says in those columns."""
    row: Json = {}
    if "set" in answer:
        joint = " to " if task.kind == "regression" else "; "
        endless = None in answer["set"]  # a range that too few validation records were there to fit
        row[f"{task.name}_set"] = "any number" if endless else joint.join(map(str, answer["set"]))
    if "abstains" in answer:
        row[f"{task.name}_abstains"] = "yes" if answer["abstains"] else "no"
    if "at_least" in answer:
        row |= {f"{task.name}_at_least": answer["at_least"]["probability"], f"{task.name}_decision": answer["at_least"]["decision"]}
    return row
