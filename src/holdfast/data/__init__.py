"""Data in: npz, csv, image folders and the embedded digits, each checked before it is believed."""

from holdfast.data.checks import check_data
from holdfast.data.dataset import Dataset
from holdfast.data.digits import load_digits
from holdfast.data.load import load_data
from holdfast.data.shards import ranges
from holdfast.data.table import Table

__all__ = ["Dataset", "Table", "check_data", "load_data", "load_digits", "ranges"]
