"""The work itself: training, map making, mask making, segmentation, and how they show progress."""
