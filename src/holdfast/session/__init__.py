"""A model, its data and the threat they are held against: opened once, for every verb."""

from holdfast.session.opening import open_session
from holdfast.session.session import Session
from holdfast.session.spec import DataLike, ModelLike, ModelSpec, Surrogates

__all__ = ["DataLike", "ModelLike", "ModelSpec", "Session", "Surrogates", "open_session"]
