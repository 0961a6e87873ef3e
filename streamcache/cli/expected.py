"""The errors a user can cause: their messages say what is wrong and what would be right."""

from streamcache.attach import PaddingError
from streamcache.baseline import BaselineMismatch
from streamcache.corpora import CorpusError
from streamcache.decode import NotFiniteError
from streamcache.diagnose import DiagnosisError
from streamcache.models import ModelError
from streamcache.onepass import OnePassUnsupported
from streamcache.policy import PolicyError
from streamcache.quantize import QuantizationError
from streamcache.records import RecordError
from streamcache.rotary import UnsupportedModelError
from streamcache.summary.plots import PlotsMissing

EXPECTED = (
    BaselineMismatch,
    CorpusError,
    DiagnosisError,
    ModelError,
    NotFiniteError,
    OnePassUnsupported,
    PaddingError,
    PlotsMissing,
    PolicyError,
    QuantizationError,
    RecordError,
    UnsupportedModelError,
)
