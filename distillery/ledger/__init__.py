"""The ledger of teacher responses."""

from distillery.ledger.ledger import Ledger
from distillery.ledger.rows import Averages, LedgerRow, Spending

__all__ = ["Averages", "Ledger", "LedgerRow", "Spending"]
