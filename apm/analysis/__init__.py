"""From records to numbers, and from numbers to tables, figures and the report; `verify` holds them against the expected ones.

Uses every room but `experiments`. Offers `stats` (counting rules, intervals, tests), `numbers` (an estimate as it is, and the rows that
are kept of it), `tables` and `figures` (made, saved and shown), `publish` (one call for what a notebook makes), `text` (its sentences),
`report` and `verify`.
"""
