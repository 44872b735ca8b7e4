"""The ledger: the truth about releases, updates, rollouts, and who decided what."""

from intonaco.ledger.rows import Command, Effect, EffectStatus, Tenure
from intonaco.ledger.store import Ledger
from intonaco.ledger.transaction import Transaction

__all__ = ["Command", "Effect", "EffectStatus", "Ledger", "Tenure", "Transaction"]
