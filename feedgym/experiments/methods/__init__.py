"""Methods of alignment against each other, and what their options are worth: many alignments from one store."""
