"""The report: one self-contained page of runs in the thesis's tables and figures."""
