"""The newest checkpoint of a run, read by Orbax alone."""

import orbax.checkpoint as ocp


def newest_state(folder):
    """The arrays of the state under their paths."""
    return ocp.PyTreeCheckpointer().restore(max((folder / "checkpoints").glob("save_*")) / "arrays")


def data_files(save):
    """The files of one save that hold its arrays."""
    return sorted(path for path in (save / "arrays").rglob("*") if path.is_file() and path.parent.name == "d")
