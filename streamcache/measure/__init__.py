"""From a model, a text and a configuration to a record."""

from streamcache.extras import require

require("measure", "streamcache.measure")
