"""Methods of alignment: the only place that imports TRL."""
