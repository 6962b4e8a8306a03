"""Names that the whole cluster shares. Imports nothing."""

from __future__ import annotations

NAMESPACE = "streamkv"
SUPERVISOR, STORE = "supervisor", "store"
ENCODE_POOL, PREFILL_POOL = "encode", "prefill"
"""Names of actors in that namespace; those of a pool have a number behind its name, `encode-0`."""

DECODE_ENCODE, PREFILL, ANSWER = "decode_encode", "prefill", "answer"
ROLES = (DECODE_ENCODE, PREFILL, ANSWER)
"""Ray resources that a node offers when these actors may run there; a single machine offers all three."""
ROLE_SHARE = 0.001
"""How much of a role's resource an actor takes: it chooses the node, it counts nothing."""
