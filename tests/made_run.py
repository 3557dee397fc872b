"""A run folder as the trainer leaves it, small."""

import json

import numpy as np
from made_answers import TASKS, answers

from jaxface.evaluation.summary import summarize
from jaxface.runs.predictions_file import write_predictions


def write_made_run(parent, folder="small", seed=0, source="drawn", tasks=TASKS, **configuration):
    """Writes a whole run folder below `parent`: answers, metrics, baselines and faces that were made up."""
    name, folder = folder, parent / folder
    folder.mkdir(parents=True)
    config = {"name": name, "tasks": [task.name for task in tasks], "method": {"name": "dora"}, "encoder": {"variant": "PE-Test"}}
    config |= {"data": {"sets": [], "drawn": {"style": "charcoal"}}, "balancing": "uw"}
    (folder / "config.json").write_text(json.dumps(config | configuration))
    before, after = (answers(skill, seed, source=source, tasks=tasks) for skill in (0.5, 2.5))
    write_predictions(folder / "predictions.parquet", after)
    write_predictions(folder / "predictions_before.parquet", before)
    rows = [{"step": 0, "epoch": 0, "split": "before", "time": 0.5, **summarize(before)}]
    for step in range(1, 31):
        per_task = {f"{key}/{task.name}": 1 / step for key in ("loss", "weight") for task in tasks}
        rows.append(
            {"step": step, "epoch": step // 10, "split": "train", "time": step, "loss": 3 / step, "images_per_second": 70, **per_task}
        )
        if step % 10 == 0:
            rows.append({"step": step, "epoch": step // 10, "split": "validation", "time": step, "loss": 3 / step, **summarize(after)})
    rows.append({"step": 30, "epoch": 3, "split": "test", "time": 31, **summarize(after)})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "baselines.json").write_text(json.dumps({"majority": {"age": 0.2}, "pixels": {"age": 0.31, "gender": 0.62}}))
    (folder / "summary.json").write_text(json.dumps({"parameters": {"trained": 1234567}}))
    images = np.random.default_rng(seed).integers(0, 255, (30, 24, 24, 3)).astype(np.uint8)
    np.savez(folder / "faces.npz", id=after.id[:30].astype(str), image=images)
    return folder
