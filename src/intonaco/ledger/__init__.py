"""The ledger: the truth about releases, updates, rollouts, and who decided what."""

from intonaco.ledger.store import Command, Effect, EffectStatus, Ledger, Transaction

__all__ = ["Command", "Effect", "EffectStatus", "Ledger", "Transaction"]
