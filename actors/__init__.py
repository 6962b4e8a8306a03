"""Ray shells around `streamkv`: placement, lifecycle, batching, queues and failure policy. No tensor maths.

Every class here is plain and runs without Ray; `actors.spawn` is the one place that makes Ray actors of them.
"""
