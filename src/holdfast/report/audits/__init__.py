"""Reports of an audit: one page for people, JSON, SARIF and JUnit for machines, a table for the terminal."""

from holdfast.report.audits.files import write
from holdfast.report.audits.pictures import Picture

__all__ = ["Picture", "write"]
