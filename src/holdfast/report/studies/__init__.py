"""Pages of studies: one HTML file each."""

from holdfast.report.studies.page import page

__all__ = ["page"]
