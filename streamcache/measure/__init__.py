"""From a model, a text and a configuration to a record.

What the gate uses of it (pairs, memory, student) needs the standard library alone; a measurement
needs the extra.
"""
