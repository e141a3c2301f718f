"""The ledger of teacher responses."""

from distillery.ledger.batches import Batches, SentBatch, SentRequest
from distillery.ledger.ledger import Ledger
from distillery.ledger.rows import Averages, LedgerRow, Spending

__all__ = ["Averages", "Batches", "Ledger", "LedgerRow", "SentBatch", "SentRequest", "Spending"]
