"""Networks: timm classifiers, segmenters, and the taps that read what passes through them."""
