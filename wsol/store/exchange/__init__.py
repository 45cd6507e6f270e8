"""Files of the projects that others started from: irn, PSA, CLIP-ES and the WSOL benchmark, read and written."""

from __future__ import annotations

from wsol.registry import Registry
from wsol.store.exchange.base import Project

PROJECTS: Registry[type[Project]] = Registry("project", "wsol.store.exchange", shared=("base",))
