"""What one notebook needs beyond the other rooms: ablations, costs, islands, the field, the audit of claims; judge: what several share.

Uses every other room.
"""
