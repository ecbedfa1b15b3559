"""From records to numbers, and from numbers to tables, figures and the report; `verify` holds them against the expected ones.

Uses every room but `experiments`.
"""
