"""Data sets as their authors lay them out on disk: one file a data set, samples without pixels, no torch."""
