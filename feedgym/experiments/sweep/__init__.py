"""A sweep: Ray Tune draws options of a preset and judges each draw by users or items that were held out."""
