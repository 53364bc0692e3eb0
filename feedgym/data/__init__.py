"""Data that all parts of feedgym exchange: event logs, catalogues, batches and preferences."""

from feedgym.data.events import BEHAVIOURS, Catalog, EventLog, LoggedSessions

__all__ = ["BEHAVIOURS", "Catalog", "EventLog", "LoggedSessions"]
