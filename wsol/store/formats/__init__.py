"""Files of annotation tools and of other training code: one file a format, written from masks."""

from __future__ import annotations

from wsol.registry import Registry
from wsol.store.formats.base import Format

FORMATS: Registry[type[Format]] = Registry("format", "wsol.store.formats", shared=("base",))
