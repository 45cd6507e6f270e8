"""Hints that name the nearest choice."""

from __future__ import annotations

from wsol.errors import did_you_mean


def test_the_nearest_choice_or_a_short_list() -> None:
    assert did_you_mean("gradcm", ["gradcam", "getam"]) == "did you mean 'gradcam'?"
    assert did_you_mean("xyz", ["b", "a"]) == "choose from a, b"
    assert did_you_mean("xyz", []) == "there is nothing to choose from"


def test_a_long_list_is_cut() -> None:
    hint = did_you_mean("xyz", [f"layer{at:03d}" for at in range(300)])
    assert hint.startswith("choose from layer000, layer001")
    assert hint.endswith("... (300 in all)")
    assert len(hint) < 300
