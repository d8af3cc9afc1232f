"""Reports of an audit: one page for people, JSON, SARIF and JUnit for machines, a table for the terminal."""

from holdfast.report.files import write
from holdfast.report.pictures import Picture

__all__ = ["Picture", "write"]
