"""Studies: the paper's analyses, and ours, as sweeps that can be stopped and go on (docs/study.md)."""
