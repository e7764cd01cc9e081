"""Validation reports as pages for people. Nothing here knows cctbx."""

from bxmesh.server.geometry.report.page import Subject, page

__all__ = ["Subject", "page"]
