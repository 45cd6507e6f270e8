"""Files of a run: score maps, masks, manifests and provenance. Every file appears whole or not at all."""
