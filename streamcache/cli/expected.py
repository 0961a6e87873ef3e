"""The errors a user can cause: their messages say what is wrong and what would be right."""

from streamcache.caches.padding import PaddingError
from streamcache.caches.probe import UnsupportedModelError
from streamcache.decoding.nll import NotFiniteError
from streamcache.decoding.onepass import OnePassUnsupported
from streamcache.decoding.text import TextError
from streamcache.extras import MissingExtra
from streamcache.inputs.corpora import CorpusError
from streamcache.inputs.models import ModelError
from streamcache.inputs.quantize import QuantizationError
from streamcache.measure.baseline import BaselineMismatch
from streamcache.measure.checked import RecordError
from streamcache.measure.diagnose import DiagnosisError
from streamcache.measure.sweep import WorkerError
from streamcache.policy import PolicyError

EXPECTED = (
    BaselineMismatch,
    CorpusError,
    DiagnosisError,
    MissingExtra,
    ModelError,
    NotFiniteError,
    OnePassUnsupported,
    PaddingError,
    PolicyError,
    QuantizationError,
    RecordError,
    TextError,
    UnsupportedModelError,
    WorkerError,
)
