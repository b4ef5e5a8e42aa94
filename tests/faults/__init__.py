"""Faults: kill everything at random under load, then hold the books against what clients and upstream saw.

`python -m tests.faults --seed N --seconds 240`; docs/faults.md says what is killed and what is checked.
"""
