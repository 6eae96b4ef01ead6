"""More than one process: work that falls into tasks, who does them, and what they leave for each other (docs/scale.md)."""
