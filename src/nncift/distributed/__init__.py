"""More than one process: work that falls into pieces, who does them, and what they leave for each other (docs/scale.md)."""
