"""The stages of a run: each reads what is finished, computes what is missing, and leaves files (design.md).

A stage's fingerprint is a hash of what it depends on, so that an extended run repeats only what has to change: labels
are added chunk by chunk, vectors come from the cache, and the student is trained again.
"""

from nncift.stages.check import NOTES, check_labelled, prepare_all, usable_rows
from nncift.stages.context import RunContext, encoder_of, probe_of
from nncift.stages.embed import embed, embed_rows, probe_rows, probed, token_counts
from nncift.stages.label import TEACHER, finished_groups, label, plan_labels

__all__ = [
    "NOTES",
    "TEACHER",
    "RunContext",
    "check_labelled",
    "embed",
    "embed_rows",
    "encoder_of",
    "finished_groups",
    "label",
    "plan_labels",
    "prepare_all",
    "probe_of",
    "probe_rows",
    "probed",
    "token_counts",
    "usable_rows",
]
