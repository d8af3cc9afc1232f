"""Studies: one question about a model each, with its own page. Here is what the file of a study needs."""

from holdfast.studies.study import StageProgress as StageProgress
from holdfast.studies.study import Study as Study
from holdfast.studies.study import StudyResult as StudyResult
from holdfast.studies.study import module_of as module_of

__all__ = ["StageProgress", "Study", "StudyResult", "module_of"]
